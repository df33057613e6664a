"""The models of the other sides."""

# B pairs, S source pieces, T target pieces, D model width, V vocabulary

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.train_loop import (
    Peer,
    RefusedError,
    adamw,
    padded,
    smoothed,
    start_weights,
)
from tests.bench.train_pairs import EOS_ID, PAD_ID, START_ID, UNK_ID
from tests.bench.train_works import Shape
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.store import CorpusStore

MOST_POSITIONS = 512


class HuggingFace:
    """`MarianMTModel`, with the fused AdamW that Hugging Face's Trainer takes by itself."""

    def __init__(self, job: dict[str, Any], store: CorpusStore, settings: TrainingConfig) -> None:
        try:
            import transformers
        except ImportError as error:
            raise RefusedError("transformers is not installed") from error
        theirs: Any = transformers
        shape = Shape(**job["shape"])
        config = theirs.MarianConfig(
            vocab_size=shape.vocab_size,
            d_model=shape.width,
            encoder_layers=shape.layers,
            decoder_layers=shape.layers,
            encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads,
            encoder_ffn_dim=shape.feed_forward_width,
            decoder_ffn_dim=shape.feed_forward_width,
            dropout=job["dropout"],
            attention_dropout=0.0,
            activation_dropout=0.0,
            activation_function="relu",
            max_position_embeddings=MOST_POSITIONS,
            scale_embedding=True,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            decoder_start_token_id=START_ID,
        )
        self.model: nn.Module = theirs.MarianMTModel(config)
        start_weights(self.model, shape.vocab_size)
        self.optimizer: torch.optim.Optimizer = adamw(self.model, settings, fused=True)
        self._store = store

    def loss(self, pairs: np.ndarray, label_smoothing: float) -> Tensor:
        source, target_in, target_out = padded(self._store, pairs)
        logits: Tensor = self.model(
            input_ids=source,
            attention_mask=(source != PAD_ID).long(),
            decoder_input_ids=target_in,
            use_cache=False,
        ).logits  # (B, T, V)
        return smoothed(logits, target_out, label_smoothing)


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` between embeddings and logits of one matrix.

    Dropout is where the paper has it: on embeddings and on what sub-layers put out.
    """

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.transformer = nn.Transformer(
            shape.width, shape.heads, shape.layers, shape.layers, shape.feed_forward_width,
            dropout, batch_first=True,
        )  # fmt: skip
        # The paper's stacks end with the norm of the last layer.
        self.transformer.encoder.norm = None
        self.transformer.decoder.norm = None
        self.transformer.encoder.use_nested_tensor = False  # a prototype, and only for eval()
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout = nn.Identity()  # type: ignore[assignment] # takes its place
        start_weights(self, shape.vocab_size)
        self.dropout = nn.Dropout(dropout)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(MOST_POSITIONS, shape.width))

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Logits (B, T, V) of ids (B, S) and (B, T)."""
        hidden = source == PAD_ID  # (B, S), True where nothing is attended to
        length = target_in.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        states: Tensor = self.transformer(
            self._embed(source),
            self._embed(target_in),
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
            tgt_mask=later,
            tgt_is_causal=True,
        )  # (B, T, D)
        return F.linear(states, self.embedding.weight)

    def _embed(self, ids: Tensor) -> Tensor:
        width = self.embedding.embedding_dim
        x = self.embedding(ids) * math.sqrt(width) + self.positions[: ids.shape[1]]
        dropped: Tensor = self.dropout(x)
        return dropped


class Torch:
    """`torch.nn.Transformer`."""

    def __init__(self, job: dict[str, Any], store: CorpusStore, settings: TrainingConfig) -> None:
        self.model: nn.Module = TorchTransformer(Shape(**job["shape"]), job["dropout"])
        self.optimizer: torch.optim.Optimizer = adamw(self.model, settings)
        self._store = store

    def loss(self, pairs: np.ndarray, label_smoothing: float) -> Tensor:
        source, target_in, target_out = padded(self._store, pairs)
        return smoothed(self.model(source, target_in), target_out, label_smoothing)


class JoeyNMT:
    """JoeyNMT's model, batch and loss, as its `TrainManager._train_step` puts them together."""

    def __init__(self, job: dict[str, Any], store: CorpusStore, settings: TrainingConfig) -> None:
        try:
            from joeynmt import batch, model, transformer_layers, vocabulary
        except ImportError as error:
            reason = "" if error.name == "joeynmt" else f": no {error.name}"
            raise RefusedError(f"joeynmt is not installed{reason}") from error
        shape = Shape(**job["shape"])
        self._batch = batch.Batch
        ids = {"unk": UNK_ID, "pad": PAD_ID, "bos": START_ID, "eos": EOS_ID, "sep": None}
        special: dict[str, Any] = {f"{name}_id": index for name, index in ids.items()}
        special |= {f"{name}_token": f"<{name}>" if name != "sep" else None for name in ids}
        vocab = vocabulary.Vocabulary([], SimpleNamespace(lang_tags=[], **special))
        # Added one by one they would be looked for one by one.
        vocab._itos += [f"{index}" for index in range(len(vocab), shape.vocab_size)]
        vocab._stoi |= {token: index for index, token in enumerate(vocab._itos)}
        stack = {
            "type": "transformer", "num_layers": shape.layers, "num_heads": shape.heads,
            "hidden_size": shape.width, "ff_size": shape.feed_forward_width,
            "dropout": job["dropout"], "layer_norm": "post",
            "embeddings": {"embedding_dim": shape.width, "scale": True},
        }  # fmt: skip
        config = {
            "encoder": stack, "decoder": stack, "tied_embeddings": True, "tied_softmax": True,
        }  # fmt: skip
        self.model: Any = model.build_model(config, src_vocab=vocab, trg_vocab=vocab)
        start_weights(self.model, shape.vocab_size)
        for module in self.model.modules():
            if isinstance(module, transformer_layers.MultiHeadedAttention):
                module.dropout.p = 0.0
            if isinstance(module, transformer_layers.PositionwiseFeedForward):
                module.pwff_layer[2].p = 0.0
        self.optimizer: torch.optim.Optimizer = adamw(self.model, settings)
        self._store = store

    def loss(self, pairs: np.ndarray, label_smoothing: float) -> Tensor:
        self.model.loss_function = ("crossentropy", label_smoothing)
        source, target_in, target_out = padded(self._store, pairs)
        whole = torch.cat([target_in[:, :1], target_out.masked_fill(target_out < 0, PAD_ID)], 1)
        batch = self._batch(
            src=source, src_length=(source != PAD_ID).sum(1), src_prompt_mask=None,
            trg=whole, trg_prompt_mask=None, indices=torch.arange(len(pairs)),
            device=torch.device("cpu"), pad_index=PAD_ID, eos_index=EOS_ID,
        )  # fmt: skip
        batch.sort_by_src_length()
        loss, _, _, _ = self.model(return_type="loss", **vars(batch))
        mean: Tensor = batch.normalize(loss, normalization="tokens")
        return mean


def sinusoids(length: int, width: int) -> Tensor:
    """Positions (length, D): sines in even columns, cosines in odd ones (Vaswani et al., 3.5)."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


PEER_MODELS: dict[str, Callable[[dict[str, Any], CorpusStore, TrainingConfig], Peer]] = {
    "hf": HuggingFace, "torch": Torch, "joeynmt": JoeyNMT,
}  # fmt: skip
