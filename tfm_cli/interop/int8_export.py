"""A model directory with weights in int8: a quarter of the disk, and of the time to load.

The bytes are those that the native CPU engine makes of the weights when it computes in int8.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tfm_cli.decoding.hypothesis import Hypothesis
from tfm_cli.decoding.scoring import output_limit
from tfm_cli.errors import ModelError
from tfm_cli.files import atomic_file
from tfm_cli.interop.verification import Coarseness
from tfm_cli.model_config import CONFIG_FILE, SHORTLIST_FILE, WEIGHTS_FILE, save_config
from tfm_cli.model_dir import TrainedModel, WeightsFacts, save_weights, weights_facts
from tfm_cli.model_weights import SCALES, quantized, weight_shapes
from tfm_cli.native import library, structures
from tfm_cli.native.model import NativeModel, error_of
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.plain_file import open_plain
from tfm_cli.tokenizer_pair import TOKENIZER_FILES

FILES = (CONFIG_FILE, WEIGHTS_FILE, SHORTLIST_FILE, *TOKENIZER_FILES)


def refuse_inexpressible(model: TrainedModel) -> None:
    """Refuse no model: each of them has an int8 form."""


def write_int8(directory: Path, model: TrainedModel, model_dir: Path) -> None:
    """Write a model into an empty directory, its weights in int8.

    Args:
        directory: an empty directory.
        model: what is written.
        model_dir: where it came from, whose scores and shortlist are taken along.

    Raises:
        ResourceError: there is no native engine.
    """
    shape = model.config.model
    weights = dict(model.transformer.state_dict())
    for name in quantized(weight_shapes(shape, model.tokenizers.vocab_sizes)):
        weights[name], weights[name + SCALES] = _quantized(weights[name])
    save_config(directory, model.config, model.tokenizers)
    facts = weights_facts(model_dir) or WeightsFacts(0, {})
    save_weights(directory, weights, model.tokenizers, shape, facts, precision="int8")
    shortlist = model_dir / SHORTLIST_FILE
    if shortlist.exists():
        with open_plain(shortlist) as source, atomic_file(directory / SHORTLIST_FILE) as stream:
            shutil.copyfileobj(source, stream)


def _quantized(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bytes (rows, columns) of a matrix and the scale of each row."""
    engine, matrix = library.load(), matrix.detach().float().contiguous()
    rows, columns = matrix.shape
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows)
    status = engine.functions.tfm_quantize(
        matrix.data_ptr(), rows, columns, values.data_ptr(), scales.data_ptr()
    )
    if status != structures.OK:
        raise RuntimeError(error_of(engine, status))
    return values, scales


def verify_int8(model: TrainedModel, directory: Path, lines: Sequence[str]) -> Coarseness:
    """Return how far a model in int8 is from the same in fp32.

    Raises:
        ModelError: it computes something else than the model does in int8.
        NonFiniteScoresError: the weights compute no finite numbers.
    """
    saved = NativeModel.load(directory, precision="int8")
    direct, exact = (
        NativeModel.from_weights(
            model.transformer.state_dict(), model.config, model.tokenizers, precision=precision
        )
        for precision in ("int8", "fp32")
    )
    shape = model.config.model
    most = shape.max_positions - 1 if shape.positions == "learned" else 1 << 20
    sources = [ids[:most] for ids in model.tokenizers.source.encode(list(lines)) if ids]
    factor = model.config.search.max_length_factor
    limits = [min(output_limit(len(ids), factor), most) for ids in sources]
    kept, apart = 0, list[float]()
    for source, limit in zip(sources, limits, strict=True):
        batch = Segments(sources=[source], limits=[limit])
        wanted, found = (_best(one, batch) for one in (exact, saved))
        kept += wanted.ids == found.ids
        of_saved, of_direct, of_exact = (
            NativeSearch([one], model.config.search).force([source], [wanted.ids])[0]
            for one in (saved, direct, exact)
        )
        if of_saved != of_direct:
            raise ModelError(f"{directory}: computes something else than the model does in int8")
        apart += [abs(ours - theirs) for ours, theirs in zip(of_saved, of_exact, strict=True)]
    return Coarseness(sum(apart) / max(1, len(apart)), kept, len(sources))


def _best(model: NativeModel, batch: Segments) -> Hypothesis:
    return NativeSearch([model], model.config.search)(batch)[0][0]
