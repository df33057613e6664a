"""Where a training run stands: all of it that is not a tensor."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any

_MOST_COUNTED = 2**53
_MOST_PLACES = 2**40 - 1  # see `room.py`
_LONGEST_SECONDS = 1e12
_LARGEST_SUM = 1e300
_MOST_METRICS = 100


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Counters that go on from run to run."""

    update: int = 0  # optimizer updates made
    world: int = 0  # processes that made the newest of them
    batches_per_update: int = 0  # … and how many batches it had, at most
    micro_batch: int = 0  # most target pieces that were computed at once
    epoch: int = 0  # passes over the corpus that were finished
    pool: int = 0  # pools of the current epoch that were finished
    position: int = 0  # batches of the current pool that were used
    target_pieces: int = 0  # learned from so far
    train_seconds: float = 0.0  # spent on updates and validation so far
    best_score: float | None = None  # of the first validation metric
    best_others: list[float] = field(default_factory=list)  # of the others, which break ties
    best_update: int = 0
    stalled: int = 0  # validations since the best one
    validated_update: int = 0  # the newest update whose weights were judged
    # What went wrong on the way, and what was made of it.
    refused: int = 0  # attempts at an update whose loss or gradient was no finite number
    refused_in_a_row: int = 0
    refused_since: int = 0  # the update with which this row began
    far_off_in_a_row: int = 0  # updates whose loss was far above that of guessing
    rate_halvings: int = 0  # of the learning rate, after refused attempts
    good_since_halving: int = 0  # updates
    memory_splits: int = 0  # how often memory did not suffice for what was computed at once
    most_places: int = 0  # that are computed at once since then, of both sides; 0 for any number
    # Since the last progress line, so that the next one is the same after a break.
    window_nll: float = 0.0  # summed negative log-likelihood
    window_pieces: int = 0  # target pieces
    window_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The counters as JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(table: dict[str, Any]) -> "TrainState":
        """The counters that `to_json` gave; one that was not known then has its default.

        Raises:
            ValueError: a name or a value that `to_json` never gives.
        """
        kinds = typing.get_type_hints(TrainState)
        for name, value in table.items():
            if name not in kinds:
                raise ValueError(f"the counter `{name[:60]}` is not known")
            if kinds[name] == float | None and value is None:
                continue
            values = [value]
            if kinds[name] == list[float]:
                if not isinstance(value, list) or len(value) > _MOST_METRICS:
                    raise ValueError(f"the counter `{name}` is {_shortened(value)}, wanted a list")
                values = value
            accepted = (int,) if kinds[name] is int else (int, float)
            lowest, highest = _bounds(name, kinds[name])
            for each in values:
                if type(each) not in accepted or not lowest <= each <= highest:
                    told = f"{each:.3g}" if isinstance(each, float) else _shortened(each)
                    raise ValueError(
                        f"the counter `{name}` is {told}, wanted {lowest:.3g} to {highest:.3g}"
                    )
        return TrainState(**table)


def _bounds(name: str, kind: Any) -> tuple[float, float]:
    """Return the least and the greatest value that a run can reach."""
    if kind is int:
        return 0, _MOST_PLACES if name in ("most_places", "micro_batch") else _MOST_COUNTED
    if name.endswith("_seconds"):
        return 0, _LONGEST_SECONDS
    return (-_LARGEST_SUM if name in ("best_score", "best_others") else 0), _LARGEST_SUM


def _shortened(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MOST_COUNTED:
        # Python refuses to write out very long ones.
        return f"a number of about {round(math.log10(abs(value)))} digits"
    return str(value)[:20]
