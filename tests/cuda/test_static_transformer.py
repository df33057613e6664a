import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.cuda.small_models import (
    EOS,
    SHAPES,
    START,
    VOCAB,
    every_shape,
    model_of,
    source_of,
)
from tests.decoding.replay import ReplayedStep
from tests.decoding.searching import beam_search, greedy_search
from tfm_cli.config.settings import SearchConfig
from tfm_cli.cuda.static_transformer import StaticTransformer, StaticTransformerState
from tfm_cli.decoding.interface import TargetVocabulary
from tfm_cli.decoding.static import search as static_search
from tfm_cli.decoding.static.search import Shape, StaticSearch
from tfm_cli.decoding.static.steps import StaticBeams, StaticGreedy
from tfm_cli.model.transformer import Transformer

BANNED = (0, 1, 7)
VOCABULARY = TargetVocabulary(START, EOS, BANNED)
on_every_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)


def forced(fixed: StaticTransformer, source: Tensor, keep: Tensor | None, target: Tensor) -> Tensor:
    """Logits (B, T, V) after each piece of the target (B, T), a step at a time, as one beam."""
    segments, capacity = target.shape
    state = fixed.state(Shape(segments + 2, 1, 16, capacity))  # two spare segments
    fixed.encode(source, keep, state)
    beam_ancestors = torch.full((segments + 2, 1, capacity), -1)
    logits = []
    for step in range(capacity):
        beam_ancestors[:, :, step] = 0
        pieces = torch.cat((target[:, step], torch.tensor([0, 0])))
        after = fixed.step(pieces, torch.tensor([step]), beam_ancestors, state)
        assert bool(after.isfinite().all())  # of the spare ones as well
        logits.append(after[:segments])
    return torch.stack(logits, dim=1)


@torch.inference_mode()
@every_shape
@pytest.mark.parametrize("lengths", [(5,), (6, 2, 4)])
def test_logits_are_those_of_the_transformer(
    shape: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    model = model_of(shape)
    source, keep = source_of(*lengths)
    target = torch.randint(4, VOCAB, (len(lengths), 35))

    result = forced(StaticTransformer(model, torch.float32), source, keep, target)

    # Single precision, sums in another order.
    assert_close(result, model(source, keep, target), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@every_shape
@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.025), (torch.float16, 0.004)])
def test_logits_in_half_precision_are_near_those_of_single_precision(
    shape: dict[str, Any], dtype: torch.dtype, share: float
) -> None:
    model = model_of(shape)
    source, keep = source_of(6, 2, 4)
    target = torch.randint(4, VOCAB, (3, 12))

    actual = forced(StaticTransformer(model, dtype), source, keep, target)

    # A product's factors are off by 2 parts in 1000 in bf16 and by 0.2 in fp16; a dozen products
    # follow on each other, whose errors are independent.
    expected = model(source, keep, target)
    assert actual.dtype == dtype
    assert float((actual.float() - expected).norm() / expected.norm()) < share


def beams_in(
    model: Transformer, beam_size: int, dtype: torch.dtype = torch.float32
) -> StaticSearch[StaticTransformerState, StaticBeams]:
    device = model.output_weight.device
    search = SearchConfig(beam_size=beam_size)
    return StaticSearch(
        StaticTransformer(model, dtype),
        partial(StaticBeams, vocabulary=VOCABULARY, settings=search, device=device),
        beams=beam_size,
        device=device,
    )


def assert_finds_what_beam_search_finds(
    search: StaticSearch[StaticTransformerState, StaticBeams],
    model: Transformer,
    lengths: tuple[int, ...],
    limits: list[int],
    beam_size: int,
) -> None:
    device = model.output_weight.device
    source, keep = source_of(*lengths)
    source, keep = source.to(device), None if keep is None else keep.to(device)

    actual = search(source, keep, limits=limits)

    expected = beam_search(
        model, source, keep, limits=limits, start_id=START, eos_id=EOS, banned_ids=BANNED,
        beam_size=beam_size,
    )  # fmt: skip
    for ours, theirs in zip(actual, expected, strict=True):
        assert [h.ids for h in ours] == [h.ids for h in theirs]
        # Single precision, sums in another order, over some thirty pieces.
        totals = [h.log_probability for h in theirs]
        assert [h.log_probability for h in ours] == pytest.approx(totals, abs=1e-3)
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=5e-5)


BATCHES = [  # lengths of sources, limits
    ((7, 3, 9, 1, 5, 6, 2, 2, 8), [20, 3, 34, 25, 11, 2, 0, 1, 33]),
    ((4, 4, 4, 4, 4, 4, 4, 4, 4), [34, 5, 34, 5, 5, 9, 9, 9, 9]),
]


@torch.inference_mode()
@on_every_device
@every_shape
@pytest.mark.parametrize("beam_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_search_finds_what_it_finds_in_the_transformer(
    shape: dict[str, Any], beam_size: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments leave, beams change places, caches grow; steps are replayed, by batches after too.

    On a CPU by the same operators on the same memory, on a GPU as a graph.
    """
    if device == "cpu":
        monkeypatch.setattr(static_search, "StepGraph", ReplayedStep)
    monkeypatch.setattr(static_search, "_FEW_SEGMENTS", 2)
    model = model_of(shape).to(device)
    search = beams_in(model, beam_size)
    before = ReplayedStep.replays

    for lengths, limits in BATCHES:
        assert_finds_what_beam_search_finds(search, model, lengths, limits, beam_size)

    assert device != "cpu" or ReplayedStep.replays > before + 20
    assert len(search._stages) > 3


@torch.inference_mode()
@on_every_device
@every_shape
def test_greedy_search_finds_what_it_finds_in_the_transformer(
    shape: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":
        monkeypatch.setattr(static_search, "StepGraph", ReplayedStep)
    monkeypatch.setattr(static_search, "_FEW_SEGMENTS", 2)
    model = model_of(shape).to(device)
    search = StaticSearch(
        StaticTransformer(model, torch.float32),
        partial(StaticGreedy, vocabulary=VOCABULARY, device=torch.device(device)),
        beams=1,
        device=torch.device(device),
    )

    for lengths, limits in BATCHES:
        source, keep = source_of(*lengths)
        source, keep = source.to(device), None if keep is None else keep.to(device)
        actual = search(source, keep, limits=limits)
        expected = greedy_search(
            model, source, keep, limits=limits, start_id=START, eos_id=EOS, banned_ids=BANNED
        )
        assert [hypothesis.ids for (hypothesis,) in actual] == [each.ids for each in expected]


@torch.inference_mode()
def test_numbers_of_an_earlier_batch_do_not_matter() -> None:
    """What is hidden has a weight of 0, and 0 * NaN would be NaN."""
    model = model_of(SHAPES[0])
    search = beams_in(model, 2)
    assert_finds_what_beam_search_finds(search, model, (5, 6, 7), [34, 34, 34], 2)

    for stage in search._stages.values():
        for cache in stage.model_state.caches:
            for each in (cache.memory_keys, cache.memory_values, cache.keys, cache.values):
                each.fill_(math.nan)

    assert_finds_what_beam_search_finds(search, model, (3, 3, 2), [34, 34, 34], 2)


@torch.inference_mode()
def test_tensors_of_a_shape_stay_where_they_are() -> None:
    """What a replay needs, of all that a step reads or writes."""
    model = model_of(SHAPES[1])
    search = beams_in(model, 3)

    def places() -> dict[Shape, list[int]]:
        result = {}
        for shape, stage in search._stages.items():
            rows = [each for each in vars(stage.search_state).values() if isinstance(each, Tensor)]
            caches = [
                each
                for cache in stage.model_state.caches
                for each in (cache.memory_keys, cache.memory_values, cache.keys, cache.values)
            ]
            tensors = [*rows, *caches, stage.model_state.source_keep]
            result[shape] = [each.data_ptr() for each in tensors]
        return result

    assert_finds_what_beam_search_finds(search, model, (5, 6, 7), [34, 34, 34], 3)
    before = places()
    assert_finds_what_beam_search_finds(search, model, (4, 4, 4), [3, 34, 20], 3)

    assert places() == before
    assert len(before) == 2  # capacities


# It ships no type information.
class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operators that are given tensors of another device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        assert all(each.device == self._device for each in given), func
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
@every_shape
@pytest.mark.parametrize("beam_size", [1, 3])
def test_steps_and_moves_need_no_numbers_and_no_other_device(
    shape: dict[str, Any], beam_size: int
) -> None:
    """On the meta device, whose tensors have shapes and nothing else."""
    meta = torch.device("meta")
    fixed = StaticTransformer(model_of(shape).to(meta), torch.float32)
    source = torch.empty(5, 7, dtype=torch.long, device=meta)
    keep = torch.empty(5, 1, 1, 7, dtype=torch.bool, device=meta)
    segments = torch.empty(3, dtype=torch.long, device=meta)

    def rows_of(segments: int, capacity: int) -> StaticBeams | StaticGreedy:
        if beam_size == 1:
            return StaticGreedy(segments, capacity, VOCABULARY, meta)
        search = SearchConfig(beam_size=beam_size)
        return StaticBeams(segments, capacity, VOCABULARY, search, meta)

    wide, narrow = (
        Shape(count, beam_size, 16, 8 * capacity) for count, capacity in ((6, 4), (3, 8))
    )
    state, later_state = fixed.state(wide), fixed.state(narrow)
    rows, later_rows = rows_of(6, 32), rows_of(3, 64)
    rows.reset([9] * 5)
    with OneDevice(meta):
        fixed.encode(source, keep, state)
        rows.step(fixed, state)
        later_state.copy_from(state, segments)
        later_rows.copy_from(rows, segments)  # type: ignore[arg-type] # both are of one kind
        later_rows.step(fixed, later_state)


@torch.inference_mode()
def test_weights_are_stored_once_in_single_precision_and_rounded_otherwise() -> None:
    model = model_of(SHAPES[0])

    assert StaticTransformer(model, torch.float32)._output_weight.data_ptr() == (
        model.output_weight.data_ptr()
    )
    assert StaticTransformer(model, torch.bfloat16)._output_weight.dtype == torch.bfloat16
