"""Settings from presets, TOML files, `--set` and flags; every problem is reported at once."""

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tfm_cli.config.presets import PRESETS, SAMPLE, SAMPLE_RUN
from tfm_cli.config.settings import SECTIONS, RunConfig, Value, settings_before
from tfm_cli.config.validation import Problems, from_mapping, nearest, shown
from tfm_cli.errors import ConfigError

_MAX_TOML_BYTES = 1 << 20
_MAX_SETTINGS = 1000  # each that is not known is compared with all that are
_MAX_KEY_PARTS = 8  # of settings there are two
# One that is not ended goes as far as it may, so that no character is looked at twice.
_STRING_OR_COMMENT = re.compile(
    r"""
    "{3} (?: \\. | [^\\] )*? (?: "{3} | \Z )
    | '{3} .*? (?: '{3} | \Z )
    | " (?: \\. | [^"\\\n] )*+ "?
    | ' [^'\n]*+ '?
    | \# [^\n]*+
    """,
    re.DOTALL | re.VERBOSE,
)
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{_MAX_KEY_PARTS}}}")

Overrides = Mapping[str, Mapping[str, object]]


def resolve(
    *,
    preset: str | None = None,
    file: Path | None = None,
    assignments: Iterable[str] = (),
    flags: Overrides | None = None,
    pretrained: Callable[[str], Overrides] | None = None,
    begun: RunConfig | None = None,
) -> RunConfig:
    """The run's settings: built-in default < preset < file < `--set` < flag.

    Args:
        preset: name of a preset; without it the file's `preset`, else `tiny`.
        file: a TOML file with one table for each section.
        assignments: `section.name=value`, as `--set` takes them.
        flags: values by section and name, already of the right type; None where not given.
        pretrained: looks up what the model to start from was made with, by its directory; that
            replaces the preset's values.
        begun: the settings of the run that is to be resumed; one that had another default then
            keeps it.

    Raises:
        ConfigError: names every unknown setting with its nearest neighbour, every wrong type and
            every broken bound.
    """
    problems = Problems()
    from_file = read_toml(file) if file else {}
    named_in_file = from_file.pop("preset", None)
    chosen = preset or (named_in_file if named_in_file is not None else "tiny")
    if not isinstance(chosen, str) or chosen not in (*PRESETS, SAMPLE):
        problems.add("preset", f"unknown preset {shown(chosen)}{nearest(str(chosen), PRESETS)}")
        chosen = "tiny"
    given: list[Mapping[str, Any]] = [
        from_file,
        _parse_assignments(assignments, problems),
        flags or {},
    ]
    has_corpus = any(_names_a_corpus(layer) for layer in given)
    if has_corpus and SAMPLE in (chosen, named_in_file):
        place = "`--preset`" if preset == SAMPLE else str(file)
        raise ConfigError(
            f"{place}: holds the recipe of the sample corpus (preset `{SAMPLE}`), but other "
            "training text is named",
            hint="name the text when you write the file: "
            "`tfm train -s SOURCE -t TARGET --dump-config > run.toml`",
        )
    if chosen in ("tiny", SAMPLE) and not has_corpus:
        chosen, layers = SAMPLE, [PRESETS["tiny"], SAMPLE_RUN, *given]
    else:
        layers = [PRESETS[chosen], *given]
    if begun is not None:
        layers.insert(1, _kept_from(begun))
    directory = _merged(given, Problems())["training"].get("pretrained_model")
    if pretrained is not None and directory and isinstance(directory, str):
        layers.insert(1, pretrained(directory))
    merged = _merged(layers, problems)
    config = from_mapping({"preset": chosen, **merged}, problems)
    problems.raise_if_any()
    return config


def _kept_from(begun: RunConfig) -> Overrides:
    """Return the settings of a run that have the value which was built in before its setting."""
    return {
        section: {
            name: value
            for name, value in table.items()
            if getattr(getattr(begun, section), name) == value
        }
        for section, table in settings_before().items()
    }


def _merged(
    layers: Iterable[Mapping[str, Any]], problems: Problems
) -> dict[str, dict[str, object]]:
    """The layers' values by section and name; a later layer is the stronger one."""
    merged: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, values in layer.items():
            if section not in merged:
                problems.add(section, f"unknown section{nearest(section, SECTIONS)}")
            elif not isinstance(values, Mapping):
                problems.add(section, "must be a table of settings")
            else:
                merged[section].update({n: v for n, v in values.items() if v is not None})
    return merged


def _names_a_corpus(layer: Mapping[str, Any]) -> bool:
    data = layer.get("data")
    return isinstance(data, Mapping) and any(
        data.get(name) for name in ("source", "target", "pairs")
    )


def _parse_assignments(assignments: Iterable[str], problems: Problems) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        setting, equals, text = assignment.partition("=")
        section, dot, name = setting.strip().replace("-", "_").partition(".")
        if not equals or not dot:
            problems.add(f"--set {assignment}", "must be `section.name=value`")
            continue
        tables.setdefault(section, {})[name] = _parse_value(section, name, text)
    return tables


def _parse_value(section: str, name: str, text: str) -> object:
    """A value as TOML has it; what is no such value is a string: a shell needs no quotes then."""
    try:
        table = _parse_toml(f"value = {text}")
    except (ValueError, RecursionError):  # ValueError: also a number of too many digits
        return text
    kind = typing.get_type_hints(RunConfig).get(section)
    wanted = typing.get_type_hints(kind).get(name) if kind else None
    if len(table) > 1 or (
        wanted not in (None, bool, int, float) and not isinstance(table["value"], str | list)
    ):
        return text  # such as the duration 90, or a file that is called 2024
    return table["value"]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, is too large, or is no TOML; names file, line and column.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_TOML_BYTES + 1)
        if len(content) > _MAX_TOML_BYTES:
            raise ConfigError(
                f"{path}: has more than {_MAX_TOML_BYTES} bytes, which no settings have"
            )
        tables = _parse_toml(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise ConfigError(f"{path}: is no TOML: {error}") from error
    count = sum(len(table) if isinstance(table, dict) else 1 for table in tables.values())
    if max(count, len(tables)) > _MAX_SETTINGS:
        raise ConfigError(
            f"{path}: has {max(count, len(tables))} settings, wanted at most {_MAX_SETTINGS}"
        )
    return tables


def _parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a text; the memory for a key grows with the square of its parts.

    Raises:
        ValueError: it is no TOML, or a key has too many parts.
        RecursionError: it is nested too deeply.
    """
    keys = _STRING_OR_COMMENT.sub(lambda match: "s" + "\n" * match[0].count("\n"), text)
    if deep := _DEEP_KEY.search(keys):
        line = keys.count("\n", 0, deep.start()) + 1
        raise ValueError(f"a key of more than {_MAX_KEY_PARTS} parts (at line {line})")
    import tomllib  # here, since models have no TOML

    return tomllib.loads(text)


def write_toml(config: RunConfig) -> str:
    """The settings as TOML that `--config` reads back to the same settings."""
    lines = [f"preset = {json.dumps(config.preset)}"]
    for section, table in to_mapping(config).items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]"]
            lines += [f"{name} = {_toml_value(value)}" for name, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Value | list[str]) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return f"{value:.1f}"
    # JSON escapes strings as TOML does but for DEL, and writes lists and booleans alike.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """The settings as plain tables, lists and values, as `config.json` holds them."""
    tables = dataclasses.asdict(config)
    for section in SECTIONS:
        for name, value in tables[section].items():
            if isinstance(value, tuple):
                tables[section][name] = list(value)
    return tables


def changed_settings(old: RunConfig, new: RunConfig) -> list[str]:
    """What a resumed run may not change but does, each as `section.name: old → new`."""
    changes = []
    for section in SECTIONS:
        before, after = getattr(old, section), getattr(new, section)
        for field in dataclasses.fields(before):
            was, now = getattr(before, field.name), getattr(after, field.name)
            is_open = field.metadata["decided"] and now == "auto"
            if was != now and not (field.metadata["may_change"] or is_open):
                changes.append(f"{section}.{field.name}: {shown(was)} → {shown(now)}")
    return changes
