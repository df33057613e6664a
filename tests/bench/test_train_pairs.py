import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.train_pairs import (
    PLANS,
    Cut,
    Plan,
    draw_lengths,
    draw_store,
    hf_plan,
    representative,
    shuffled_plan,
)
from tests.bench.train_works import (
    MAX_TOKENS,
    MICRO_BATCH,
    NUM_PAIRS,
    PEERS,
    WORKS,
    Shape,
    picked,
    picked_names,
)
from tfm_cli.corpus.batching import padding_share
from tfm_cli.model.transformer import Transformer
from tfm_cli.training.memory import CPU_MICRO_BATCH

SHAPE = Shape(width=16, layers=2, heads=2, feed_forward_width=24, vocab_size=60, updates=2)
LENGTHS = draw_lengths(NUM_PAIRS)


def test_works_are_picked_by_name_and_by_pattern_in_the_order_of_the_table() -> None:
    chosen = picked("small-bf16-same,tiny-*-own")

    assert [work.name for work in chosen] == [
        "tiny-fp32-own", "tiny-bf16-own", "small-bf16-same",
    ]  # fmt: skip
    assert len({work.name for work in WORKS}) == len(WORKS) == len(picked("*"))


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no work is called `huge`; there are tiny-fp32-own, "):
        picked("huge")
    with pytest.raises(ValueError, match="no peer is called `x`; there are hf, torch, joeynmt"):
        picked_names("hf,x", PEERS, kind="peer")
    assert picked_names("torch,hf", PEERS, kind="peer") == ["hf", "torch"]


def test_batches_are_computed_in_the_parts_of_tfm_train() -> None:
    assert MICRO_BATCH == CPU_MICRO_BATCH


@pytest.mark.slow  # the counter takes seconds to import
@pytest.mark.parametrize(("source", "target"), [(1, 1), (7, 5), (3, 11)])
def test_multiply_adds_are_those_that_pytorch_counts(source: int, target: int) -> None:
    model = Transformer(
        SHAPE.vocab_size, encoder_layers=SHAPE.layers, decoder_layers=SHAPE.layers,
        width=SHAPE.width, heads=SHAPE.heads, feed_forward_width=SHAPE.feed_forward_width,
    ).eval()  # fmt: skip

    with FlopCounterMode(display=False) as counter:
        model(
            torch.ones(1, source, dtype=torch.long), None, torch.ones(1, target, dtype=torch.long)
        )

    assert 2 * SHAPE.multiply_adds(source, target) == counter.get_total_flops()


def test_lengths_are_like_those_of_multi30k() -> None:
    source, target = LENGTHS

    # Of the corpus: 16.79 ± 5.64 and 18.04 ± 6.80, correlation 0.840, 99 % up to 34 and 39.
    assert source.mean() == pytest.approx(16.79, abs=0.15)
    assert target.mean() == pytest.approx(18.04, abs=0.15)
    assert source.std() == pytest.approx(5.64, abs=0.2)
    assert target.std() == pytest.approx(6.80, abs=0.2)
    assert np.corrcoef(source, target)[0, 1] == pytest.approx(0.840, abs=0.01)
    assert np.percentile(source, 99) == pytest.approx(34, abs=1)
    assert np.percentile(target, 99) == pytest.approx(39, abs=1)


def test_store_has_pairs_of_these_lengths_and_more_of_the_first_pieces() -> None:
    store = draw_store(300, 60)

    source, target = draw_lengths(300)
    assert store.source.lengths.tolist() == source.tolist()
    assert store.target.lengths.tolist() == target.tolist()
    ids = np.concatenate([store.target[i] for i in range(300)])
    assert (ids.min(), ids.max()) == (4, 59)
    assert (ids == 4).sum() > 2 * (ids == 20).sum()


@pytest.fixture(scope="module", params=[*PLANS, "shuffled"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return {**PLANS, "shuffled": shuffled_plan}[request.param](*LENGTHS, MAX_TOKENS)


def test_plan_has_every_pair_once(plan: Plan) -> None:
    assert sorted(np.concatenate(plan).tolist()) == list(range(NUM_PAIRS))


@pytest.mark.parametrize("cut", [PLANS["tfm"], PLANS["hf"], PLANS["torch"], shuffled_plan])
def test_batches_have_as_many_real_pieces(cut: Cut) -> None:
    real = [LENGTHS[1][pairs].sum() for pairs in cut(*LENGTHS, MAX_TOKENS)]

    assert np.mean(real) == pytest.approx(MAX_TOKENS, rel=0.05)


def test_joeynmt_counts_padding_in() -> None:
    plan = PLANS["joeynmt"](*LENGTHS, MAX_TOKENS)

    for pairs in plan[:-1]:
        longest = np.maximum(LENGTHS[0][pairs], LENGTHS[1][pairs])
        assert longest.max() * len(pairs) >= MAX_TOKENS > longest[:-1].max() * (len(pairs) - 1)


def test_few_batches_are_as_the_plan_is_on_average(plan: Plan) -> None:
    chosen = representative(plan, *LENGTHS, 3)

    assert len({id(pairs) for pairs in chosen}) == 3
    for lengths in LENGTHS:
        means = [np.mean([lengths[pairs].sum() for pairs in some]) for some in (chosen, plan)]
        assert means[0] == pytest.approx(means[1], rel=0.03)
    assert padding_share(chosen, *LENGTHS) == pytest.approx(padding_share(plan, *LENGTHS), abs=0.03)
    assert representative(plan, *LENGTHS, len(plan)) is plan


@pytest.mark.slow
def test_hugging_face_plan_is_as_good_as_its_own_sampler() -> None:
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    from transformers.trainer_pt_utils import get_length_grouped_indices

    plan = hf_plan(*LENGTHS, MAX_TOKENS)
    size = len(plan[0])
    indices = np.array(
        get_length_grouped_indices(  # type: ignore[no-untyped-call] # declared without types
            LENGTHS[0].tolist(), size, generator=torch.Generator().manual_seed(1)
        )
    )
    theirs = [indices[start : start + size] for start in range(0, NUM_PAIRS, size)]

    ours = padding_share(plan, *LENGTHS)
    assert ours == pytest.approx(padding_share(theirs, *LENGTHS), abs=0.01)
