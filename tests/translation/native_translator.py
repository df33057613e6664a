"""Translators that run models in memory with the native engine."""

from collections.abc import Sequence
from typing import Any

import pytest

from tfm_cli.config.settings import ModelConfig, RunConfig, SearchConfig
from tfm_cli.model.transformer import Transformer
from tfm_cli.native import library
from tfm_cli.native.model import NativeModel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.native_engine import NativeEngine
from tfm_cli.translation.search import SearchOptions
from tfm_cli.translation.shortlist import Shortlist
from tfm_cli.translation.translator import Translator

needs_native = pytest.mark.skipif(
    not library.available(), reason="needs the native engine: build it with `make install`"
)


def native_translator(
    transformers: Sequence[Transformer],
    tokenizers: TokenizerPair,
    shape: ModelConfig,
    *,
    search: SearchConfig,
    precision: str = "fp32",
    sampling: bool = False,
    scores: bool = True,
    word_scores: bool = False,
    shortlist: Shortlist | None = None,
    **how: Any,
) -> Translator:
    """Return a translator; `how` are arguments of `Translator`."""
    options = SearchOptions(
        settings=search, sampling=sampling, scores=scores, word_scores=word_scores,
        shortlist=shortlist,
    )  # fmt: skip
    models = [
        NativeModel.from_weights(
            transformer.state_dict(), RunConfig(model=shape), tokenizers, precision=precision
        )
        for transformer in transformers
    ]
    return Translator(NativeEngine(models, options), tokenizers, options, **how)
