"""The engine by its C interface, and the reference, `model/` and `decoding/`, asked the same."""

# B segments, S source pieces, T target pieces, V target vocabulary

import ctypes
import functools
import os
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.decoding.searching import beam_search, greedy_search, sample
from tfm_cli.corpus.batch import pad_source
from tfm_cli.decoding.interface import Hypothesis, TargetVocabulary
from tfm_cli.decoding.restricted import RestrictedVocabulary
from tfm_cli.decoding.utf8 import Utf8
from tfm_cli.model.transformer import Transformer
from tfm_cli.native.library import (
    ACTIVATIONS,
    NORMS,
    OK,
    POSITIONS,
    PRECISIONS,
    Batch,
    Library,
    ModelOptions,
    Result,
    SearchOptions,
    load,
    why_absent,
)

UNK, START, EOS = 0, 1, 2
BANNED = (UNK, START)

# What `Transformer` takes where nothing is said; heads and widths of the decoder: the encoder's.
DEFAULTS: dict[str, Any] = {
    "encoder_layers": 6, "decoder_layers": 6, "width": 512, "heads": 8, "decoder_heads": 0,
    "feed_forward_width": 2048, "decoder_feed_forward_width": 0, "norm": "post",
    "positions": "sinusoidal", "max_positions": 1024, "activation": "relu", "tied_embeddings": 3,
    "scale_embeddings": True, "output_bias": False,
}  # fmt: skip


def library() -> Library:
    """The engine for this processor; where it was not built, the test is skipped."""
    absent = why_absent()
    if absent and os.environ.get("TFM_REQUIRE_NATIVE") == "1":
        pytest.fail(f"TFM_REQUIRE_NATIVE is set, and there is no engine: {absent}")
    if absent:
        pytest.skip(f"runs where the native engine was built: {absent}")
    return load()


@functools.cache
def precisions() -> tuple[str, ...]:
    """All of them: what a processor lacks is computed another way."""
    return tuple(PRECISIONS)


@dataclass(frozen=True)
class Lines:
    """Segments to translate: ids without </s>."""

    sources: list[list[int]]
    limits: list[int]
    prefixes: list[list[int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    allowed: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    def of(self, which: Sequence[int]) -> "Lines":
        """Some of the segments, in this order."""
        names = ("sources", "limits", "prefixes", "seeds", "allowed")
        columns = {name: getattr(self, name) for name in names}
        return Lines(**{k: [v[i] for i in which] if v else [] for k, v in columns.items()})


@dataclass(frozen=True)
class Search:
    """How translations are looked for, in the words of `decoding/`."""

    beam_size: int = 1
    sampling: bool = False
    early_stopping: bool = False
    renormalize: bool = False
    no_repeat_ngram_size: int = 0
    stops_loops: bool = False
    scores: bool = True
    token_log_probs: bool = False
    length_norm: str = "power"
    top_k: int = 0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0

    def options(self) -> SearchOptions:
        """The same in those of the C interface."""
        names = [name for name, *_ in SearchOptions._fields_]
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return SearchOptions(**values, wu_norm=self.length_norm == "wu")

    def __str__(self) -> str:
        options = {
            name: value for name, value in vars(self).items() if value != vars(Search())[name]
        }
        return ",".join(f"{name}={value}" for name, value in options.items()) or "greedy"


class EngineError(Exception):
    """A status of the engine other than OK, with its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def check(functions: ctypes.CDLL, status: int) -> None:
    """Raise an EngineError for a status other than OK."""
    if status != OK:
        raise EngineError(status, functions.tfm_error().decode())


def call(name: str, *arguments: Any) -> None:
    """Call a function of the engine that returns a status."""
    functions = library().functions
    check(functions, getattr(functions, name)(*arguments))


def model_options(
    shape: Mapping[str, Any], vocab_sizes: tuple[int, int], precision: str
) -> ModelOptions:
    """`TfmModelOptions` of a shape in the words of `Transformer`."""
    whole = {**DEFAULTS, **shape}
    names = {name for name, _ in ModelOptions._fields_}
    return ModelOptions(
        **{
            **{name: value for name, value in whole.items() if name in names},
            "encoder_heads": whole["heads"],
            "decoder_heads": whole["decoder_heads"] or whole["heads"],
            "encoder_feed_forward_width": whole["feed_forward_width"],
            "decoder_feed_forward_width": whole["decoder_feed_forward_width"]
            or whole["feed_forward_width"],
            "source_vocab_size": vocab_sizes[0],
            "target_vocab_size": vocab_sizes[1],
            "norm": NORMS[whole["norm"]],
            "activation": ACTIVATIONS[whole["activation"]],
            "positions": POSITIONS[whole["positions"]],
            "start_id": START,
            "eos_id": EOS,
            "precision": PRECISIONS[precision],
        }
    )


class EngineModel:
    """A Transformer in the engine.

    Args:
        transformer: whose weights are packed.
        shape: what it was made with, but for vocabularies.
        precision: of the matrix products.
        byte_values: the byte that a target piece stands for, by its id.
        banned: target pieces that are never written.
        start_id, eos_id: of the target vocabulary.
    """

    def __init__(
        self,
        transformer: Transformer,
        shape: Mapping[str, Any],
        precision: str = "fp32",
        *,
        byte_values: Mapping[int, int] | None = None,
        banned: Sequence[int] = BANNED,
        start_id: int = START,
        eos_id: int = EOS,
        source_eos_id: int = EOS,
    ) -> None:
        self.functions = library().functions
        self.source_eos_id = source_eos_id
        self.handle = ctypes.c_void_p()
        target_size = transformer.target_embedding.num_embeddings
        source = transformer.source_embedding or transformer.target_embedding
        self.sizes = (source.num_embeddings, target_size)
        options = model_options(shape, self.sizes, precision)
        options.start_id, options.eos_id = start_id, eos_id
        functions = self.functions
        check(functions, functions.tfm_model_new(options, self.handle))
        self.free = weakref.finalize(self, functions.tfm_model_free, self.handle)
        for name, value in transformer.state_dict().items():
            self.tensor(name, value)
        values = None
        if byte_values:
            values = (ctypes.c_int16 * target_size)(*[-1] * target_size)
            for piece, byte in byte_values.items():
                values[piece] = byte
        ids = (ctypes.c_int32 * len(banned))(*banned)
        check(functions, functions.tfm_model_vocabulary(self.handle, ids, len(banned), values))
        check(functions, functions.tfm_model_finish(self.handle))

    def tensor(self, name: str, value: Tensor) -> None:
        value = value.detach().float().contiguous()
        rows, columns = value.shape if value.ndim == 2 else (*value.shape, 0)
        status = self.functions.tfm_model_tensor(
            self.handle, name.encode(), value.data_ptr(), rows, columns
        )
        check(self.functions, status)

    def replace(self, handle: ctypes.c_void_p) -> None:
        """Become a model that was made otherwise."""
        self.free()
        self.handle = handle
        self.free = weakref.finalize(self, self.functions.tfm_model_free, handle)


class Workspace:
    """Caches and results of one thread."""

    def __init__(self) -> None:
        self.functions = library().functions
        self.handle = ctypes.c_void_p()
        check(self.functions, self.functions.tfm_workspace_new(self.handle))
        self.free = weakref.finalize(self, self.functions.tfm_workspace_free, self.handle)


def batch_of(lines: Lines, eos_id: int) -> tuple[Batch, list[Any]]:
    """The batch of the C interface, and what its pointers lead to."""
    kept: list[Any] = []

    def pointer(values: Sequence[int], code: str = "i") -> Any:
        kept.append(array(code, values))
        kind = ctypes.c_uint64 if code == "Q" else ctypes.c_int32
        return ctypes.cast(kept[-1].buffer_info()[0], ctypes.POINTER(kind))

    def flat(rows: list[list[int]]) -> tuple[Any, Any]:
        return pointer([each for row in rows for each in row]), pointer([len(row) for row in rows])

    batch = Batch(num_segments=len(lines))
    batch.source_ids, batch.source_lengths = flat([[*ids, eos_id] for ids in lines.sources])
    batch.limits = pointer(lines.limits)
    if lines.prefixes:
        batch.prefix_ids, batch.prefix_lengths = flat(lines.prefixes)
    if lines.seeds:
        batch.seeds = pointer(lines.seeds, "Q")
    if lines.allowed:
        batch.allowed_ids, batch.allowed_lengths = flat(lines.allowed)
    return batch, kept


def hypotheses(
    result: Result, *, token_log_probs: bool
) -> list[list[Hypothesis]]:  # fmt: skip
    """What a search found, copied out of the workspace."""
    found: list[list[Hypothesis]] = []
    row = begin = at = 0
    for segment in range(result.num_segments):
        found.append([])
        for _ in range(result.num_hypotheses[segment]):
            length = result.lengths[row]
            each: tuple[float, ...] = ()
            if token_log_probs:
                each = tuple(result.token_log_probs[at : at + length + 1])
            ids = tuple(result.ids[begin : begin + length])
            total, score = result.log_probabilities[row], result.scores[row]
            found[-1].append(Hypothesis(ids, total, score, each))
            row, begin, at = row + 1, begin + length, at + length + 1
    return found


def engine_search(
    models: EngineModel | Sequence[EngineModel],
    lines: Lines,
    how: Search,
    workspace: Workspace | None = None,
) -> list[list[Hypothesis]]:
    """What the engine finds, best first."""
    models = [models] if isinstance(models, EngineModel) else list(models)
    functions, workspace = models[0].functions, workspace or Workspace()
    batch, _kept = batch_of(lines, models[0].source_eos_id)
    handles = (ctypes.c_void_p * len(models))(*(model.handle for model in models))
    result = Result()
    status = functions.tfm_search(
        handles, len(models), workspace.handle, how.options(), batch, result
    )
    check(functions, status)
    assert result.num_segments == len(lines)
    return hypotheses(result, token_log_probs=how.token_log_probs)


def engine_score(
    model: EngineModel, lines: Lines, targets: list[list[int]], workspace: Workspace | None = None
) -> list[list[float]]:
    """Log-probabilities of the pieces of each target and of </s>."""
    workspace = workspace or Workspace()
    batch, _kept = batch_of(lines, model.source_eos_id)
    ids = array("i", [each for target in targets for each in target])
    lengths = array("i", map(len, targets))
    total = sum(lengths) + len(targets)
    found = (ctypes.c_float * total)()
    status = model.functions.tfm_score(
        model.handle, workspace.handle, batch, _int32s(ids), _int32s(lengths), found, 0, None
    )
    check(model.functions, status)
    return list(_split(list(found), [length + 1 for length in lengths]))


def engine_attention(
    model: EngineModel, lines: Lines, targets: list[list[int]], layer: int
) -> list[Tensor]:
    """Weights of the cross-attention of a layer, mean over heads, (T + 1, S) of each pair."""
    workspace = Workspace()
    batch, _kept = batch_of(lines, model.source_eos_id)
    ids = array("i", [each for target in targets for each in target])
    lengths = array("i", map(len, targets))
    shapes = [(len(t) + 1, len(s) + 1) for t, s in zip(targets, lines.sources, strict=True)]
    found = (ctypes.c_float * sum(rows * columns for rows, columns in shapes))()
    status = model.functions.tfm_score(
        model.handle, workspace.handle, batch, _int32s(ids), _int32s(lengths), None, layer, found
    )
    check(model.functions, status)
    parts = _split(list(found), [rows * columns for rows, columns in shapes])
    return [torch.tensor(part).view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _int32s(values: "array[int]") -> Any:
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(ctypes.c_int32))


def _split(values: list[float], lengths: Sequence[int]) -> Iterator[list[float]]:
    begin = 0
    for length in lengths:
        yield values[begin : begin + length]
        begin += length


@dataclass(frozen=True)
class Reference:
    """The Transformers of `model/`, searched by `decoding/`."""

    models: Sequence[Any]
    vocab_size: int
    byte_values: Mapping[int, int] = field(default_factory=dict)
    banned: Sequence[int] = BANNED
    start_id: int = START
    eos_id: int = EOS
    source_eos_id: int = EOS

    @torch.inference_mode()
    def search(self, lines: Lines, how: Search) -> list[list[Hypothesis]]:
        """What the reference finds, best first."""
        source, keep = pad_source(lines.sources, self.source_eos_id)
        scope = self._scope(lines)
        utf8 = Utf8.of(
            self.byte_values, self.vocab_size, banned_ids=self.banned, device=source.device
        )
        whole = TargetVocabulary(self.start_id, self.eos_id, self.banned, utf8)
        common: dict[str, Any] = {"limits": lines.limits, "vocabulary": scope.vocabulary(whole)}
        model = scope.model(self.models)
        if not (
            how.sampling or how.scores or how.token_log_probs or lines.prefixes
        ) and how == Search(scores=False, stops_loops=how.stops_loops):
            greedy = greedy_search(model, source, keep, stops_loops=how.stops_loops, **common)
            return [[scope.restored(i, hypothesis)] for i, hypothesis in enumerate(greedy)]
        common |= {
            "prefixes": [scope.prefix(i, ids) for i, ids in enumerate(lines.prefixes)],
            "length_penalty": how.length_penalty,
            "length_norm": how.length_norm,
            "renormalize": how.renormalize,
            "no_repeat_ngram_size": how.no_repeat_ngram_size,
            "repetition_penalty": how.repetition_penalty,
            "token_log_probs": how.token_log_probs,
        }
        if how.sampling:
            drawn = sample(
                model, source, keep, seeds=lines.seeds, temperature=how.temperature,
                top_k=how.top_k, top_p=how.top_p, **common,
            )  # fmt: skip
            return [[scope.restored(i, hypothesis)] for i, hypothesis in enumerate(drawn)]
        found = beam_search(
            model, source, keep, beam_size=how.beam_size, early_stopping=how.early_stopping,
            stops_loops=how.stops_loops, **common,
        )  # fmt: skip
        return [[scope.restored(i, each) for each in some] for i, some in enumerate(found)]

    def _scope(self, lines: Lines) -> RestrictedVocabulary:
        if not any(lines.allowed):
            return RestrictedVocabulary()
        allowed = torch.zeros(len(lines), self.vocab_size, dtype=torch.bool)
        for row, ids in enumerate(lines.allowed):
            allowed[row, ids if ids else slice(None)] = True
        return RestrictedVocabulary.of(allowed, [self.eos_id, self.start_id, *self.banned])

    def moved(self, most: float, seed: int) -> "Reference":
        """The same, but each logit is moved by up to `most`."""
        return replace(self, models=[Moved(model, most, seed) for model in self.models])

    @torch.inference_mode()
    def score(self, lines: Lines, targets: list[list[int]]) -> list[list[float]]:
        """Log-probabilities of the pieces of each target and of </s>, each pair by itself."""
        (model,) = self.models
        actual = []
        for ids, target in zip(lines.sources, targets, strict=True):
            source = torch.tensor([[*ids, self.source_eos_id]])
            read = torch.tensor([[self.start_id, *target]])
            log_probs = model(source, None, read)[0].double().log_softmax(dim=-1)  # (T + 1, V)
            expected = torch.tensor([*target, self.eos_id])[:, None]
            actual.append(log_probs.gather(1, expected)[:, 0].tolist())
        return actual


@dataclass(frozen=True)
class Moved:
    """A model whose logits are off by random numbers of at most `most` either way."""

    model: Any
    most: float
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "chance", torch.Generator().manual_seed(self.seed))

    def start(self, source: Tensor, keep: Tensor | None) -> Any:
        return self.model.start(source, keep)

    def step(self, pieces: Tensor, state: Any) -> Tensor:
        logits: Tensor = self.model.step(pieces, state)
        noise = torch.rand(logits.shape, generator=self.chance)  # type: ignore[attr-defined]
        return logits + (2 * noise - 1) * self.most

    def restricted(self, ids: Tensor) -> "Moved":
        return Moved(self.model.restricted(ids), self.most, self.seed + 1)


def clear_lines(
    reference: Reference, lines: Lines, how: Search, expected: list[list[Hypothesis]], *,
    margin: float = 1e-3, tries: int = 4, whole: bool = False,
) -> list[int]:  # fmt: skip
    """Segments of which the reference finds the same whatever moves its logits by half the margin.

    Where the best choice beats the next by more than the margin, they cannot change places; where
    it does not, they do in one of the tries as good as always if they are so near each other that
    the order of a sum decides.

    Args:
        whole: the whole list of hypotheses is the same, not the best alone.
    """
    count = None if whole else 1
    kept = set(range(len(lines)))
    for seed in range(tries):
        other = reference.moved(margin / 2, seed).search(lines, how)
        kept = {
            i
            for i in kept
            if [h.ids for h in other[i][:count]] == [h.ids for h in expected[i][:count]]
        }
    return sorted(kept)


@torch.inference_mode()
def margins(model: Any, lines: Lines, *, banned: Sequence[int] = BANNED) -> list[float]:
    """By how much the best choice beats the next at the closest decision of greedy search."""
    source, keep = pad_source(lines.sources, EOS)
    state = model.start(source, keep)
    pieces = torch.full((len(lines),), START)
    closest, is_open = [float("inf")] * len(lines), [limit > 0 for limit in lines.limits]
    for step in range(max(lines.limits, default=0)):
        logits = model.step(pieces, state)
        logits = logits.index_fill(1, torch.tensor(banned), -torch.inf)  # (B, V)
        best = logits.topk(2, dim=1)
        pieces = best.indices[:, 0]
        for row, gap in enumerate((best.values[:, 0] - best.values[:, 1]).tolist()):
            if is_open[row]:
                closest[row] = min(closest[row], gap)
                is_open[row] = int(pieces[row]) != EOS and step + 1 < lines.limits[row]
        if not any(is_open):
            break
    return closest
