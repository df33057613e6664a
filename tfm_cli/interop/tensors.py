"""Conversion and validation of the tensors of other toolkits."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig, SearchConfig
from tfm_cli.decoding.interface import output_limit
from tfm_cli.errors import ModelError
from tfm_cli.interop.names import TensorName, tensor_names
from tfm_cli.model_directory.weight_shapes import listed, shape_differences, weight_shapes
from tfm_cli.model_directory.weights import non_finite_tensors
from tfm_cli.tokenizer.pair import TokenizerPair

_MIN_POSITIONS, _MAX_POSITIONS = 512, 16384  # of an export
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model of another toolkit, converted to tfm."""

    config: RunConfig
    tokenizers: TokenizerPair
    weights: dict[str, Tensor]  # by tfm's names, in fp32
    notes: tuple[str, ...]  # about the conversion, for the user
    weights_file: str
    vocabulary_files: tuple[str, ...] = ()  # of source and target, in a Marian directory


@dataclass(frozen=True, slots=True)
class ForeignTensor:
    """A tensor of another toolkit, and the part of a tensor of tfm that it becomes."""

    name: str
    shape: tuple[int, ...]  # in the other toolkit's layout
    tfm: str  # the name of the tensor in tfm
    part: int
    as_row: bool = False  # stored as a matrix with a single row; a vector in tfm
    transposed: bool = False  # stored as the transpose of the matrix in tfm


def required_tensors(
    config: ModelConfig, vocab_sizes: tuple[int, int], name_of: Callable[[TensorName], str | None]
) -> list[ForeignTensor]:
    """Return the tensors that a model of this shape needs, under another toolkit's names.

    The shapes are those in tfm.
    """
    shapes = weight_shapes(config, vocab_sizes)
    tensors = []
    for name in tensor_names(config):
        foreign, (rows, *rest) = name_of(name), shapes[name.tfm]
        assert foreign is not None, f"{name.tfm} has no name there"
        tensors.append(ForeignTensor(foreign, (rows // name.parts, *rest), name.tfm, name.part))
    return tensors


def assemble(
    required: Sequence[ForeignTensor],
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    *,
    source: str,
    ignored: Collection[str] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights by tfm's names in fp32, and notes on the types that were stored.

    No tensor is loaded before all names and shapes have been checked.

    Args:
        required: every part of every tensor, in order.
        shapes: the shapes of all stored tensors, by name.
        load: returns the tensor with a given name.
        source: the file, for messages.
        ignored: names of further tensors that may be stored.

    Raises:
        ModelError: tensors are missing, unknown, of another shape or type, or not finite; the
            message lists them.
    """
    expected = {item.name: item.shape for item in required}
    differences = shape_differences(shapes, expected, optional=ignored)
    raise_if_any(differences, f"{source}: its tensors do not match its configuration")

    problems: list[str] = []
    parts: dict[str, list[Tensor]] = {}
    dtypes = set()
    for item in required:
        tensor = load(item.name)
        if problem := dtype_problem(item.name, tensor):
            problems.append(problem)
            continue
        dtypes.add(tensor.dtype)
        tensor = tensor.detach().float()
        if non_finite_tensors({item.name: tensor}):
            problems.append(f"{item.name}: has values that are not finite numbers")
        if item.as_row:
            tensor = tensor[0]
        elif item.transposed:
            tensor = tensor.T
        parts.setdefault(item.tfm, []).append(tensor)
    raise_if_any(problems, f"{source}: has tensors that cannot be used")
    notes = [
        f"weights stored as {_dtype_name(dtype)} are kept as float32"
        for dtype in _FLOATS[1:]
        if dtype in dtypes
    ]
    return {name: torch.cat(tensors) for name, tensors in parts.items()}, tuple(notes)


def export_positions(search: SearchConfig) -> tuple[int, int]:
    """Return the positions that an export has, and those of the longest source and target.

    A special token adds one position to each. Other toolkits compute the table of positions when
    they load a model, some of them slowly, so its size is limited.
    """
    limit = output_limit(search.max_length, search.max_length_factor)
    needed = 1 + max(search.max_length, limit)
    return min(max(needed, _MIN_POSITIONS), _MAX_POSITIONS), needed


def dtype_problem(name: str, tensor: Tensor) -> str:
    """Return a line about a tensor of an unsupported type; the empty string if it is supported."""
    if tensor.dtype in _FLOATS:
        return ""
    return f"{name}: has type {_dtype_name(tensor.dtype)}, expected float32"


def raise_if_any(problems: Iterable[str], title: str, *, hint: str | None = None) -> None:
    """Raise a ModelError that lists the problems, if there are any."""
    lines = list(problems)
    if lines:
        raise ModelError(f"{title}\n  {listed(lines)}", hint=hint)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
