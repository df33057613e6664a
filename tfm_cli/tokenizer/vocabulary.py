"""A vocabulary whose order differs from SentencePiece's: its pieces and special tokens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from tfm_cli.errors import ModelError, plain_reason
from tfm_cli.files.untrusted import parse_json

MAX_PIECES = 1_000_000


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The pieces in the order of their ids, for a model that does not use SentencePiece's order.

    Args:
        pieces: every piece once; the index is the id.
        eos: the piece that ends a segment.
        unk: the piece that stands for anything unknown.
        start: the piece that is the decoder's first input.
        banned: pieces that are never generated, although they have a share of the probabilities.
        name: name of the vocabulary in messages.

    Raises:
        ModelError: a piece occurs twice, a special piece is missing, or </s> is banned.
    """

    pieces: tuple[str, ...]
    eos: str = "</s>"
    unk: str = "<unk>"
    start: str = "<pad>"
    banned: tuple[str, ...] = ("<pad>",)
    name: str = field(default="vocabulary", compare=False)
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {piece: index for index, piece in enumerate(self.pieces)}
        problems = []
        if not 2 <= len(self.pieces) <= MAX_PIECES:
            problems.append(f"has {len(self.pieces)} pieces, expected 2 to {MAX_PIECES}")
        if len(ids) < len(self.pieces):
            twice = next(p for i, p in enumerate(self.pieces) if ids[p] != i)
            problems.append(f"has the piece `{twice}` twice")
        roles = {"end": self.eos, "unknown": self.unk, "start": self.start}
        roles |= {f"banned {number}": piece for number, piece in enumerate(self.banned, 1)}
        problems += [
            f"has no `{piece}`, its {role} piece"
            for role, piece in roles.items()
            if piece not in ids
        ]
        if self.eos in self.banned:
            problems.append(f"bans `{self.eos}`, without which no translation ends")
        if problems:
            raise ModelError("\n  ".join(f"{self.name}: {problem}" for problem in problems))
        object.__setattr__(self, "ids", ids)

    def to_json(self) -> bytes:
        """Return the vocabulary as JSON; equal vocabularies give equal bytes."""
        table = {
            "eos": self.eos,
            "unk": self.unk,
            "start": self.start,
            "banned": list(self.banned),
            "pieces": list(self.pieces),
        }
        text = json.dumps(table, ensure_ascii=False, indent=0)
        return text.encode("utf-8", "backslashreplace") + b"\n"

    @classmethod
    def from_json(cls, content: bytes, *, name: str) -> Self:
        """Return the vocabulary that `to_json` serialized.

        Raises:
            ModelError: the content is truncated, or not as `to_json` writes it.
        """
        try:
            table = parse_json(content, max_depth=2)
        except ValueError as error:
            raise ModelError(
                f"{name}: is damaged or not a vocabulary: {plain_reason(error)}"
            ) from error
        roles = ("eos", "unk", "start")
        if (
            not isinstance(table, dict)
            or set(table) != {*roles, "banned", "pieces"}
            or not all(isinstance(table[role], str) for role in roles)
            or not all(_are_strings(table[listed]) for listed in ("banned", "pieces"))
        ):
            message = "is not a vocabulary: expected pieces, eos, unk, start and banned"
            raise ModelError(f"{name}: {message}")
        return cls(
            tuple(table["pieces"]),
            eos=table["eos"],
            unk=table["unk"],
            start=table["start"],
            banned=tuple(table["banned"]),
            name=name,
        )


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
