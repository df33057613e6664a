"""A model in training, on one process or on many: how its loss and its weights are come by."""

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.model.transformer import Transformer
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.data_parallel import (
    accumulate_gradients,
    all_reduce_gradients,
    distribute,
    full_tensor,
)
from tfm_cli.training.loss import cross_entropy
from tfm_cli.training.optimizer import MovingAverage

logger = logging.getLogger(__name__)


# B segments, S source pieces, T target pieces, N target pieces that are no padding, D model width


def batch_loss(
    model: Transformer, batch: Batch, *, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The summed loss of a batch and its summed negative log-likelihood, both scalars."""
    memory = model.encode(batch.source, batch.source_keep)  # (B, S, D)
    hidden = model.decode(batch.target_in, memory, batch.source_keep)  # (B, T, D)
    return cross_entropy(
        hidden.flatten(0, 1)[batch.target_positions],  # (N, D): no work is done for padding
        model.output_weight,
        batch.target_out.flatten()[batch.target_positions],  # (N,)
        label_smoothing=label_smoothing,
        bias=model.output_bias,
    )


class Objective(nn.Module):
    """What training makes small, as a module: a batch in, what `batch_loss` says of it out."""

    def __init__(self, model: Transformer, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss and the summed negative log-likelihood, both scalars."""
        return batch_loss(self.model, batch, label_smoothing=self._label_smoothing)


class ParallelModel:
    """A model among the processes that train it; a class because it holds what wraps the model.

    Args:
        model: is put on `device`; with several processes it gets the weights of rank 0, and with
            `fsdp` its parameters become shards. An optimizer is made of them only after this.
        label_smoothing: see `cross_entropy`.
        strategy: `auto`, `ddp` or `fsdp`.
        parallel: the processes.
        device: where to compute.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        label_smoothing: float,
        strategy: str = "auto",
        parallel: Parallel | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model = model
        self.parallel = parallel or Parallel()
        self._device = device or torch.device("cpu")
        self._whole: Transformer | None = None
        self.is_sharded = strategy == "fsdp" and self.parallel.world > 1
        if self.is_sharded:
            self._whole = copy.deepcopy(model).to("meta")
        else:  # shards are placed one by one: all together may be too much for a device
            model.to(self._device)
        self._objective = distribute(
            Objective(model, label_smoothing),
            layers=[*model.encoder_layers, *model.decoder_layers],
            strategy="fsdp" if self.is_sharded else "ddp",
            parallel=self.parallel,
            device=self._device,
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch and its summed negative log-likelihood, both scalars."""
        result: tuple[Tensor, Tensor] = self._objective(batch)
        return result

    def accumulating(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Inside, a loss and its gradient are computed; shards are told which is the last."""
        self.parallel.record_progress()
        return accumulate_gradients(self._objective, is_last=is_last)

    @property
    def num_averaged(self) -> int:
        """Over how many processes gradients are averaged, where they are wanted summed."""
        return self.parallel.world if self.is_sharded else 1

    def all_reduce_gradients(self) -> None:
        """Let each process have the sum of all gradients; shards have theirs already."""
        group = None if self.is_sharded else self.parallel.gradient_group(self._device)
        if group is not None:
            all_reduce_gradients(self.model.parameters(), group)

    @property
    def eval_model(self) -> Transformer:
        """The model that is validated: with whole weights, which it may have inside `judging`."""
        return self.model if self._whole is None else self._whole

    @contextlib.contextmanager
    def averaged_weights(self, average: MovingAverage) -> Iterator[None]:
        """Inside, `judged` has the average for its weights, on each process in full."""
        if self._whole is None:
            with average.in_place():
                yield
            return
        weights = average.current()
        self._whole.to_empty(device=self._device)
        with torch.no_grad():
            for name, parameter in self._whole.named_parameters():
                parameter.copy_(full_tensor(weights[name]))
        try:
            yield
        finally:
            self._whole.to("meta")


# Layers compiled by `torch.compile`, where a run is long enough to pay for it.

# A minute or two of compilation is then a small part of the run.
LONG_RUN = 20_000


def should_compile(settings: TrainingConfig, device: torch.device) -> bool:
    """Whether to compile: as asked for, or by itself in long runs on a GPU.

    Never by itself on a CPU, where compiled layers took 1.6 times as long as plain ones.
    """
    if settings.compile != "auto":
        return settings.compile == "on"
    is_long = settings.max_updates == 0 or settings.max_updates >= LONG_RUN
    return device.type == "cuda" and is_long


def compile_layers(model: Transformer) -> None:
    """Compile each layer for any shape; layers of a kind share what was compiled."""
    for layer in _layers(model):
        layer.compile(dynamic=True)


def undo_compilation(model: Transformer, error: Exception) -> bool:
    """Go on with plain layers after an error of the compiler; False where nothing was compiled."""
    compiled = [layer for layer in _layers(model) if layer._compiled_call_impl is not None]
    for layer in compiled:
        layer._compiled_call_impl = None
    if compiled:
        reason = str(error).strip().split("\n")[0]
        logger.warning("`torch.compile` failed, going on without it: %s", reason)
    return bool(compiled)


def _layers(model: Transformer) -> Iterator[nn.Module]:
    yield from model.encoder_layers
    yield from model.decoder_layers
