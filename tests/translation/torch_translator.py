"""Translators that run models in memory with PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tfm_cli.config.settings import SearchConfig
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.search import SearchOptions
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.torch_engine import TorchEngine
from tfm_cli.translation.translator import Translator

CPU = torch.device("cpu")


def torch_translator(
    transformer: Any,
    tokenizers: TokenizerPair,
    *,
    search: SearchConfig,
    others: Sequence[Any] = (),
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    static_steps: bool = False,
    sampling: bool = False,
    scores: bool = True,
    word_scores: bool = False,
    shortlist: Shortlist | None = None,
    stops_loops: bool = False,
    check: Callable[[], None] | None = None,
    **how: Any,
) -> Translator:
    """Return a translator; `how` are arguments of `Translator`."""
    options = SearchOptions(
        settings=search, sampling=sampling, scores=scores, word_scores=word_scores,
        shortlist=shortlist, stops_loops=stops_loops, check=check,
    )  # fmt: skip
    engine = TorchEngine(
        [transformer, *others], tokenizers, options,
        device=device, dtype=dtype, static_steps=static_steps,
    )  # fmt: skip
    return Translator(engine, tokenizers, options, **how)
