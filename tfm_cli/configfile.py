"""Settings from TOML files, `--set` and flags; every problem is reported at once."""

import dataclasses
import difflib
import json
import math
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tfm_cli.config import PRESETS, SAMPLE_RUN, SECTIONS, RunConfig, Value
from tfm_cli.errors import ConfigError

Overrides = Mapping[str, Mapping[str, object]]


class Problems:
    """Collects what is wrong with the settings, to say it all at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, place: str, what: str) -> None:
        """Note one problem of the setting or file called `place`."""
        self.lines.append(f"{place}: {what}")

    def raise_if_any(self) -> None:
        """Raise a ConfigError that lists every problem noted so far."""
        if self.lines:
            count = len(self.lines)
            title = f"the settings have {count} problem{'s' if count > 1 else ''}"
            raise ConfigError("\n  ".join([title, *self.lines]))


def resolve(
    *,
    preset: str | None = None,
    file: Path | None = None,
    assignments: Iterable[str] = (),
    flags: Overrides | None = None,
    pretrained: Overrides | None = None,
) -> RunConfig:
    """The run's settings: built-in default < preset < file < `--set` < flag.

    Args:
        preset: name of a preset; without it the file's `preset`, else `tiny`.
        file: a TOML file with one table for each section.
        assignments: `section.name=value`, as `--set` takes them.
        flags: values by section and name, already of the right type; None where not given.
        pretrained: what a model to start from was made with; replaces the preset's values.

    Raises:
        ConfigError: names every unknown setting with its nearest neighbour, every wrong type and
            every broken bound.
    """
    problems = Problems()
    from_file = read_toml(file) if file else {}
    chosen = preset or from_file.pop("preset", None) or "tiny"
    if chosen not in PRESETS:
        problems.add("preset", f"unknown preset `{chosen}`{_nearest(str(chosen), PRESETS)}")
    layers: list[Mapping[str, Any]] = [
        PRESETS.get(str(chosen), {}),
        pretrained or {},
        from_file,
        _parse_assignments(assignments, problems),
        flags or {},
    ]
    if chosen == "tiny" and not any(_names_a_corpus(layer) for layer in layers):
        layers.insert(1, SAMPLE_RUN)
    merged: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, values in layer.items():
            if section not in merged:
                problems.add(section, f"unknown section{_nearest(section, SECTIONS)}")
            elif not isinstance(values, Mapping):
                problems.add(section, "must be a table of settings")
            else:
                given = {name: value for name, value in values.items() if value is not None}
                merged[section].update(given)
    config = from_mapping({"preset": chosen, **merged}, problems)
    problems.raise_if_any()
    return config


def _names_a_corpus(layer: Mapping[str, Any]) -> bool:
    data = layer.get("data")
    return isinstance(data, Mapping) and bool(data.get("source") or data.get("target"))


def from_mapping(tables: Mapping[str, Any], problems: Problems) -> RunConfig:
    """A RunConfig from tables by section; what is wrong with them is added to `problems`."""
    hints = typing.get_type_hints(RunConfig)
    sections = {
        section: _section(hints[section], section, tables.get(section, {}), problems)
        for section in SECTIONS
    }
    for section in tables:
        if section not in hints:
            problems.add(section, f"unknown section{_nearest(section, SECTIONS)}")
    config = RunConfig(preset=str(tables.get("preset", "tiny")), **sections)
    if not problems.lines and config.model.width % config.model.heads:
        problems.add(
            "model.heads",
            f"must divide model.width, got {config.model.heads} and {config.model.width}",
        )
    try:
        duration_seconds(config.training.max_time)
    except ValueError as error:
        problems.add("training.max_time", str(error))
    return config


def duration_seconds(text: str) -> float | None:
    """Seconds in a duration such as `90s`, `20m`, `1.5h` or `300`; None for an empty one."""
    if not text:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1] in "smhd" else (text, "s")
    try:
        seconds = float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be a duration such as 90s, 20m or 2h, got `{text}`")
    return seconds


def _section(kind: Any, section: str, table: Mapping[str, Any], problems: Problems) -> Any:
    if not isinstance(table, Mapping):
        problems.add(section, "must be a table of settings")
        return kind()
    known = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Value] = {}
    for name, raw in table.items():
        place = f"{section}.{name}"
        if name not in known:
            problems.add(place, f"unknown setting{_nearest(name, known)}")
            continue
        value, complaint = coerce(raw, hints[name], known[name].metadata)
        if complaint:
            problems.add(place, complaint)
        elif value is not None:
            values[name] = value
    return kind(**values)


def coerce(raw: object, wanted: Any, bounds: Mapping[str, Any]) -> tuple[Value | None, str]:
    """The value in the wanted type and "", or None and what is wrong with it."""
    value: Value
    if wanted is float and isinstance(raw, int) and not isinstance(raw, bool):
        value = float(raw)
    elif isinstance(wanted, types.GenericAlias):  # tuple[str, ...]; one string is a list of one
        items = [raw] if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
            return None, f"must be a list of strings, got {_shown(raw)}"
        value = tuple(items)
    elif type(raw) is wanted:
        value = raw  # type: ignore[assignment]
    else:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
        return None, f"must be {names[wanted]}, got {_shown(raw)}"
    return value, _broken_bound(value, bounds)


def _broken_bound(value: Value, bounds: Mapping[str, Any]) -> str:
    choices = bounds["choices"]
    if choices:
        for item in value if isinstance(value, tuple) else (value,):
            if item not in choices:
                listed = ", ".join(f"`{choice}`" for choice in choices)
                return f"must be one of {listed}, got {_shown(item)}{_nearest(str(item), choices)}"
    if isinstance(value, tuple) and choices and not value:
        return "must not be empty"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not math.isfinite(value):
        return f"must be a finite number, got {value}"
    rules: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
        ("ge", "at least", operator.ge),
        ("gt", "above", operator.gt),
        ("le", "at most", operator.le),
        ("lt", "below", operator.lt),
    )
    for key, words, holds in rules:
        if bounds[key] is not None and not holds(value, bounds[key]):
            return f"must be {words} {bounds[key]}, got {value}"
    return ""


def _parse_assignments(assignments: Iterable[str], problems: Problems) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        setting, equals, text = assignment.partition("=")
        section, dot, name = setting.strip().partition(".")
        if not equals or not dot:
            problems.add(f"--set {assignment}", "must be `section.name=value`")
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word is a string: no quotes are needed in a shell
        tables.setdefault(section, {})[name.replace("-", "_")] = value
    return tables


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is no TOML; names file, line and column.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no TOML: {error}") from error


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
            if was != now and not field.metadata["may_change"]:
                changes.append(f"{section}.{field.name}: {_shown(was)} → {_shown(now)}")
    return changes


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "(none)"
    return f"`{value}`" if isinstance(value, str) else str(value).lower()


def _nearest(name: str, known: Iterable[object]) -> str:
    match = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else ""
