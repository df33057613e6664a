"""Random models that write mostly byte tokens."""

import torch

from tfm_cli.config.settings import ModelConfig, TokenizerConfig
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_directory.weights import build_transformer
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer

SHAPE = ModelConfig(encoder_layers=1, decoder_layers=1, width=16, heads=2, feed_forward_width=16)


def spelling_tokenizer() -> Tokenizer:
    """Return a tokenizer with 256 byte pieces and a few others."""
    config = TokenizerConfig(vocab_size=290, model_type="bpe")
    text = ["one two three four five six seven eight nine"] * 20
    return Tokenizer(train_tokenizer(text, config, seed=1, soft_limit=True))


def spelling_transformer(tokenizer: Tokenizer, seed: int, *, twins: bool = False) -> Transformer:
    """Random weights, larger where a piece stands for a byte of more than ASCII.

    With `twins`, letters are likely, and the byte of each little less than the letter, so that a
    text has many spellings.
    """
    torch.manual_seed(seed)
    size = tokenizer.vocab_size
    transformer = build_transformer(SHAPE, (size, size))
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weight, values = transformer.target_embedding.weight.data, tokenizer.byte_values
    if twins:
        for i, value in values.items():
            if chr(value) in tokenizer.pieces and chr(value).isalpha():
                letter = tokenizer.pieces.index(chr(value))
                weight[letter] *= 2
                weight[i] = 0.8 * weight[letter]
            else:
                weight[i] /= 3
    else:
        weight[[i for i, value in values.items() if value >= 0x80]] *= 3
    return transformer.eval()
