"""Loading of one model or an ensemble, and of the engine that runs it on a device."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tfm_cli.config.settings import RunConfig
from tfm_cli.device import Device, decoding_precision, torch_build
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files.layout import WEIGHTS_FILE
from tfm_cli.model_directory.weight_shapes import stored_precision
from tfm_cli.native import library
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.search_engine import SearchEngine, SearchOptions


class LoadedModels(NamedTuple):
    """Models in memory.

    Attributes:
        config: configuration of the first model.
        tokenizers: tokenizers of all models.
        engine: returns a search engine of these models, given its options.
    """

    config: RunConfig
    tokenizers: TokenizerPair
    engine: Callable[[SearchOptions], SearchEngine]


def resolve_precision(name: str, device: Device, directories: Sequence[Path]) -> str:
    """Return the precision to use; `auto` is int8 on a CPU if a model is stored in int8.

    Args:
        name: `auto`, `fp32`, `bf16`, `fp16` or `int8`.
        device: device that the models run on.
        directories: model directories.

    Raises:
        ConfigError: the name is unknown, or the device lacks that precision.
    """
    are_int8 = (stored_precision(each / WEIGHTS_FILE) == "int8" for each in directories)
    if name == "auto" and device.type == "cpu" and any(are_int8):
        return "int8"
    return decoding_precision(name, device)


def load_models(directories: Sequence[Path], device: Device, precision: str) -> LoadedModels:
    """Load models for the native engine on a CPU, and otherwise for PyTorch.

    Args:
        directories: model directories, at least one.
        device: device that the models run on.
        precision: precision of the matrix products; the device must support it.

    Raises:
        ModelError: a directory is invalid, or its tokenizers differ from those of the first.
        ResourceError: there is too little memory, or neither engine is installed.
    """
    if device.type == "cpu" and library.available():
        return _in_native_engine(directories, precision)
    if device.type == "cpu":
        _check_fallback(precision)
    return _in_torch(directories, device, precision)


def _in_native_engine(directories: Sequence[Path], precision: str) -> LoadedModels:
    from tfm_cli.native.model import NativeModel
    from tfm_cli.translation.native_engine import NativeEngine, warn_of_slow_bf16

    models = [NativeModel.load(directory, precision=precision) for directory in directories]
    _check_same_tokenizers(directories, [model.tokenizers for model in models])
    if precision == "bf16":
        warn_of_slow_bf16(models[0])
    first = models[0]
    return LoadedModels(
        first.config, first.tokenizers, lambda options: NativeEngine(models, options)
    )


def _in_torch(directories: Sequence[Path], device: Device, precision: str) -> LoadedModels:
    import torch

    from tfm_cli.model.arithmetic import precision_dtype, set_cpu_threads, warn_of_slow_bf16
    from tfm_cli.model_directory.weights import load_model
    from tfm_cli.translation.torch_engine import TorchEngine

    torch_device = torch.device(str(device))
    if device.type == "cpu":
        set_cpu_threads(1)
    if precision == "bf16":
        warn_of_slow_bf16(torch_device)
    models = [load_model(directory, torch_device) for directory in directories]
    _check_same_tokenizers(directories, [model.tokenizers for model in models])

    def engine(options: SearchOptions) -> SearchEngine:
        return TorchEngine(
            [model.transformer for model in models], models[0].tokenizers, options,
            device=torch_device, dtype=precision_dtype(precision),
            static_steps=device.type == "cuda",
        )  # fmt: skip

    return LoadedModels(models[0].config, models[0].tokenizers, engine)


def _check_fallback(precision: str) -> None:
    """Raise a ResourceError if PyTorch cannot replace the native engine on a CPU."""
    if precision != "int8" and torch_build():
        return
    absent = library.why_absent()
    message = f"`--precision int8` needs the native CPU engine: {absent}"
    if precision != "int8":
        message = f"there is neither the native CPU engine ({absent}) nor PyTorch"
    try:
        library.load()
    except ResourceError as error:
        raise ResourceError(message, hint=error.hint) from error


def _check_same_tokenizers(
    directories: Sequence[Path], tokenizers: Sequence[TokenizerPair]
) -> None:
    for directory, own in zip(directories, tokenizers, strict=True):
        if own.sha256 != tokenizers[0].sha256:
            message = f"{directory}: has other tokenizers than {directories[0]}"
            raise ModelError(message, hint="train them with the same one: `tfm train --tokenizer`")
