"""The events of a training run: the loop yields them, and its caller displays and saves them."""

from dataclasses import dataclass

from tfm_cli.training.validation import Validation


@dataclass(frozen=True, slots=True)
class Updated:
    """An update that was made or skipped, with what is known without waiting for the device."""

    update: int
    epoch: int  # from 1
    target_tokens: int
    loss: float | None  # negative log-likelihood per target token; None if it is not known yet
    update_seconds: float  # spent on this update
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class Logged:
    """Training progress since the previous progress line."""

    update: int
    epoch: int  # from 1
    loss: float  # negative log-likelihood per target token
    learn_rate: float
    tokens_per_second: float  # target tokens, validation excluded
    gradient_norm: float
    seconds: float  # trained so far, over all runs
    consistency: float | None = None  # divergence per target token, with consistency training


@dataclass(frozen=True, slots=True)
class Validated:
    """A finished validation."""

    update: int
    epoch: int  # from 1
    validation: Validation
    is_best: bool
    counted: bool  # False if unscheduled: patience and best score do not change
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class Unvalidated:
    """The end of a run without any finished validation: its newest weights become the model."""

    update: int


@dataclass(frozen=True, slots=True)
class DecayBegan:
    """The begin of the decay in a run that ends by its time limit."""

    update: int  # the last one at the peak rate
    epoch: int  # from 1
    last_update: int  # of the decay and of the run
    seconds: float  # trained so far, over all runs


@dataclass(frozen=True, slots=True)
class CheckpointDue:
    """A request to write a checkpoint of the current state."""

    update: int
    is_last: bool = False  # True if training ends after it


@dataclass(frozen=True, slots=True)
class Stopped:
    """The reason for the end of training, as shown to the user; always the last event."""

    reason: str
    is_complete: bool  # False if the same command would resume training
    validate_first: bool  # validate the last weights before the end


@dataclass(frozen=True, slots=True)
class Mark:
    """A point at which a run was stopped or resumed; the caller of the loop makes it."""

    update: int
    epoch: int  # from 1
    seconds: float  # trained so far, over all runs
    stopped: Stopped | None  # None if the run was resumed


@dataclass(frozen=True, slots=True)
class Changed:
    """A change of settings on request, made before a run is resumed."""

    update: int
    epoch: int  # from 1
    seconds: float  # trained so far, over all runs
    changes: tuple[str, ...]  # as `section.name: old → new`
    settings_sha256: str  # of the values of these settings after the change


@dataclass(frozen=True, slots=True)
class UpdateSkipped:
    """An update without a finite loss and gradient; weights and moments are unchanged."""

    update: int
    epoch: int  # from 1
    loss: float  # negative log-likelihood per target token
    gradient_norm: float
    pairs: tuple[int, ...]  # numbers of its first pairs, from 1, dropped pairs not counted
    num_pairs: int
    count: int  # skipped so far, including this one
    is_retried: bool  # the update is computed again


Event = (
    Updated
    | Logged
    | Validated
    | Unvalidated
    | DecayBegan
    | CheckpointDue
    | UpdateSkipped
    | Stopped
)
