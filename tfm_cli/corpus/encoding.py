"""A block of lines as piece ids."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from tfm_cli.corpus.blocks import Block, block_pairs
from tfm_cli.corpus.filters import Filters, filter_lengths, filter_texts
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags
from tfm_cli.text.repairs import Repairs
from tfm_cli.tokenizer.pair import TokenizerPair

# How many pairs go to SentencePiece at a time: what comes back are Python's numbers, which take
# twenty times the memory of ours.
_LINES_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The pairs of a block that stay, source and target.

    Attributes:
        ids: of all segments of a side, one after the other, without </s>.
        lengths: pieces of each segment, </s> included.
        hashes: of the texts of each pair; empty unless duplicates are looked for.
        dropped: pairs that were left out, by reason.
        repairs: what was repaired in each of the block's files.
        round_trips: what the source and the target lose, before pairs are left out by length.
        tags: source lines by their language tags, before pairs are left out.
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
    """The narrowest type for the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def length_type(longest: int) -> np.dtype[np.generic]:
    """The narrowest type for lengths up to this one, </s> not counted."""
    return np.dtype(np.uint16 if longest + 1 < 1 << 16 else np.int32)


def encode_block(
    block: Block, tokenizers: TokenizerPair, filters: Filters, *, threads: int
) -> EncodedBlock:
    """The ids of the pairs that may stay.

    Args:
        block: lines of corpus files.
        tokenizers: of the two sides.
        filters: which pairs may stay.
        threads: of SentencePiece; 0 for as many as are worth it.

    Raises:
        DataError: a line is no UTF-8 and that is refused, or holds no pair.
    """
    dropped: Counter[str] = Counter()
    read = block_pairs(block, bad_utf8=filters.bad_utf8)
    dropped["invalid UTF-8"] += read.num_left_out
    sources, targets = filter_texts(read.sources, read.targets, filters, dropped)
    tags = SourceTags()
    tags.add(tokenizers.source, read.sources, place=lambda index: (block.file, read.numbers[index]))
    trips = RoundTrip(), RoundTrip()

    def place(index: int) -> tuple[int, int]:
        # Equal pairs are kept or left out alike, so the first one stands where this one does.
        wanted = sources[index], targets[index]
        places = enumerate(zip(read.sources, read.targets, strict=True))
        return block.file, read.numbers[next(i for i, pair in places if pair == wanted)]

    parts = [
        _encoded((sources, targets), slice(i, i + _LINES_AT_A_TIME),
                 tokenizers, filters, dropped, trips, place, threads=threads)
        for i in range(0, max(1, len(sources)), _LINES_AT_A_TIME)
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


def _encoded(
    texts: tuple[list[str], list[str]],
    part: slice,
    tokenizers: TokenizerPair,
    filters: Filters,
    dropped: Counter[str],
    trips: tuple[RoundTrip, RoundTrip],
    place: Callable[[int], tuple[int, int]],
    *,
    threads: int,
) -> tuple[np.ndarray, ...]:
    """Ids and lengths of both sides, and hashes, of the pairs of a part that may stay."""
    sources, targets = texts[0][part], texts[1][part]
    sides = ((tokenizers.source, sources, trips[0]), (tokenizers.target, targets, trips[1]))
    flat, lengths = [], []
    for tokenizer, lines, trip in sides:
        ids = tokenizer.encode(lines, threads=threads)
        trip.add(tokenizer, lines, ids, place=lambda index: place(part.start + index))
        lengths.append(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        total = int(lengths[-1].sum())
        kind = id_type(tokenizer.vocab_size)
        flat.append(np.fromiter(chain.from_iterable(ids), dtype=kind, count=total))
    keep = filter_lengths(lengths[0], lengths[1], filters, dropped)
    narrow = length_type(filters.max_length)
    hashes = _hashes(sources, targets) if filters.duplicates else np.zeros(0, dtype=np.uint64)
    if not keep.all():
        flat = [ids[np.repeat(keep, many)] for ids, many in zip(flat, lengths, strict=True)]
        lengths = [many[keep] for many in lengths]
        hashes = hashes[keep] if filters.duplicates else hashes
    return (*flat, *((many + 1).astype(narrow) for many in lengths), hashes)


def _hashes(sources: list[str], targets: list[str]) -> np.ndarray:
    """64 bits of each pair of texts; two different ones of 100 million agree once in 4,000 runs."""
    raw = b"".join(
        hashlib.blake2b(f"{source}\0{target}".encode(), digest_size=8).digest()
        for source, target in zip(sources, targets, strict=True)
    )
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)
