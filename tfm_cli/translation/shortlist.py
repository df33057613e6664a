"""Which target pieces the pieces of a source are likely to need: a table in a file."""

# B segments, S pieces of the longest source, P of the source vocabulary, V of the target's,
# N target pieces for each source piece, K frequent ones

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tfm_cli.errors import ModelError
from tfm_cli.files import atomic_file, utf8_name
from tfm_cli.tensor_file import write_tensors
from tfm_cli.tokenizer_pair import TokenizerPair

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


def save_shortlist(path: Path, shortlist: Shortlist, tokenizers: TokenizerPair) -> None:
    """Write a table, tied to the tokenizers whose pieces it knows."""
    tensors = {name: getattr(shortlist, name).contiguous() for name in _NAMES}
    metadata = {"format_version": FORMAT_VERSION, "tokenizer_sha256": tokenizers.sha256}
    with atomic_file(path) as stream:
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
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            _check_metadata(path, metadata, tokenizers)
            if set(file.keys()) != set(_NAMES):
                raise ValueError(f"has {', '.join(sorted(file.keys()))}")
            shortlist = Shortlist(**{name: file.get_tensor(name) for name in _NAMES})
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: is torn or no shortlist: {error}", hint="make it anew with `tfm shortlist`"
        ) from error
    if problem := _problem(shortlist, tokenizers.vocab_sizes):
        raise ModelError(f"{path}: is no shortlist of this model: {problem}")
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


def _problem(shortlist: Shortlist, vocab_sizes: tuple[int, int]) -> str:
    """What is wrong with the tensors; empty for nothing."""
    source_size, target_size = vocab_sizes
    best, counts, seen, frequent = (getattr(shortlist, name) for name in _NAMES)
    for name in _NAMES:
        if getattr(shortlist, name).dtype != torch.int32:
            return f"`{name}` has type {getattr(shortlist, name).dtype}, wanted torch.int32"
    shapes = tuple(tuple(tensor.shape) for tensor in (best, counts, seen, frequent))
    if best.ndim != 2 or frequent.ndim != 1 or shapes[0][0] != source_size:
        return f"`best` has shape {shapes[0]} and `frequent` {shapes[3]}"
    if shapes[1] != shapes[0] or shapes[2] != (source_size,):
        return f"`counts` has shape {shapes[1]} and `seen` {shapes[2]}"
    for name, ids, least in (("best", best, -1), ("frequent", frequent, 0)):
        if ids.numel() and not least <= int(ids.min()) <= int(ids.max()) < target_size:
            return f"`{name}` has ids beyond the {target_size} of the vocabulary"
    return ""


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids side by side, 0 behind their ends, and where there are any, (B, S) each."""
    columns = list(zip_longest(*rows, fillvalue=-1))
    ids = torch.tensor(columns, dtype=torch.long).view(-1, len(rows)).T  # (B, S)
    return ids.clamp(min=0), ids >= 0
