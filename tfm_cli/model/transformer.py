"""The Transformer of *Attention Is All You Need* (Vaswani et al. 2017, figure 1)."""

# B segments, S source pieces, T target pieces, R rows being decoded, D model width, V vocabulary,
# C some of its pieces

import contextlib
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tfm_cli.model.attention import causal_mask
from tfm_cli.model.cache import DecoderState
from tfm_cli.model.dropout import Dropout, Noise
from tfm_cli.model.layers import DecoderLayer, EncoderLayer
from tfm_cli.model.positions import (
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    embedding,
)


class Transformer(nn.Module):
    """An encoder-decoder.

    Args:
        vocab_size: target pieces; ids are 0 … vocab_size - 1.
        source_vocab_size: source pieces; None where there is one vocabulary for both.
        encoder_layers, decoder_layers: depth of the stacks.
        width: of embeddings and layers (d_model); a multiple of `heads` and `decoder_heads`.
        heads: attention heads.
        feed_forward_width: inner width of the feed-forward layers (d_ff).
        decoder_heads: attention heads of the decoder, towards the source too; 0 for `heads`.
        decoder_feed_forward_width: the decoder's; 0 for `feed_forward_width`.
        dropout: rate on embeddings and sub-layer outputs.
        norm: `post` as in the paper, or `pre`.
        positions: `sinusoidal` as in the paper, `sinusoidal_halves` or `sinusoidal_marian` (see
            `SinusoidalPositions`), `learned` or `rotary`.
        max_positions: how many learned positions there are.
        activation: `relu` as in the paper, `gelu`, `swish` or `swiglu`.
        tied_embeddings: 3 for one matrix for source, target and output as in the paper; 2 for
            target and output; 1 for source and target; 0 for three matrices.
        scale_embeddings: multiply embeddings by sqrt(width), as in the paper.
        output_bias: add a learned bias to the logits.

    Attributes:
        recomputes_activations: compute the inside of each layer twice rather than remember it.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        source_vocab_size: int | None = None,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        width: int = 512,
        heads: int = 8,
        feed_forward_width: int = 2048,
        decoder_heads: int = 0,
        decoder_feed_forward_width: int = 0,
        dropout: float = 0.1,
        norm: str = "post",
        positions: str = "sinusoidal",
        max_positions: int = 1024,
        activation: str = "relu",
        tied_embeddings: int = 3,
        scale_embeddings: bool = True,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        source_vocab_size = source_vocab_size or vocab_size
        source_is_tied, output_is_tied = bool(tied_embeddings & 1), bool(tied_embeddings & 2)
        if source_is_tied and source_vocab_size != vocab_size:
            found = f"{source_vocab_size} and {vocab_size}"
            raise ValueError(f"tied source and target need vocabularies of one size, got {found}")
        for count in (heads, decoder_heads or heads):
            if positions == "rotary" and width // count % 2:
                raise ValueError(f"rotary positions need heads of even width, got {width // count}")
        self.noise = Noise()
        self.recomputes_activations = False
        self.embedding_scale = math.sqrt(width) if scale_embeddings else 1.0
        rotary = RotaryPositions() if positions == "rotary" else None

        self.target_embedding = embedding(vocab_size, width)
        # One matrix has one name; those who share it find None and use it by that name.
        self.source_embedding = None if source_is_tied else embedding(source_vocab_size, width)
        self.output = None if output_is_tied else nn.Linear(width, vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size)) if output_bias else None

        def position_encoding() -> nn.Module | None:
            if positions == "rotary":
                return None
            if positions == "learned":
                return LearnedPositions(width, max_positions)
            return SinusoidalPositions(width, layout=positions.removeprefix("sinusoidal_"))

        self.source_positions = position_encoding()
        self.target_positions = position_encoding()
        self.dropout = Dropout(dropout, self.noise)

        def encoder_layer() -> EncoderLayer:
            return EncoderLayer(
                width=width,
                heads=heads,
                feed_forward_width=feed_forward_width,
                dropout=dropout,
                norm=norm,
                activation=activation,
                rotary=rotary,
                noise=self.noise,
            )

        def decoder_layer() -> DecoderLayer:
            return DecoderLayer(
                width=width,
                heads=decoder_heads or heads,
                feed_forward_width=decoder_feed_forward_width or feed_forward_width,
                dropout=dropout,
                norm=norm,
                activation=activation,
                rotary=rotary,
                noise=self.noise,
            )

        self.encoder_layers = nn.ModuleList(encoder_layer() for _ in range(encoder_layers))
        self.decoder_layers = nn.ModuleList(decoder_layer() for _ in range(decoder_layers))
        # Post-norm stacks end normalised; pre-norm stacks need a last norm of their own.
        self.encoder_norm = nn.LayerNorm(width) if norm == "pre" else None
        self.decoder_norm = nn.LayerNorm(width) if norm == "pre" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Narrowed Glorot for matrices; embeddings D**-0.5 wide, as they are scaled by D**0.5."""
        if self.target_embedding.weight.is_meta:
            return  # there is nothing to fill
        # Children first: what nn.Linear and nn.Embedding give themselves is replaced.
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
        """Logits (B, T, V) of each next piece, all target positions at once (teacher forcing).

        Args:
            source: (B, S) ids, padded at the end with any id.
            source_keep: (B, 1, 1, S), False at padding; None if there is none.
            target: (B, T) ids shifted right: the start id, then the pieces before the last.
        """
        return self.logits(self.decode(target, self.encode(source, source_keep), source_keep))

    def encode(self, source: Tensor, source_keep: Tensor | None) -> Tensor:
        """The memory (B, S, D) of source ids (B, S)."""
        embedding = self.source_embedding or self.target_embedding
        x = self._embed(source, embedding, self.source_positions)  # (B, S, D)
        for layer in self.encoder_layers:
            x = self._through(layer, x, source_keep)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(self, target: Tensor, memory: Tensor, source_keep: Tensor | None) -> Tensor:
        """Hidden states (B, T, D) of target ids (B, T), each seeing itself and those before it."""
        causal = causal_mask(target.shape[1], target.device)  # (T, T)
        x = self._embed(target, self.target_embedding, self.target_positions)  # (B, T, D)
        for layer in self.decoder_layers:
            x = self._through(layer, x, memory, source_keep, causal)
        return x if self.decoder_norm is None else self.decoder_norm(x)

    def cross_attention_weights(
        self, source: Tensor, source_keep: Tensor | None, target: Tensor, *, layer: int
    ) -> Tensor:
        """How much a decoder layer attends to each source piece, (B, T, S), mean over its heads.

        Row t is that of the step which has read `target[:, t]` and looks for what comes next. The
        other arguments are those of `forward`; layers above `layer`, from 0, are not computed.
        """
        memory = self.encode(source, source_keep)  # (B, S, D)
        causal = causal_mask(target.shape[1], target.device)  # (T, T)
        x = self._embed(target, self.target_embedding, self.target_positions)  # (B, T, D)
        for below in self.decoder_layers[:layer]:
            x = below(x, memory, source_keep, causal)
        chosen = cast(DecoderLayer, self.decoder_layers[layer])
        return chosen.cross_attention_weights(x, memory, source_keep, causal).mean(dim=1)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, D) that turns hidden states into logits."""
        return self.target_embedding.weight if self.output is None else self.output.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, D)."""
        return F.linear(hidden, self.output_weight, self.output_bias)

    def start(self, source: Tensor, source_keep: Tensor | None) -> DecoderState:
        """Read the source, (B, S) ids; what comes back is ready for the first `step`."""
        memory = self.encode(source, source_keep)  # (B, S, D)
        layers = [cast(DecoderLayer, layer).start(memory) for layer in self.decoder_layers]
        return DecoderState(source_keep, layers)

    def step(self, pieces: Tensor, state: DecoderState) -> Tensor:
        """Logits (R, V) of what follows the newest piece (R,) of each row; extends the state."""
        return self.logits(self.advance(pieces, state))

    def restricted(self, ids: Tensor) -> "RestrictedTransformer":
        """The same model with logits for these target ids (C,) alone."""
        return RestrictedTransformer(self, ids)

    def advance(self, pieces: Tensor, state: DecoderState) -> Tensor:
        """Hidden states (R, D) after the newest piece (R,) of each row; extends the state."""
        x = self._embed(
            pieces[:, None], self.target_embedding, self.target_positions, state.length
        )  # (R, 1, D)
        for layer, layer_state in zip(self.decoder_layers, state.layers, strict=True):
            x = cast(DecoderLayer, layer).step(x, layer_state, state.source_keep, state.length)
        state.length += 1
        if self.decoder_norm is not None:
            x = self.decoder_norm(x)
        return x[:, 0]  # (R, D)

    def _through(self, layer: nn.Module, *arguments: Tensor | None) -> Tensor:
        """What a layer makes of its arguments, (B, T, D).

        With `recomputes_activations`, what its backward pass needs is not kept but computed again,
        with the same dropout: memory for one layer at a time, for a third more work.

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

    def _embed(
        self, ids: Tensor, embedding: nn.Embedding, positions: nn.Module | None, start: int = 0
    ) -> Tensor:
        """What the first layer sees (B, T, D) of ids (B, T), whose positions begin at `start`."""
        x = embedding(ids) * self.embedding_scale  # (B, T, D)
        if positions is not None:
            x = positions(x, start)
        dropped: Tensor = self.dropout(x)
        return dropped


class RestrictedTransformer:
    """A Transformer that decodes with logits for some of the target pieces alone.

    Args:
        transformer: whose weights and states these are.
        ids: (C,) of the pieces.
    """

    def __init__(self, transformer: Transformer, ids: Tensor) -> None:
        self._transformer = transformer
        self._weight = transformer.output_weight[ids]  # (C, D)
        bias = transformer.output_bias
        self._bias = None if bias is None else bias[ids]  # (C,)

    def start(self, source: Tensor, source_keep: Tensor | None) -> DecoderState:
        """Read the source, as the Transformer does."""
        return self._transformer.start(source, source_keep)

    def step(self, pieces: Tensor, state: DecoderState) -> Tensor:
        """Logits (R, C) of what follows the newest piece (R,), any of all V, of each row."""
        hidden = self._transformer.advance(pieces, state)  # (R, D)
        return F.linear(hidden, self._weight, self._bias)
