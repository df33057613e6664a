"""What the readers of other toolkits' models share: their tensors become ours, all checked."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfm_cli.config.settings import ModelConfig, RunConfig
from tfm_cli.errors import ModelError
from tfm_cli.interop.names import Name, names
from tfm_cli.model_directory.weights import build_transformer
from tfm_cli.tokenizer.pair import TokenizerPair

_MAX_NAMED = 8  # complaints that a message lists
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model of another toolkit as one of ours."""

    config: RunConfig
    tokenizers: TokenizerPair
    weights: dict[str, Tensor]  # by our names, in single precision
    notes: tuple[str, ...]  # what a user should know of the conversion


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor of another toolkit, and which rows of ours it becomes."""

    name: str
    shape: tuple[int, ...]  # as it stands there
    ours: str
    part: int
    as_row: bool = False  # our vector, as a matrix of one row
    transposed: bool = False  # a matrix whose columns are our rows


def our_shapes(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter that a model of ours has; costs no memory."""
    with torch.device("meta"):
        transformer = build_transformer(config, vocab_sizes)
    return {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}


def wanted_tensors(
    config: ModelConfig, vocab_sizes: tuple[int, int], name_of: Callable[[Name], str | None]
) -> list[Wanted]:
    """What a model of this shape needs, as our layout has it, by the names of another toolkit."""
    shapes = our_shapes(config, vocab_sizes)
    found = []
    for name in names(config):
        foreign, (rows, *rest) = name_of(name), shapes[name.ours]
        assert foreign is not None, f"{name.ours} has no name there"
        found.append(Wanted(foreign, (rows // name.parts, *rest), name.ours, name.part))
    return found


def assembled(
    wanted: Sequence[Wanted],
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    *,
    place: str,
    ignored: Collection[str] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Our tensors, in single precision, and notes on how they were stored.

    Nothing is loaded before all names and shapes are right.

    Args:
        wanted: every part of every tensor, parts in their order.
        shapes: what there is.
        load: the tensor of a name.
        place: what messages call the file.
        ignored: names that may be there besides.

    Raises:
        ModelError: lists what is missing, unknown, of another shape or type, or not finite.
    """
    by_name = {item.name: item for item in wanted}
    wrong = [f"{name}: missing" for name in by_name if name not in shapes]
    wrong += [f"{n}: unknown" for n in sorted(set(shapes) - set(by_name) - set(ignored))]
    wrong += [
        f"{name}: has shape {shapes[name]}, wanted {item.shape}"
        for name, item in by_name.items()
        if name in shapes and shapes[name] != item.shape
    ]
    refuse_if_any(wrong, f"{place}: has not the tensors that its configuration tells of")

    parts: dict[str, list[Tensor]] = {}
    dtypes = set()
    for item in wanted:
        tensor = load(item.name)
        if complaint := wrong_type(item.name, tensor):
            wrong.append(complaint)
            continue
        dtypes.add(tensor.dtype)
        tensor = tensor.detach().float()
        if not bool(tensor.isfinite().all()):
            wrong.append(f"{item.name}: has values that are no finite numbers")
        if item.as_row:
            tensor = tensor[0]
        elif item.transposed:
            tensor = tensor.T
        parts.setdefault(item.ours, []).append(tensor)
    refuse_if_any(wrong, f"{place}: has tensors that cannot be used")
    notes = [
        f"weights stored as {_type_name(dtype)} are kept as float32"
        for dtype in _FLOATS[1:]
        if dtype in dtypes
    ]
    return {name: torch.cat(tensors) for name, tensors in parts.items()}, tuple(notes)


def wrong_type(name: str, tensor: Tensor) -> str:
    """A complaint of a tensor whose values are no usual floating-point numbers; else nothing."""
    if tensor.dtype in _FLOATS:
        return ""
    return f"{name}: has type {_type_name(tensor.dtype)}, wanted float32"


def refuse_if_any(complaints: Iterable[str], title: str, *, hint: str | None = None) -> None:
    """Raise a ModelError that lists the complaints, the first of them by name."""
    lines = list(complaints)
    if lines:
        more = len(lines) - _MAX_NAMED
        shown = lines[:_MAX_NAMED] + ([f"… and {more} more"] if more > 0 else [])
        raise ModelError("\n  ".join([title, *shown]), hint=hint)


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
