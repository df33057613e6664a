"""The engine's search against the reference, by all options at once, and what else it promises."""

# B segments, V vocabulary

import ctypes
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from tests.decoding.searching import beam_search, greedy_search, sample
from tests.native.engine import EngineError, call
from tests.native.engine_models import (
    BYTES,
    EOS,
    SOURCE_SIZE,
    START,
    UNKNOWN,
    Segments,
    packed,
    random_model,
    search,
    workspace,
)
from tfm_cli.corpus.batch import pad_source
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError, TargetVocabulary
from tfm_cli.decoding.restricted import RestrictedVocabulary
from tfm_cli.decoding.utf8 import Utf8
from tfm_cli.model.transformer import Transformer
from tfm_cli.native import library
from tfm_cli.native.library import (
    BAD_ARGUMENT,
    NO_MEMORY,
    NON_FINITE,
    STOPPED,
    Result,
    SearchOptions,
    ShouldStop,
)

pytestmark = pytest.mark.skipif(not library.available(), reason="the native engine is not built")

BYTE_VALUES = {10 + place: value for place, value in enumerate(BYTES)}
VOCAB = 10 + len(BYTES)


def random_case(seed: int) -> dict[str, Any]:
    """Settings and segments; of each option its usual value and others."""
    draw = random.Random(seed)
    mode = draw.choice(["beam", "beam", "greedy", "sample"])
    byte_values = {
        piece: value for piece, value in BYTE_VALUES.items() if draw.random() < 0.95
    } if draw.random() < 0.7 else {}  # fmt: skip
    banned = [START, UNKNOWN] + ([3] if draw.random() < 0.3 else [])
    count = draw.randint(1, 5)
    sources = [
        [draw.randrange(SOURCE_SIZE) for _ in range(draw.randint(1, 9))] for _ in range(count)
    ]
    options: dict[str, Any] = {
        "beam_size": draw.choice([1, 2, 3, 4, 8, 20]) if mode == "beam" else 1,
        "sampling": mode == "sample",
        "scores": mode != "greedy",
    }
    if mode != "greedy":
        options |= {
            "early_stopping": draw.random() < 0.3,
            "renormalize": draw.random() < 0.3,
            "no_repeat_ngram_size": draw.choice([0, 0, 1, 2, 3]),
            "token_log_probs": draw.random() < 0.5,
            "wu_norm": draw.random() < 0.5,
            "length_penalty": draw.choice([0, 0.6, 1, 2]),
            "repetition_penalty": draw.choice([1, 1, 1.3, 0.7]),
        }
    if mode == "sample":
        options |= {
            "top_k": draw.choice([0, 0, 1, 3, 100]),
            "top_p": draw.choice([1, 1, 0.9, 0.3]),
            "temperature": draw.choice([1, 0.5, 3, 1e-6]),
        }
    else:
        options["stops_loops"] = draw.random() < 0.5
    segments = Segments(
        sources,
        limits=[draw.choice([0, 1, 2, 3, 5, 8, 40]) for _ in sources],
        seeds=[draw.getrandbits(64) for _ in sources],
    )
    pieces = [piece for piece in range(UNKNOWN, VOCAB) if piece not in byte_values]
    if mode != "greedy" and draw.random() < 0.4:
        segments.prefixes = [draw.choices(pieces, k=draw.randint(0, 4)) for _ in sources]
    if draw.random() < 0.35:
        segments.allowed = [
            sorted({EOS, *draw.sample(range(VOCAB), VOCAB // 2), *prefix})
            if draw.random() < 0.8
            else []
            for prefix in segments.prefixes or [()] * count
        ]
    return {
        "models": draw.choice([1, 1, 1, 2, 3]), "byte_values": byte_values, "banned": banned,
        "segments": segments, "options": options,
    }  # fmt: skip


@torch.inference_mode()
def reference(
    models: Sequence[Transformer],
    segments: Segments,
    options: dict[str, Any],
    *,
    banned: Sequence[int],
    byte_values: dict[int, int],
) -> list[list[Hypothesis]]:
    scope, utf8 = RestrictedVocabulary(), None
    if any(segments.allowed):
        allowed = torch.zeros(len(segments.sources), VOCAB, dtype=torch.bool)
        for row, ids in enumerate(segments.allowed):
            allowed[row, ids or list(range(VOCAB))] = True
        scope = RestrictedVocabulary.of(allowed, [EOS, START, *banned])
    if byte_values:
        utf8 = Utf8.of(byte_values, VOCAB, banned_ids=banned, device=torch.device("cpu"))
    source, source_keep = pad_source([ids[:-1] for ids in segments.sources], EOS)
    for row, ids in enumerate(segments.sources):
        source[row, len(ids) - 1] = ids[-1]
    model = scope.model(models)
    common: dict[str, Any] = {
        "limits": segments.limits,
        "vocabulary": scope.vocabulary(TargetVocabulary(START, EOS, banned, utf8)),
    }  # fmt: skip
    if not options["scores"]:
        found = greedy_search(
            model, source, source_keep, stops_loops=options["stops_loops"], **common
        )
        return [[scope.restored(row, each)] for row, each in enumerate(found)]
    common |= {
        name: options[name]
        for name in (
            "length_penalty", "renormalize", "no_repeat_ngram_size", "repetition_penalty",
        )
    }  # fmt: skip
    common["token_log_probs"] = options["token_log_probs"]
    common["length_norm"] = "wu" if options["wu_norm"] else "power"
    common["prefixes"] = [scope.prefix(i, ids) for i, ids in enumerate(segments.prefixes)]
    if options["sampling"]:
        drawn = sample(
            model, source, source_keep, seeds=segments.seeds, temperature=options["temperature"],
            top_k=options["top_k"], top_p=options["top_p"], **common,
        )  # fmt: skip
        return [[scope.restored(row, each)] for row, each in enumerate(drawn)]
    lists = beam_search(
        model, source, source_keep, beam_size=options["beam_size"],
        early_stopping=options["early_stopping"], stops_loops=options["stops_loops"], **common,
    )  # fmt: skip
    return [[scope.restored(row, each) for each in some] for row, some in enumerate(lists)]


ALL_OPTIONS: dict[str, Any] = {
    "beam_size": 1, "sampling": 0, "scores": 1, "early_stopping": False, "renormalize": False,
    "no_repeat_ngram_size": 0, "token_log_probs": False, "wu_norm": False, "length_penalty": 1,
    "repetition_penalty": 1, "top_k": 0, "top_p": 1, "temperature": 1, "stops_loops": False,
}  # fmt: skip


def is_near(one: float, other: float) -> bool:
    both_nan = math.isnan(one) and math.isnan(other)
    return both_nan or math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 400), marks=pytest.mark.torture)]
)
def test_finds_what_the_reference_finds_by_any_options(seeds: range) -> None:
    same = different = 0

    for seed in seeds:
        case = random_case(seed)
        models = [random_model(100 * seed + m, VOCAB) for m in range(case["models"])]
        kinds = {"banned": case["banned"], "byte_values": case["byte_values"]}
        expected: list[list[Hypothesis]] | None
        try:
            expected = reference(models, case["segments"], case["options"], **kinds)
        except NonFiniteScoresError:
            expected = None
        with ExitStack() as stack:
            engines = [
                stack.enter_context(
                    packed(model, banned=case["banned"], byte_values=case["byte_values"] or None)
                )
                for model in models
            ]
            if expected is None:
                with pytest.raises(EngineError) as error:
                    search(engines, case["segments"], **case["options"])
                assert error.value.status == NON_FINITE
                continue
            actual = search(engines, case["segments"], **case["options"])

        assert list(map(len, actual)) == list(map(len, expected)), seed
        for own, other in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
            if own.ids != other.ids:  # two that score the same change places
                assert is_near(own.score, other.score), seed
                different += 1
                continue
            same += 1
            assert is_near(own.score, other.score), seed
            assert is_near(own.log_probability, other.log_probability), seed
            assert len(own.token_log_probs) == len(other.token_log_probs), seed
            assert all(map(is_near, own.token_log_probs, other.token_log_probs)), seed
    assert same > 5 * len(seeds)
    assert different <= 0.01 * same


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("seed", range(6))
def test_batch_and_order_change_no_bit(seed: int, precision: str) -> None:
    draw = random.Random(seed)
    case = random_case(1000 + seed)
    segments = Segments(
        [[draw.randrange(SOURCE_SIZE) for _ in range(draw.randint(1, 30))] for _ in range(9)],
        limits=[draw.choice([3, 10, 30]) for _ in range(9)],
        seeds=list(range(9)),
        prefixes=[[4] * draw.randint(0, 2) for _ in range(9)],
        allowed=[sorted({EOS, *draw.sample(range(VOCAB), 20)}) * (b % 2) for b in range(9)],
    )
    options = case["options"] | {"token_log_probs": 1, "scores": 1}
    model, order = random_model(seed, VOCAB), draw.sample(range(9), 9)

    with packed(model, byte_values=BYTE_VALUES, precision=precision) as engine, workspace() as own:
        together = search([engine], segments, memory=own, **options)
        shuffled = search([engine], segments.only(order), memory=own, **options)
        alone = [search([engine], segments.only([b]), **options)[0] for b in range(9)]

    assert together == alone
    assert [together[b] for b in order] == shuffled


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_search_is_a_beam_of_1_with_or_without_scores(seed: int, precision: str) -> None:
    draw = random.Random(seed)
    segments = Segments(
        [[draw.randrange(SOURCE_SIZE) for _ in range(draw.randint(1, 20))] for _ in range(20)],
        limits=[draw.choice([0, 1, 7, 50]) for _ in range(20)],
        prefixes=[[4] * draw.randint(0, 3) for _ in range(20)],
    )
    model = random_model(seed, VOCAB)

    with packed(model, byte_values=BYTE_VALUES, precision=precision) as engine:
        for options in (
            {},
            {"stops_loops": 1},
            {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
        ):
            without = search([engine], segments, scores=0, **options)
            scored = search([engine], segments, **options)

            assert [some[0].ids for some in without] == [some[0].ids for some in scored]
            assert all(math.isnan(some[0].score) for some in without)
            assert all(some[0].score <= 0 for some in scored)


def test_of_equal_scores_the_lowest_id_comes_first() -> None:
    model = random_model(1, VOCAB, spread=0.0)
    segments = Segments([[1, 2]], [2])

    with packed(model, banned=[EOS + 1, UNKNOWN, 4]) as engine:
        (greedy,) = search([engine], segments, scores=0)
        result = search([engine], segments, beam_size=4)
        (general,) = search([engine], segments, scores=0, repetition_penalty=1.5)

    assert greedy[0].ids == general[0].ids == ()  # </s> has the lowest
    assert [each.ids for each in result[0]] == [(), (3,), (3, 3), (3, 5)]


def test_scores_are_those_of_forced_reading() -> None:
    model, segments = random_model(3, VOCAB), Segments([[3, 4, 5], [6]], [9, 9])

    with packed(model) as engine:
        result = search([engine], segments, beam_size=3, token_log_probs=1)

    for source, some in zip(segments.sources, result, strict=True):
        for each in some:
            with torch.inference_mode():
                logits = model(torch.tensor([source]), None, torch.tensor([[START, *each.ids]]))
            steps = logits.log_softmax(2)[0].gather(1, torch.tensor([[*each.ids, EOS]]).T)[:, 0]
            assert list(each.token_log_probs) == pytest.approx(steps.tolist(), abs=1e-4)
            assert each.log_probability == pytest.approx(float(steps.sum()), abs=1e-3)


def test_pieces_banned_in_numbers_have_a_sum_of_their_own() -> None:
    """A whole vector of logits that do not count comes before the first one that does."""
    model, banned = random_model(5, 64), list(range(1, 60))
    segments = Segments([[1, 2, 3]], [3])

    with packed(model, banned=banned) as engine:
        (result,) = search([engine], segments, beam_size=2, renormalize=1)
        (again,) = search([engine], segments, beam_size=2)

    assert all(math.isfinite(each.score) for each in [*result, *again])
    assert result[0].log_probability > again[0].log_probability


@pytest.mark.parametrize("options", [
    {"scores": 0}, {}, {"beam_size": 4}, {"beam_size": 4, "repetition_penalty": 1.1},
    {"sampling": 1}, {"beam_size": 2, "renormalize": 1}, {"beam_size": 256},
])  # fmt: skip
@pytest.mark.parametrize("value", [3e38, -3e38])
@pytest.mark.parametrize("name", ["output.weight", "decoder_layers.0.feed_forward.outer.bias"])
def test_scores_that_are_no_numbers_are_told_as_by_the_reference(
    name: str, value: float, options: dict[str, Any]
) -> None:
    model = random_model(2, VOCAB)
    with torch.no_grad():
        model.get_parameter(name)[7:9] = value
    segments = Segments([[1, 2], [3]], [5, 5], seeds=[1, 2])
    has_refused = False
    try:
        reference([model], segments, ALL_OPTIONS | options, banned=[1, 2], byte_values={})
    except NonFiniteScoresError:
        has_refused = True

    with packed(model) as engine, workspace() as own:
        if has_refused:
            with pytest.raises(EngineError, match="not finite") as error:
                search([engine], segments, memory=own, **options)
            assert error.value.status == NON_FINITE
        else:
            assert len(search([engine], segments, memory=own, **options)) == 2


# ---- what is given is checked ----


SEGMENTS = Segments([[1, 2], [3]], [5, 5], prefixes=[[4], []], seeds=[1, 2], allowed=[[0, 5], []])


@pytest.mark.parametrize(("options", "match"), [
    ({"beam_size": 0}, "beam_size must be between 1 and 256, got 0"),
    ({"beam_size": 257}, "beam_size"),
    ({"beam_size": -(2**31)}, "beam_size"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ({"length_penalty": math.nan}, "length_penalty"),
    ({"length_penalty": math.inf}, "length_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": math.nan}, "repetition_penalty"),
    ({"sampling": 1, "temperature": math.nan}, "temperature"),
    ({"sampling": 1, "temperature": -1}, "temperature"),
    ({"sampling": 1, "top_p": 1.5}, "top_p"),
    ({"sampling": 1, "top_p": math.nan}, "top_p"),
    ({"sampling": 1, "top_k": -1}, "top_k"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with packed(random_model(1, VOCAB)) as engine:
        with pytest.raises(EngineError, match=match) as error:
            search([engine], SEGMENTS, **options)
        assert error.value.status == BAD_ARGUMENT


@pytest.mark.parametrize(("segments", "match"), [
    (Segments([[1, SOURCE_SIZE]], [5]), f"source_ids: id {SOURCE_SIZE}"),
    (Segments([[-1]], [5]), "source_ids"),
    (Segments([[]], [5]), "source_lengths must be between 1"),
    (Segments([[1]], [-1]), "limits"),
    (Segments([[1]], [2**31 - 1]), "limits"),
    (Segments([[1]], [5], prefixes=[[VOCAB]]), "prefix_ids"),
    (Segments([[1]], [5], prefixes=[[-5]]), "prefix_ids"),
    (Segments([[1]], [5], allowed=[[0, VOCAB]]), "allowed_ids"),
    (Segments([[1]], [5], allowed=[[3, 2]]), "allowed_ids must ascend"),
    (Segments([[1]], [5], allowed=[[3, 3]]), "allowed_ids must ascend"),
    (Segments([[1]], [5], changes={"num_segments": -1}), "num_segments"),
    (Segments([[1]], [5], changes={"num_segments": 2**31 - 1}), "num_segments"),
    (Segments([[1]], [5], changes={"source_ids": None}), "source_ids"),
    (Segments([[1]], [5], changes={"source_lengths": None}), "source_lengths"),
    (Segments([[1]], [5], changes={"limits": None}), "limits"),
    (Segments([[1]], [5], prefixes=[[3]], changes={"prefix_ids": None}), "prefix_ids"),
    (Segments([[1]], [5], allowed=[[3]], changes={"allowed_ids": None}), "allowed_ids"),
])  # fmt: skip
def test_segments_that_are_none_are_refused(segments: Segments, match: str) -> None:
    with packed(random_model(1, VOCAB)) as engine, workspace() as own:
        with pytest.raises(EngineError, match=match) as error:
            search([engine], segments, memory=own)
        assert error.value.status == BAD_ARGUMENT
        assert len(search([engine], SEGMENTS, memory=own)) == 2  # it is as good as before


def test_sampling_needs_seeds() -> None:
    with packed(random_model(1, VOCAB)) as engine, pytest.raises(EngineError, match="seeds"):
        search([engine], Segments([[1]], [5]), sampling=1)


def test_models_of_another_vocabulary_are_refused() -> None:
    with packed(random_model(1, VOCAB)) as one, packed(random_model(1, VOCAB + 1)) as other:
        with pytest.raises(EngineError, match="model 1 has another vocabulary"):
            search([one, other], SEGMENTS)
        with pytest.raises(EngineError, match="num_models"):
            search([], SEGMENTS)
        with pytest.raises(EngineError, match="model 0 is not finished"):
            search([ctypes.c_void_p()], SEGMENTS)


@pytest.mark.parametrize("place", range(6))
def test_missing_arguments_are_refused(place: int) -> None:
    with packed(random_model(1, VOCAB)) as engine, workspace() as own:
        handles = (ctypes.c_void_p * 1)(engine.value)
        options = SearchOptions(beam_size=1, repetition_penalty=1)
        arguments = [handles, 1, own, options, SEGMENTS.batch(), Result()]
        arguments[place] = 0 if place == 1 else None

        with pytest.raises(EngineError) as error:
            call("tfm_search", *arguments)

    assert error.value.status == BAD_ARGUMENT


def test_no_segments_are_searched_in_no_time() -> None:
    with packed(random_model(1, VOCAB)) as engine:
        assert search([engine], Segments([], [])) == []


def test_batch_that_no_machine_can_hold_is_refused_as_too_large() -> None:
    segments = Segments([[1]] * 2000, [1 << 22] * 2000)

    with packed(random_model(1, VOCAB)) as engine, workspace() as own:
        with pytest.raises(EngineError) as error:
            search([engine], segments, memory=own, beam_size=256)
        assert error.value.status == NO_MEMORY
        assert len(search([engine], SEGMENTS, memory=own)) == 2


# ---- memory ----


@pytest.mark.parametrize("options", [
    {"scores": 0}, {"beam_size": 3, "token_log_probs": 1}, {"sampling": 1, "top_k": 3},
    {"beam_size": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
])  # fmt: skip
def test_allocation_that_fails_is_told_and_does_no_harm(options: dict[str, Any]) -> None:
    functions = library.load().functions
    with (
        packed(random_model(4, VOCAB), byte_values=BYTE_VALUES) as engine,
        packed(random_model(5, VOCAB), byte_values=BYTE_VALUES) as other,
        workspace() as own,
    ):
        for models in ([engine], [engine, other]):
            expected = search(models, SEGMENTS, memory=own, **options)
            n = failures = 0
            while n == failures:  # until there are fewer than n allocations
                n += 1
                functions.tfm_workspace_trim(own)
                functions.tfm_fail_allocation(n)
                try:
                    assert_same(search(models, SEGMENTS, memory=own, **options), expected)
                except EngineError as error:
                    failures += error.status == NO_MEMORY
                functions.tfm_fail_allocation(0)
                assert_same(search(models, SEGMENTS, memory=own, **options), expected)
            assert failures > 20


def assert_same(one: list[list[Hypothesis]], other: list[list[Hypothesis]]) -> None:
    assert repr(one) == repr(other)  # NaN is unlike itself


def test_workspace_gives_memory_back() -> None:
    functions = library.load().functions
    with packed(random_model(4, VOCAB)) as engine, workspace() as own:
        empty = functions.tfm_workspace_bytes(own)
        expected = search([engine], SEGMENTS, memory=own, beam_size=4)
        full = functions.tfm_workspace_bytes(own)
        functions.tfm_workspace_trim(own)
        trimmed = functions.tfm_workspace_bytes(own)

        assert empty <= trimmed < full
        assert search([engine], SEGMENTS, memory=own, beam_size=4) == expected


def test_caches_of_a_segment_grow_with_it() -> None:
    functions = library.load().functions
    with packed(random_model(4, VOCAB)) as engine:
        small = functions.tfm_segment_bytes(engine, 10, 20, 1)
        assert 0 < small < functions.tfm_segment_bytes(engine, 11, 20, 1)
        assert small < functions.tfm_segment_bytes(engine, 10, 21, 1)
        assert 4 * small > functions.tfm_segment_bytes(engine, 10, 20, 4) > small
        most = functions.tfm_segment_bytes(engine, 2**31 - 1, 2**31 - 1, 2**31 - 1)
        assert 2**36 < most < 2**62
        assert functions.tfm_segment_bytes(engine, -1, -1, -1) > 0
        assert functions.tfm_segment_bytes(None, 1, 1, 1) == 0


# ---- stopping ----


def long_search(answer: Callable[[], int], seconds: float) -> None:
    """A search that takes at least so long, unless it is stopped."""
    model = random_model(4, VOCAB)
    with torch.no_grad():
        assert model.output_bias is not None
        model.output_bias[EOS] = -100  # it never ends of its own accord
    end = time.monotonic() + seconds
    with packed(model) as engine, workspace() as own:
        while time.monotonic() < end:
            segments = Segments([[1, 2]] * 8, [400] * 8)
            search([engine], segments, memory=own, beam_size=16, should_stop=ShouldStop(answer))


def test_search_asks_now_and_then_whether_to_stop() -> None:
    asked: list[float] = []

    def answer() -> int:
        asked.append(time.monotonic())
        return 0

    long_search(answer, 0.4)

    assert asked
    assert min(map(float.__rsub__, asked, asked[1:]), default=1.0) >= 0.05


def test_search_stops_when_it_is_told_to() -> None:
    with pytest.raises(EngineError) as error:
        long_search(lambda: 1, 60)

    assert error.value.status == STOPPED
