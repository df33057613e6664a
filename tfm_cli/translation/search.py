"""How a batch of segments becomes hypotheses: in as much memory as there is, of different texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tfm_cli.corpus.random_key import random_key
from tfm_cli.decoding.n_best import different_texts
from tfm_cli.errors import ResourceError
from tfm_cli.files.faults import reach
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.search_engine import Found, SearchEngine, SearchOptions
from tfm_cli.translation.segments import Segment


@dataclass(frozen=True, slots=True)
class BatchSearch:
    """What makes hypotheses of segments, whatever computes them.

    Args:
        engine: the models.
        target: the tokenizer of translations.
        options: how the models are searched.
    """

    engine: SearchEngine
    target: Tokenizer
    options: SearchOptions

    def __call__(self, batch: list[Segment]) -> Found:
        """Hypotheses of each segment, best first; a batch that memory cannot hold is halved.

        Of an n-best list they have different texts. Sampling draws them independently of each
        other, and they stand in the order in which they were drawn.

        Raises:
            ResourceError: memory cannot hold a single segment.
        """
        count = self.options.settings.n_best
        if not self.options.sampling or count == 1:
            return self._halved(batch)
        found = self._halved(
            [_of_draw(segment, draw) for segment in batch for draw in range(count)]
        )
        return [
            [hypothesis for (hypothesis,) in found[start : start + count]]
            for start in range(0, len(found), count)
        ]

    def _halved(self, batch: list[Segment]) -> Found:
        try:
            reach("translate_batch")
            return self._best(batch)
        except MemoryError:
            pass
        # Only out here is the memory of the failed search free again.
        if len(batch) == 1:
            size = f"{len(batch[0].ids)} pieces with a beam of {self.options.settings.beam_size}"
            raise ResourceError(
                f"line {batch[0].number}: {self.engine.place} has no memory for a segment of "
                f"{size}",
                hint="lower `--beam-size` or `--max-length`, or use `--device cpu`",
            )
        half = len(batch) // 2
        return self._halved(batch[:half]) + self._halved(batch[half:])

    def _best(self, batch: list[Segment]) -> Found:
        """Hypotheses of each segment; of different texts where a list of them is wanted."""
        beam_size, count = self.options.settings.beam_size, self.options.settings.n_best
        if self.options.sampling or count == 1:
            return self.engine.search(batch, beam_size)

        def search(which: Sequence[int], width: int) -> Found:
            if width == beam_size:
                return self.engine.search(batch, beam_size)
            # As many rows at a time as before.
            together = max(1, len(batch) * beam_size // width)
            found: Found = []
            for start in range(0, len(which), together):
                some = [batch[segment] for segment in which[start : start + together]]
                try:
                    found += self.engine.search(some, width)
                except MemoryError:
                    found += [[] for _ in some]
            return found

        return different_texts(
            search,
            lambda hypotheses: self.target.decode([list(h.ids) for h in hypotheses]),
            segments=len(batch), count=count, beam_size=beam_size,
        )  # fmt: skip


def _of_draw(segment: Segment, draw: int) -> Segment:
    """The segment with the seed of one of its samples, the first of which has its own."""
    return replace(segment, seed=random_key("draw", segment.seed, draw)) if draw else segment
