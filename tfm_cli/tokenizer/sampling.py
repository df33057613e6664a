"""Random segmentations of words and lines, the same for a seed in every process.

SentencePiece samples as well, but mixes its seed with random bits of the process (0.2.3). No piece
spans two words, so each word of a line is cut by itself.
"""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Protocol

from tfm_cli.errors import ModelError
from tfm_cli.tokenizer.model_file import SPACE_SYMBOL
from tfm_cli.tokenizer.tokenizer import Tokenizer

SAMPLED_ALGORITHMS = ("unigram", "bpe")  # the others cut text in one way only


class WordSampler(Protocol):
    """A sampler of segmentations."""

    def sample(self, word: str, random: Random, count: int) -> list[list[int]]:
        """Return the ids of independent segmentations of a word.

        Args:
            word: the text of some of the tokenizer's plain pieces, `▁` for a space.
            random: source of random numbers, of which only `random()` is used: Python promises that
                its results stay the same.
            count: number of segmentations.
        """


def word_sampler(tokenizer: Tokenizer, alpha: float) -> WordSampler:
    """Return a sampler for a `unigram` or a `bpe` tokenizer.

    Args:
        tokenizer: special, user-defined and byte pieces are left out.
        alpha: unigram: exponent of the segmentations' probabilities, 0 makes them equal;
            bpe: probability that a merge is skipped.
    """
    unsampled = {tokenizer.pieces[i] for i in tokenizer.unsampled_ids}
    own = {piece: i for i, piece in enumerate(tokenizer.pieces) if piece not in unsampled}
    scores = {piece: score for piece, score in tokenizer.scored_pieces if piece in own}
    ids = {piece: own[piece] for piece in scores}
    kind = UnigramSampler if tokenizer.algorithm == "unigram" else BpeSampler
    return kind(scores, ids, alpha)


class UnigramSampler:
    """A sampler from all segmentations of a word, with probabilities proportional to p ** alpha.

    Backward sums are computed first, then pieces are drawn from left to right.

    Args:
        scores: log-probability of each piece.
        ids: of each piece.
        alpha: exponent of the probabilities.

    Source: Kudo 2018, arXiv:1804.10959, section 3.4.
    """

    def __init__(self, scores: dict[str, float], ids: dict[str, int], alpha: float) -> None:
        self._logs = {piece: alpha * score for piece, score in scores.items()}
        self._ids = ids
        self._longest = max(map(len, scores), default=0)

    def sample(self, word: str, random: Random, count: int) -> list[list[int]]:
        """Return segmentations; see `WordSampler`."""
        edges = self._edges(word)
        return [_path(edges, random) for _ in range(count)]

    def _edges(self, word: str) -> list[list["_Edge"]]:
        """Return the pieces that may come next, with their probabilities, at each position."""
        size, logs = len(word), self._logs
        # Log of the sum over all segmentations of the rest of the word, from each position.
        rest = [-math.inf] * size + [0.0]
        edges: list[list[_Edge]] = [[] for _ in word]
        for start in range(size - 1, -1, -1):
            found = [
                (logs[piece] + rest[end], piece, end)
                for end in range(start + 1, min(size, start + self._longest) + 1)
                if rest[end] > -math.inf and (piece := word[start:end]) in logs
            ]
            if found:
                highest = max(found)[0]
                powers = [math.exp(log - highest) for log, _, _ in found]
                total = sum(powers)
                rest[start] = highest + math.log(total)
                edges[start] = [
                    (power / total, self._ids[piece], end)
                    for power, (_, piece, end) in zip(powers, found, strict=True)
                ]
        return edges


_Edge = tuple[float, int, int]  # probability, id of the piece, and its end


def _path(edges: Sequence[Sequence[_Edge]], random: Random) -> list[int]:
    """Draw pieces from the first position to the last."""
    tokens, at = [], 0
    while at < len(edges):
        left = random.random()
        for share, token, end in edges[at]:  # noqa: B007 - the last one, if rounding leaves a rest
            left -= share
            if left < 0:
                break
        tokens.append(token)
        at = end
    return tokens


class BpeSampler:
    """A sampler of segmentations by merges, of which some are skipped at each step (BPE-dropout).

    Of the merges that are possible at a step, each is left out with the probability `alpha`, and
    the best of the others is made; if none is left, the word is done.

    Args:
        scores: of each piece; the merge into the piece with the highest one is made first.
        ids: of each piece.
        alpha: probability that a merge is skipped at a step.

    Source: Provilkov et al. 2020, arXiv:1910.13267, algorithm 1.
    """

    def __init__(self, scores: dict[str, float], ids: dict[str, int], alpha: float) -> None:
        self._scores = scores
        self._ids = ids
        self._alpha = alpha

    def sample(self, word: str, random: Random, count: int) -> list[list[int]]:
        """Return segmentations; see `WordSampler`. A character that is no piece is merged first."""
        return [self._draw(word, random) for _ in range(count)]

    def _draw(self, word: str, random: Random) -> list[int]:
        scores, symbols = self._scores, list(word)
        while True:
            merges = [
                (-scores[merged], at)
                for at in range(len(symbols) - 1)
                if (merged := symbols[at] + symbols[at + 1]) in scores
            ]
            kept = [merge for merge in merges if random.random() >= self._alpha]
            if not kept:
                # Characters without a piece of their own cannot be left alone.
                kept = [
                    (rank, at) for rank, at in merges
                    if not {symbols[at], symbols[at + 1]} <= scores.keys()
                ]  # fmt: skip
                if not kept:
                    return [self._ids.get(symbol, -1) for symbol in symbols]
            _, at = min(kept)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


class LineSampler:
    """A sampler of segmentations of lines.

    A unigram model samples by subword regularization, a bpe model by BPE-dropout.

    Args:
        tokenizer: the tokenizer, whose special, user-defined and byte pieces stay as they are.
        nbest_size: sample among this many best segmentations of a line, at most 512; -1 for all. It
            has no meaning for bpe.
        alpha: as in `word_sampler`.

    Raises:
        ModelError: the model is neither unigram nor bpe.

    Source: Kudo 2018, arXiv:1804.10959; Provilkov et al. 2020, arXiv:1910.13267.
    """

    def __init__(self, tokenizer: Tokenizer, *, nbest_size: int = -1, alpha: float = 0.1) -> None:
        if tokenizer.algorithm not in SAMPLED_ALGORITHMS:
            kind = tokenizer.algorithm
            raise ModelError(
                f"the tokenizer cannot sample: it is of type `{kind}`, which cuts text in one way "
                "only"
            )
        self._tokenizer = tokenizer
        self._nbest_size = nbest_size if tokenizer.algorithm == "unigram" else -1
        self._alpha = alpha
        self._sampler = word_sampler(tokenizer, alpha)
        self._unsampled = tokenizer.unsampled_ids
        self._scores = dict(tokenizer.scored_pieces)

    def pieces(self, line: str, *, seed: int) -> list[str]:
        """Return a random segmentation of a line, which is determined by the seed."""
        random = Random(seed)
        if self._nbest_size > 0:
            return self._from_best(line, random)
        cut: list[str] = []
        for word, is_sampled in self._words(self._tokenizer.encode_pieces([line])[0]):
            (ids,) = self._sampler.sample("".join(word), random, 1) if is_sampled else ([-1],)
            cut += word if -1 in ids else [self._tokenizer.pieces[i] for i in ids]
        return cut

    def _words(self, pieces: Sequence[str]) -> Iterator[tuple[list[str], bool]]:
        """Yield the pieces of each word, and whether it may be cut otherwise."""
        word: list[str] = []
        for piece, i in zip(pieces, self._tokenizer.piece_ids(pieces), strict=True):
            is_alone = i in self._unsampled
            if word and (is_alone or piece.startswith(SPACE_SYMBOL)):
                yield word, True
                word = []
            if is_alone:
                yield [piece], False
            else:
                word.append(piece)
        if word:
            yield word, True

    def _from_best(self, line: str, random: Random) -> list[str]:
        best = self._tokenizer.nbest_pieces(line, self._nbest_size)
        if not best:
            return []
        # Unknown characters are in all of them, so their score does not matter.
        logs = [self._alpha * sum(self._scores.get(p, 0.0) for p in pieces) for pieces in best]
        weights = [math.exp(log - max(logs)) for log in logs]
        left = random.random() * sum(weights)
        for pieces, weight in zip(best, weights, strict=True):
            left -= weight
            if left < 0:
                return pieces
        return best[-1]
