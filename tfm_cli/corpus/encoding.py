"""Encoding of a block of lines as token ids."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np

from tfm_cli.corpus.blocks import Block, block_pairs
from tfm_cli.corpus.filters import Filters, filter_lengths, filter_texts
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags
from tfm_cli.text.reader import Repairs
from tfm_cli.tokenizer.pair import TokenizerPair

# SentencePiece returns Python integers, which take twenty times the memory of an array.
_PAIRS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The pairs of a block that pass the filters, source and target.

    Attributes:
        ids: token ids of all segments of a side, concatenated, without </s>.
        lengths: tokens of each segment, including </s>.
        hashes: a hash of the texts of each pair; empty unless duplicates are dropped.
        dropped: the number of dropped pairs, by reason.
        repairs: repaired lines of each of the block's files.
        round_trips: text of each side that decoding does not restore, before filtering by length.
        tags: source lines by language tag, before any filtering.
    """

    ids: tuple[np.ndarray, np.ndarray]
    lengths: tuple[np.ndarray, np.ndarray]
    hashes: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    repairs: tuple[Repairs, ...] = ()
    round_trips: tuple[RoundTrip, RoundTrip] = field(
        default_factory=lambda: (RoundTrip(), RoundTrip())
    )
    tags: SourceTags = field(default_factory=SourceTags)


def id_type(vocab_size: int) -> np.dtype[np.generic]:
    """Return the narrowest type for the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def length_type(max_length: int) -> np.dtype[np.generic]:
    """Return the narrowest type for lengths with </s>, given the largest one without."""
    return np.dtype(np.uint16 if max_length + 1 < 1 << 16 else np.int32)


def encode_block(
    block: Block, tokenizers: TokenizerPair, filters: Filters, *, threads: int
) -> EncodedBlock:
    """Encode the pairs of a block, and drop those that do not pass the filters.

    Args:
        block: lines of corpus files.
        tokenizers: the tokenizers of the two sides.
        filters: rules for the pairs to drop.
        threads: the number of threads of SentencePiece; 0 for one that suits the machine.

    Raises:
        DataError: a line is not UTF-8 and the filters refuse it, or it holds no pair.
    """
    dropped: Counter[str] = Counter()
    read = block_pairs(block, bad_utf8=filters.bad_utf8)
    dropped["invalid UTF-8"] += read.num_left_out
    sources, targets = filter_texts(read.sources, read.targets, filters, dropped)
    tags = SourceTags()
    tags.add(
        tokenizers.source, read.sources, position=lambda index: (block.file, read.numbers[index])
    )
    trips = RoundTrip(), RoundTrip()

    def position(first: int, index: int) -> tuple[int, int]:
        # The filters treat equal pairs alike, so this pair is the first one that is equal to it.
        pair = sources[first + index], targets[first + index]
        pairs = enumerate(zip(read.sources, read.targets, strict=True))
        return block.file, read.numbers[next(i for i, other in pairs if other == pair)]

    parts = [
        _encode_pairs(
            sources[i : i + _PAIRS_AT_A_TIME], targets[i : i + _PAIRS_AT_A_TIME],
            tokenizers, filters, dropped, trips,
            position=partial(position, i), threads=threads,
        )
        for i in range(0, max(1, len(sources)), _PAIRS_AT_A_TIME)
    ]  # fmt: skip
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return EncodedBlock(
        (columns[0], columns[1]),
        (columns[2], columns[3]),
        columns[4],
        dropped,
        read.repairs,
        trips,
        tags,
    )


def _encode_pairs(
    sources: list[str],
    targets: list[str],
    tokenizers: TokenizerPair,
    filters: Filters,
    dropped: Counter[str],
    trips: tuple[RoundTrip, RoundTrip],
    *,
    position: Callable[[int], tuple[int, int]],
    threads: int,
) -> tuple[np.ndarray, ...]:
    """Return ids of both sides, lengths of both sides, and hashes of the pairs that pass."""
    sides = ((tokenizers.source, sources, trips[0]), (tokenizers.target, targets, trips[1]))
    flat, lengths = [], []
    for tokenizer, lines, trip in sides:
        ids = tokenizer.encode(lines, threads=threads)
        trip.add(tokenizer, lines, ids, position=position)
        lengths.append(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        total = int(lengths[-1].sum())
        dtype = id_type(tokenizer.vocab_size)
        flat.append(np.fromiter(chain.from_iterable(ids), dtype=dtype, count=total))
    select = filter_lengths(lengths[0], lengths[1], filters, dropped)
    narrow = length_type(filters.max_length)
    hashes = _hashes(sources, targets) if filters.duplicates else np.zeros(0, dtype=np.uint64)
    if not select.all():
        flat = [ids[np.repeat(select, counts)] for ids, counts in zip(flat, lengths, strict=True)]
        lengths = [counts[select] for counts in lengths]
        hashes = hashes[select] if filters.duplicates else hashes
    return (*flat, *((counts + 1).astype(narrow) for counts in lengths), hashes)


def _hashes(sources: list[str], targets: list[str]) -> np.ndarray:
    """Return a 64-bit hash of each pair of texts.

    The probability that two of 100 million different pairs have the same hash is 1 in 4,000.
    """
    raw = b"".join(
        hashlib.blake2b(f"{source}\0{target}".encode(), digest_size=8).digest()
        for source, target in zip(sources, targets, strict=True)
    )
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)
