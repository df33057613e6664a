"""The interface between translation and engines: search, and the attention of given pairs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError, output_limit
from tfm_cli.errors import ModelError
from tfm_cli.native.search import CACHE_BYTES
from tfm_cli.translation.segments import Segment

if TYPE_CHECKING:
    from tfm_cli.translation.shortlist import Shortlist

# T target tokens, S source tokens


Found = list[list[Hypothesis]]  # of each segment of a batch
Matrix = Sequence[Sequence[float]]  # rows of equal length


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
    def place(self) -> str:
        """Return the name of the device, for messages."""

    @property
    def max_segment_tokens(self) -> int:
        """Return the maximum number of tokens of a source or a target that the positions allow."""

    def begin_process(self) -> None:
        """Prepare for searches in a forked process."""

    def search(self, batch: Sequence[Segment], beam_size: int) -> Found:
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
def useless_weights_refused(name: str) -> Iterator[None]:
    """Convert a NonFiniteScoresError to a ModelError that names the model.

    Args:
        name: the name of the model or the ensemble in messages.
    """
    try:
        yield
    except NonFiniteScoresError as error:
        raise ModelError(
            f"{name}: the weights are of no use: {error}",
            hint="use another model or an earlier checkpoint; the training may have diverged",
        ) from error
