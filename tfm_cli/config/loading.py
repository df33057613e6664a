"""Settings from presets, TOML files, `--set` and flags; all problems are reported at once."""

import dataclasses
import json
import math
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfm_cli.config.presets import AUTO, PRESETS, SAMPLE, SAMPLE_RUN, SHARE_OF_WARMUP, Recipe
from tfm_cli.config.settings import (
    INVERSE_SQRT,
    SECTIONS,
    WARMUP_STABLE_DECAY,
    DataConfig,
    RunConfig,
    Value,
)
from tfm_cli.config.validation import Problems, allowed_range, from_mapping, quoted, suggestion
from tfm_cli.errors import ConfigError, plain_reason

_MAX_TOML_BYTES = 1 << 20
_MAX_SETTINGS = 1000  # an unknown setting is compared with all known ones
_MAX_KEY_PARTS = 8  # settings have two
# An unterminated string matches to the end, so that no character is read twice.
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

# Settings that end a run; the time limit is that of a command.
_ENDS = {"max_updates", "max_epochs"}

Overrides = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Lookups:
    """Functions that return what settings depend on beside the command line.

    Args:
        recipe: returns the recipe that `auto` is for some text and the name of a device, neither of
            which has been checked; by default `auto` is the preset `tiny`.
        pretrained: returns the settings of a pretrained model, by its directory; they replace
            those of the preset.
        file: returns the tables of a file; by default `read_toml`.
        flag: returns the flag of a setting, or "": problems then name flags, except for settings
            from the file or from `--set`.
    """

    recipe: Callable[[DataConfig, object], Recipe] | None = None
    pretrained: Callable[[str], Overrides] | None = None
    file: Callable[[Path], dict[str, Any]] | None = None
    flag: Callable[[str], str] | None = None


def resolve(
    *,
    preset: str | None = None,
    file: Path | None = None,
    assignments: Iterable[str] = (),
    flags: Overrides | None = None,
    resumed: RunConfig | None = None,
    lookups: Lookups = Lookups(),
) -> RunConfig:
    """Return the settings of a run: default < preset < file < `--set` < flag.

    A run that is resumed has its own settings in place of the defaults.

    Args:
        preset: name of a preset; by default the file's `preset`, or else `auto`.
        file: a TOML file with one table for each section.
        assignments: `section.name=value`, as `--set` takes them.
        flags: values by section and name, of the right type; None if not given.
        resumed: the settings of the run to resume.
        lookups: see `Lookups`.

    Raises:
        ConfigError: a list of all unknown settings, with the nearest name, wrong types and values
            out of bounds.
    """
    problems = Problems()
    from_file = (lookups.file or read_toml)(file) if file else {}
    named_in_file = from_file.pop("preset", None)
    named = _checked_preset(preset or named_in_file, problems)
    named = None if named == AUTO else named
    given: list[Mapping[str, Any]] = [
        from_file,
        _parse_assignments(assignments, problems),
        flags or {},
    ]
    has_corpus = any(_names_a_corpus(layer) for layer in given)
    if has_corpus and SAMPLE in (named, named_in_file):
        origin = "`--preset`" if preset == SAMPLE else str(file)
        raise ConfigError(
            f"{origin}: has the recipe of the sample corpus (preset `{SAMPLE}`), but other "
            "training text is given",
            hint="give the text when you write the file: "
            "`tfm train -s SOURCE -t TARGET --dump-config > run.toml`",
        )
    if resumed is not None:
        has_corpus = has_corpus or bool(resumed.data.source or resumed.data.pairs)
    chosen, layers = _preset_layers(named, has_corpus=has_corpus)
    if resumed is not None:
        chosen = chosen if named else resumed.preset
        layers = _resumed_layers(resumed, layers if named else [], given)
    elif has_corpus:
        chosen, layers = _new_layers(named, chosen, layers, given, lookups)
    merged = _merged([*layers, *given], problems)
    if resumed is None and _ends_by_time(merged["training"], _merged(given, Problems())):
        merged["training"]["max_updates"] = 0
    config = from_mapping({"preset": chosen, **merged}, problems)
    if (flag_of := lookups.flag) is not None:
        in_text = _setting_names(from_file) | _setting_names(given[1])
        if named_in_file is not None and not preset:
            in_text.add("preset")
        problems.name_flags(lambda setting: "" if setting in in_text else flag_of(setting))
    problems.raise_if_any()
    return config


def _checked_preset(name: object, problems: Problems) -> str | None:
    """Return the name of a preset that is given; None if there is none."""
    if name is None or (isinstance(name, str) and name in (AUTO, *PRESETS, SAMPLE)):
        return name
    listed = ", ".join(f"`{known}`" for known in (AUTO, *PRESETS))
    near = suggestion(str(name), (AUTO, *PRESETS))
    problems.add("preset", f"must be one of {listed}, got {quoted(name)}{near}")
    return "tiny"


def _preset_layers(name: str | None, *, has_corpus: bool) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the name and the values of a preset, by default `tiny`, or of the sample corpus."""
    if name in (None, "tiny", SAMPLE) and not has_corpus:
        return SAMPLE, [PRESETS["tiny"], SAMPLE_RUN]
    chosen = name or "tiny"
    return chosen, [PRESETS[chosen]]


def _new_layers(
    named: str | None,
    preset: str,
    layers: list[Mapping[str, Any]],
    given: Sequence[Mapping[str, Any]],
    lookups: Lookups,
) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the preset and its values for a new run, with a pretrained model or the text in mind.

    A run that is short by its `max_updates` has a shorter warm-up, unless a preset was named.

    Args:
        named: the preset that was named; None for `auto`.
        preset: that preset, or the default.
        layers: its values.
        given: the settings on the command line and in a file, which follow.
        lookups: see `Lookups`.
    """
    tables = _merged(given, Problems())
    directory = tables["training"].get("pretrained_model")
    if lookups.pretrained is not None and directory and isinstance(directory, str):
        return preset, [*layers, lookups.pretrained(directory)]
    if lookups.recipe is None or named is not None:
        return preset, layers
    data = from_mapping({"data": tables["data"]}, Problems()).data
    recipe = lookups.recipe(data, tables["training"].get("device", "auto"))
    layers = [PRESETS[recipe.preset], recipe.changes]
    updates = tables["training"].get("max_updates")
    if isinstance(updates, int) and updates > 0:
        usual = _merged(layers, Problems())["training"]["lr_warmup"]
        assert isinstance(usual, int)
        layers.append({"training": {"lr_warmup": min(usual, math.ceil(updates * SHARE_OF_WARMUP))}})
    return recipe.preset, layers


def _resumed_layers(
    run: RunConfig, preset: list[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the settings of a run to resume, and those of a preset that is given again.

    The time limit is that of a command, not of the run.

    Args:
        run: the settings of the run.
        preset: the values of the preset; empty if none is given.
        given: the settings on the command line and in a file, which follow.
    """
    own: dict[str, dict[str, Any]] = to_mapping(run)
    del own["preset"]
    own["training"] = {**own["training"], "max_time": ""}
    layers: list[Mapping[str, Any]] = [own, *preset]
    if run.training.pretrained_model:  # which replaced these values of the preset
        layers.append({"model": own["model"], "search": own["search"]})
        layers.append({"training": {"lr_warmup": run.training.lr_warmup}})
    if run.training.schedule == WARMUP_STABLE_DECAY and not run.training.max_updates:
        layers.append({"training": {"max_updates": 0}})  # it ends by time or epochs
    data = _merged(given, Problems())["data"]
    has_files, has_pairs = bool(data.get("source") or data.get("target")), bool(data.get("pairs"))
    # The same text in files of another kind replaces the former ones.
    if has_pairs and not has_files and not run.data.pairs:
        layers.append({"data": {"source": [], "target": []}})
    if has_files and not has_pairs and not run.data.source:
        layers.append({"data": {"pairs": []}})
    return layers


def _merged(
    layers: Iterable[Mapping[str, Any]], problems: Problems
) -> dict[str, dict[str, object]]:
    """Return the values by section and name; a later layer replaces an earlier one."""
    merged: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, values in layer.items():
            if section not in merged:
                problems.add(section, f"unknown section{suggestion(section, SECTIONS)}")
            elif not isinstance(values, Mapping):
                problems.add(section, "must be a table of settings")
            else:
                merged[section].update({n: v for n, v in values.items() if v is not None})
    return merged


def _ends_by_time(
    training: Mapping[str, object], given: Mapping[str, Mapping[str, object]]
) -> bool:
    """Return True if a decay ends by time, because no other end of the run is given."""
    names_end = _ENDS & given["training"].keys()
    is_decay = training.get("schedule") == WARMUP_STABLE_DECAY
    return is_decay and bool(training.get("max_time")) and not names_end


def _setting_names(layer: Mapping[str, Any]) -> set[str]:
    """Return the settings in a layer as `section.name`."""
    return {
        f"{section}.{name}"
        for section, values in layer.items()
        if isinstance(values, Mapping)
        for name in values
    }


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
    """Return the value of a TOML text, or else the text itself, so that strings need no quotes."""
    try:
        table = _parse_toml(f"value = {text}")
    except (ValueError, RecursionError):  # ValueError: also a number of too many digits
        return text
    kind = typing.get_type_hints(RunConfig).get(section)
    expected = typing.get_type_hints(kind).get(name) if kind else None
    if len(table) > 1 or (
        expected not in (None, bool, int, float) and not isinstance(table["value"], str | list)
    ):
        return text  # such as the duration 90, or a file named 2024
    return table["value"]


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, is too large, or is not TOML, with line and column.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_TOML_BYTES + 1)
        if len(content) > _MAX_TOML_BYTES:
            raise ConfigError(
                f"{path}: has more than {_MAX_TOML_BYTES} bytes, too many for settings"
            )
        tables = _parse_toml(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is not UTF-8") from error
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise ConfigError(f"{path}: is not TOML: {plain_reason(error)}") from error
    count = sum(len(table) if isinstance(table, dict) else 1 for table in tables.values())
    if max(count, len(tables)) > _MAX_SETTINGS:
        raise ConfigError(
            f"{path}: has {max(count, len(tables))} settings, expected at most {_MAX_SETTINGS}"
        )
    return tables


def _parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    The memory for a key grows with the square of the number of its parts, which is limited.

    Raises:
        ValueError: it is not TOML, or a key has too many parts.
        RecursionError: it is nested too deeply.
    """
    keys = _STRING_OR_COMMENT.sub(lambda match: "s" + "\n" * match[0].count("\n"), text)
    if deep := _DEEP_KEY.search(keys):
        line = keys.count("\n", 0, deep.start()) + 1
        raise ValueError(f"a key of more than {_MAX_KEY_PARTS} parts (at line {line})")
    import tomllib  # here, since translation needs no TOML

    return tomllib.loads(text)


def write_toml(config: RunConfig) -> str:
    """Return the settings as TOML, from which `--config` reads the same settings.

    A comment before each setting says what it is, and which values it may have.
    """
    lines = [f"preset = {json.dumps(config.preset)}"]
    tables = to_mapping(config)
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for field in dataclasses.fields(getattr(config, section)):
            lines += ["", *_comment(field)]
            lines.append(f"{field.name} = {_toml_value(tables[section][field.name])}")
    return "\n".join(lines) + "\n"


def _comment(field: dataclasses.Field[Any]) -> list[str]:
    """Return the help of a setting, with its choices or range in brackets, as lines of TOML."""
    choices = field.metadata["choices"]
    facts = ", ".join(map(str, choices)) if choices else allowed_range(field.type, field.metadata)
    text = field.metadata["help"] + (f" [{facts}]" if facts else "")
    return textwrap.wrap(
        text, 80, initial_indent="# ", subsequent_indent="# ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _toml_value(value: Value | list[str]) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return f"{value:.1f}"
    # JSON escapes strings as TOML does, except for DEL, and writes lists and booleans alike.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Return the settings as tables, lists and values, as in `config.json`."""
    tables = dataclasses.asdict(config)
    for section in SECTIONS:
        for name, value in tables[section].items():
            if isinstance(value, tuple):
                tables[section][name] = list(value)
    return tables


def changed_settings(old: RunConfig, new: RunConfig, *, allow_change: bool = False) -> list[str]:
    """Return the changes that a resumed run must not have, as `section.name: old → new`.

    Args:
        old: the settings of the run.
        new: the settings to resume it with.
        allow_change: permit the changes that may be made on request.
    """
    permitted = set(requested_changes(old, new)) if allow_change else set()
    changes = []
    for field, name, was, now in _differences(old, new):
        may_change = _may_change(field, old, new)
        if may_change is not True and not (may_change == "to auto" and now == "auto"):
            changes.append(_change(name, was, now))
    return [change for change in changes if change not in permitted]


def requested_changes(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the changes that a resumed run may have only on request; see `changed_settings`."""
    return [
        _change(name, was, now)
        for field, name, was, now in _differences(old, new)
        if _may_change(field, old, new) == "on request"
    ]


def changeable_on_request(config: RunConfig) -> dict[str, Value]:
    """Return the values of the settings that a resumed run may change on request, by name."""
    return {
        f"{section}.{field.name}": getattr(getattr(config, section), field.name)
        for section in SECTIONS
        for field in dataclasses.fields(getattr(config, section))
        if _may_change(field, config, config) == "on request"
    }


def _may_change(field: dataclasses.Field[Any], old: RunConfig, new: RunConfig) -> bool | str:
    """Return when a setting may change; the end of a run may not as freely if the rate needs it."""
    may_change: bool | str = field.metadata["may_change"]
    schedules = {old.training.schedule, new.training.schedule}
    if field.name in ("max_updates", "max_epochs") and schedules != {INVERSE_SQRT}:
        return "on request"
    return may_change


def _differences(
    old: RunConfig, new: RunConfig
) -> Iterator[tuple[dataclasses.Field[Any], str, Value, Value]]:
    """Yield the field, the name and both values of each setting that differs."""
    for section in SECTIONS:
        before, after = getattr(old, section), getattr(new, section)
        for field in dataclasses.fields(before):
            was, now = getattr(before, field.name), getattr(after, field.name)
            if was != now:
                yield field, f"{section}.{field.name}", was, now


def _change(name: str, was: Value, now: Value) -> str:
    return f"{name}: {quoted(was)} → {quoted(now)}"
