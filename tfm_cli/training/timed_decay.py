"""The decay of the learning rate in a run that ends by its time limit."""

import time
from collections.abc import Callable

from tfm_cli.config.settings import RunConfig
from tfm_cli.parallel import Parallel
from tfm_cli.training.interruption import RESERVE_FACTOR
from tfm_cli.training.schedule import ends_by_time
from tfm_cli.training.state import TrainState
from tfm_cli.training.time_limit import TimeLimit

# The pace is measured over this many updates, unless half of the time is over before.
_MIN_UPDATES = 10
# Since no two updates take the same time; what is left over is a hundredth of the run.
_PACE_FACTOR = 1.05


class TimedDecay:
    """The decision when the decay begins, so that it ends before the time limit.

    The decay begins when the time that is left is the time that it takes, by the pace so far. Its
    start and its last update are fixed in the state of the run then, so that the learning rate is a
    function of recorded numbers, whatever time the updates take.

    Args:
        state: of the run; changed in place.
        config: all settings.
        limit: the time limit of the command.
        parallel: the processes, all of which must call `plan` together; rank 0 decides.
        validation_seconds: estimates the duration of a validation; 0 without validation text.
        clock: returns the time in seconds, as that of the time limit.
    """

    def __init__(
        self,
        state: TrainState,
        config: RunConfig,
        limit: TimeLimit,
        *,
        parallel: Parallel,
        validation_seconds: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._config = config
        self._limit = limit
        self._parallel = parallel
        self._validation_seconds = validation_seconds
        self._clock = clock
        self._is_needed = ends_by_time(config.training) and bool(config.training.max_time)
        # The time after each update of this command but the first, without validations.
        self._times: list[float] = []
        self._validations = 0.0  # seconds so far
        self._first_update = state.update
        self._validated_update = state.validated_update
        self._half = (clock() + limit.deadline) / 2
        self._longest_validation = (limit.deadline - clock()) / 2  # at the end, off schedule

    def plan(self) -> None:
        """Fix the start and the end of the decay in the state, if it must begin now.

        It is called between two updates.
        """
        state = self._state
        if not self._is_needed or state.last_update:
            return
        self._measure()
        num_updates = 0
        if self._parallel.is_main and state.update >= self._config.training.lr_warmup:
            num_updates = self._num_updates()
        (num_updates,) = self._parallel.all_max([num_updates])
        if num_updates:
            state.decay_start = state.update
            state.last_update = state.update + num_updates

    def _measure(self) -> None:
        state = self._state
        if state.validated_update != self._validated_update:
            self._validated_update = state.validated_update
            self._validations += state.validation_seconds
        if state.update > self._first_update:  # the first one includes work that is done once
            self._times.append(self._clock() - self._validations)

    def _num_updates(self) -> int:
        """Return the number of updates of the decay if it begins now; 0 if it begins later."""
        now = self._clock()
        if len(self._times) < 2 or (len(self._times) <= _MIN_UPDATES and now < self._half):
            return 0
        ratio = self._config.training.decay_ratio
        usual = max(1, round(self._state.update * ratio / (1 - ratio)))
        left = self._limit.deadline - now
        if self._seconds(usual) < left:
            return 0
        shortest, longest = 1, usual  # the longest decay for which there is time
        while shortest < longest:
            middle = (shortest + longest + 1) // 2
            if self._seconds(middle) <= left:
                shortest = middle
            else:
                longest = middle - 1
        return shortest if self._seconds(shortest) <= left else 0

    def _seconds(self, num_updates: int) -> float:
        """Return the expected time of the next updates, with validations and the last checkpoint.

        Each update takes as long as the mean of this command or, if that is more, as the mean of as
        many of its newest updates.
        """
        times, update = self._times, self._state.update
        recent = min(num_updates, len(times) - 1)
        pace = max(
            (times[-1] - times[0]) / (len(times) - 1),
            (times[-1] - times[-1 - recent]) / recent,
        )
        last = update + num_updates
        frequency = self._config.validation.freq
        seconds = self._validation_seconds()
        validations = last // frequency - update // frequency
        # As `interruption` does, which leaves out the last one if it would take too long.
        validations += last % frequency > 0 and seconds <= self._longest_validation
        reserved = validations * RESERVE_FACTOR * seconds
        return num_updates * pace * _PACE_FACTOR + reserved + self._limit.saving_seconds
