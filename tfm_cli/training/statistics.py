"""What was learned since the last progress line, and which updates were refused on the way."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.errors import DivergedError
from tfm_cli.parallel import Parallel
from tfm_cli.training.batches import UpdatePlan
from tfm_cli.training.events import UpdateSkipped
from tfm_cli.training.state import TrainState
from tfm_cli.training.update import UpdateStats

HINT = "lower `--learn-rate` or lengthen `--lr-warmup`, and start again"
# A loss so many times that of guessing, log V, in so many updates in a row, is no bad spell: it was
# 26, 117 and 387 in the first updates of the preset `tiny` at a million times its rate.
FAR_OFF = 4
FAR_OFF_UPDATES = 20
_PAIRS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Made:
    stats: UpdateStats
    plan: UpdatePlan
    is_retried: bool


class Window:
    """Sums since the last progress line; they are read and added up only when they are needed.

    Args:
        state: has the sums and counters; changed in place.
        settings: what becomes of updates that are refused.
        parallel: the processes, all of which settle together.
        vocab_size: target pieces.
    """

    def __init__(
        self, state: TrainState, settings: TrainingConfig, parallel: Parallel, *, vocab_size: int
    ) -> None:
        self._state = state
        self._parallel = parallel
        self._most_refused = settings.max_bad_updates if settings.bad_updates != "stop" else 1
        self._highest_loss = FAR_OFF * math.log(vocab_size)
        self._unread: list[_Made] = []
        self.last: UpdateStats | None = None

    def add(
        self, stats: UpdateStats, plan: UpdatePlan, seconds: float, *, is_retried: bool = False
    ) -> None:
        """Take in an update that was made or refused."""
        self._unread.append(_Made(stats, plan, is_retried))
        self.last = stats
        self._state.target_pieces += stats.target_pieces
        self._state.window_pieces += stats.target_pieces
        self._state.window_seconds += seconds

    def settle(self) -> Iterator[UpdateSkipped]:
        """Bring the state up to date; says which updates were refused.

        Raises:
            DivergedError: too many in a row were, or their losses were far above that of guessing.
        """
        state = self._state
        unread, self._unread = self._unread, []
        totals = self._parallel.all_sum([float(made.stats.nll) for made in unread])
        for made, nll in zip(unread, totals, strict=True):
            stats, loss = made.stats, nll / made.stats.target_pieces
            if stats.is_finite():
                state.refused_in_a_row = 0
                state.window_nll += nll
                is_far_off = not loss <= self._highest_loss
                state.far_off_in_a_row = state.far_off_in_a_row + 1 if is_far_off else 0
                self._check_loss(stats.number, loss)
                continue
            state.refused += 1
            state.refused_in_a_row += 1
            if state.refused_in_a_row == 1:
                state.refused_since = stats.number
            state.target_pieces -= stats.target_pieces
            state.window_pieces -= stats.target_pieces
            norm = float(stats.gradient_norm)
            if state.refused_in_a_row < self._most_refused:
                yield self._refused(made, loss, norm)
                continue
            told = f"update {stats.number}: the loss is {loss:.4g} and the gradient norm {norm:.4g}"
            if state.refused_in_a_row > 1:
                told += f", after {state.refused_in_a_row - 1} like it in a row"
            raise DivergedError(
                f"{told}; the weights were not touched", hint=HINT, since=state.refused_since
            )

    def _check_loss(self, number: int, loss: float) -> None:
        count = self._state.far_off_in_a_row
        if count >= FAR_OFF_UPDATES:
            guessing = self._highest_loss / FAR_OFF
            raise DivergedError(
                f"update {number}: the loss is {loss:.4g}, and more than {FAR_OFF} times that of "
                f"guessing, {guessing:.3g}, since update {number - count + 1}",
                hint=HINT,
                since=number - count + 1,
            )

    def _refused(self, made: _Made, loss: float, norm: float) -> UpdateSkipped:
        numbers = [1 + int(pair) for pairs in made.plan.pairs for pair in pairs]
        return UpdateSkipped(
            update=made.stats.number,
            epoch=made.plan.epoch + 1,
            loss=loss,
            gradient_norm=norm,
            pairs=tuple(numbers[:_PAIRS_SHOWN]),
            num_pairs=len(numbers),
            count=self._state.refused,
            is_retried=made.is_retried,
        )
