"""Scores of given pairs: the log-probabilities of targets under a model or an ensemble."""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.sources import Pair
from tfm_cli.corpus.token_budget import token_batches
from tfm_cli.decoding.interface import length_norm
from tfm_cli.device import resolve_device
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.text.characters import is_blank
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.formats import json_line, word_scores_field
from tfm_cli.translation.search import (
    SearchEngine,
    SearchOptions,
    unusable_weights_as_model_error,
)
from tfm_cli.translation.segments import TagCheck
from tfm_cli.translation.translator import load_models, resolve_precision, worker_cache_bytes
from tfm_cli.translation.worker_pool import Group, WorkerPool, num_workers

logger = logging.getLogger(__name__)

Ids = Sequence[int]  # ids of a segment, without </s>
LogProbs = list[list[float]]  # of each pair of a batch, those of its target's tokens and of </s>

_MAX_TOKENS = 4096  # of a side: memory and time grow with the square of the length
_MAX_CHARACTERS = 1 << 23  # of the pairs that are read ahead


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a pair.

    Attributes:
        score: length-normalized log-probability.
        log_probability: sum over all tokens.
        pieces: the pieces of the target, with </s> as the last; empty unless requested, and if
            both sides are blank.
        word_scores: log-probability of each token; empty if both sides are blank.
    """

    score: float
    log_probability: float
    pieces: tuple[str, ...] = ()
    word_scores: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Return the number of target tokens, </s> included; 0 if both sides are blank."""
        return len(self.word_scores)


class PairBatch(NamedTuple):
    """Pairs of similar lengths that are scored together.

    Attributes:
        indices: index of each pair in its buffer.
        numbers: line number of each pair, for messages.
        sources: ids of each source.
        targets: ids of each target.
    """

    indices: list[int]
    numbers: list[int]
    sources: list[Ids]
    targets: list[Ids]

    def part(self, start: int, stop: int) -> "PairBatch":
        """Return pairs `start` to `stop`."""
        which = slice(start, stop)
        return PairBatch(
            self.indices[which], self.numbers[which], self.sources[which], self.targets[which]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions:
    """The options of a scorer.

    Args:
        length_penalty: exponent of the length normalization; 0 disables it; None for that of the
            model.
        length_norm: its base, see `decoding.interface.length_norm`; None for that of the model.
        word_scores: record the pieces of each target.
        max_tokens: target tokens in a batch.
        buffer_size: pairs that are read ahead and sorted by length.
        names: names of the source and the target file in messages.
    """

    length_penalty: float | None = None
    length_norm: str | None = None
    word_scores: bool = False
    max_tokens: int = 4096
    buffer_size: int = 4096
    names: tuple[str, str] = ("source", "target")


class Scorer:
    """A model or an ensemble that scores pairs by teacher forcing.

    A score is that of `tfm translate` for a hypothesis of the same tokens, if its search changes no
    probabilities. A pair is never split or cut. A pair of two blank sides has the score 0, as
    the translation of a blank line; otherwise a blank side has no token but its </s>.

    Args:
        engine: engine of the models.
        tokenizers: tokenizers of the models.
        search: the search settings of the model, for what `options` leaves open.
        options: options of the scorer.
        workers: most processes that score in parallel; more than one only on a CPU.
        name: name of the models in messages.
    """

    def __init__(
        self,
        engine: SearchEngine,
        tokenizers: TokenizerPair,
        search: SearchConfig,
        options: ScorerOptions = ScorerOptions(),
        *,
        workers: int = 1,
        name: str = "the model",
    ) -> None:
        self._engine = engine
        self._tokenizers = tokenizers
        self._options = options
        self._num_workers = workers
        self._name = name
        penalty = options.length_penalty
        self._length_penalty = search.length_penalty if penalty is None else penalty
        self._length_norm = options.length_norm or search.length_norm
        self._usual_length = search.max_length
        self._tag_check = TagCheck(tokenizers.source)
        self._num_before = 0  # pairs of earlier buffers
        self._num_blank, self._first_blank = 0, 0  # pairs of two blank sides
        self._has_warned_of_length = False

    @staticmethod
    def load(
        model_dirs: Sequence[Path],
        options: ScorerOptions = ScorerOptions(),
        *,
        device: str = "auto",
        precision: str = "auto",
        workers: int = 1,
    ) -> "Scorer":
        """Load the scorer of a model directory, or of an ensemble; see `Translator.load`."""
        resolved = resolve_device(device)
        resolved_precision = resolve_precision(precision, resolved, model_dirs)
        count = num_workers(workers, device=resolved.type)
        models = load_models(model_dirs, resolved, resolved_precision)
        search = models.config.search
        engine = models.engine(
            SearchOptions(settings=search, cache_bytes=worker_cache_bytes(count))
        )
        name = ", ".join(map(str, model_dirs))
        return Scorer(engine, models.tokenizers, search, options, workers=count, name=name)

    def score(self, pairs: Iterable[Pair]) -> Generator[list[tuple[Pair, Score]], None, None]:
        """Yield the pairs with their scores in order, buffer by buffer.

        With several workers, the next buffer is submitted before the scores of a buffer are
        yielded. The workers end with this generator.

        Args:
            pairs: sources and targets, a line each.

        Raises:
            DataError: `pairs` raises it, or a side has too many tokens to be scored in one piece.
                The scores of earlier buffers are yielded first.
            ModelError: the log-probabilities are not finite numbers.
            ResourceError: a pair does not fit in memory, or a worker was killed.
        """
        pending: deque[tuple[list[Pair], list[PairBatch], Group[LogProbs]]] = deque()
        pool = WorkerPool(
            self._forced,
            max_workers=self._num_workers,
            initializer=self._engine.begin_process,
            verb="score",
        )

        def oldest(max_left: int) -> Iterator[list[tuple[Pair, Score]]]:
            while pending and (len(pending) > max_left or not pending[0][2].missing):
                some, batches, group = pending.popleft()
                with unusable_weights_as_model_error(self._name):
                    yield self._finished(some, batches, pool.results(group))

        with pool, closing(_buffers(pairs, self._options.buffer_size)) as buffers:
            try:
                for some in buffers:
                    batches = self._batches(some)
                    pending.append((some, batches, pool.submit(batches)))
                    yield from oldest(1)
            except DataError:
                yield from oldest(0)
                raise
            yield from oldest(0)

    def notes(self) -> list[str]:
        """Return a sentence about pairs whose score does not come from the model, if any."""
        if not self._num_blank:
            return []
        count, first = self._num_blank, self._first_blank
        return [f"pairs with two blank sides, whose score is 0: {count} (first: line {first})"]

    def _batches(self, pairs: Sequence[Pair]) -> list[PairBatch]:
        """Return a buffer in batches of similar length, longest first, without blank pairs.

        Raises:
            DataError: a side has too many tokens to be scored in one piece.
        """
        first = self._num_before + 1
        self._num_before += len(pairs)
        texts = [source for source, _ in pairs]
        self._tag_check.check(texts, first, name=self._options.names[0])
        sources: list[Ids] = [
            [] if is_blank(text) else ids
            for text, ids in zip(texts, self._tokenizers.source.encode(texts), strict=True)
        ]
        targets: list[Ids] = [*self._tokenizers.target.encode([target for _, target in pairs])]
        for number, both in enumerate(zip(sources, targets, strict=True), first):
            self._check_length(number, both)
        order = [index for index in range(len(pairs)) if sources[index] or targets[index]]
        if len(order) < len(pairs):
            blank = next(i for i in range(len(pairs)) if not (sources[i] or targets[i]))
            self._first_blank = self._first_blank or first + blank
            self._num_blank += len(pairs) - len(order)
        order.sort(key=lambda index: (-len(targets[index]), -len(sources[index])))
        lengths = ([len(side[index]) + 1 for index in order] for side in (sources, targets))
        return [
            PairBatch(
                order[batch],
                [first + index for index in order[batch]],
                [sources[index] for index in order[batch]],
                [targets[index] for index in order[batch]],
            )
            for batch in token_batches(*lengths, max_tokens=self._options.max_tokens)
        ]

    def _check_length(self, number: int, both: tuple[Ids, Ids]) -> None:
        """Raise a DataError if a side is too long for the model; warn once of a long source."""
        limit = min(self._engine.max_segment_tokens, _MAX_TOKENS)
        for side, name, ids in zip(("source", "target"), self._options.names, both, strict=True):
            if len(ids) > limit:
                raise DataError(
                    f"{name}:{number}: the {side} has {len(ids)} tokens, expected at most {limit}",
                    hint="leave the pair out; a score of a part would be that of another pair",
                )
        if len(both[0]) > self._usual_length and not self._has_warned_of_length:
            self._has_warned_of_length = True
            logger.warning(
                "%s:%d: has %d tokens and is scored in one piece, while `tfm translate` splits "
                "lines of more than %d; other such lines are not reported",
                self._options.names[0], number, len(both[0]), self._usual_length,
            )  # fmt: skip

    def _forced(self, batch: PairBatch) -> LogProbs:
        """Return the log-probabilities of a batch, halving it if it does not fit in memory.

        Raises:
            ResourceError: a single pair does not fit in memory.
        """
        try:
            return self._engine.score(batch.sources, batch.targets)
        except MemoryError:
            pass
        # The memory of the failed pass is freed only after the except block.
        if len(batch.sources) == 1:
            counts = f"{len(batch.sources[0])} and {len(batch.targets[0])}"
            raise ResourceError(
                f"{self._options.names[0]}:{batch.numbers[0]}: {self._engine.device_name} has no "
                f"memory for a pair of {counts} tokens",
                hint="leave the pair out, or use a machine with more memory",
            )
        half = len(batch.sources) // 2
        first, second = batch.part(0, half), batch.part(half, len(batch.sources))
        return self._forced(first) + self._forced(second)

    def _finished(
        self, pairs: list[Pair], batches: Sequence[PairBatch], results: Sequence[LogProbs]
    ) -> list[tuple[Pair, Score]]:
        """Return the pairs of a buffer with their scores, in order."""
        scores = [Score(0.0, 0.0)] * len(pairs)
        for batch, of_batch in zip(batches, results, strict=True):
            for index, ids, log_probs in zip(batch.indices, batch.targets, of_batch, strict=True):
                scores[index] = self._of_tokens(ids, log_probs)
        return list(zip(pairs, scores, strict=True))

    def _of_tokens(self, ids: Ids, log_probs: list[float]) -> Score:
        """Return the score of a target, given the log-probabilities of its tokens and of </s>."""
        total = sum(log_probs)
        norm = length_norm(len(log_probs), self._length_penalty, self._length_norm)
        pieces: tuple[str, ...] = ()
        if self._options.word_scores:
            target = self._tokenizers.target
            pieces = tuple(target.pieces[each] for each in (*ids, target.eos_id))
        return Score(total / norm, total, pieces, tuple(log_probs))


def _buffers(pairs: Iterable[Pair], size: int) -> Generator[list[Pair], None, None]:
    """Yield lists of up to `size` pairs with a limited number of characters.

    If `pairs` raises a DataError, those before it are yielded first.
    """
    some: list[Pair] = []
    characters = 0
    try:
        for pair in pairs:
            some.append(pair)
            characters += len(pair[0]) + len(pair[1])
            if len(some) >= size or characters >= _MAX_CHARACTERS:
                yield some
                some, characters = [], 0
    except DataError:
        if some:
            yield some
        raise
    if some:
        yield some


# Formatting of scores.


def as_text(score: Score, *, word_scores: bool) -> str:
    """Return the line `score[ ||| WordScores= …]`."""
    text = f"{score.score:.4f}"
    return f"{text} ||| {word_scores_field(score.word_scores)}" if word_scores else text


def as_json(pair: Pair, score: Score, *, word_scores: bool) -> str:
    """Return a JSON object with source, target, score and log-probability on one line."""
    fields: dict[str, Any] = {
        "source": pair[0],
        "target": pair[1],
        "score": round(score.score, 4),
        "log_probability": round(score.log_probability, 4),
    }
    if word_scores:
        fields["pieces"] = score.pieces
        fields["word_scores"] = [round(each, 4) for each in score.word_scores]
    return json_line(fields)
