"""Values of `config.json` and `generation_config.json` of a Hugging Face model, checked."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfm_cli.config.validation import coerce

CONFIG, GENERATION = "config.json", "generation_config.json"
MISSING = object()  # for the default of what must be there

_DEFAULT_MAX_LENGTH = 20  # what `transformers` takes for no limit that anybody asked for


@dataclass(frozen=True, slots=True)
class PieceId:
    """The id of a piece, and where it is asked for."""

    value: int
    place: str  # such as "config.json: `eos_token_id`"


class OptionsReader:
    """Asks the two files for values; what is wrong with them is added to the complaints."""

    def __init__(
        self,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None,
        complaints: list[str],
    ) -> None:
        self.config = config
        self.generation = generation
        self.complaints = complaints
        self.search = config if generation is None else generation
        self.search_file = CONFIG if generation is None else GENERATION

    def settings(
        self, section: type, table: Mapping[str, tuple[str, object]], values: Mapping[str, Any],
        file: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Settings of a section of ours, checked as our own are."""
        fields = {f.name: f for f in dataclasses.fields(section)}
        found = {}
        for theirs, (ours, default) in table.items():
            value = values.get(theirs)
            if value is None:
                value = default
            if value is MISSING:
                self.complaints.append(f"{file}: `{theirs}` is missing")
                continue
            coerced, complaint = coerce(value, fields[ours].type, fields[ours].metadata)
            if complaint:
                self.complaints.append(f"{file}: `{theirs}` {complaint}")
            else:
                found[ours] = coerced
        return found

    def check_neutral(
        self, values: Mapping[str, Any], table: Mapping[str, tuple[object, ...]], file: str
    ) -> None:
        """Complain of each option that has another value than those under which it is nothing."""
        for name, neutral in table.items():
            value = values.get(name)
            if value is None and name != "model_type":
                continue
            if not any(value == other and _is_bool(value) == _is_bool(other) for other in neutral):
                wanted = shown(neutral[0]) if neutral else "none"
                self.complaints.append(f"{file}: `{name}` is {shown(value)}, wanted {wanted}")

    def check_forced_end(self) -> None:
        """Complain if another piece than the end is forced where a translation is cut."""
        eos = (self.search.get("eos_token_id"), self.config.get("eos_token_id"))
        forced = self.search.get("forced_eos_token_id")
        if forced is not None and _single(forced) not in map(_single, eos):
            told = f"is {shown(forced)}, wanted `eos_token_id`"
            self.complaints.append(f"{self.search_file}: `forced_eos_token_id` {told}")

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.config.get(name, default)
        if not isinstance(value, bool):
            told = f"must be true or false, got {shown(value)}"
            self.complaints.append(f"{CONFIG}: `{name}` {told}")
        return bool(value)

    def count(self, name: str) -> int | None:
        """A number of pieces; None where it is wrong."""
        value = self.config.get(name)
        if type(value) is not int or not 2 <= value <= 1_000_000:
            told = f"must be between 2 and 1000000, got {shown(value)}"
            self.complaints.append(f"{CONFIG}: `{name}` {told}")
            return None
        return value

    def the_id(self, name: str) -> PieceId | None:
        """The one id of a role; the two files must not contradict each other."""
        found = []
        before = len(self.complaints)
        for file, table in ((GENERATION, self.generation or {}), (CONFIG, self.config)):
            value = _single(table.get(name))
            if value is None:
                continue
            if type(value) is not int or value < 0:
                self.complaints.append(f"{file}: `{name}` is {shown(value)}, wanted one id")
            else:
                found.append((file, PieceId(value, f"{file}: `{name}`")))
        if len({piece_id.value for _, piece_id in found}) > 1:
            told = " and ".join(f"{piece_id.value} in {file}" for file, piece_id in found)
            self.complaints.append(f"`{name}` is {told}")
        if not found and len(self.complaints) == before:
            self.complaints.append(f"{CONFIG}: `{name}` is missing")
        return found[0][1] if found and len(self.complaints) == before else None

    def banned(self, eos: PieceId | None) -> tuple[PieceId, ...]:
        """Ids that are never written; the end is never one of them, as with Hugging Face."""
        ids: dict[int, PieceId] = {}
        for name, in_lists in (("bad_words_ids", True), ("suppress_tokens", False)):
            place = f"{self.search_file}: `{name}`"
            words = self.search.get(name) or []
            for word in words if isinstance(words, list) else [words]:
                word = _single(word) if in_lists else word
                if type(word) is not int:
                    self.complaints.append(f"{place} has {shown(word)}, wanted single ids")
                elif eos is None or word != eos.value:
                    ids.setdefault(word, PieceId(word, place))
        return tuple(ids.values())

    def length_notes(self, factor: float) -> list[str]:
        """What a user should know of the longest translation, which is told in another way here."""
        for name, extra in (("max_new_tokens", 0), ("max_length", 1)):  # the first one rules
            value = self.search.get(name)
            if type(value) is int and (name, value) != ("max_length", _DEFAULT_MAX_LENGTH):
                return [
                    f"`{name}` of {shown(value)} is left out: translations may have "
                    f"{value - extra} pieces there; here {factor:g} for each source piece and 10"
                ]
        return []


def _single(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def shown(value: object) -> str:
    """A value as messages quote it, cut where it is long."""
    if value is None:
        return "missing"
    text = str(value).lower() if isinstance(value, bool) else f"`{value}`"
    return text if len(text) <= 60 else f"{text[:60]}…"
