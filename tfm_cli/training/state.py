"""The position and counters of a training run: all of its state that is not a tensor."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any

_MAX_COUNT = 2**53
_MAX_POSITIONS = 2**40 - 1  # see `memory.py`
_MAX_SECONDS = 1e12
_MAX_SUM = 1e300
_MAX_METRICS = 100


# Fields as checkpoints of version 0.1 name them.
_FORMER_NAMES = {
    "world": "world_size",
    "target_pieces": "target_tokens",
    "refused": "nonfinite_attempts",
    "refused_in_a_row": "nonfinite_in_a_row",
    "refused_since": "nonfinite_since",
    "far_off_in_a_row": "high_loss_in_a_row",
    "most_places": "max_positions_per_pass",
    "window_pieces": "window_tokens",
}


@dataclass(slots=True, kw_only=True)
class TrainState:
    """The position and counters of a run; the names of the fields are keys of `state.json`."""

    update: int = 0  # optimizer updates made
    world_size: int = 0  # processes that made the newest of them
    batches_per_update: int = 0  # the maximum, for the newest of them
    micro_batch: int = 0  # the maximum number of target tokens per pass
    batch_tokens: int = 0  # the maximum number per batch; 0 in checkpoints that lack it
    epoch: int = 0  # finished passes over the corpus
    pool: int = 0  # finished pools of the current epoch
    position: int = 0  # batches of the current pool that were used
    target_tokens: int = 0  # target tokens learned from so far
    train_seconds: float = 0.0  # spent on updates and validation so far
    validation_seconds: float = 0.0  # that the newest validation took; 0 before the first
    best_score: float | None = None  # of the first validation metric
    best_others: list[float] = field(default_factory=list)  # of the others, which break ties
    best_update: int = 0
    scored_update: int = 0  # of the newest validation by schedule
    last_scores: list[float] = field(default_factory=list)  # its values, in the order of metrics
    stalled: int = 0  # validations since the best one
    validated_update: int = 0  # the newest update whose weights were validated
    # Bad updates.
    nonfinite_attempts: int = 0  # at an update, without a finite loss and gradient
    nonfinite_in_a_row: int = 0
    nonfinite_since: int = 0  # the first update of this series
    high_loss_in_a_row: int = 0  # updates with a loss far above that of a uniform guess
    rate_halvings: int = 0  # of the learning rate after skipped updates, still in effect
    good_since_halving: int = 0  # good updates since the rate last changed
    decay_start: int = 0  # the last update at the peak rate, once the time limit has fixed it
    last_update: int = 0  # of the run, if epochs or the time limit have fixed it for the schedule
    plan_crc: int = 0  # CRC-32 of the settings that these two depend on
    memory_splits: int = 0  # the number of times that the memory limit was lowered
    max_positions_per_pass: int = 0  # the memory limit, of source and target; 0 for none
    # Sums since the last progress line, so that a resumed run logs the same next line.
    window_nll: float = 0.0  # summed negative log-likelihood
    window_divergence: float = 0.0  # summed, of consistency training
    window_tokens: int = 0  # target tokens
    window_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(table: dict[str, Any]) -> "TrainState":
        """Return the state in a table from `to_json`; a missing field gets its default.

        Raises:
            ValueError: a name or a value that `to_json` never writes.
        """
        kinds = typing.get_type_hints(TrainState)
        for former, name in _FORMER_NAMES.items():
            if former in table and name in table:
                raise ValueError(f"the counter `{name}` is also there as `{former}`")
        table = {_FORMER_NAMES.get(name, name): value for name, value in table.items()}
        for name, value in table.items():
            if name not in kinds:
                raise ValueError(f"unknown counter `{name[:60]}`")
            if kinds[name] == float | None and value is None:
                continue
            values = [value]
            if kinds[name] == list[float]:
                if not isinstance(value, list) or len(value) > _MAX_METRICS:
                    raise ValueError(f"the counter `{name}` is {_shortened(value)}, not a list")
                values = value
            accepted = (int,) if kinds[name] is int else (int, float)
            lowest, highest = _bounds(name, kinds[name])
            for each in values:
                if type(each) not in accepted or not lowest <= each <= highest:
                    actual = f"{each:.3g}" if isinstance(each, float) else _shortened(each)
                    raise ValueError(
                        f"the counter `{name}` is {actual}, not within {lowest:.3g} and "
                        f"{highest:.3g}"
                    )
        return TrainState(**table)


def _bounds(name: str, kind: Any) -> tuple[float, float]:
    """Return the smallest and the largest valid value of a field."""
    if kind is int:
        is_size = name in ("max_positions_per_pass", "micro_batch")
        return 0, _MAX_POSITIONS if is_size else _MAX_COUNT
    if name.endswith("_seconds"):
        return 0, _MAX_SECONDS
    return (-_MAX_SUM if name in ("best_score", "best_others", "last_scores") else 0), _MAX_SUM


def _shortened(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_COUNT:
        # Python refuses to write out very long integers.
        return f"a number of about {round(math.log10(abs(value)))} digits"
    return str(value)[:20]
