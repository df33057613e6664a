"""Validated values of `config.json` and `generation_config.json` of a Hugging Face model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfm_cli.config.validation import coerce
from tfm_cli.interop.source_files import quoted

CONFIG, GENERATION = "config.json", "generation_config.json"
REQUIRED = object()  # as a default: the value must be present

_DEFAULT_MAX_LENGTH = 20  # `transformers` treats this value as no limit


@dataclass(frozen=True, slots=True)
class PieceId:
    """The id of a piece, and the option that names it."""

    value: int
    option: str  # such as "config.json: `eos_token_id`"


class OptionsReader:
    """A reader of values from the two files, which adds each problem to `problems`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None,
        problems: list[str],
    ) -> None:
        self.config = config
        self.generation = generation
        self.problems = problems
        self.search = config if generation is None else generation
        self.search_file = CONFIG if generation is None else GENERATION

    def settings(
        self, section: type, table: Mapping[str, tuple[str, object]], values: Mapping[str, Any],
        file: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Return settings of a section of the run configuration, validated as usual."""
        fields = {f.name: f for f in dataclasses.fields(section)}
        settings = {}
        for name, (ours, default) in table.items():
            value = values.get(name)
            if value is None:
                value = default
            if value is REQUIRED:
                self.problems.append(f"{file}: `{name}` is missing")
                continue
            coerced, problem = coerce(value, fields[ours].type, fields[ours].metadata)
            if problem:
                self.problems.append(f"{file}: `{name}` {problem}")
            else:
                settings[ours] = coerced
        return settings

    def check_neutral(
        self, values: Mapping[str, Any], table: Mapping[str, tuple[object, ...]], file: str
    ) -> None:
        """Report each option whose value would change the computation."""
        for name, neutral in table.items():
            value = values.get(name)
            if value is None and name != "model_type":
                continue
            if not any(value == other and _is_bool(value) == _is_bool(other) for other in neutral):
                expected = quoted(neutral[0]) if neutral else "none"
                self.problems.append(f"{file}: `{name}` is {quoted(value)}, expected {expected}")

    def check_forced_end(self) -> None:
        """Report a token other than </s> that is forced at the length limit."""
        eos = (self.search.get("eos_token_id"), self.config.get("eos_token_id"))
        forced = self.search.get("forced_eos_token_id")
        if forced is not None and _single(forced) not in map(_single, eos):
            problem = f"is {quoted(forced)}, expected `eos_token_id`"
            self.problems.append(f"{self.search_file}: `forced_eos_token_id` {problem}")

    def flag(self, name: str, *, default: bool) -> bool:
        """Return the value of a boolean option."""
        value = self.config.get(name, default)
        if not isinstance(value, bool):
            problem = f"must be true or false, got {quoted(value)}"
            self.problems.append(f"{CONFIG}: `{name}` {problem}")
        return bool(value)

    def vocab_size(self, name: str) -> int | None:
        """Return the size of a vocabulary; None if it is invalid."""
        value = self.config.get(name)
        if type(value) is not int or not 2 <= value <= 1_000_000:
            problem = f"must be between 2 and 1000000, got {quoted(value)}"
            self.problems.append(f"{CONFIG}: `{name}` {problem}")
            return None
        return value

    def piece_id(self, name: str) -> PieceId | None:
        """Return the id of a special piece; the two files must not contradict each other."""
        found = []
        before = len(self.problems)
        for file, table in ((GENERATION, self.generation or {}), (CONFIG, self.config)):
            value = _single(table.get(name))
            if value is None:
                continue
            if type(value) is not int or value < 0:
                self.problems.append(f"{file}: `{name}` is {quoted(value)}, expected one id")
            else:
                found.append((file, PieceId(value, f"{file}: `{name}`")))
        if len({piece_id.value for _, piece_id in found}) > 1:
            values = " and ".join(f"{piece_id.value} in {file}" for file, piece_id in found)
            self.problems.append(f"`{name}` is {values}")
        if not found and len(self.problems) == before:
            self.problems.append(f"{CONFIG}: `{name}` is missing")
        return found[0][1] if found and len(self.problems) == before else None

    def banned(self, eos: PieceId | None) -> tuple[PieceId, ...]:
        """Return the ids that are never generated; </s> is excluded, as in Hugging Face."""
        ids: dict[int, PieceId] = {}
        for name, in_lists in (("bad_words_ids", True), ("suppress_tokens", False)):
            option = f"{self.search_file}: `{name}`"
            words = self.search.get(name) or []
            for word in words if isinstance(words, list) else [words]:
                word = _single(word) if in_lists else word
                if type(word) is not int:
                    self.problems.append(f"{option} has {quoted(word)}, expected single ids")
                elif eos is None or word != eos.value:
                    ids.setdefault(word, PieceId(word, option))
        return tuple(ids.values())

    def length_notes(self, factor: float) -> list[str]:
        """Return a note on the length limit, which in tfm depends on the source."""
        for name, extra in (("max_new_tokens", 0), ("max_length", 1)):  # the first has precedence
            value = self.search.get(name)
            if type(value) is int and (name, value) != ("max_length", _DEFAULT_MAX_LENGTH):
                return [
                    f"`{name}` of {quoted(value)} is left out: there, translations may have "
                    f"{value - extra} tokens; here, {factor:g} for each source token plus 10"
                ]
        return []


def _single(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)
