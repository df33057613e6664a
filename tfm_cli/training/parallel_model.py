"""A model in training, on one process or several: its loss, gradients and weights."""

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.model.precision import autocast
from tfm_cli.model.transformer import Transformer
from tfm_cli.parallel import Parallel
from tfm_cli.parallel.data_parallel import (
    accumulate_gradients,
    all_reduce_gradients,
    distribute,
    full_tensor,
)
from tfm_cli.training.consistency import NUM_VIEWS, Consistency, consistency_loss
from tfm_cli.training.loss import cross_entropy
from tfm_cli.training.optimizer import MovingAverage

logger = logging.getLogger(__name__)

# Runs of at least this many updates are compiled: compilation takes a minute or two.
LONG_RUN = 20_000


# B segments, S source tokens, T target tokens, N target tokens without padding, D model width


def batch_loss(
    model: Transformer, batch: Batch, *, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the summed loss and the summed negative log-likelihood of a batch, both scalars."""
    memory = model.encode(batch.source, batch.source_keep)  # (B, S, D)
    hidden = model.decode(batch.target_in, memory, batch.source_keep)  # (B, T, D)
    return cross_entropy(
        hidden.flatten(0, 1)[batch.target_positions],  # (N, D): padding costs nothing
        model.output_weight,
        batch.target_out.flatten()[batch.target_positions],  # (N,)
        label_smoothing=label_smoothing,
        bias=model.output_bias,
    )


class Objective(nn.Module):
    """The training loss as a module."""

    def __init__(
        self, model: Transformer, label_smoothing: float, consistency: Consistency | None
    ) -> None:
        super().__init__()
        self.model = model
        self._label_smoothing = label_smoothing
        self._consistency = consistency

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the results of `ParallelModel.loss`."""
        smoothing = self._label_smoothing
        if self._consistency is not None:
            return consistency_loss(self.model, batch, self._consistency, label_smoothing=smoothing)
        loss, nll = batch_loss(self.model, batch, label_smoothing=smoothing)
        return loss, nll, None


class ParallelModel:
    """A model on one rank of a process group, together with its training loss.

    Args:
        model: moved to `device`; with several processes it gets the weights of rank 0, and with
            `fsdp` its parameters become shards. The optimizer must be made after this.
        label_smoothing: see `cross_entropy`.
        consistency: the consistency training; None for none.
        strategy: `auto`, `ddp` or `fsdp`.
        parallel: the processes.
        device: the device that computes.
        dtype: precision of the matrix products.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        label_smoothing: float,
        consistency: Consistency | None = None,
        strategy: str = "auto",
        parallel: Parallel | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.parallel = parallel or Parallel()
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.consistency = consistency
        self._unsharded: Transformer | None = None
        self.is_sharded = strategy == "fsdp" and self.parallel.world_size > 1
        if self.is_sharded:
            self._unsharded = copy.deepcopy(model).to("meta")
        else:  # shards are moved one by one: the whole may be too large for a device
            model.to(self.device)
        self._objective = distribute(
            Objective(model, label_smoothing, consistency),
            layers=[*model.encoder_layers, *model.decoder_layers],
            strategy="fsdp" if self.is_sharded else "ddp",
            parallel=self.parallel,
            device=self.device,
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return sums over the target tokens of a batch on the device, all of them scalars.

        They are the loss, the negative log-likelihood, and with consistency training the divergence
        of the two views of each pair, else None.
        """
        with autocast(self.device, self.dtype):
            loss, nll, divergence = self._objective(batch)
        return loss, nll, divergence

    @property
    def num_views(self) -> int:
        """Return the number of rows that the model computes for each pair of a batch."""
        return 1 if self.consistency is None else NUM_VIEWS

    def accumulate_gradients(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Accumulate the gradients of a loss inside the block; `is_last` ends the update."""
        self.parallel.record_progress()
        return accumulate_gradients(self._objective, is_last=is_last)

    @property
    def num_averaged(self) -> int:
        """Return the number of ranks over which gradients are averaged; 1 if they are summed."""
        return self.parallel.world_size if self.is_sharded else 1

    def all_reduce_gradients(self) -> None:
        """Sum the gradients over all ranks; sharded ones are reduced already."""
        group = None if self.is_sharded else self.parallel.gradient_group(self.device)
        if group is not None:
            all_reduce_gradients(self.model.parameters(), group)

    @property
    def eval_model(self) -> Transformer:
        """Return the model to validate, with whole weights inside `averaged_weights`."""
        return self.model if self._unsharded is None else self._unsharded

    @contextlib.contextmanager
    def averaged_weights(self, average: MovingAverage) -> Iterator[None]:
        """Load the averaged weights into `eval_model` inside the block, whole on each rank."""
        if self._unsharded is None:
            with average.in_place():
                yield
            return
        weights = average.current()
        self._unsharded.to_empty(device=self.device)
        with torch.no_grad():
            for name, parameter in self._unsharded.named_parameters():
                parameter.copy_(full_tensor(weights[name]))
        try:
            yield
        finally:
            self._unsharded.to("meta")


def should_compile(settings: TrainingConfig, device: torch.device) -> bool:
    """Return True if layers should be compiled: as set, or by default in long runs on a GPU.

    The default on a CPU is False: compiled layers took 1.6 times as long as plain ones there.
    """
    if settings.compile != "auto":
        return settings.compile == "on"
    is_long = settings.max_updates == 0 or settings.max_updates >= LONG_RUN
    return device.type == "cuda" and is_long


def compile_layers(model: Transformer) -> None:
    """Compile each layer for any shape; layers of one kind share the compiled code."""
    for layer in _layers(model):
        layer.compile(dynamic=True)


def undo_compilation(model: Transformer, error: Exception) -> bool:
    """Undo compilation after a compiler error; return False if no layer was compiled."""
    compiled = [layer for layer in _layers(model) if layer._compiled_call_impl is not None]
    for layer in compiled:
        layer._compiled_call_impl = None
    if compiled:
        reason = str(error).strip().split("\n")[0]
        logger.warning("`torch.compile` failed, continuing without it: %s", reason)
    return bool(compiled)


def _layers(model: Transformer) -> Iterator[nn.Module]:
    yield from model.encoder_layers
    yield from model.decoder_layers
