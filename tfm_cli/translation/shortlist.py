"""Which target pieces the pieces of a source are likely to need: a table in a file."""

# B segments, S pieces of the longest source, P of the source vocabulary, V of the target's,
# N target pieces for each source piece, K frequent ones

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm_cli.errors import ModelError
from tfm_cli.files import atomic_file
from tfm_cli.plain_json import parse_json
from tfm_cli.tensor_file import write_tensors
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.weights_file import WeightsFile

FORMAT_VERSION = 1
_METADATA_KEY = "tfm"
_NAMES = ("best", "counts", "seen", "frequent")


@dataclass(frozen=True, slots=True)
class Shortlist:
    """What translations of each source piece were seen; all tensors are of int32.

    Attributes:
        best: (P, N) target ids that stood for each source piece, the most frequent first, but for
            those of `frequent`; -1 where there are fewer.
        counts: (P, N) how often they did, 0 where there are fewer.
        seen: (P,) how often the source piece was there at all.
        frequent: (K,) the target pieces that were written most often.
    """

    best: Tensor
    counts: Tensor
    seen: Tensor
    frequent: Tensor

    def allowed(
        self,
        sources: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        tokenizers: TokenizerPair,
    ) -> Tensor:
        """What the translation of each segment may be written with, (B, V) booleans.

        That is what any of its pieces needs, the frequent pieces, the end, and what it is forced
        to begin with; where languages share a vocabulary, also its own pieces, which names and
        numbers keep. A segment with a piece that the table has never seen may have any.
        """
        target = tokenizers.target
        pieces, keep = _padded(sources)  # (B, S) each
        allowed = torch.zeros(len(sources), target.vocab_size + 1, dtype=torch.bool)
        needed = self.best[pieces]  # (B, S, N)
        # What is no piece goes to one column too many.
        needed = needed.where((needed >= 0) & keep[:, :, None], target.vocab_size)
        allowed.scatter_(1, needed.flatten(1).long(), True)
        allowed[:, self.frequent.long()] = True
        allowed[:, target.eos_id] = True
        if any(prefixes):
            forced, given = _padded(prefixes)
            allowed.scatter_(1, forced.masked_fill(~given, target.eos_id), True)
        if tokenizers.shares_vocabulary:
            allowed.scatter_(1, pieces.masked_fill(~keep, target.eos_id), True)
        unknown = ((self.seen[pieces] == 0) & keep).any(dim=1)  # (B,)
        allowed[unknown] = True
        return allowed[:, :-1]


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
    tensors = {name: getattr(shortlist, name).contiguous() for name in _NAMES}
    metadata = {"format_version": FORMAT_VERSION, "tokenizer_sha256": tokenizers.sha256}
    with atomic_file(path, follow=follow) as stream:
        write_tensors(stream, tensors, {_METADATA_KEY: json.dumps(metadata)})


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
        with WeightsFile(path) as file:
            metadata = parse_json(file.metadata.get(_METADATA_KEY, "{}").encode())
            _check_metadata(path, metadata, tokenizers)
            if set(file.tensors) != set(_NAMES):
                raise ValueError(f"has {', '.join(sorted(file.tensors))[:200]}")
            shapes = {name: file.tensors[name].shape for name in _NAMES}
            dtypes = {name: file.tensors[name].dtype for name in _NAMES}
            if problem := _problem(shapes, dtypes, tokenizers.vocab_sizes[0]):
                raise ModelError(f"{path}: is no shortlist of this model: {problem}")
            contents = file.read()
        shortlist = Shortlist(**{name: _integers(contents[name], shapes[name]) for name in _NAMES})
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: is torn or no shortlist: {error}", hint="make it anew with `tfm shortlist`"
        ) from error
    for name, least in (("best", -1), ("frequent", 0)):
        ids, size = getattr(shortlist, name), tokenizers.vocab_sizes[1]
        if ids.numel() and not least <= int(ids.min()) <= int(ids.max()) < size:
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


def _integers(content: bytearray, shape: tuple[int, ...]) -> Tensor:
    # There is nothing in an empty buffer that a tensor could be made of.
    return torch.frombuffer(content or bytearray(4), dtype=torch.int32)[: math.prod(shape)].view(
        shape
    )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids side by side, 0 behind their ends, and where there are any, (B, S) each."""
    columns = list(zip_longest(*rows, fillvalue=-1))
    ids = torch.tensor(columns, dtype=torch.long).view(-1, len(rows)).T  # (B, S)
    return ids.clamp(min=0), ids >= 0
