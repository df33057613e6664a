"""The Transformer of *Attention Is All You Need* (Vaswani et al. 2017, figure 1)."""

# B segments, S source tokens, T target tokens, R rows being decoded, D model width, V vocabulary,
# C tokens of a restricted vocabulary

import contextlib
import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tfm_cli.model.attention import causal_mask
from tfm_cli.model.cache import DecoderState
from tfm_cli.model.deepnorm import deepnorm
from tfm_cli.model.dropout import Dropout, Noise, WordDropout
from tfm_cli.model.layers import DecoderLayer, EncoderLayer, LayerShape
from tfm_cli.model.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    embedding,
)
from tfm_cli.model.recording import Record, recording


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """The hyperparameters of a Transformer; the defaults are those of the paper's base model.

    Attributes:
        encoder_layers, decoder_layers: depth of the stacks.
        width: of embeddings and layers (d_model); a multiple of `heads` and `decoder_heads`.
        heads: attention heads.
        feed_forward_width: inner width of the feed-forward layers (d_ff).
        decoder_heads: attention heads of the decoder, cross-attention included; 0 for `heads`.
        decoder_feed_forward_width: inner width in the decoder; 0 for `feed_forward_width`.
        dropout: rate of the dropout of embeddings and sub-layer outputs.
        attention_dropout: rate of the dropout of attention weights.
        activation_dropout: rate of the dropout inside the feed-forward layers.
        word_dropout: rate of the dropout of whole embeddings, of source and target.
        norm: `post` as in the paper, `pre`, or `deepnorm` for deep stacks (see `deepnorm`).
        positions: `sinusoidal` as in the paper, `sinusoidal_halves` or `sinusoidal_marian` (see
            `SinusoidalPositions`), `learned` or `rotary`.
        max_positions: number of learned positions.
        activation: `relu` as in the paper, `gelu`, `swish` or `swiglu`.
        tied_embeddings: 3 for one matrix for source, target and output as in the paper; 2 for
            target and output; 1 for source and target; 0 for three matrices.
        scale_embeddings: multiply embeddings by sqrt(width), as in the paper.
        output_bias: add a learned bias to the logits.
    """

    encoder_layers: int = 6
    decoder_layers: int = 6
    width: int = 512
    heads: int = 8
    feed_forward_width: int = 2048
    decoder_heads: int = 0
    decoder_feed_forward_width: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    word_dropout: float = 0.0
    norm: str = "post"
    positions: str = "sinusoidal"
    max_positions: int = 1024
    activation: str = "relu"
    tied_embeddings: int = 3
    scale_embeddings: bool = True
    output_bias: bool = False

    def __post_init__(self) -> None:
        """Raise a ValueError if positions are rotary and heads have an odd width."""
        for layer in (self.encoder_layer, self.decoder_layer):
            head_width = layer.width // layer.heads
            if self.positions == "rotary" and head_width % 2:
                raise ValueError(f"rotary positions need heads of even width, got {head_width}")

    @property
    def encoder_layer(self) -> LayerShape:
        """Return the shape of the encoder's layers."""
        return self._layer(0, self.heads, self.feed_forward_width)

    @property
    def decoder_layer(self) -> LayerShape:
        """Return the shape of the decoder's layers."""
        return self._layer(
            1,
            self.decoder_heads or self.heads,
            self.decoder_feed_forward_width or self.feed_forward_width,
        )

    def _layer(self, stack: int, heads: int, feed_forward_width: int) -> LayerShape:
        constants = deepnorm(self.encoder_layers, self.decoder_layers)[stack]
        return LayerShape(
            deepnorm=constants if self.norm == "deepnorm" else None,
            width=self.width,
            heads=heads,
            feed_forward_width=feed_forward_width,
            dropout=self.dropout,
            norm=self.norm,
            activation=self.activation,
            attention_dropout=self.attention_dropout,
            activation_dropout=self.activation_dropout,
        )


class Transformer(nn.Module):
    """An encoder-decoder Transformer.

    Args:
        shape: the hyperparameters.
        vocab_size: target tokens; ids are 0 … vocab_size - 1.
        source_vocab_size: source tokens; None if both sides share a vocabulary.

    Attributes:
        recomputes_activations: recompute the activations of each layer in the backward pass
            instead of storing them.
    """

    record: Record | None = None  # see `recording`

    def __init__(
        self, shape: TransformerShape, vocab_size: int, source_vocab_size: int | None = None
    ) -> None:
        super().__init__()
        source_vocab_size, width = source_vocab_size or vocab_size, shape.width
        source_is_tied, output_is_tied = (bool(shape.tied_embeddings & bit) for bit in (1, 2))
        if source_is_tied and source_vocab_size != vocab_size:
            actual = f"{source_vocab_size} and {vocab_size}"
            raise ValueError(f"tied source and target need vocabularies of one size, got {actual}")
        self.noise = Noise()
        self.recomputes_activations = False
        self.embedding_scale = math.sqrt(width) if shape.scale_embeddings else 1.0

        self.target_embedding = embedding(vocab_size, width)
        # A shared matrix is stored under one name; the other modules that use it are None.
        self.source_embedding = None if source_is_tied else embedding(source_vocab_size, width)
        self.output = None if output_is_tied else nn.Linear(width, vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size)) if shape.output_bias else None
        self.source_positions = _position_encoding(shape)
        self.target_positions = _position_encoding(shape)
        self.dropout = Dropout(shape.dropout, self.noise)
        self.word_dropout = WordDropout(shape.word_dropout, self.noise)

        rotary = RotaryPositions() if shape.positions == "rotary" else None
        self.encoder_layers = nn.ModuleList(
            EncoderLayer(shape.encoder_layer, rotary, self.noise)
            for _ in range(shape.encoder_layers)
        )
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(shape.decoder_layer, rotary, self.noise)
            for _ in range(shape.decoder_layers)
        )
        # Post-norm layers end with a norm; pre-norm stacks need one after the last layer.
        self.encoder_norm = nn.LayerNorm(width) if shape.norm == "pre" else None
        self.decoder_norm = nn.LayerNorm(width) if shape.norm == "pre" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize all weights.

        Matrices are drawn by Glorot with `INITIAL_GAIN`. Embeddings have a standard deviation of
        D**-0.5, so that their scale of D**0.5 gives unit variance.
        """
        if self.target_embedding.weight.is_meta:
            return  # meta tensors have no values
        # Children first, to replace the initialization of nn.Linear and nn.Embedding.
        for module in reversed(list(self.modules())):
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()
        for matrix in (self.target_embedding, self.source_embedding, self.output):
            if matrix is not None:
                nn.init.normal_(matrix.weight, std=matrix.weight.shape[1] ** -0.5)
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    def forward(self, source: Tensor, source_keep: Tensor | None, target: Tensor) -> Tensor:
        """Return logits (B, T, V) of each next token, for all target positions (teacher forcing).

        Args:
            source: (B, S) ids, padded at the end with any id.
            source_keep: (B, 1, 1, S), False at padding; None if there is none.
            target: (B, T) ids shifted right: the start id, then all tokens but the last.
        """
        return self.logits(self.decode(target, self.encode(source, source_keep), source_keep))

    def encode(
        self, source: Tensor, source_keep: Tensor | None, *, visible: Tensor | None = None
    ) -> Tensor:
        """Return the encoder's output, the memory (B, S, D), for source ids (B, S).

        Args:
            source: as for `forward`.
            source_keep: as for `forward`.
            visible: (B, S, 1), False where the embedding of a token is zeroed; None for no token.
        """
        embedding = self.source_embedding or self.target_embedding
        positions = self.source_positions
        x = self._embed("source", source, embedding, positions, visible=visible)  # (B, S, D)
        for layer in self.encoder_layers:
            x = self._through(layer, x, source_keep)
        x = x if self.encoder_norm is None else self.encoder_norm(x)
        if self.record is not None:
            self.record(**{"encoder.output": x})
        return x

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        source_keep: Tensor | None,
        *,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of target ids (B, T), with causal self-attention.

        Args:
            target: as for `forward`.
            memory: the encoder's output, (B, S, D).
            source_keep: as for `forward`.
            visible: (B, T, 1), False where the embedding of a token is zeroed; None for no token.
        """
        causal = causal_mask(target.shape[1], target.device)  # (T, T)
        x = self._embed_target(target, visible=visible)  # (B, T, D)
        for layer in self.decoder_layers:
            x = self._through(layer, x, memory, source_keep, causal)
        x = x if self.decoder_norm is None else self.decoder_norm(x)
        if self.record is not None:
            self.record(**{"decoder.output": x})
        return x

    def cross_attention_weights(
        self, source: Tensor, source_keep: Tensor | None, target: Tensor, *, layer: int
    ) -> Tensor:
        """Return the cross-attention of a decoder layer, (B, T, S), averaged over its heads.

        Row t belongs to the step whose input is `target[:, t]`, which predicts the next token. The
        other arguments are those of `forward`; layers above `layer`, from 0, are not computed.
        """
        memory = self.encode(source, source_keep)  # (B, S, D)
        causal = causal_mask(target.shape[1], target.device)  # (T, T)
        x = self._embed_target(target)  # (B, T, D)
        for below in self.decoder_layers[:layer]:
            x = below(x, memory, source_keep, causal)
        chosen = cast(DecoderLayer, self.decoder_layers[layer])
        with recording(chosen.cross_attention) as values:
            chosen(x, memory, source_keep, causal)
        return values["weights"].mean(dim=1)

    @property
    def output_weight(self) -> Tensor:
        """Return the matrix (V, D) that maps hidden states to logits."""
        return self.target_embedding.weight if self.output is None else self.output.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (…, V) of hidden states (…, D)."""
        return F.linear(hidden, self.output_weight, self.output_bias)

    def start(self, source: Tensor, source_keep: Tensor | None) -> DecoderState:
        """Encode the source, (B, S) ids, and return the state before the first `step`."""
        memory = self.encode(source, source_keep)  # (B, S, D)
        layers = [cast(DecoderLayer, layer).start(memory) for layer in self.decoder_layers]
        return DecoderState(source_keep, layers)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return logits (R, V) of the next token, given the last ones (R,); extend the state."""
        return self.logits(self.advance(tokens, state))

    def restricted(self, ids: Tensor) -> "RestrictedTransformer":
        """Return a view of this model that computes logits only for these target ids (C,)."""
        return RestrictedTransformer(self, ids)

    def advance(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return hidden states (R, D) of the last token (R,) of each row; extend the state."""
        x = self._embed_target(tokens[:, None], state.length)  # (R, 1, D)
        for layer, cache in zip(self.decoder_layers, state.layers, strict=True):
            x = cast(DecoderLayer, layer).step(x, cache, state.source_keep, state.length)
        state.length += 1
        if self.decoder_norm is not None:
            x = self.decoder_norm(x)
        return x[:, 0]  # (R, D)

    def _through(self, layer: nn.Module, *arguments: Tensor | None) -> Tensor:
        """Return the output of a layer, (B, T, D).

        With `recomputes_activations`, activations are recomputed in the backward pass with the
        same dropout. This needs the memory of one layer at a time and a third more computation.

        Source: Chen et al. 2016, arXiv:1604.06174.
        """
        if not (self.recomputes_activations and torch.is_grad_enabled()):
            out: Tensor = layer(*arguments)
            return out
        state = self.noise.state()
        recomputed: Tensor = checkpoint(
            layer,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), self.noise.replayed(state)),
        )
        return recomputed

    def _embed_target(
        self, target: Tensor, start: int = 0, *, visible: Tensor | None = None
    ) -> Tensor:
        """Return the decoder's input (B, T, D) for ids (B, T) at positions from `start`."""
        embedding, positions = self.target_embedding, self.target_positions
        return self._embed("target", target, embedding, positions, start, visible=visible)

    def _embed(
        self,
        side: str,
        ids: Tensor,
        embedding: nn.Embedding,
        positions: nn.Module | None,
        start: int = 0,
        *,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Return the first layer's input (B, T, D) for ids (B, T) at positions from `start`."""
        embedded = self.word_dropout(embedding(ids) * self.embedding_scale)  # (B, T, D)
        if visible is not None:
            embedded = embedded * visible
        x = embedded if positions is None else positions(embedded, start)
        if self.record is not None:
            self.record(**{f"{side}.embedding": embedded, f"{side}.input": x})
            if positions is not None:
                self.record(**{f"{side}.positions": positions(torch.zeros_like(x), start)})
        dropped: Tensor = self.dropout(x)
        return dropped


def _position_encoding(shape: TransformerShape) -> nn.Module | None:
    """Return the encoding that is added to embeddings; None for rotary positions."""
    if shape.positions == "rotary":
        return None
    if shape.positions == "learned":
        return LearnedPositions(shape.width, shape.max_positions)
    return SinusoidalPositions(shape.width, layout=shape.positions.removeprefix("sinusoidal_"))


class RestrictedTransformer:
    """A Transformer that computes logits only for some of the target tokens.

    Args:
        transformer: provides the weights and states.
        ids: (C,) of the tokens.
    """

    def __init__(self, transformer: Transformer, ids: Tensor) -> None:
        self._transformer = transformer
        self._weight = transformer.output_weight[ids]  # (C, D)
        bias = transformer.output_bias
        self._bias = None if bias is None else bias[ids]  # (C,)

    def start(self, source: Tensor, source_keep: Tensor | None) -> DecoderState:
        """Encode the source with the Transformer."""
        return self._transformer.start(source, source_keep)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Return logits (R, C) of the next token, given the last ones (R,), any of all V."""
        hidden = self._transformer.advance(tokens, state)  # (R, D)
        return F.linear(hidden, self._weight, self._bias)
