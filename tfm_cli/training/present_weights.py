"""The translator of the weights that a model has now, which validation asks for again and again."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from tfm_cli.arithmetic import precision_name
from tfm_cli.config import RunConfig
from tfm_cli.model.transformer import Transformer
from tfm_cli.native import library
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.search_engine import SearchOptions
from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

Translators = Callable[[], AbstractContextManager[Translator]]


def uses_native_engine(device: torch.device) -> bool:
    """Return True if a model on this device is validated by the native engine."""
    return device.type == "cpu" and library.available()


def translators(
    model: Transformer,
    tokenizers: TokenizerPair,
    config: RunConfig,
    options: SearchOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Translators:
    """Return what gives a translator of the weights that a model has just then.

    On a CPU the native engine gets a copy of them, packed, for as long as they are asked for.

    Args:
        model: on `device`.
        tokenizers: of the model.
        config: of the run.
        options: how translations are looked for.
        device: where the model is.
        dtype: arithmetic of the matrix products.
    """
    if not uses_native_engine(device):
        from tfm_cli.translation.torch_engine import TorchEngine

        engine = TorchEngine([model], tokenizers, options, device=device, dtype=dtype)
        return lambda: contextlib.nullcontext(Translator(engine, tokenizers, options))

    from tfm_cli.native.model import NativeModel
    from tfm_cli.translation.native_engine import NativeEngine

    tells = iter([True])

    @contextlib.contextmanager
    def packed() -> Iterator[Translator]:
        began = time.monotonic()
        copy = NativeModel.from_weights(
            model.state_dict(), config, tokenizers, precision=precision_name(dtype)
        )
        seconds = time.monotonic() - began
        engine = NativeEngine([copy], options)
        try:
            yield Translator(engine, tokenizers, options)
            if next(tells, False):
                logger.info(
                    "validation: weights packed in %.1f s, translated in %.1f s, with %d MiB more",
                    seconds, time.monotonic() - began - seconds, engine.num_bytes >> 20,
                )  # fmt: skip
        finally:
            copy.close()

    return packed
