"""The settings of a run: their names, types, defaults and bounds, presets, and TOML files."""
