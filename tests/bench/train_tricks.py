"""What makes tfm's updates fast, each as the slow way that it replaced.

To leave a trick out, the slow way is put in its place while a context lasts.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.bench.train_pairs import Plan, shuffled_plan
from tfm_cli.corpus.batching import BatchOrder
from tfm_cli.model import attention
from tfm_cli.model.attention import MultiHeadAttention
from tfm_cli.model.dropout import Dropout
from tfm_cli.training import parallel_model
from tfm_cli.training.batches import BatchSampler


def _whole_batch(self: BatchSampler, pairs: np.ndarray) -> Plan:
    return [pairs]


def _shuffled_batches(self: BatchOrder, epoch: int, pool: int) -> Plan:
    return shuffled_plan(self._source, self._target, self._max_tokens)


def whole_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `cross_entropy` computes, from all logits at once; gradients are left to autograd."""
    log_probs = F.linear(hidden, weight, bias).float().log_softmax(dim=-1)  # (N, V)
    nll = -log_probs.gather(1, targets[:, None]).sum()
    smooth = -log_probs.mean(dim=1).sum()
    return (1 - label_smoothing) * nll + label_smoothing * smooth, nll.detach()


def _three_products(self: MultiHeadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (self._split(part) for part in _products(self, x, 0))
    return query, key, value


def _two_products(self: MultiHeadAttention, memory: Tensor) -> tuple[Tensor, Tensor]:
    key, value = (self._split(part) for part in _products(self, memory, 1))
    return key, value


def _products(self: MultiHeadAttention, x: Tensor, first: int) -> list[Tensor]:
    weights, biases = self.projection.weight.chunk(3), self.projection.bias.chunk(3)
    return [F.linear(x, w, b) for w, b in list(zip(weights, biases, strict=True))[first:]]


def _torch_dropout(self: Dropout, x: Tensor) -> Tensor:
    return F.dropout(x, self.rate, training=self.training)


def _torch_attention(
    query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=keep)


_ADAMW = torch.optim.AdamW


def _foreach_adamw(groups: Any, *, fused: bool, **options: Any) -> torch.optim.AdamW:
    return _ADAMW(groups, foreach=True, **options)


Place = tuple[Any, str, Any]  # what, which attribute of it, the slow way
TRICKS: dict[str, tuple[Place, ...]] = {
    "micro-batches": ((BatchSampler, "split", _whole_batch),),
    "chunked-loss": ((parallel_model, "cross_entropy", whole_loss),),
    "fused-adamw": ((torch.optim, "AdamW", _foreach_adamw),),
    "fused-projection": (
        (MultiHeadAttention, "project", _three_products),
        (MultiHeadAttention, "project_memory", _two_products),
    ),
    "sorted-plan": ((BatchOrder, "batches", _shuffled_batches),),
    "own-dropout": ((Dropout, "forward", _torch_dropout),),
    "own-attention": ((attention, "scaled_dot_product_attention", _torch_attention),),
}


@contextlib.contextmanager
def left_out(trick: str) -> Iterator[None]:
    """Inside, the slow way is taken instead of a trick; the empty name is none."""
    with contextlib.ExitStack() as stack:
        for place in TRICKS[trick] if trick else ():
            stack.enter_context(patch.object(*place))
        yield
