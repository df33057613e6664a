"""Model directories with random weights, and modified weights files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig, TokenizerConfig
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import (
    WeightsFacts,
    build_transformer,
    save_weights,
    weights_sha256,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer


def save_random_model(
    directory: Path,
    shape: ModelConfig,
    settings: TokenizerConfig,
    *,
    lines: list[str],
    facts: WeightsFacts,
) -> None:
    """Write a model directory with the weights of seed 1 and a tokenizer of `lines`."""
    model_bytes = train_tokenizer(lines, settings, seed=1, soft_limit=True)
    tokenizers = TokenizerPair.joint(Tokenizer(model_bytes))
    torch.manual_seed(1)
    transformer = build_transformer(shape, tokenizers.vocab_sizes)
    save_config(directory, RunConfig(model=shape), tokenizers)
    save_weights(directory, dict(transformer.named_parameters()), tokenizers, shape, facts)


def rewrite(
    directory: Path,
    tensors: Callable[[dict[str, Tensor]], object] = lambda _: None,
    metadata: Callable[[dict[str, Any]], object] = lambda _: None,
) -> None:
    """Change the weights file and its hash, so that only the other checks can refuse it."""
    path = directory / "model.safetensors"
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["tfm"])
    table = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors(table)
    header["weights_sha256"] = weights_sha256(table)
    metadata(header)
    save_file(table, path, {"tfm": json.dumps(header)})
