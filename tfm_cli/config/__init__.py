"""The settings of a run: names, types, defaults and bounds; presets; TOML files."""
