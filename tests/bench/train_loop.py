"""The plain loop that a user writes, and what goes into the peers' models."""

# B pairs, S source pieces, T target pieces, D model width, V vocabulary

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.train_pairs import EOS_ID, PAD_ID, START_ID, Plan
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.store import CorpusStore, Segments
from tfm_cli.model.attention import INITIAL_GAIN
from tfm_cli.model.precision import autocast
from tfm_cli.training.schedule import schedule_of
from tfm_cli.training.state import TrainState

_IGNORED = -100


class RefusedError(Exception):
    """A side cannot do the work, or is not installed."""


class Peer(Protocol):
    """A model with its optimizer and its loss."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def loss(self, pairs: np.ndarray, label_smoothing: float) -> Tensor:
        """Mean over the real target pieces of a batch of pairs."""


class PlainLoop:
    """Loss, gradients, clipping, step; gradients are freed before the next forward pass.

    Args:
        peer: that learns.
        chosen: the batches, in turn.
        settings: of all sides.
        dtype: of autocast; fp32 for none.
    """

    def __init__(
        self, peer: Peer, chosen: Plan, settings: TrainingConfig, *, dtype: torch.dtype
    ) -> None:
        self.peer = peer
        self._chosen = chosen
        self._settings = settings
        self._dtype = dtype
        self._number = 0
        peer.model.train()

    def learn(self) -> None:
        pairs = self._chosen[self._number % len(self._chosen)]
        self._number += 1
        settings, optimizer = self._settings, self.peer.optimizer
        with autocast(torch.device("cpu"), self._dtype):
            loss = self.peer.loss(pairs, settings.label_smoothing)
        # PyTorch declares `backward` without types.
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.peer.model.parameters(), settings.clip_norm)
        rate = schedule_of(settings, TrainState()).rate(self._number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    def parts(self, plan: Plan) -> Plan:
        return plan

    @torch.no_grad()
    def nll(self, parts: Plan) -> float:
        self.peer.model.eval()
        losses = [float(self.peer.loss(pairs, 0.0)) for pairs in parts]
        self.peer.model.train()
        return sum(losses) / len(losses)

    def close(self) -> None:
        pass


def padded(store: CorpusStore, pairs: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Source (B, S), what the decoder reads and what it should say (B, T), ignored at padding."""
    source, target = (_ids(side, pairs) for side in (store.source, store.target))
    target_in = target.roll(1, dims=1)
    target_in[:, 0] = START_ID
    target_in[target_in == EOS_ID] = PAD_ID
    return source, target_in, target.masked_fill(target == PAD_ID, _IGNORED)


def _ids(side: Segments, pairs: Sequence[int] | np.ndarray) -> Tensor:
    ids = [torch.from_numpy(np.append(side[pair], EOS_ID).astype(np.int64)) for pair in pairs]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD_ID)


def smoothed(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of logits (B, T, V) for ids (B, T)."""
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(),
        ignore_index=_IGNORED, label_smoothing=label_smoothing,
    )  # fmt: skip


def adamw(
    model: nn.Module, settings: TrainingConfig, *, fused: bool | None = None
) -> torch.optim.AdamW:
    """AdamW with the numbers of all sides."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learn_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def start_weights(model: nn.Module, vocab_size: int) -> None:
    """Draw matrices and embeddings as tfm does, so that all sides start from about one loss."""
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or not weight.requires_grad:
            continue
        if weight.shape[0] == vocab_size:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            continue
        for matrix in weight.data.chunk(3 if name.endswith("in_proj_weight") else 1):
            nn.init.xavier_uniform_(matrix, gain=INITIAL_GAIN)
