"""Running sums of the updates since the last progress line, and the limits on bad updates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.errors import DivergedError
from tfm_cli.parallel import Parallel
from tfm_cli.training.batches import UpdateBatches
from tfm_cli.training.events import UpdateSkipped
from tfm_cli.training.state import TrainState
from tfm_cli.training.update import UpdateStats

HINT = "lower `--learn-rate` or lengthen `--lr-warmup`, and start again"
# A run has diverged after DIVERGED_UPDATES updates in a row, each with a loss of more than
# DIVERGED_FACTOR times that of a uniform guess, log V. The first updates of the preset `tiny` at a
# million times its learning rate had 26, 117 and 387 times that loss.
DIVERGED_FACTOR = 4
DIVERGED_UPDATES = 20
_MAX_PAIRS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Pending:
    stats: UpdateStats
    batches: UpdateBatches
    is_retried: bool


class TrainingStatistics:
    """The statistics of updates, read from the device and summed over the ranks only when needed.

    Args:
        state: holds the sums and counters; changed in place.
        settings: the policy for updates without a finite gradient.
        parallel: the processes, all of which must flush together.
        vocab_size: the size of the target vocabulary.
    """

    def __init__(
        self, state: TrainState, settings: TrainingConfig, parallel: Parallel, *, vocab_size: int
    ) -> None:
        self._state = state
        self._parallel = parallel
        self._max_skipped = settings.max_bad_updates if settings.bad_updates != "stop" else 1
        self._max_loss = DIVERGED_FACTOR * math.log(vocab_size)
        self._pending: list[_Pending] = []
        self.last: UpdateStats | None = None

    def add(
        self,
        stats: UpdateStats,
        batches: UpdateBatches,
        seconds: float,
        *,
        is_retried: bool = False,
    ) -> None:
        """Add an update, whether it was made or skipped."""
        self._pending.append(_Pending(stats, batches, is_retried))
        self.last = stats
        self._state.target_tokens += stats.target_tokens
        self._state.window_tokens += stats.target_tokens
        self._state.window_seconds += seconds

    def flush(self) -> Iterator[UpdateSkipped]:
        """Add the pending updates to the state, and yield those that were skipped.

        Raises:
            DivergedError: too many in a row were skipped, or had a loss far above a uniform guess.
        """
        state = self._state
        pending, self._pending = self._pending, []
        sums = [(float(each.stats.nll), _number(each.stats.divergence)) for each in pending]
        totals = self._parallel.all_sum([value for pair in sums for value in pair])
        for each, nll, divergence in zip(pending, totals[::2], totals[1::2], strict=True):
            stats, loss = each.stats, nll / each.stats.target_tokens
            if stats.is_finite():
                state.nonfinite_in_a_row = 0
                state.window_nll += nll
                state.window_divergence += divergence
                is_far_off = not loss <= self._max_loss
                state.high_loss_in_a_row = state.high_loss_in_a_row + 1 if is_far_off else 0
                self._check_loss(stats.number, loss)
                continue
            state.nonfinite_attempts += 1
            state.nonfinite_in_a_row += 1
            if state.nonfinite_in_a_row == 1:
                state.nonfinite_since = stats.number
            state.target_tokens -= stats.target_tokens
            state.window_tokens -= stats.target_tokens
            norm = float(stats.gradient_norm)
            if state.nonfinite_in_a_row < self._max_skipped:
                yield self._skipped(each, loss, norm)
                continue
            raise self._too_many_skipped(stats.number, loss, norm)

    def _too_many_skipped(self, number: int, loss: float, norm: float) -> DivergedError:
        state = self._state
        before = ""
        if state.nonfinite_in_a_row > 1:
            before = f", after {state.nonfinite_in_a_row - 1} like it in a row"
        return DivergedError(
            f"update {number}: the loss is {loss:.4g} and the gradient norm {norm:.4g}{before}; "
            "the weights were not changed",
            hint=HINT,
            since=state.nonfinite_since,
        )

    def _check_loss(self, number: int, loss: float) -> None:
        count = self._state.high_loss_in_a_row
        if count >= DIVERGED_UPDATES:
            uniform = self._max_loss / DIVERGED_FACTOR
            raise DivergedError(
                f"update {number}: the loss is {loss:.4g}, and has been more than "
                f"{DIVERGED_FACTOR} times that of a uniform guess, {uniform:.3g}, since update "
                f"{number - count + 1}",
                hint=HINT,
                since=number - count + 1,
            )

    def _skipped(self, pending: _Pending, loss: float, norm: float) -> UpdateSkipped:
        numbers = [1 + int(pair) for pairs in pending.batches.pairs for pair in pairs]
        return UpdateSkipped(
            update=pending.stats.number,
            epoch=pending.batches.epoch + 1,
            loss=loss,
            gradient_norm=norm,
            pairs=tuple(numbers[:_MAX_PAIRS_SHOWN]),
            num_pairs=len(numbers),
            count=self._state.nonfinite_attempts,
            is_retried=pending.is_retried,
        )


def _number(scalar: Tensor | None) -> float:
    return 0.0 if scalar is None else float(scalar)
