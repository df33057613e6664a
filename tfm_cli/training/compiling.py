"""Layers compiled by `torch.compile`, where a run is long enough to pay for it."""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from tfm_cli.config import TrainingConfig
from tfm_cli.model.transformer import Transformer

logger = logging.getLogger(__name__)

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
