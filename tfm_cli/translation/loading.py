"""Model directories that translate together, and the engine that computes them on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfm_cli.config.settings import RunConfig
from tfm_cli.device import Device, decoding_precision, torch_build
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files.layout import WEIGHTS_FILE
from tfm_cli.model_directory.weight_shapes import stored_precision
from tfm_cli.native import library
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.search_engine import SearchEngine, SearchOptions


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """Models in memory.

    Attributes:
        config: of the first one.
        tokenizers: of all of them.
        engine: gives what computes them, by how they are searched.
    """

    config: RunConfig
    tokenizers: TokenizerPair
    engine: Callable[[SearchOptions], SearchEngine]


def resolve_precision(name: str, place: Device, directories: Sequence[Path]) -> str:
    """Return the precision in which models compute: `auto` is int8 for those that are saved in it.

    Args:
        name: `auto`, `fp32`, `bf16`, `fp16` or `int8`.
        place: where they compute.
        directories: of the models.

    Raises:
        ConfigError: the name is unknown, or the device lacks that precision.
    """
    are_in_int8 = (stored_precision(each / WEIGHTS_FILE) == "int8" for each in directories)
    if name == "auto" and place.type == "cpu" and any(are_in_int8):
        return "int8"
    return decoding_precision(name, place)


def load_models(directories: Sequence[Path], place: Device, precision: str) -> LoadedModels:
    """Return the models in directories: on a CPU for the native engine, else in PyTorch.

    Args:
        directories: of the models, at least one.
        place: where they compute.
        precision: of the matrix products, one that the device has.

    Raises:
        ModelError: a directory is wrong, or has other tokenizers than the first one.
        ResourceError: there is no memory for them, or what would compute them is not installed.
    """
    if place.type == "cpu" and library.available():
        return _in_native_engine(directories, precision)
    if place.type == "cpu":
        _check_fallback(precision)
    return _in_torch(directories, place, precision)


def _in_native_engine(directories: Sequence[Path], precision: str) -> LoadedModels:
    from tfm_cli.native.model import NativeModel
    from tfm_cli.translation.native_engine import NativeEngine, warn_of_slow_bf16

    models = [NativeModel.load(directory, precision=precision) for directory in directories]
    _check_alike(directories, [model.tokenizers for model in models])
    if precision == "bf16":
        warn_of_slow_bf16(models[0])
    first = models[0]
    return LoadedModels(
        first.config, first.tokenizers, lambda options: NativeEngine(models, options)
    )


def _in_torch(directories: Sequence[Path], place: Device, precision: str) -> LoadedModels:
    import torch

    from tfm_cli.model.arithmetic import set_cpu_threads, warn_of_slow_bf16
    from tfm_cli.model_directory.weights import load_model
    from tfm_cli.translation.torch_engine import TorchEngine

    device = torch.device(str(place))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if place.type == "cpu":
        set_cpu_threads(1)
    if precision == "bf16":
        warn_of_slow_bf16(device)
    models = [load_model(directory, device) for directory in directories]
    _check_alike(directories, [model.tokenizers for model in models])

    def engine(options: SearchOptions) -> SearchEngine:
        return TorchEngine(
            [model.transformer for model in models], models[0].tokenizers, options,
            device=device, dtype=dtypes[precision], fixed_steps=place.type == "cuda",
        )  # fmt: skip

    return LoadedModels(models[0].config, models[0].tokenizers, engine)


def _check_fallback(precision: str) -> None:
    """Raise a ResourceError where PyTorch cannot do what the native engine would."""
    if precision != "int8" and torch_build():
        return
    absent = library.why_absent()
    told = f"`--precision int8` needs the native CPU engine: {absent}"
    if precision != "int8":
        told = f"there is neither the native CPU engine ({absent}) nor PyTorch"
    try:
        library.load()
    except ResourceError as error:
        raise ResourceError(told, hint=error.hint) from error


def _check_alike(directories: Sequence[Path], tokenizers: Sequence[TokenizerPair]) -> None:
    for directory, own in zip(directories, tokenizers, strict=True):
        if own.sha256 != tokenizers[0].sha256:
            told = f"{directory}: has other tokenizers than {directories[0]}"
            raise ModelError(told, hint="train them with the same one: `tfm train --tokenizer`")
