"""What translation asks of what computes: to search segments, and to read finished pairs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.decoding.length import output_limit
from tfm_cli.errors import ModelError
from tfm_cli.native.search import CACHE_BYTES
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.shortlist import Shortlist

# T target pieces, S source pieces


Found = list[list[Hypothesis]]  # of each segment of a batch
Matrix = Sequence[Sequence[float]]  # rows of equal length


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How a model is searched.

    Args:
        settings: of the search.
        sampling: draw translations by chance instead of looking for the best.
        scores: note how good hypotheses are; else greedy search may leave NaN.
        word_scores: note the log-probability of each piece.
        shortlist: the pieces that translations are searched among; else the whole vocabulary.
        stops_loops: end a hypothesis that repeats the same few pieces, see `decoding.loops`.
        check: called now and then during a search; what it raises ends the search.
        cache_bytes: on a CPU, most memory of a process beyond the weights; a batch that needs more
            is searched in parts.
    """

    settings: SearchConfig
    sampling: bool = False
    scores: bool = True
    word_scores: bool = False
    shortlist: Shortlist | None = None
    stops_loops: bool = False
    check: Callable[[], None] | None = None
    cache_bytes: int = CACHE_BYTES


class SearchEngine(Protocol):
    """Models that translate together, and what computes them: the CPU engine or PyTorch."""

    @property
    def place(self) -> str:
        """The device, for messages."""

    @property
    def most_pieces(self) -> int:
        """Most pieces of a segment, on either side, that the models can place."""

    def begin_process(self) -> None:
        """Get ready to search in a process that was forked off."""

    def search(self, batch: Sequence[Segment], beam_size: int) -> Found:
        """Return hypotheses of each segment, best first.

        Args:
            batch: segments, of about the same length.
            beam_size: hypotheses that are followed at a time.

        Raises:
            MemoryError: there is no memory for the batch; a smaller one may do.
            NonFiniteScoresError: the models compute no finite numbers.
        """

    def attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[Matrix]:
        """Return how much each target piece of each pair came from each source piece, (T, S).

        The attention of the step that writes the piece, by the layer that says most of it, mean
        over heads and models. A row sums to less than 1: what went to </s> of the source is left
        out.

        Args:
            sources: ids of each source, without </s>.
            targets: ids of its translation, without </s>.

        Raises:
            MemoryError: there is no memory for all of these pairs together.
            NonFiniteScoresError: the attention is not made of finite numbers.
        """


def output_limits(batch: Sequence[Segment], settings: SearchConfig, most_pieces: int) -> list[int]:
    """Return the most pieces of the translation of each segment, without </s>."""
    return [
        max(len(segment.prefix), min(longest, most_pieces))
        for segment in batch
        for longest in [output_limit(len(segment.ids), settings.max_length_factor)]
    ]


def alignment_layer(decoder_layers: int) -> int:
    """Return which decoder layer's attention is an alignment: the last but one, from 0.

    Garg et al. 2019 (arXiv:1909.02074) found it the best. So it is here: of the links that IBM
    model 1 finds in both directions on Multi30k, a model of four layers had 28, 65, 78 and 72 %, by
    layer, at the step that writes the piece. The first layer knows too little of what is to be
    written, so it is chosen only where there is no other.
    """
    return max(decoder_layers - 2, min(decoder_layers - 1, 1))


# Weights that compute no finite numbers are reported as a fault of their model.


@contextlib.contextmanager
def useless_weights_refused(name: str) -> Iterator[None]:
    """Raise a ModelError that names the model where its scores are not finite numbers.

    Args:
        name: what messages call the model, or the models that translate together.
    """
    try:
        yield
    except NonFiniteScoresError as error:
        raise ModelError(
            f"{name}: the weights are of no use: {error}",
            hint="use another model or an earlier checkpoint; the training may have diverged",
        ) from error
