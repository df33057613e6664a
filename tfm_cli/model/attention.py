"""Attention: scaled dot-product and multi-head (Vaswani et al. 2017, section 3.2).

In a mask, True marks positions that may be attended to, as in PyTorch's boolean `attn_mask`.
"""

# B segments, T queries, S keys, D model width, H heads, E = D // H

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.model.dropout import Dropout
from tfm_cli.model.linear import Linear, compiles_sizes, linear
from tfm_cli.model.recording import Record


def attention_weights(
    query: Tensor, key: Tensor, keep: Tensor | None = None, record: Record | None = None
) -> Tensor:
    """Return the weight of each key for each query: softmax(Q K^T / sqrt(E)); rows sum to 1.

    Args:
        query: (B, H, T, E).
        key: (B, H, S, E).
        keep: boolean, broadcastable to (B, H, T, S); at least one True in each row.
        record: receives the values on the way; None for none.

    Source: Vaswani et al. 2017, equation 1.
    """
    products = query @ key.transpose(-2, -1)  # (B, H, T, S)
    scores = products / math.sqrt(query.shape[-1])
    if keep is not None:
        scores = scores.masked_fill(~keep, -math.inf)
    weights = scores.softmax(dim=-1)
    if record is not None:
        record(query=query, key=key, products=products, scores=scores, weights=weights)
    return weights


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None = None,
    record: Record | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Return the mean of the values, weighted by attention, (B, H, T, E).

    The arguments are those of `attention_weights`, with values (B, H, S, E), and the dropout of the
    weights; None for none. A GPU uses a fused kernel. On a CPU that kernel was slower for the short
    sequences of translation (2.9 ms against 1.7 for 200 segments of 20 tokens). In bf16 on a CPU
    these products, a small part of the computation, are in fp32. What is recorded is computed
    without the fused kernel, which does not return the weights. So are weights with dropout: the
    kernel's masks of some rows of a batch are not those of these rows in the whole batch.
    """
    if query.is_cuda and record is None and dropout is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
    if record is None and compiles_sizes(query):
        # oneDNN would compile a kernel for each width of each batch.
        with torch.autocast("cpu", enabled=False):
            weights = attention_weights(query.float(), key.float(), keep)  # (B, H, T, S)
            return (weights if dropout is None else dropout(weights)) @ value.float()
    weights = attention_weights(query, key, keep, record)  # (B, H, T, S)
    heads = (weights if dropout is None else dropout(weights)) @ value  # (B, H, T, E)
    if record is not None:
        record(value=value, heads=heads)
    return heads


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Return a mask (T, T) by which each position attends to itself and to earlier ones."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


# Matrices are initialized with a third of Glorot's variance, as in PyTorch's linear layers. The
# validation loss after 400 updates of 512 tokens was 3.85, and 5.18 with Glorot's own variance
# (29,000 pairs, post-norm, width 128).
INITIAL_GAIN = 3**-0.5


def initial_gains(beta: float | None) -> tuple[float, float]:
    """Return the gains of the Glorot initialization: of queries, keys and gates, and of others.

    Args:
        beta: of DeepNorm; None for other norms.
    """
    return (INITIAL_GAIN, INITIAL_GAIN) if beta is None else (1.0, beta)


class MultiHeadAttention(nn.Module):
    """H attention heads on projections of width E = D // H, concatenated and projected.

    The projections of query, key and value are rows of one matrix, so that self-attention needs
    one product for all three.

    Source: Vaswani et al. 2017, section 3.2.2; dropout of the weights: Tensor2Tensor, Vaswani et
    al. 2018, arXiv:1803.07416.
    """

    record: Record | None = None  # see `recording`

    def __init__(
        self, width: int, heads: int, dropout: Dropout | None = None, *, beta: float | None = None
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width, got {heads} and {width}")
        self.heads = heads
        self.dropout = dropout  # of the weights
        self._beta = beta  # of DeepNorm
        self.projection = Linear(width, 3 * width)  # query, key, value
        self.output = Linear(width, width)

    def reset_parameters(self) -> None:
        """Apply Glorot initialization to each projection separately."""
        gain, last = initial_gains(self._beta)
        query, key, value = self.projection.weight.data.chunk(3)
        for matrix in (query, key):
            nn.init.xavier_uniform_(matrix, gain=gain)
        for matrix in (value, self.output.weight):
            nn.init.xavier_uniform_(matrix, gain=last)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of self-attention on x (B, T, D), each (B, H, T, E)."""
        query, key, value = self.projection(x).chunk(3, dim=-1)  # each (B, T, D)
        return self._split(query), self._split(key), self._split(value)

    def project_query(self, x: Tensor) -> Tensor:
        """Return the queries of cross-attention for x (B, T, D), (B, H, T, E)."""
        width = x.shape[-1]
        weight, bias = self.projection.weight[:width], self.projection.bias[:width]
        return self._split(linear(x, weight, bias))

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a memory (B, S, D), each (B, H, S, E)."""
        width = memory.shape[-1]
        weight, bias = self.projection.weight[width:], self.projection.bias[width:]
        key, value = linear(memory, weight, bias).chunk(2, dim=-1)  # each (B, S, D)
        return self._split(key), self._split(value)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
        """Return the attention of all heads, concatenated and projected, (B, T, D)."""
        record = self.record
        dropout = self.dropout if self.training else None
        heads = scaled_dot_product_attention(
            query, key, value, keep, record, dropout
        )  # (B, H, T, E)
        mixed: Tensor = self.output(heads.transpose(1, 2).flatten(2))  # (B, T, D)
        if record is not None:
            record(output=mixed)
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = x.view(batch, length, self.heads, width // self.heads)  # (B, T, H, E)
        return split.transpose(1, 2)  # (B, H, T, E)
