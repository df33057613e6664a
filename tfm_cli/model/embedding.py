"""Embeddings that can be made without values."""

import torch
from torch import nn


def embedding(count: int, width: int) -> nn.Embedding:
    """`nn.Embedding`; on the meta device without drawing values, for which it has no room.

    PyTorch would load its compiler to draw them there, which takes seconds.
    """
    if torch.get_default_device().type == "meta":
        return nn.Embedding(count, width, _weight=torch.empty(count, width))
    return nn.Embedding(count, width)
