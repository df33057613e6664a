"""Small Transformers of every shape, with weights that leave nothing at 0 or 1, and sources."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.model.transformer import Transformer

VOCAB, START, EOS = 40, 2, 3
SHAPES: list[dict[str, Any]] = [
    {},
    {"norm": "pre", "activation": "swiglu", "positions": "rotary", "tied_embeddings": 0,
     "decoder_heads": 2, "decoder_feed_forward_width": 40},
    {"activation": "gelu", "positions": "learned", "tied_embeddings": 2, "output_bias": True},
    {"activation": "swish", "positions": "sinusoidal_halves", "tied_embeddings": 1},
    {"encoder_layers": 1, "decoder_layers": 3, "scale_embeddings": False, "norm": "pre"},
    {"encoder_layers": 3, "norm": "deepnorm"},
]  # fmt: skip
every_shape = pytest.mark.parametrize(
    "shape",
    [*SHAPES[:2], *(pytest.param(shape, marks=pytest.mark.torture) for shape in SHAPES[2:])],
    ids=str,
)


def model_of(shape: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    base = {"encoder_layers": 2, "decoder_layers": 2, "width": 32, "heads": 4,
            "feed_forward_width": 48, "max_positions": 64}  # fmt: skip
    model = transformer_of(VOCAB, **{**base, **shape}).eval()
    for name, parameter in model.named_parameters():
        # No bias is 0 and no gain is 1, and attention is not even.
        parameter.data += 0.2 * torch.randn(parameter.shape) if parameter.ndim == 1 else 0
        parameter.data *= 3 if "projection.weight" in name else 1
    return model


def source_of(*lengths: int) -> tuple[Tensor, Tensor | None]:
    """Random ids (B, S) of segments of these lengths, and what to keep of them."""
    ids = torch.randint(4, VOCAB, (len(lengths), max(lengths)))
    keep = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids, None if bool(keep.all()) else keep[:, None, None]
