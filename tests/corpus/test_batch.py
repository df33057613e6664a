from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.corpus.batch import Batch, make_batch, pad_source

START, EOS = 1, 2

# Any id may be in a segment, those of the start and the end too.
segment_ids = st.lists(st.integers(0, 50), max_size=8)
pairs_of_ids = st.lists(st.tuples(segment_ids, segment_ids), min_size=1, max_size=6)


def arrays(segments: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(segment, dtype=np.int32) for segment in segments]


def batch(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Batch:
    return make_batch(arrays(sources), arrays(targets), start_id=START, eos_id=EOS)


def test_target_is_shifted_right_by_one() -> None:
    actual = batch([[5, 6], [7]], [[10, 11, 12], [13]])

    assert actual.target_in.tolist() == [[START, 10, 11, 12], [START, 13, EOS, EOS]]
    assert actual.target_out.tolist() == [[10, 11, 12, EOS], [13, EOS, EOS, EOS]]


def test_padding_mask_is_false_at_padding_only() -> None:
    actual = batch([[5, 6], [7]], [[10, 11, 12], [13]])

    assert actual.source.tolist() == [[5, 6, EOS], [7, EOS, EOS]]
    assert actual.source_keep is not None
    assert actual.source_keep.shape == (2, 1, 1, 3)
    assert actual.source_keep[:, 0, 0].tolist() == [[True, True, True], [True, True, False]]
    assert actual.target_positions.tolist() == [0, 1, 2, 3, 4, 5]


def test_target_tokens_include_ends_but_not_padding() -> None:
    actual = batch([[5, 6], [7]], [[10, 11, 12], [13]])

    assert actual.target_tokens == 4 + 2


def test_source_mask_is_none_without_padding() -> None:
    assert batch([[5, 6], [7, 8]], [[10], [11, 12]]).source_keep is None
    assert pad_source([[5, 6]], EOS)[1] is None


def test_an_empty_segment_consists_of_its_end() -> None:
    actual = batch([[], [5]], [[], []])

    assert actual.source.tolist() == [[EOS, EOS], [5, EOS]]
    assert actual.target_in.tolist() == [[START], [START]]
    assert actual.target_out.tolist() == [[EOS], [EOS]]
    assert actual.target_tokens == 2


def test_source_ids_may_be_lists_or_arrays() -> None:
    from_lists, from_arrays = pad_source([[5, 6], [7]], EOS), pad_source(arrays([[5, 6], [7]]), EOS)

    assert from_lists[0].dtype == from_arrays[0].dtype == torch.int64
    assert torch.equal(from_lists[0], from_arrays[0])
    assert from_lists[1] is not None
    assert from_arrays[1] is not None
    assert torch.equal(from_lists[1], from_arrays[1])


@settings(deadline=None)
@given(pairs=pairs_of_ids)
def test_masked_ids_are_the_given_ids(pairs: list[tuple[list[int], list[int]]]) -> None:
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]

    actual = batch(sources, targets)

    source_keep = torch.ones_like(actual.source, dtype=torch.bool)
    if actual.source_keep is not None:
        source_keep = actual.source_keep[:, 0, 0]
    keep = torch.zeros(actual.target_out.numel(), dtype=torch.bool)
    keep[actual.target_positions] = True
    keep = keep.view_as(actual.target_out)
    for row, (source, target) in enumerate(pairs):
        assert actual.source[row][source_keep[row]].tolist() == [*source, EOS]
        assert actual.target_out[row][keep[row]].tolist() == [*target, EOS]
        assert actual.target_in[row][keep[row]].tolist() == [START, *target]
    assert actual.target_tokens == int(keep.sum())
    assert bool(source_keep.any(dim=0).all())  # no column is padding from top to bottom
    assert bool(keep.any(dim=0).all())


@settings(max_examples=50, deadline=None)
@given(pairs_of_ids, st.data())
def test_rows_return_part_of_a_batch(
    pairs: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    whole = batch([source for source, _ in pairs], [target for _, target in pairs])
    start = data.draw(st.integers(0, len(pairs) - 1))
    stop = data.draw(st.integers(start + 1, len(pairs)))

    part = whole.rows(start, stop)

    assert torch.equal(part.source, whole.source[start:stop])
    assert torch.equal(part.target_in, whole.target_in[start:stop])
    assert torch.equal(part.target_out, whole.target_out[start:stop])
    assert (part.source_keep is None) == (whole.source_keep is None)
    assert part.target_tokens == sum(len(target) + 1 for _, target in pairs[start:stop])
    real = part.target_out.flatten()[part.target_positions].tolist()
    assert real == [piece for _, target in pairs[start:stop] for piece in [*target, EOS]]


@pytest.mark.parametrize("sources", [[[5, 6], [7]], [[5], [7]]], ids=["padded", "whole"])
def test_moving_a_batch_moves_all_tensors(sources: list[list[int]]) -> None:
    there = torch.device("meta")
    here = batch(sources, [[10], [11, 12]])

    moved = here.to(there)

    for tensor in (moved.source, moved.target_in, moved.target_out, moved.target_positions):
        assert tensor.device == there
    assert (moved.source_keep is None) == (here.source_keep is None)
    assert moved.source_keep is None or moved.source_keep.device == there
    assert moved.target_tokens == here.target_tokens
