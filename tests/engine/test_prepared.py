from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.engine.small_models import (
    EOS,
    SHAPES,
    START,
    VOCAB,
    every_shape,
    model_of,
    source_of,
)
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.hypothesis import Hypothesis, StepModel
from tfm_cli.engine.prepared import PreparedTransformer
from tfm_cli.engine.state import LayerCache, PreparedState


@torch.inference_mode()
@every_shape
@pytest.mark.parametrize("lengths", [(5,), (6, 2, 4)])
def test_logits_are_those_of_the_transformer(
    shape: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    model = model_of(shape)
    source, keep = source_of(*lengths)
    target = torch.randint(4, VOCAB, (len(lengths), 35))  # more than two blocks of the cache
    wanted = model(source, keep, target)

    prepared = PreparedTransformer(model)
    state = prepared.start(source, keep)
    found = torch.stack([prepared.step(target[:, t], state) for t in range(35)], dim=1)

    # Single precision, sums in another order.
    assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("lengths", [(7, 3, 9, 1, 5), (9,), (70,)])
def test_search_finds_what_it_finds_in_the_transformer(
    shape: dict[str, Any], beam_size: int, lengths: tuple[int, ...]
) -> None:
    """Segments that leave the batch, beams that change places, caches that grow; one alone."""
    model = model_of(shape)
    source, keep = source_of(*lengths)
    limits = [20, 3, 25, 40, 11][: len(lengths)]

    def search(searched: Any) -> list[list[Hypothesis]]:
        return beam_search(
            searched, source, keep, limits=limits, start_id=START, eos_id=EOS,
            banned_ids=(0, 1), beam_size=beam_size,
        )  # fmt: skip

    wanted, found = search(model), search(PreparedTransformer(model))

    for ours, theirs in zip(found, wanted, strict=True):
        assert ours[0].ids == theirs[0].ids
        assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(("lengths", "is_folded"), [((64,), True), ((65,), False), ((5, 5), False)])
def test_memory_of_a_short_segment_alone_is_folded(
    lengths: tuple[int, ...], is_folded: bool
) -> None:
    state = PreparedTransformer(model_of({})).start(*source_of(*lengths))

    assert [layer.folded is not None for layer in state.layers] == [is_folded] * len(state.layers)


@torch.inference_mode()
def test_rows_and_segments_are_moved_and_dropped() -> None:
    model = model_of({})
    source, keep = source_of(4, 6, 3)
    prepared = PreparedTransformer(model)
    segments = torch.tensor([2, 0])

    def moved(searched: StepModel[Any]) -> Tensor:
        state = searched.start(source, keep)
        searched.step(torch.tensor([5, 6, 7]), state)
        state.reorder(torch.tensor([[0, 0]] * 3))
        searched.step(torch.tensor([8, 9, 10, 11, 12, 13]), state)
        state.reorder(torch.tensor([[1, 0], [1, 1], [0, 1]]))
        searched.step(torch.tensor([14, 15, 16, 17, 18, 19]), state)
        state.keep(segments)
        state.reorder(torch.tensor([[1, 1, 0], [0, 1, 0]]))
        return searched.step(torch.arange(20, 26), state)

    assert_close(moved(prepared), moved(model), rtol=1e-4, atol=2e-5)


def test_caches_keep_what_was_written_when_they_grow() -> None:
    empty = torch.empty(2, 3, 4, 0, 5)
    state = PreparedState([LayerCache(empty[0], empty[0], empty)], torch.zeros(3, 4, 1, 2))
    for step in range(40):
        state.open(1)
        state.layers[0].entries[:, :, :, step] = float(step)

    written = state.layers[0].entries[1, 2, 0, :40, 3].tolist()
    assert written == [float(step) for step in range(40)]


def test_beams_see_what_they_descend_from() -> None:
    """Two steps of three beams, then a beam whose ancestors are the second and the third."""
    empty = torch.empty(2, 1, 4, 0, 5)
    state = PreparedState([LayerCache(empty[0], empty[0], empty)], torch.zeros(1, 4, 1, 2))
    state.open(1)
    state.reorder(torch.tensor([[0, 0, 0]]))
    state.open(3)
    state.reorder(torch.tensor([[2, 1, 0]]))
    state.open(3)
    state.reorder(torch.tensor([[1, 0, 0]]))

    assert state.ancestry is not None
    seen = (state.ancestry == 0).int().tolist()
    #               first  second   third
    assert seen == [[[1,  0, 1, 0,  0, 1, 0],
                     [1,  0, 0, 1,  1, 0, 0],
                     [1,  0, 0, 1,  1, 0, 0]]]  # fmt: skip


@torch.inference_mode()
@every_shape
def test_restricted_logits_are_columns_of_the_full_ones(shape: dict[str, Any]) -> None:
    prepared = PreparedTransformer(model_of(shape))
    source, keep = source_of(6, 2, 4)
    ids = torch.tensor([3, 4, 17, 39])
    restricted = prepared.restricted(ids)
    state, wanted_state = restricted.start(source, keep), prepared.start(source, keep)

    for pieces in torch.randint(4, VOCAB, (3, 3)):
        wanted = prepared.step(pieces, wanted_state)[:, ids]
        # Single precision, sums in another order.
        assert_close(restricted.step(pieces, state), wanted, rtol=1e-4, atol=2e-5)
    assert prepared.step(pieces, wanted_state).shape == (3, VOCAB)
