"""Shortlists: the target tokens that translations of each source token are likely to need."""

# P source vocabulary, N target tokens for each source token, K frequent target tokens

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfm_cli.errors import ModelError, plain_reason
from tfm_cli.files.atomic import atomic_file
from tfm_cli.files.safetensors_file import Array, SafetensorsFile, write_arrays
from tfm_cli.files.untrusted import parse_json
from tfm_cli.tokenizer.pair import TokenizerPair

FORMAT_VERSION = 1
_METADATA_KEY = "tfm"
_NAMES = ("best", "counts", "seen", "frequent")


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The most frequent translations of each source token, as arrays of 32-bit integers.

    Attributes:
        best: (P, N), flattened: target ids aligned with each source token, the most frequent first,
            without those of `frequent`; rows are padded with -1.
        counts: (P, N), flattened: number of alignments with each; rows are padded with 0.
        seen: (P,) number of occurrences of each source token.
        frequent: (K,) the most frequent target tokens.
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
        """Return the shortlist with these rows, one for each source token."""
        rows = [array("i", (value for row in table for value in row)) for table in (best, counts)]
        return Shortlist(rows[0], rows[1], array("i", seen), array("i", frequent))

    @property
    def width(self) -> int:
        """Return N, the maximum number of target tokens for a source token."""
        return len(self.best) // len(self.seen)

    def needed(self, token: int) -> tuple[int, ...]:
        """Return the target ids aligned with a source token, the most frequent first."""
        ids = self._needed.get(token)
        if ids is None:
            row = self.best[token * self.width : (token + 1) * self.width]
            ids = self._needed[token] = tuple(target for target in row if target >= 0)
        return ids

    def allowed(
        self, source: Sequence[int], prefix: Sequence[int], tokenizers: TokenizerPair
    ) -> list[int] | None:
        """Return the ids that the translation of a segment may use; None for all.

        These are the tokens aligned with any token of the segment, the frequent tokens, </s> and
        the prefix; with a shared vocabulary also the segment's own tokens, for names and numbers.
        A segment with a token that has no occurrences may use all.

        Args:
            source: ids of the segment.
            prefix: ids that its translation begins with.
            tokenizers: tokenizers of the model.
        """
        tokens = set(source)
        if not all(self.seen[token] for token in tokens):
            return None
        ids = {tokenizers.target.eos_id, *self.frequent, *prefix}
        for token in tokens:
            ids.update(self.needed(token))
        if tokenizers.shares_vocabulary:
            ids |= tokens
        return None if len(ids) == tokenizers.target.vocab_size else sorted(ids)


def save_shortlist(
    path: Path, shortlist: Shortlist, tokenizers: TokenizerPair, *, follow: bool = True
) -> None:
    """Write a shortlist with the hash of its tokenizers.

    Args:
        path: path of the file.
        shortlist: the shortlist.
        tokenizers: tokenizers of the model.
        follow: see `atomic_file`.
    """
    size, width = len(shortlist.seen), shortlist.width
    shapes = ((size, width), (size, width), (size,), (len(shortlist.frequent),))
    arrays = {
        name: Array("I32", shape, [memoryview(getattr(shortlist, name))])
        for name, shape in zip(_NAMES, shapes, strict=True)
    }
    metadata = {"format_version": FORMAT_VERSION, "tokenizer_sha256": tokenizers.sha256}
    with atomic_file(path, follow=follow) as stream:
        write_arrays(stream, arrays, {_METADATA_KEY: json.dumps(metadata)})


def load_shortlist(path: Path, tokenizers: TokenizerPair) -> Shortlist:
    """Read a shortlist from a file.

    Raises:
        ModelError: the file is missing, damaged, of a newer format, or for other tokenizers.
    """
    if not path.is_file():
        message = "is not a regular file" if path.exists() else "there is no such shortlist"
        hint = "make one with `tfm shortlist`, or name another with `--shortlist-file`"
        raise ModelError(f"{path}: {message}", hint=hint)
    try:
        with SafetensorsFile(path) as file:
            metadata = parse_json(file.metadata.get(_METADATA_KEY, "{}").encode())
            _check_metadata(path, metadata, tokenizers)
            if set(file.tensors) != set(_NAMES):
                raise ValueError(f"has {', '.join(sorted(file.tensors))[:200]}")
            shapes = {name: file.tensors[name].shape for name in _NAMES}
            dtypes = {name: file.tensors[name].dtype for name in _NAMES}
            if problem := _problem(shapes, dtypes, tokenizers.vocab_sizes[0]):
                raise ModelError(f"{path}: is not a shortlist of this model: {problem}")
            contents = file.read()
        shortlist = Shortlist(*(_integers(contents[name]) for name in _NAMES))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: is damaged or not a shortlist: {plain_reason(error)}",
            hint="make it anew with `tfm shortlist`",
        ) from error
    for name, minimum in (("best", -1), ("frequent", 0)):
        ids, size = getattr(shortlist, name), tokenizers.vocab_sizes[1]
        if ids and not minimum <= min(ids) <= max(ids) < size:
            problem = f"`{name}` has ids beyond the {size} of the vocabulary"
            raise ModelError(f"{path}: is not a shortlist of this model: {problem}")
    return shortlist


def _check_metadata(path: Path, metadata: Any, tokenizers: TokenizerPair) -> None:
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not a JSON object")
    version = metadata.get("format_version")
    if type(version) is not int:
        raise ValueError("`format_version` is missing or not a number")
    if version > FORMAT_VERSION:
        message = f"has format {version}, expected at most {FORMAT_VERSION}"
        raise ModelError(f"{path}: {message}", hint="install a newer tfm")
    if metadata.get("tokenizer_sha256") != tokenizers.sha256:
        raise ModelError(
            f"{path}: was made with another tokenizer: found SHA-256 "
            f"{metadata.get('tokenizer_sha256')}, expected {tokenizers.sha256}",
            hint="make one for this model with `tfm shortlist`",
        )


def _problem(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], source_size: int
) -> str:
    """Return a problem of the tensors in a header; an empty string if there is none."""
    for name, dtype in dtypes.items():
        if dtype != "I32":
            return f"`{name}` has type {dtype}, expected I32"
    best, counts, seen, frequent = (shapes[name] for name in _NAMES)
    if len(best) != 2 or len(frequent) != 1 or best[0] != source_size:
        return f"`best` has shape {best} and `frequent` {frequent}"
    if counts != best or seen != (source_size,):
        return f"`counts` has shape {counts} and `seen` {seen}"
    return ""


def _integers(content: bytearray) -> "array[int]":
    result = array("i")
    result.frombytes(content)
    return result
