"""Search for hypotheses of a batch of segments, within memory and with distinct texts."""

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
    """A callable that returns the hypotheses of segments, on any engine.

    Args:
        engine: the models.
        target: the target tokenizer.
        options: options of the search.
    """

    engine: SearchEngine
    target: Tokenizer
    options: SearchOptions

    def __call__(self, batch: list[Segment]) -> Found:
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

    def _halved(self, batch: list[Segment]) -> Found:
        try:
            reach("translate_batch")
            return self._best(batch)
        except MemoryError:
            pass
        # The failed search's memory is freed only after the except block.
        if len(batch) == 1:
            size = f"{len(batch[0].ids)} tokens with a beam of {self.options.settings.beam_size}"
            raise ResourceError(
                f"line {batch[0].number}: {self.engine.place} has no memory for a segment of "
                f"{size}",
                hint="lower `--beam-size` or `--max-length`, or use `--device cpu`",
            )
        half = len(batch) // 2
        return self._halved(batch[:half]) + self._halved(batch[half:])

    def _best(self, batch: list[Segment]) -> Found:
        """Return the hypotheses of each segment; those of an n-best list have different texts."""
        beam_size, count = self.options.settings.beam_size, self.options.settings.n_best
        if self.options.sampling or count == 1:
            return self.engine.search(batch, beam_size)

        def search(indices: Sequence[int], width: int) -> Found:
            if width == beam_size:
                return self.engine.search(batch, beam_size)
            # No more hypotheses at a time than in the first search.
            size = max(1, len(batch) * beam_size // width)
            found: Found = []
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
