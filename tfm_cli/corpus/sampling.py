"""Subword regularization: the words of the training text are cut anew in each epoch.

A unigram model samples from all segmentations of a word, with probabilities p ** alpha (Kudo 2018,
arXiv:1804.10959). A BPE model skips merges at random (BPE-dropout: Provilkov et al. 2020,
arXiv:1910.13267). Both cut each word by itself, since no piece spans two words, so it is words that
are sampled. `SLOTS` segmentations are drawn for each word and kept; an occurrence of the word takes
one of them, by a hash of the seed, the epoch, the pair and its position. A pair is therefore cut
alike whatever pool, batch or process it is in.
"""

# W words of some segments

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from tfm_cli.corpus.batching import Lengths, Side, scrambled
from tfm_cli.corpus.random_key import random_key
from tfm_cli.corpus.store import CorpusStore, FlatSegments, Segments
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.sampling import word_sampler
from tfm_cli.tokenizer.tokenizer import Tokenizer

SLOTS = 64  # segmentations of a word; a power of two
_SLOT_SHIFT = np.uint64(58)  # leaves the 6 highest bits of a hash
_GROUP = 4  # segmentations of a word that are drawn at once
_CHUNK_PAIRS = 1 << 14
# Beyond these, the segmentations that were drawn are forgotten, and drawn again when needed.
_MAX_WORDS = 1 << 18
_MAX_SEGMENTATIONS = 1 << 22


@dataclass(frozen=True, slots=True)
class SampledText:
    """The text of some pairs in an epoch, by the indices of the pairs."""

    source: Side
    target: Side


class SubwordSampling:
    """Random segmentations of a corpus, which are a function of the seed, the epoch and the pair.

    Args:
        store: the corpus.
        tokenizers: the tokenizers of the two sides, `unigram` or `bpe` where text is sampled.
        sides: `source`, `target` or `both`.
        alpha: as in `word_sampler`; 0 for the default of the model.
        seed: the seed of the run.
        max_length: a segment that would have more tokens than this keeps its own segmentation.
    """

    def __init__(
        self,
        store: CorpusStore,
        tokenizers: TokenizerPair,
        *,
        sides: str,
        alpha: float,
        seed: int,
        max_length: int,
    ) -> None:
        self._store = store
        self._samplers = [
            _SideSampler(
                segments, tokenizer, alpha=alpha or default_alpha(tokenizer),
                key=random_key("subwords", seed, name), max_length=max_length,
            )
            if sides in (name, "both")
            else None
            for name, segments, tokenizer in (
                ("source", store.source, tokenizers.source),
                ("target", store.target, tokenizers.target),
            )
        ]  # fmt: skip

    def text(self, epoch: int, pairs: np.ndarray) -> SampledText:
        """Return the text of some pairs in an epoch, given by their indices, ascending."""
        members = np.unique(pairs)
        source, target = (
            segments if sampler is None else sampler.sampled(epoch, members)
            for segments, sampler in zip(
                (self._store.source, self._store.target), self._samplers, strict=True
            )
        )
        self._store.release()
        return SampledText(source, target)


def default_alpha(tokenizer: Tokenizer) -> float:
    """Return the default `alpha`: 0.2 for a unigram model, and 0.1 for BPE.

    Source of the latter: Provilkov et al. 2020, arXiv:1910.13267.
    """
    return 0.2 if tokenizer.algorithm == "unigram" else 0.1


class _PoolLengths:
    """The lengths of the segments of a pool, by the index of the pair."""

    def __init__(self, members: np.ndarray, lengths: np.ndarray) -> None:
        self._members = members
        self._lengths = lengths

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        lengths: np.ndarray = self._lengths[np.searchsorted(self._members, indices)]
        return lengths


class _PoolSegments:
    """The sampled segments of a pool, by the index of the pair.

    Args:
        members: the indices of the pairs, ascending.
        segments: one for each of them.
    """

    def __init__(self, members: np.ndarray, segments: Segments) -> None:
        self.lengths: Lengths = _PoolLengths(members, segments.lengths)
        self._members = members
        self._segments = segments

    def gather(self, indices: np.ndarray) -> FlatSegments:
        """Return some segments."""
        return self._segments.gather(np.searchsorted(self._members, indices))


class _Words:
    """The words of some segments: runs of tokens of which only the first begins with a space.

    A token that is never sampled, such as a language tag, is a word of its own.

    Attributes:
        starts: offset of the first token of each word, (W,).
        lengths: tokens of each word, (W,).
        segments: index of the segment of each word, (W,).
        positions: index of each word in its segment, (W,).
    """

    def __init__(self, flat: FlatSegments, begins: np.ndarray, unsampled: np.ndarray) -> None:
        counts = flat.lengths
        first_tokens = np.cumsum(counts) - counts
        is_alone = unsampled[flat.ids]
        is_first = begins[flat.ids] | is_alone
        is_first[1:] |= is_alone[:-1]
        is_first[first_tokens[counts > 0]] = True
        self.starts = np.flatnonzero(is_first)
        self.lengths = np.diff(np.append(self.starts, len(flat.ids)))
        self.segments = np.repeat(np.arange(len(counts)), counts)[self.starts]
        per_segment = np.bincount(self.segments, minlength=len(counts))
        self.positions = np.arange(len(self.starts)) - np.repeat(
            np.cumsum(per_segment) - per_segment, per_segment
        )

    def hashes(self, ids: np.ndarray) -> np.ndarray:
        """Return a 64-bit hash of the tokens of each word, (W,) uint64.

        The probability that two of a million words have the same one is 3e-8.
        """
        offsets = np.arange(len(ids)) - np.repeat(self.starts, self.lengths)
        each = scrambled(ids, scrambled(offsets, np.uint64(0)))
        hashes: np.ndarray = np.add.reduceat(each, self.starts)
        return hashes


class _SideSampler:
    """The segmentations of one side of a corpus.

    Words and the segmentations of words are numbered in the order in which they are first seen.

    Args:
        segments: the side.
        tokenizer: its tokenizer.
        alpha: as in `word_sampler`.
        key: seeds everything that is drawn.
        max_length: see `SubwordSampling`.
    """

    def __init__(
        self, segments: Segments, tokenizer: Tokenizer, *, alpha: float, key: int, max_length: int
    ) -> None:
        self._segments = segments
        self._pieces = tokenizer.pieces
        self._sampler = word_sampler(tokenizer, alpha)
        self._key = key
        self._max_length = max_length
        self._begins = np.array([piece.startswith("▁") for piece in tokenizer.pieces])
        self._unsampled = np.zeros(tokenizer.vocab_size, dtype=bool)
        self._unsampled[list(tokenizer.unsampled_ids)] = True
        self._forget()

    def _forget(self) -> None:
        self._word_of: dict[int, int] = {}  # the number of a word by its hash
        self._texts: list[str] = []  # of each word
        self._seeds: list[int] = []  # of each word
        self._whole = _Buffer(np.int32)  # the word's own segmentation
        self._slots = _Buffer(np.int32)  # `SLOTS` segmentations of each word; -1 if not drawn yet
        self._ids = _Buffer(np.int32)  # of all segmentations, concatenated
        self._starts = _Buffer(np.int32)  # of each segmentation in `_ids`
        self._lengths = _Buffer(np.int32)  # of each segmentation

    def sampled(self, epoch: int, members: np.ndarray) -> _PoolSegments:
        """Return the segments of some pairs in an epoch; their indices are ascending."""
        if not len(members):
            return _PoolSegments(members, self._segments)
        key = random_key("epoch", self._key, epoch)
        ids, lengths = [], []
        for first in range(0, len(members), _CHUNK_PAIRS):
            if len(self._texts) > _MAX_WORDS or len(self._starts) > _MAX_SEGMENTATIONS:
                self._forget()
            chunk = members[first : first + _CHUNK_PAIRS]
            sampled = self._sampled_chunk(self._segments.gather(chunk), chunk, key)
            ids.append(sampled.ids.astype(self._segments.id_type))
            lengths.append(sampled.lengths)
        counts = np.concatenate(lengths)
        starts = np.concatenate([[0], np.cumsum(counts)])
        narrow = (counts + 1).astype(self._segments.lengths.dtype)
        return _PoolSegments(members, Segments(np.concatenate(ids), starts, narrow))

    def _sampled_chunk(self, flat: FlatSegments, pairs: np.ndarray, key: int) -> FlatSegments:
        if not len(flat.ids):
            return flat
        words = _Words(flat, self._begins, self._unsampled)
        numbers = self._numbers(flat.ids, words)  # (W,)
        pair_keys = scrambled(pairs, np.uint64(key))[words.segments]
        drawn = scrambled(words.positions, pair_keys)
        chosen = self._drawn(numbers * SLOTS + (drawn >> _SLOT_SHIFT).astype(np.int64))  # (W,)
        lengths = self._segment_lengths(chosen, words, len(pairs))
        if (lengths > self._max_length).any():
            is_long = (lengths > self._max_length)[words.segments]
            chosen = np.where(is_long, self._whole.values[numbers], chosen)
            lengths = self._segment_lengths(chosen, words, len(pairs))
        counts = self._lengths.values[chosen].astype(np.int64)
        before = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) + np.repeat(
            self._starts.values[chosen] - before, counts
        )
        return FlatSegments(self._ids.values[positions], lengths)

    def _segment_lengths(self, chosen: np.ndarray, words: _Words, num_segments: int) -> np.ndarray:
        counts = np.bincount(
            words.segments, weights=self._lengths.values[chosen], minlength=num_segments
        )
        return counts.astype(np.int64)

    def _numbers(self, ids: np.ndarray, words: _Words) -> np.ndarray:
        """Return the number of each word, (W,); new words get new ones."""
        hashes, firsts, inverse = np.unique(
            words.hashes(ids), return_index=True, return_inverse=True
        )
        keys = hashes.tolist()
        new = [index for index, key in enumerate(keys) if key not in self._word_of]
        tokens = []
        for index in new:
            start = words.starts[firsts[index]]
            tokens.append(ids[start : start + words.lengths[firsts[index]]])
            self._word_of[keys[index]] = len(self._word_of)
        self._add(tokens, [keys[index] for index in new])
        numbers = np.fromiter(map(self._word_of.__getitem__, keys), np.int64, len(keys))
        return numbers[inverse.reshape(-1)]

    def _add(self, words: Sequence[np.ndarray], hashes: Sequence[int]) -> None:
        """Add new words, each with its own segmentation."""
        if not words:
            return
        slots = np.full((len(words), SLOTS), -1, dtype=np.int32)
        for row, tokens in enumerate(map(np.ndarray.tolist, words)):
            whole = self._append(tokens)
            self._whole.extend([whole])
            if self._unsampled[tokens[0]]:
                slots[row] = whole
            self._texts.append("".join(self._pieces[token] for token in tokens))
            self._seeds.append(hashes[row] ^ self._key)
        self._slots.extend(slots.reshape(-1))

    def _drawn(self, slots: np.ndarray) -> np.ndarray:
        """Return the segmentation in each slot, (W,); those that are missing are drawn."""
        chosen: np.ndarray = self._slots.values[slots]
        if len(missing := np.unique(slots[chosen < 0])):
            for slot in missing.tolist():
                if self._slots.values[slot] < 0:
                    self._draw(slot)
            chosen = self._slots.values[slots]
        return chosen

    def _draw(self, slot: int) -> None:
        """Draw the segmentation of a slot and of its group."""
        number, which = divmod(slot, SLOTS)
        first = which - which % _GROUP
        random = Random(self._seeds[number] + first)
        drawn = self._sampler.sample(self._texts[number], random, _GROUP)
        for at, tokens in enumerate(drawn, number * SLOTS + first):
            is_known = -1 not in tokens
            self._slots.values[at] = (
                self._append(tokens) if is_known else self._whole.values[number]
            )

    def _append(self, tokens: list[int]) -> int:
        """Add a segmentation, and return its number."""
        number = len(self._starts)
        self._starts.extend([len(self._ids)])
        self._lengths.extend([len(tokens)])
        self._ids.extend(tokens)
        return number


class _Buffer:
    """An array that grows."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._data = np.zeros(1024, dtype=dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        """Return a view of the values, until the next `extend`."""
        return self._data[: self._size]

    def extend(self, values: Sequence[int] | np.ndarray) -> None:
        """Append values."""
        end = self._size + len(values)
        if end > len(self._data):
            larger = np.zeros(max(end, 2 * len(self._data)), dtype=self._data.dtype)
            larger[: self._size] = self.values
            self._data = larger
        self._data[self._size : end] = values
        self._size = end
