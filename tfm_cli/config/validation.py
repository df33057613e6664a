"""Checks of settings in tables: names, types, bounds, and combinations."""

import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from tfm_cli.config.settings import (
    DROPOUT_SETTINGS,
    NORMALIZATION_RULES,
    SECTIONS,
    DataConfig,
    RunConfig,
    Value,
    is_rule_file,
)
from tfm_cli.errors import ConfigError
from tfm_cli.text.language_tags import LANGUAGE_TAG, NO_TAGS

# The largest and smallest bounds only avoid overflow and division by zero.
_HIGHEST = 10**9
_LOWEST = 1e-5
_SETTING = re.compile(rf"\b(?:preset|(?:{'|'.join(SECTIONS)})\.[a-z][a-z_0-9]*)\b")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


class Problems:
    """A list of problems with the settings, reported together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, problem: str) -> None:
        """Add a problem of a setting or file."""
        self.lines.append(f"{name}: {problem}")

    def name_flags(self, flag_of: Callable[[str], str]) -> None:
        """Replace the names of settings by their flags, where `flag_of` returns one."""
        self.lines = [
            re.sub(_SETTING, lambda match: flag_of(match[0]) or match[0], line)
            for line in self.lines
        ]

    def raise_if_any(self) -> None:
        """Raise a ConfigError with all problems, if there are any."""
        if self.lines:
            count = len(self.lines)
            title = f"the settings have {count} problem{'s' if count > 1 else ''}"
            raise ConfigError("\n  ".join([title, *self.lines]))


def from_mapping(tables: Mapping[str, Any], problems: Problems) -> RunConfig:
    """Return the settings from tables by section; add their problems to `problems`."""
    hints = typing.get_type_hints(RunConfig)
    sections, wrong = {}, set()
    for section in SECTIONS:
        before = len(problems.lines)
        table = tables.get(section, {})
        if section == "data":
            table = _with_listed_weights(table, problems)
        sections[section] = _section(hints[section], section, table, problems)
        if len(problems.lines) > before:
            wrong.add(section)
    for section in tables:
        if section not in hints:
            problems.add(section, f"unknown section{suggestion(section, SECTIONS)}")
    config = RunConfig(preset=str(tables.get("preset", "tiny")), **sections)
    # A wrong value was replaced by its default, so its combinations cannot be checked.
    if "data" not in wrong:
        _check_files(config.data, problems)
    if not wrong & {"data", "model", "search"}:
        _check_shape(config, problems)
    _check_run(config, problems)
    return config


def _check_files(data: DataConfig, problems: Problems) -> None:
    for sources, targets in (("source", "target"), ("valid_source", "valid_target")):
        counts = len(getattr(data, sources)), len(getattr(data, targets))
        if counts[0] != counts[1]:
            reason = f"must be as many files as data.{sources}, got {counts[1]} and {counts[0]}"
            problems.add(f"data.{targets}", reason)
    has_text = data.source or data.target or data.pairs
    if (data.valid_source or data.valid_target) and not has_text:
        problems.add("data.source", "is missing: there is validation text, but no training text")
    files = max(1, len(data.source) + len(data.pairs))  # the sample corpus is one
    if data.weights and len(data.weights) != files:
        reason = f"must be as many numbers as training files, got {len(data.weights)} and {files}"
        problems.add("data.weights", reason)
    wrong = [tag for tag in data.tags if not LANGUAGE_TAG.fullmatch(tag)]
    if wrong and data.tags != (NO_TAGS,):
        reason = f"must be tags such as `>>fra<<`, or `{NO_TAGS}`, got {quoted(wrong[0])}"
        problems.add("data.tags", reason)
    elif repeated := [tag for tag, count in Counter(data.tags).items() if count > 1]:
        problems.add("data.tags", f"has {quoted(repeated[0])} more than once")
    if 0 < data.max_ratio < 1:
        problems.add("data.max_ratio", f"must be 0 or at least 1, got {data.max_ratio}")


def _with_listed_weights(table: Any, problems: Problems) -> Any:
    """Return the table of `data`; weights by file become a list in the order of the files."""
    weights = table.get("weights") if isinstance(table, Mapping) else None
    if not isinstance(weights, Mapping):
        return table
    files: list[str] = []
    for name in ("source", "pairs"):
        given = table.get(name, ())
        files += [given] if isinstance(given, str) else given
    for name in weights:
        if name not in files:
            problems.add(f"data.weights.{name}", f"is not a training file{suggestion(name, files)}")
    return {**table, "weights": [weights.get(file, 1.0) for file in files]}


def _check_shape(config: RunConfig, problems: Problems) -> None:
    data, model, search = config.data, config.model, config.search
    for name, heads in (
        ("model.heads", model.heads),
        ("model.decoder_heads", model.decoder_heads),
    ):
        if not heads:
            continue  # as many as the encoder
        if model.width % heads:
            problems.add(name, f"must divide model.width, got {heads} and {model.width}")
        elif model.positions == "rotary" and model.width // heads % 2:
            reason = f"must leave an even width for each head, got {model.width // heads}"
            problems.add(name, f"{reason} (rotary positions rotate pairs)")
    if model.positions == "sinusoidal_marian" and model.width % 2:
        problems.add("model.width", f"must be even for Marian's sinusoids, got {model.width}")
    if model.positions == "learned":
        # The longest translation by decoding/interface.py, and </s>.
        longest = int(search.max_length * search.max_length_factor) + 10
        needed = max(data.max_length, search.max_length, longest) + 1
        if model.max_positions < needed:
            reason = f"must be at least {needed}, got {model.max_positions}"
            source = "from data.max_length, search.max_length and search.max_length_factor"
            problems.add("model.max_positions", f"{reason}: {source}")
    if search.n_best > search.beam_size:
        reason = f"must be at most search.beam_size, got {search.n_best} and {search.beam_size}"
        problems.add("search.n_best", reason)


def _check_run(config: RunConfig, problems: Problems) -> None:
    if config.tokenizer.model and config.training.pretrained_model:
        reason = "must not be set with training.pretrained_model, which has its own tokenizer"
        problems.add("tokenizer.model", reason)
    has_tokenizers = config.tokenizer.model or config.training.pretrained_model
    if not (config.tokenizer.joint or has_tokenizers) and config.model.tied_embeddings & 1:
        reason = f"must be 2 or 0 without tokenizer.joint, got {config.model.tied_embeddings}"
        problems.add("model.tied_embeddings", f"{reason}: an id is another token on each side")
    rule = config.tokenizer.normalization_rule_name
    if rule not in NORMALIZATION_RULES and not is_rule_file(rule):
        listed = ", ".join(f"`{name}`" for name in NORMALIZATION_RULES)
        reason = f"must be one of {listed} or a file that ends in `.tsv`, got {quoted(rule)}"
        reason += suggestion(rule, NORMALIZATION_RULES)
        problems.add("tokenizer.normalization_rule_name", reason)
    kind = config.tokenizer.model_type
    if config.data.subword_sampling != "none" and kind in ("char", "word") and not has_tokenizers:
        reason = f"must be unigram or bpe with data.subword_sampling, got {quoted(kind)}"
        problems.add("tokenizer.model_type", f"{reason}: it cuts text in one way only")
    _check_consistency(config, problems)
    if not _DEVICE.fullmatch(config.training.device):
        reason = f"must be auto, cpu, cuda, cuda:N or mps, got {quoted(config.training.device)}"
        problems.add("training.device", reason)
    try:
        duration_seconds(config.training.max_time)
    except ValueError as error:
        problems.add("training.max_time", str(error))


def _check_consistency(config: RunConfig, problems: Problems) -> None:
    """Add a problem if consistency training would compare two equal computations."""
    method = config.training.consistency
    is_random = any(getattr(config.model, name) for name in DROPOUT_SETTINGS)
    if method == "none" or is_random or (method == "simcut" and config.training.token_cutoff):
        return
    needed = "dropout" if method == "r-drop" else "dropout or training.token_cutoff"
    reason = f"must be `none` without {needed}, got {quoted(method)}"
    problems.add("training.consistency", f"{reason}: both computations would be the same")


def duration_seconds(text: str) -> float | None:
    """Return the seconds of a duration such as `90s`, `1.5h`, `2h35m` or `300`; None if empty.

    Raises:
        ValueError: it is not a duration.
    """
    if not text:
        return None
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    seconds = 0.0
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text):
        seconds = float(match[1]) * units.get(match[2], 1)
    elif match := re.fullmatch(r"([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?", text):
        seconds = sum(float(part[:-1]) * units[part[-1]] for part in match.groups() if part)
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be a duration such as 90s, 20m or 2h35m, got {quoted(text)}")
    return seconds


def _section(kind: Any, section: str, table: Mapping[str, Any], problems: Problems) -> Any:
    if not isinstance(table, Mapping):
        problems.add(section, "must be a table of settings")
        return kind()
    known = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Value] = {}
    for name, raw in table.items():
        full_name = f"{section}.{name}"
        if name not in known:
            problems.add(full_name, f"unknown setting{suggestion(name, known)}")
            continue
        value, complaint = coerce(raw, hints[name], known[name].metadata)
        if complaint:
            problems.add(full_name, complaint)
        elif value is not None:
            values[name] = value
    return kind(**values)


def coerce(raw: object, kind: Any, bounds: Mapping[str, Any]) -> tuple[Value | None, str]:
    """Return the value converted to a type and "", or None and the reason for refusing it."""
    value: Value
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        try:
            value = float(raw)
        except OverflowError:
            return None, "must be a finite number, got one of too many digits"
    elif kind == tuple[float, ...]:
        numbers = _numbers(raw)
        if numbers is None:
            return None, f"must be a list of numbers, got {quoted(raw)}"
        value = numbers
    elif isinstance(kind, types.GenericAlias):  # tuple[str, ...]; one string is a list of one
        items = [raw] if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
            return None, f"must be a list of strings, got {quoted(raw)}"
        value = tuple(items)
    elif type(raw) is kind:
        value = cast("Value", raw)
    else:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
        return None, f"must be {names[kind]}, got {quoted(raw)}"
    complaint = _bound_problem(value, bounds)
    return (None, complaint) if complaint else (value, "")


def _numbers(raw: object) -> tuple[float, ...] | None:
    """Return the numbers of a list, a number, or a text such as `1,0.5`; None for anything else."""
    items = raw.split(",") if isinstance(raw, str) and raw else raw
    if not isinstance(items, list | tuple):
        items = [items]
    numbers = []
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float | str):
            return None
        try:
            numbers.append(float(item))
        except (ValueError, OverflowError):
            return None
    return tuple(numbers)


def _bound_problem(value: Value, bounds: Mapping[str, Any]) -> str:
    texts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(text, str) and "\0" in text for text in texts):
        return "must not have a NUL character"
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        complaints = (_bound_problem(item, bounds) for item in value)
        return next((complaint for complaint in complaints if complaint), "")
    choices = bounds["choices"]
    if choices:
        for item in value if isinstance(value, tuple) else (value,):
            if item not in choices:
                listed = ", ".join(f"`{choice}`" for choice in choices)
                return (
                    f"must be one of {listed}, got {quoted(item)}{suggestion(str(item), choices)}"
                )
    if isinstance(value, tuple) and choices and not value:
        return "must not be empty"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    rules: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
        ("ge", "at least", operator.ge),
        ("le", "at most", operator.le),
        ("lt", "below", operator.lt),
    )
    for key, words, holds in rules:
        if bounds[key] is not None and not holds(value, bounds[key]):
            return f"must be {words} {bounds[key]}, got {value}"
    return ""


def allowed_range(kind: Any, bounds: Mapping[str, Any]) -> str:
    """Return the range of the numbers that a setting may be; empty if there is none to speak of.

    Args:
        kind: the type of the setting.
        bounds: as in the metadata of a setting.
    """
    if kind not in (int, float):
        return ""
    low = high = ""
    if (least := bounds["ge"]) is not None and abs(least) < _HIGHEST:
        low = "above 0" if 0 < least <= _LOWEST else f"at least {_number(least)}"
    for name, words in (("le", "at most"), ("lt", "below")):
        if bounds[name] is not None and bounds[name] < _HIGHEST:
            high = f"{words} {_number(bounds[name])}"
    if low.startswith("at least") and high.startswith("at most"):
        return f"{_number(bounds['ge'])} to {_number(bounds['le'])}"
    return ", ".join(filter(None, (low, high)))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def quoted(value: object) -> str:
    """Return the value of a setting as shown in messages."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "(none)"
    if isinstance(value, str):
        return f"`{value}`" if value else "(none)"
    return str(value)


def suggestion(name: str, known: Iterable[object]) -> str:
    """Return `; did you mean …?` with the nearest known name; empty if none is near."""
    match = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else ""
