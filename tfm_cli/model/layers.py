"""Encoder and decoder layers: attention, feed-forward, residuals and normalization."""

# B segments, S source tokens, T target tokens, K beams of a segment, R = B * K rows,
# t tokens generated, D model width, H heads, E = D // H, F inner width of the feed-forward layer

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from tfm_cli.model.attention import MultiHeadAttention, initial_gains
from tfm_cli.model.cache import LayerCache
from tfm_cli.model.deepnorm import DeepNorm
from tfm_cli.model.dropout import Dropout, Noise, optional_dropout
from tfm_cli.model.linear import Linear
from tfm_cli.model.positions import RotaryPositions
from tfm_cli.model.recording import Record

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The hyperparameters of an encoder or decoder layer.

    Attributes:
        width: D, a multiple of `heads`.
        heads: H, of each attention.
        feed_forward_width: F.
        dropout: rate of the dropout of sub-layer outputs.
        norm: `post` as in the paper, `pre` or `deepnorm`.
        activation: `relu` as in the paper, `gelu`, `swish` or `swiglu`.
        attention_dropout: rate of the dropout of attention weights.
        activation_dropout: rate of the dropout inside the feed-forward layer.
        deepnorm: the constants of the stack; None for other norms.
    """

    width: int
    heads: int
    feed_forward_width: int
    dropout: float
    norm: str
    activation: str
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    deepnorm: DeepNorm | None = None

    def attention(self, noise: Noise) -> MultiHeadAttention:
        """Return an attention of this shape."""
        dropout = optional_dropout(self.attention_dropout, noise)
        return MultiHeadAttention(self.width, self.heads, dropout, beta=self._beta)

    @property
    def _beta(self) -> float | None:
        return None if self.deepnorm is None else self.deepnorm.beta

    def feed_forward(self, noise: Noise) -> "FeedForward":
        """Return a feed-forward layer of this shape."""
        dropout = optional_dropout(self.activation_dropout, noise)
        return FeedForward(
            self.width, self.feed_forward_width, self.activation, dropout, beta=self._beta
        )

    def add_and_norm(self, noise: Noise) -> "AddAndNorm":
        """Return the residual connection around a sub-layer of this shape."""
        alpha = 1.0 if self.deepnorm is None else self.deepnorm.alpha
        return AddAndNorm(self.width, self.norm, self.dropout, noise, alpha=alpha)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, applied at each position separately.

    In training, elements of the activation, (B, T, F), may be dropped.

    Source: Vaswani et al. 2017, equation 2; GELU: Hendrycks and Gimpel 2016; swish: Ramachandran
    et al. 2017; SwiGLU: Shazeer 2020; dropout: Tensor2Tensor, Vaswani et al. 2018,
    arXiv:1803.07416.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        activation: str,
        dropout: Dropout | None = None,
        *,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self._beta = beta  # of DeepNorm
        self.dropout = dropout
        rows = 2 * inner_width if activation == "swiglu" else inner_width  # with the gate
        self.inner = Linear(width, rows)
        self.outer = Linear(inner_width, width)

    def reset_parameters(self) -> None:
        """Apply Glorot initialization, to the gate of SwiGLU separately."""
        *gate, inner = self.inner.weight.data.chunk(2 if self.activation == "swiglu" else 1)
        gain, last = initial_gains(self._beta)
        for matrix in gate:
            nn.init.xavier_uniform_(matrix, gain=gain)
        for matrix in (inner, self.outer.weight):
            nn.init.xavier_uniform_(matrix, gain=last)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        inner = self.inner(x)  # (B, T, F), or (B, T, 2F) with a gate
        if self.activation == "swiglu":
            gate, inner = inner.chunk(2, dim=-1)  # (B, T, F) each
            inner = F.silu(gate) * inner
        else:
            inner = ACTIVATIONS[self.activation](inner)
        if self.dropout is not None:
            inner = self.dropout(inner)
        outer: Tensor = self.outer(inner)  # (B, T, D)
        return outer


class AddAndNorm(nn.Module):
    """The residual connection around a sub-layer, with its dropout and layer norm.

    post: norm(x + dropout(sublayer(x))), as in the paper. pre: x + dropout(sublayer(norm(x))),
    which trains deeper stacks without warm-up. deepnorm: norm(x + dropout(sublayer(x)) / alpha). As
    a layer norm does not depend on the scale of its input, this is the paper's norm(alpha * x +
    dropout(sublayer(x))), but for the constant that is added to the variance. So another
    implementation can divide the last matrix of the sub-layer by alpha, and is then a post-norm.

    Source: Vaswani et al. 2017, section 3.1; pre-norm: Xiong et al. 2020, arXiv:2002.04745;
    DeepNorm: Wang et al. 2022, arXiv:2203.00555.
    """

    record: Record | None = None  # see `recording`

    def __init__(
        self, width: int, norm: str, dropout: float, noise: Noise, *, alpha: float = 1.0
    ) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.alpha = alpha
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout, noise)

    def enter(self, x: Tensor) -> Tensor:
        """Return the input of the sub-layer for x (B, T, D)."""
        if not self.pre:
            return x
        normed: Tensor = self.norm(x)
        if self.record is not None:
            self.record(normed=normed)
        return normed

    def leave(self, x: Tensor, sublayer: Tensor) -> Tensor:
        """Return x (B, T, D) plus the sub-layer's output (B, T, D)."""
        if self.alpha != 1:
            sublayer = sublayer / self.alpha
        total: Tensor = x + self.dropout(sublayer)
        output: Tensor = total if self.pre else self.norm(total)
        if self.record is not None:
            self.record(input=x, sublayer=sublayer, sum=total, output=output)
        return output


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each inside add & norm."""

    def __init__(self, shape: LayerShape, rotary: RotaryPositions | None, noise: Noise) -> None:
        super().__init__()
        self.self_attention = shape.attention(noise)
        self.self_attention_norm = shape.add_and_norm(noise)
        self.feed_forward = shape.feed_forward(noise)
        self.feed_forward_norm = shape.add_and_norm(noise)
        self.rotary = rotary

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Map (B, S, D) to (B, S, D); `keep` (B, 1, 1, S) is False at padding."""
        query, key, value = self.self_attention.project(self.self_attention_norm.enter(x))
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        attended = self.self_attention.attend(query, key, value, keep)
        x = self.self_attention_norm.leave(x, attended)
        return self.feed_forward_norm.leave(x, self.feed_forward(self.feed_forward_norm.enter(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each inside add & norm."""

    def __init__(self, shape: LayerShape, rotary: RotaryPositions | None, noise: Noise) -> None:
        super().__init__()
        self.self_attention = shape.attention(noise)
        self.self_attention_norm = shape.add_and_norm(noise)
        self.cross_attention = shape.attention(noise)
        self.cross_attention_norm = shape.add_and_norm(noise)
        self.feed_forward = shape.feed_forward(noise)
        self.feed_forward_norm = shape.add_and_norm(noise)
        self.rotary = rotary

    def forward(
        self, x: Tensor, memory: Tensor, memory_keep: Tensor | None, causal: Tensor
    ) -> Tensor:
        """Map all target positions at once, (B, T, D) to (B, T, D).

        Args:
            x: (B, T, D).
            memory: the encoder's output, (B, S, D).
            memory_keep: (B, 1, 1, S), False at padding.
            causal: (T, T), False at positions after the current one.
        """
        query, key, value = self.self_attention.project(self.self_attention_norm.enter(x))
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        attended = self.self_attention.attend(query, key, value, causal)
        x = self.self_attention_norm.leave(x, attended)

        query = self.cross_attention.project_query(self.cross_attention_norm.enter(x))
        memory_key, memory_value = self.cross_attention.project_memory(memory)
        attended = self.cross_attention.attend(query, memory_key, memory_value, memory_keep)
        x = self.cross_attention_norm.leave(x, attended)

        return self.feed_forward_norm.leave(x, self.feed_forward(self.feed_forward_norm.enter(x)))

    def start(self, memory: Tensor) -> LayerCache:
        """Return the layer's cache before the first step, for a memory (B, S, D)."""
        memory_key, memory_value = self.cross_attention.project_memory(memory)
        return LayerCache(memory_key.contiguous(), memory_value.contiguous())

    def step(
        self, x: Tensor, cache: LayerCache, source_keep: Tensor | None, position: int
    ) -> Tensor:
        """Map the last position of each row, (R, 1, D) to (R, 1, D), and extend the cache.

        The K rows of a segment attend to one memory, which is not copied.
        """
        query, key, value = self.self_attention.project(self.self_attention_norm.enter(x))
        if self.rotary is not None:
            query, key = self.rotary(query, position), self.rotary(key, position)
        key, value = cache.append(key, value)  # (R, H, t, E)
        attended = self.self_attention.attend(query, key, value, None)  # (R, 1, D)
        x = self.self_attention_norm.leave(x, attended)

        segments = cache.memory_key.shape[0]
        entered = self.cross_attention_norm.enter(x)
        query = self.cross_attention.project_query(
            entered.reshape(segments, -1, x.shape[-1])  # (B, K, D)
        )
        attended = self.cross_attention.attend(
            query, cache.memory_key, cache.memory_value, source_keep
        )  # (B, K, D)
        x = self.cross_attention_norm.leave(x, attended.reshape(x.shape))  # (R, 1, D)

        return self.feed_forward_norm.leave(x, self.feed_forward(self.feed_forward_norm.enter(x)))
