"""The events of a training run, which the loop yields for others to show and to save."""

from dataclasses import dataclass

from tfm_cli.training.validation import Validation


@dataclass(frozen=True, slots=True)
class Logged:
    """Progress since the line before it."""

    update: int
    epoch: int  # from 1
    loss: float  # negative log-likelihood of a target piece
    learn_rate: float
    pieces_per_second: float  # target pieces, validation excluded
    gradient_norm: float
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class Validated:
    """The model was judged."""

    update: int
    epoch: int  # from 1
    validation: Validation
    is_best: bool
    counted: bool  # False off schedule: it leaves patience and best score as they were
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class Unvalidated:
    """No validation was finished, so the newest weights are the model, without scores."""

    update: int


@dataclass(frozen=True, slots=True)
class CheckpointDue:
    """Now is the time to write a checkpoint; the state is what it should hold."""

    update: int
    is_last: bool = False  # whether training ends after it


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why training ended, in words; it is the last event."""

    reason: str
    is_complete: bool  # False where the same command would go on
    validate_first: bool  # whether to judge the last weights before the end


@dataclass(frozen=True, slots=True)
class UpdateSkipped:
    """Loss or gradient of an update was no finite number; weights and moments are as before."""

    update: int
    epoch: int  # from 1
    loss: float  # negative log-likelihood of a target piece
    gradient_norm: float
    pairs: tuple[int, ...]  # some that it was made of, as the training text has them, from 1
    num_pairs: int
    count: int  # so far, this one included
    is_retried: bool  # whether it is made again


Event = Logged | Validated | Unvalidated | CheckpointDue | UpdateSkipped | Stopped
