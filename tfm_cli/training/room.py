"""How much is computed at once after memory did not suffice: batches in parts, to the same end."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tfm_cli.corpus.batch import Batch
from tfm_cli.errors import ResourceError
from tfm_cli.parallel import Parallel

logger = logging.getLogger(__name__)

_ANY = 1 << 40  # places, more than any memory holds


@dataclass(slots=True)
class Room:
    """What memory was found to hold; it changes when something does not fit.

    A batch is cut between pairs, by halves. The parts stay as wide as the whole and have its
    dropout, so their gradients add up to those of the whole but for the order of sums.
    """

    most_places: int = 0  # of both sides, padding included; 0 for any number
    splits: int = 0  # how often it was made smaller

    def parts(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """The rows, from and to, that are computed at once."""
        rows = len(batch.source)
        yield from self._halves(0, rows, _places(batch) // rows)

    def make_smaller(self, batch: Batch, rows: int, device: torch.device) -> None:
        """Let as many rows of a batch not be computed at once again; says so the first time.

        Raises:
            ResourceError: it was a single pair.
        """
        width = _places(batch) // len(batch.source)
        if rows == 1:
            sides = f"{batch.source.shape[1]} source and {batch.target_out.shape[1]} target pieces"
            raise ResourceError(
                f"{device}: out of memory for a single pair, of {sides} with padding",
                hint="drop longer pairs by `--max-length`, or train a smaller model",
            )
        self.most_places = (rows + 1) // 2 * width
        if not self.splits:
            logger.warning("%s: out of memory; computing less at once, to the same end", device)
        self.splits += 1

    def share(self, processes: Parallel) -> None:
        """Let all processes have the room that the one with the least has, as if they went on."""
        most, self.splits = processes.highest([-(self.most_places or _ANY), self.splits])
        self.most_places = -most % _ANY

    def _halves(self, start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
        rows = stop - start
        if rows == 1 or not self.most_places or rows * width <= self.most_places:
            yield start, stop
            return
        middle = start + (rows + 1) // 2
        yield from self._halves(start, middle, width)
        yield from self._halves(middle, stop, width)


def _places(batch: Batch) -> int:
    return batch.source.numel() + batch.target_out.numel()
