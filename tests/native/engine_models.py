"""Random Transformers whose choices are clear, in the reference and in the engine."""

# B segments, V vocabulary

import ctypes
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.model.small_transformers import transformer as transformer_of
from tests.native.engine import EngineModel, Workspace, call
from tfm_cli.decoding.interface import Hypothesis
from tfm_cli.model.transformer import Transformer
from tfm_cli.native.library import Batch, Result, SearchOptions

START, EOS, UNKNOWN = 1, 0, 2
SOURCE_SIZE = 20
# A byte of each kind, and some more than once.
BYTES = (
    0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xF0,
    0xF1, 0xF4, 0xC0, 0xFF,
)  # fmt: skip
SHAPE: dict[str, Any] = {
    "encoder_layers": 1, "decoder_layers": 2, "width": 24, "heads": 2, "feed_forward_width": 32,
    "tied_embeddings": 0, "output_bias": True, "dropout": 0.0,
}  # fmt: skip


def random_model(seed: int, vocab_size: int, *, spread: float = 2.5, **shape: Any) -> Transformer:
    """A model that hardly ever finds two pieces as likely as each other."""
    torch.manual_seed(seed)
    model = transformer_of(vocab_size, source_vocab_size=SOURCE_SIZE, **{**SHAPE, **shape}).eval()
    assert model.output is not None
    assert model.output_bias is not None
    with torch.no_grad():
        model.output.weight.mul_(spread)
        model.output_bias.normal_(std=spread / 3)
    return model


def int32s(values: Sequence[int]) -> Any:
    return (ctypes.c_int32 * max(1, len(values)))(*values)


def flat(rows: Sequence[Sequence[int]]) -> Any:
    return int32s(list(itertools.chain(*rows)))


@contextmanager
def packed(
    model: Transformer,
    *,
    banned: Sequence[int] = (START, UNKNOWN),
    byte_values: Mapping[int, int] | None = None,
    precision: str = "fp32",
    heads: int = 2,
    positions: str = "sinusoidal",
) -> Iterator[Any]:
    """The same model in the engine."""
    shape = {**SHAPE, "heads": heads, "positions": positions, "max_positions": 64}
    engine = EngineModel(
        model, shape, precision, banned=banned, byte_values=byte_values,
        start_id=START, eos_id=EOS,
    )  # fmt: skip
    try:
        yield engine.handle
    finally:
        engine.free()


@contextmanager
def workspace() -> Iterator[Any]:
    """Memory of a thread."""
    own = Workspace()
    try:
        yield own.handle
    finally:
        own.free()


@dataclass
class Segments:
    """A batch as the engine takes it."""

    sources: Sequence[Sequence[int]]
    limits: Sequence[int]
    prefixes: Sequence[Sequence[int]] = ()
    seeds: Sequence[int] = ()
    allowed: Sequence[Sequence[int]] = ()
    changes: dict[str, Any] = field(default_factory=dict)  # of the structure itself

    def batch(self) -> Batch:
        batch = Batch(
            num_segments=len(self.sources), source_ids=flat(self.sources),
            source_lengths=int32s(list(map(len, self.sources))), limits=int32s(self.limits),
        )  # fmt: skip
        if self.prefixes:
            batch.prefix_ids = flat(self.prefixes)
            batch.prefix_lengths = int32s(list(map(len, self.prefixes)))
        if self.seeds:
            batch.seeds = (ctypes.c_uint64 * len(self.seeds))(*self.seeds)
        if self.allowed:
            batch.allowed_ids = flat(self.allowed)
            batch.allowed_lengths = int32s(list(map(len, self.allowed)))
        for name, value in self.changes.items():
            setattr(batch, name, value)
        return batch

    def only(self, which: Sequence[int]) -> "Segments":
        """Return some of the segments, in this order."""

        def chosen(rows: Sequence[Any]) -> list[Any]:
            return [rows[i] for i in which] if rows else []

        return Segments(
            chosen(self.sources), chosen(self.limits), chosen(self.prefixes), chosen(self.seeds),
            chosen(self.allowed),
        )  # fmt: skip


DEFAULTS: dict[str, Any] = {
    "beam_size": 1, "scores": 1, "length_penalty": 1.0, "repetition_penalty": 1.0,
    "temperature": 1.0, "top_p": 1.0,
}  # fmt: skip


def search(
    models: Sequence[Any], segments: Segments, *, memory: Any = None, **options: Any
) -> list[list[Hypothesis]]:
    """The hypotheses that the engine finds."""
    if memory is None:
        with workspace() as own:
            return search(models, segments, memory=own, **options)
    result = Result()
    handles = (ctypes.c_void_p * len(models))(*(model.value for model in models))
    settings = SearchOptions(**{**DEFAULTS, **options})
    call("tfm_search", handles, len(models), memory, settings, segments.batch(), result)
    found: list[list[Hypothesis]] = []
    row = begin = 0
    for count in result.num_hypotheses[: result.num_segments]:
        some = []
        for _ in range(count):
            end = begin + result.lengths[row]
            each = (
                result.token_log_probs[begin + row : end + row + 1]
                if result.token_log_probs
                else ()
            )
            some.append(
                Hypothesis(
                    tuple(result.ids[begin:end]), result.log_probabilities[row],
                    result.scores[row], tuple(each),
                )
            )  # fmt: skip
            row, begin = row + 1, end
        found.append(some)
    return found
