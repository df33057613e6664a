"""Search for hypotheses of a batch of segments, on any engine, and its attention."""

# T target tokens, S source tokens

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.random_key import random_key
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError, output_limit
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files.faults import reach
from tfm_cli.native.search import CACHE_BYTES
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.segments import Segment

if TYPE_CHECKING:
    from tfm_cli.translation.shortlist import Shortlist


BatchHypotheses = list[list[Hypothesis]]  # of each segment of a batch
Matrix = Sequence[Sequence[float]]  # rows of equal length

_MAX_BEAM_SIZE = 256  # of a repeated search; the maximum of the native engine


class SearchOptions(NamedTuple):
    """The options of the searches of an engine.

    Args:
        settings: of the search.
        sampling: draw translations at random instead of searching for the best.
        scores: compute scores of hypotheses; otherwise those of greedy search may be NaN.
        word_scores: store the log-probability of each token.
        shortlist: restricts each translation to some tokens; None for the whole vocabulary.
        stops_loops: end a hypothesis that repeats the same few tokens, see `is_loop`.
        check: called regularly during a search; an exception that it raises ends the search.
        cache_bytes: on a CPU, maximum memory of a process beyond the weights; a batch that needs
            more is searched in parts.
    """

    settings: SearchConfig
    sampling: bool = False
    scores: bool = True
    word_scores: bool = False
    shortlist: "Shortlist | None" = None
    stops_loops: bool = False
    check: Callable[[], None] | None = None
    cache_bytes: int = CACHE_BYTES


class SearchEngine(Protocol):
    """One model or an ensemble, in the native engine or in PyTorch."""

    @property
    def device_name(self) -> str:
        """Return the name of the device, for messages."""

    @property
    def max_segment_tokens(self) -> int:
        """Return the maximum number of tokens of a source or a target that the positions allow."""

    def begin_process(self) -> None:
        """Prepare for searches in a forked process."""

    def search(self, batch: Sequence[Segment], beam_size: int) -> BatchHypotheses:
        """Return hypotheses of each segment, best first.

        Args:
            batch: segments of similar lengths.
            beam_size: number of hypotheses that are kept at each step.

        Raises:
            MemoryError: there is no memory for the batch; a smaller one may fit.
            NonFiniteScoresError: the models compute scores that are not finite numbers.
        """

    def attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[Matrix]:
        """Return the attention of each target token to each source token, (T, S) of each pair.

        Row t is the cross-attention of the step that predicts token t, in the layer that aligns
        best, averaged over heads and models. A row sums to less than 1, since the weight of the
        source's </s> is left out.

        Args:
            sources: ids of each source, without </s>.
            targets: ids of its translation, without </s>.

        Raises:
            MemoryError: there is no memory for all of these pairs together.
            NonFiniteScoresError: the attention weights are not finite numbers.
        """

    def score(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the log-probabilities of each target's tokens and of the </s> after them.

        They are those of the whole vocabulary, whatever the options of the search. With several
        models, a probability is the mean of theirs.

        Args:
            sources: ids of each source, without </s>.
            targets: ids of its translation, without </s>.

        Raises:
            MemoryError: there is no memory for all of these pairs together.
            NonFiniteScoresError: the log-probabilities are not finite numbers.
        """


def chosen_search(
    settings: SearchConfig, chosen: Mapping[str, Any], *, sampling: bool = False
) -> SearchConfig:
    """Return the model's own search settings, with the chosen ones replaced.

    A chosen beam size limits the n-best list; otherwise the beam is widened to the length of the
    list. With sampling, one sample is drawn by default.
    """
    merged = replace(settings, **chosen)
    if sampling:
        return merged if "n_best" in chosen else replace(merged, n_best=1)
    if "beam_size" in chosen:
        return replace(merged, n_best=min(merged.n_best, merged.beam_size))
    return replace(merged, beam_size=max(merged.n_best, merged.beam_size))


def output_limits(
    batch: Sequence[Segment], settings: SearchConfig, max_segment_tokens: int
) -> list[int]:
    """Return the maximum number of tokens of each segment's translation, without </s>."""
    return [
        max(len(segment.prefix), min(longest, max_segment_tokens))
        for segment in batch
        for longest in [output_limit(len(segment.ids), settings.max_length_factor)]
    ]


def alignment_layer(decoder_layers: int) -> int:
    """Return the decoder layer, from 0, whose attention is used as an alignment.

    It is the penultimate one, which Garg et al. 2019 (arXiv:1909.02074) found best. In a model of
    four layers on Multi30k, the layers recovered 28, 65, 78 and 72 % of the links that IBM model 1
    finds in both directions, at the step that predicts the token. The first layer has too little
    information on the next token, so a model of two layers uses its last.
    """
    return max(decoder_layers - 2, min(decoder_layers - 1, 1))


@contextlib.contextmanager
def unusable_weights_as_model_error(name: str) -> Iterator[None]:
    """Convert a NonFiniteScoresError to a ModelError that names the model.

    Args:
        name: the name of the model or the ensemble in messages.
    """
    try:
        yield
    except NonFiniteScoresError as error:
        raise ModelError(
            f"{name}: the weights are unusable: {error}",
            hint="use another model or an earlier checkpoint; the training may have diverged",
        ) from error


@dataclass(frozen=True, slots=True)
class BatchSearch:
    """A callable that returns the hypotheses of segments, on any engine.

    Args:
        engine: the models.
        target: the target tokenizer.
        options: options of the search.
    """

    engine: SearchEngine
    target: Tokenizer
    options: SearchOptions

    def __call__(self, batch: list[Segment]) -> BatchHypotheses:
        """Return the hypotheses of each segment, best first.

        A batch that does not fit in memory is halved. The hypotheses of an n-best list have
        different texts. Samples are independent of each other and in the order of sampling.

        Raises:
            ResourceError: a single segment does not fit in memory.
        """
        count = self.options.settings.n_best
        if not self.options.sampling or count == 1:
            return self._halved(batch)
        samples = self._halved(
            [_sampled_segment(segment, draw) for segment in batch for draw in range(count)]
        )
        return [
            [hypothesis for (hypothesis,) in samples[start : start + count]]
            for start in range(0, len(samples), count)
        ]

    def _halved(self, batch: list[Segment]) -> BatchHypotheses:
        try:
            reach("translate_batch")
            return self._best(batch)
        except MemoryError:
            pass
        # The failed search's memory is freed only after the except block.
        if len(batch) == 1:
            size = f"{len(batch[0].ids)} tokens with a beam of {self.options.settings.beam_size}"
            raise ResourceError(
                f"line {batch[0].number}: {self.engine.device_name} has no memory for a segment of "
                f"{size}",
                hint="lower `--beam-size` or `--max-length`, or use `--device cpu`",
            )
        half = len(batch) // 2
        return self._halved(batch[:half]) + self._halved(batch[half:])

    def _best(self, batch: list[Segment]) -> BatchHypotheses:
        """Return the hypotheses of each segment; those of an n-best list have different texts."""
        beam_size, count = self.options.settings.beam_size, self.options.settings.n_best
        if self.options.sampling or count == 1:
            return self.engine.search(batch, beam_size)

        def search(indices: Sequence[int], width: int) -> BatchHypotheses:
            if width == beam_size:
                return self.engine.search(batch, beam_size)
            # No more hypotheses at a time than in the first search.
            size = max(1, len(batch) * beam_size // width)
            found: BatchHypotheses = []
            for start in range(0, len(indices), size):
                segments = [batch[index] for index in indices[start : start + size]]
                try:
                    found += self.engine.search(segments, width)
                except MemoryError:
                    found += [[] for _ in segments]
            return found

        return different_texts(
            search,
            lambda hypotheses: self.target.decode([list(h.ids) for h in hypotheses]),
            segments=len(batch), count=count, beam_size=beam_size,
        )  # fmt: skip


def _sampled_segment(segment: Segment, draw: int) -> Segment:
    """Return the segment with the seed of one of its samples; the first keeps the seed."""
    return replace(segment, seed=random_key("draw", segment.seed, draw)) if draw else segment


def different_texts(
    search: Callable[[Sequence[int], int], BatchHypotheses],
    texts_of: Callable[[Sequence[Hypothesis]], list[str]],
    *,
    segments: int,
    count: int,
    beam_size: int,
) -> list[list[Hypothesis]]:
    """Return the `count` best hypotheses of each segment with distinct texts, best first.

    Several hypotheses may spell one text; only the best of them is returned. Segments with too few
    texts are searched again with a beam twice as wide, until there are enough, a search finds
    fewer hypotheses than its beam size, or the beam would exceed 256.

    Args:
        search: returns the hypotheses of the segments with these indices, best first, for a given
            beam size. The list of a segment may be empty if memory cannot hold a wider beam.
        texts_of: returns the text of each hypothesis. Texts that differ in whitespace are equal.
        segments: number of segments.
        count: number of hypotheses of each segment.
        beam_size: of the first search, at least `count`.
    """
    found: list[dict[str, Hypothesis]] = [{} for _ in range(segments)]
    incomplete: Sequence[int] = range(segments)
    while incomplete:
        some = search(incomplete, beam_size)
        texts = iter(texts_of([each for hypotheses in some for each in hypotheses]))
        exhausted = set()
        for segment, hypotheses in zip(incomplete, some, strict=True):
            by_text = found[segment]
            for each in hypotheses:
                text = " ".join(next(texts).split())
                if text not in by_text or each.score > by_text[text].score:
                    by_text[text] = each
            if len(hypotheses) < beam_size:
                exhausted.add(segment)
        beam_size *= 2
        if beam_size > _MAX_BEAM_SIZE:
            break
        incomplete = [
            segment
            for segment in incomplete
            if len(found[segment]) < count and segment not in exhausted
        ]
    return [
        sorted(by_text.values(), key=lambda hypothesis: -hypothesis.score)[:count]
        for by_text in found
    ]
