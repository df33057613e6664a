"""Transformers whose hyperparameters are given as plain keywords."""

from typing import Any

from tfm_cli.model.transformer import Transformer, TransformerShape


def transformer(
    vocab_size: int, *, source_vocab_size: int | None = None, **shape: Any
) -> Transformer:
    """Return a Transformer of fresh weights; hyperparameters are those of `TransformerShape`."""
    return Transformer(TransformerShape(**shape), vocab_size, source_vocab_size)
