"""Which target pieces the pieces of a source are likely to need: a table in a file."""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfm_cli.errors import ModelError
from tfm_cli.files.atomic import atomic_file
from tfm_cli.files.safetensors_file import Array, SafetensorsFile, write_arrays
from tfm_cli.files.untrusted import parse_json
from tfm_cli.tokenizer.pair import TokenizerPair

FORMAT_VERSION = 1
_METADATA_KEY = "tfm"
_NAMES = ("best", "counts", "seen", "frequent")


@dataclass(frozen=True, slots=True)
class Shortlist:
    """What translations of each source piece were seen; all arrays are of 32-bit integers.

    Attributes:
        best: (P, N), row by row, target ids that stood for each source piece, the most frequent
            first, but for those of `frequent`; -1 where there are fewer.
        counts: (P, N) how often they did, 0 where there are fewer.
        seen: (P,) how often the source piece was there at all.
        frequent: (K,) the target pieces that were written most often.
    """

    best: "array[int]"
    counts: "array[int]"
    seen: "array[int]"
    frequent: "array[int]"
    _needed: dict[int, tuple[int, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @staticmethod
    def of(
        best: Sequence[Sequence[int]],
        counts: Sequence[Sequence[int]],
        seen: Sequence[int],
        frequent: Sequence[int],
    ) -> "Shortlist":
        """Return the table with these rows, one for each source piece."""
        rows = [array("i", (value for row in table for value in row)) for table in (best, counts)]
        return Shortlist(rows[0], rows[1], array("i", seen), array("i", frequent))

    @property
    def width(self) -> int:
        """Most target pieces for a source piece, N."""
        return len(self.best) // len(self.seen)

    def needed(self, piece: int) -> tuple[int, ...]:
        """Return the target ids that stood for a source piece, the most frequent first."""
        found = self._needed.get(piece)
        if found is None:
            row = self.best[piece * self.width : (piece + 1) * self.width]
            found = self._needed[piece] = tuple(target for target in row if target >= 0)
        return found

    def allowed(
        self, source: Sequence[int], prefix: Sequence[int], tokenizers: TokenizerPair
    ) -> list[int] | None:
        """Return the ids that the translation of a segment may be written with; None for any.

        They are what any of its pieces needs, the frequent pieces, the end, and what it is forced
        to begin with; where languages share a vocabulary, also its own pieces, which names and
        numbers keep. A segment with a piece that the table has never seen may have any.

        Args:
            source: the pieces of the segment.
            prefix: what its translation begins with.
            tokenizers: of the model.
        """
        pieces = set(source)
        if not all(self.seen[piece] for piece in pieces):
            return None
        ids = {tokenizers.target.eos_id, *self.frequent, *prefix}
        for piece in pieces:
            ids.update(self.needed(piece))
        if tokenizers.shares_vocabulary:
            ids |= pieces
        return None if len(ids) == tokenizers.target.vocab_size else sorted(ids)


def save_shortlist(
    path: Path, shortlist: Shortlist, tokenizers: TokenizerPair, *, follow: bool = True
) -> None:
    """Write a table, tied to the tokenizers whose pieces it knows.

    Args:
        path: of the file.
        shortlist: what is written.
        tokenizers: of the model.
        follow: see `atomic_file`.
    """
    num_pieces, width = len(shortlist.seen), shortlist.width
    shapes = ((num_pieces, width), (num_pieces, width), (num_pieces,), (len(shortlist.frequent),))
    arrays = {
        name: Array("I32", shape, [memoryview(getattr(shortlist, name))])
        for name, shape in zip(_NAMES, shapes, strict=True)
    }
    metadata = {"format_version": FORMAT_VERSION, "tokenizer_sha256": tokenizers.sha256}
    with atomic_file(path, follow=follow) as stream:
        write_arrays(stream, arrays, {_METADATA_KEY: json.dumps(metadata)})


def load_shortlist(path: Path, tokenizers: TokenizerPair) -> Shortlist:
    """The table in a file.

    Raises:
        ModelError: there is none, it is torn or of a newer format, or knows other pieces.
    """
    if not path.is_file():
        found = "is no regular file" if path.exists() else "there is no such shortlist"
        hint = "make one with `tfm shortlist`, or name another with `--shortlist-file`"
        raise ModelError(f"{path}: {found}", hint=hint)
    try:
        with SafetensorsFile(path) as file:
            metadata = parse_json(file.metadata.get(_METADATA_KEY, "{}").encode())
            _check_metadata(path, metadata, tokenizers)
            if set(file.tensors) != set(_NAMES):
                raise ValueError(f"has {', '.join(sorted(file.tensors))[:200]}")
            shapes = {name: file.tensors[name].shape for name in _NAMES}
            dtypes = {name: file.tensors[name].dtype for name in _NAMES}
            if problem := _problem(shapes, dtypes, tokenizers.vocab_sizes[0]):
                raise ModelError(f"{path}: is no shortlist of this model: {problem}")
            contents = file.read()
        shortlist = Shortlist(*(_integers(contents[name]) for name in _NAMES))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: is torn or no shortlist: {error}", hint="make it anew with `tfm shortlist`"
        ) from error
    for name, least in (("best", -1), ("frequent", 0)):
        ids, size = getattr(shortlist, name), tokenizers.vocab_sizes[1]
        if ids and not least <= min(ids) <= max(ids) < size:
            told = f"`{name}` has ids beyond the {size} of the vocabulary"
            raise ModelError(f"{path}: is no shortlist of this model: {told}")
    return shortlist


def _check_metadata(path: Path, metadata: Any, tokenizers: TokenizerPair) -> None:
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    version = metadata.get("format_version")
    if type(version) is not int:
        raise ValueError("`format_version` is missing or no number")
    if version > FORMAT_VERSION:
        told = f"has format {version}, wanted at most {FORMAT_VERSION}"
        raise ModelError(f"{path}: {told}", hint="install a newer tfm")
    if metadata.get("tokenizer_sha256") != tokenizers.sha256:
        raise ModelError(
            f"{path}: was made with another tokenizer: found SHA-256 "
            f"{metadata.get('tokenizer_sha256')}, wanted {tokenizers.sha256}",
            hint="make one for this model with `tfm shortlist`",
        )


def _problem(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], source_size: int
) -> str:
    """What is wrong with the tensors that a header tells of; empty for nothing."""
    for name, dtype in dtypes.items():
        if dtype != "I32":
            return f"`{name}` has type {dtype}, wanted I32"
    best, counts, seen, frequent = (shapes[name] for name in _NAMES)
    if len(best) != 2 or len(frequent) != 1 or best[0] != source_size:
        return f"`best` has shape {best} and `frequent` {frequent}"
    if counts != best or seen != (source_size,):
        return f"`counts` has shape {counts} and `seen` {seen}"
    return ""


def _integers(content: bytearray) -> "array[int]":
    found = array("i")
    found.frombytes(content)
    return found
