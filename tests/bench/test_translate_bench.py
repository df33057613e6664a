import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.translate_models import export, random_model, save, word_lines, word_tokenizer
from tests.bench.translate_runs import Bench, Running, Side
from tests.bench.translate_sides import RefusedError, loaded, measure
from tests.bench.translate_table import HEADING, Measured, agreement, clock_ratios, ratios, row
from tests.bench.translate_works import (
    LIMIT,
    SOURCE_PIECES,
    WORKS,
    Arrangement,
    arrangements,
    picked,
    usual_arrangement,
)
from tfm_cli.config.settings import ModelConfig
from tfm_cli.native import library

pytestmark = pytest.mark.slow

needs_engine = pytest.mark.skipif(not library.available(), reason="needs the native engine")
BY_NAME = {work.name: work for work in WORKS}


def run(seconds: float, *, sentences: int = 10, pieces: int = 310, load: float = 2.0) -> Measured:
    """By the clock it took three seconds more."""
    return Measured(seconds + 3, seconds, sentences, pieces, load, 100.0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratio_is_of_sentences_a_second_round_by_round() -> None:
    ours = [run(2.0), run(4.0, sentences=20), run(1.0)]
    theirs = [run(4.0), run(1.0), run(1.0)]

    assert ratios(ours, theirs) == [2.0, 0.5, 1.0]


def test_ratio_does_not_depend_on_how_long_translations_are() -> None:
    assert ratios([run(1.0, pieces=100)], [run(1.0, pieces=900)]) == [1.0]


def test_ratio_by_the_clock_stands_beside_it() -> None:
    assert clock_ratios([run(1.0, sentences=20)], [run(3.0)]) == pytest.approx([3.0])


def test_rounds_that_have_no_pair_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([run(1.0), run(1.0)], [run(1.0)])


def test_row_has_medians_of_both_sides_and_every_ratio() -> None:
    ours = [run(1.0), run(2.0), run(5.0)]
    theirs = [run(2.0, load=0.2), run(2.0, load=0.4), run(2.5, load=0.3)]

    line = row("base", "as usual", ours, theirs, outputs="equal")

    assert cells(line) == [
        "base", "as usual", "155 / 155", "5.0 / 5.0", "200.0 / 200.0", "2.00 / 0.30", "100 / 100",
        "equal", "2.00 1.00 0.50", "**1.00**", "1.00",
    ]  # fmt: skip
    assert len(cells(line)) == len(cells(HEADING.split("\n")[0]))
    assert len(cells(line)) == len(cells(HEADING.split("\n")[1]))


@pytest.mark.parametrize("absent", [0, 1])
def test_row_of_a_side_that_did_not_run_has_the_other_one_and_no_ratio(absent: int) -> None:
    sides: list[list[Measured]] = [[run(2.0)], [run(2.0)]]
    sides[absent] = []
    rates = ["5.0", "5.0"]
    rates[absent] = "–"

    found = cells(row("base", "", *sides))

    assert found[3] == " / ".join(rates)
    assert found[-4:] == ["–", "–", "–", "–"]


def test_what_was_not_counted_is_left_out() -> None:
    found = cells(row("tiny", "", [run(2.0, pieces=0, load=0)], [run(2.0, pieces=0, load=0)]))

    assert (found[2], found[5]) == ("– / –", "– / –")


def test_lines_with_the_same_translation_are_counted() -> None:
    ours = ["a b", "a c", "d"]

    assert agreement(ours, ["a b", "a x", "d e"]) == "1 of 3"
    assert agreement(ours, ours) == "all 3"


def test_sides_that_translated_other_lines_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        agreement(["a"], ["a", "b"])


def test_measured_survives_its_way_through_json() -> None:
    table = {
        "seconds": 1.0, "cpu_seconds": 0.5, "sentences": 2, "pieces": 3, "load_seconds": 0.5,
        "peak_mib": 9.0, "outputs": ["a b", ""], "texts": ["ab", ""], "precision": "fp32",
    }  # fmt: skip

    assert Measured.from_json(table) == Measured(
        1.0, 0.5, 2, 3, 0.5, 9.0, ("a b", ""), ("ab", ""), precision="fp32"
    )


def test_names_of_works_differ() -> None:
    assert len(BY_NAME) == len(WORKS)


def test_works_are_picked_by_name_and_by_pattern_in_the_order_of_the_table() -> None:
    chosen = picked("small-beam4-fp32,base-greedy-*-one", has_model=False)

    assert [work.name for work in chosen] == [
        "base-greedy-fp32-one", "base-greedy-int8-one", "small-beam4-fp32",
    ]  # fmt: skip


@pytest.mark.parametrize("has_model", [False, True])
def test_works_of_a_model_are_there_only_with_one(has_model: bool) -> None:
    shapes = {work.shape for work in picked("", has_model=has_model)}

    assert ("model" in shapes) == has_model
    assert {"base", "small", "tiny", "sample"} <= shapes


def test_unknown_work_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no work is called `huge`; there are base-greedy-fp32, "):
        picked("huge", has_model=True)


def test_work_of_a_model_that_was_not_given_is_refused() -> None:
    with pytest.raises(ValueError, match="`model-greedy-fp32` needs `--model` and `--source`"):
        picked("model-greedy-fp32", has_model=False)


def test_sweep_tries_batches_and_both_ways_to_share_two_threads() -> None:
    work = BY_NAME["base-greedy-int8"]

    found = arrangements(work, "ctranslate2", threads=2, sentences=256)

    assert {(one.workers, one.threads) for one in found} == {(1, 2), (2, 1)}
    assert sorted({one.batch for one in found}) == [16, 32, 64, 128]
    assert len(found) == 8


def test_sweep_of_tfm_tries_batches() -> None:
    found = arrangements(BY_NAME["base-greedy-int8"], "tfm", threads=2, sentences=256)

    assert found == [Arrangement(2, 1, batch) for batch in (16, 32, 64, 128)]


@pytest.mark.parametrize(("sentences", "batches"), [(40, [16, 32]), (8, [8])])
def test_sweep_leaves_out_batches_of_more_sentences_than_there_are(
    sentences: int, batches: list[int]
) -> None:
    found = arrangements(BY_NAME["base-beam4-fp32"], "tfm", threads=1, sentences=sentences)

    assert [one.batch for one in found] == batches


def test_one_sentence_at_a_time_has_one_worker() -> None:
    work = BY_NAME["base-greedy-fp32-one"]

    assert arrangements(work, "tfm", threads=2, sentences=4) == [Arrangement(1, 1, 1)]
    assert usual_arrangement(work, "ctranslate2", threads=2) == Arrangement(1, 2, 1)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_usual_arrangement_uses_all_threads_that_are_of_use(work: Any, threads: int) -> None:
    for side in ("tfm", work.peer):
        usual = usual_arrangement(work, side, threads=threads)

        assert usual.workers * usual.threads == threads


def test_side_tells_its_arrangement_or_why_it_has_none() -> None:
    side = Side("ctranslate2", Arrangement(2, 1, 64, (("CT2_USE_MKL", "0"),)))
    assert str(side) == "2x1, batch 64, USE_MKL=0"

    side.rounds.append(Measured(1.0, 1.0, 1, 1, 1.0, 1.0, precision="fp32"))
    assert str(side) == "fp32, 2x1, batch 64, USE_MKL=0"

    side.refused = "has no workers"
    assert str(side) == "not there yet: has no workers"


def test_lines_have_as_many_pieces_as_their_limit_needs() -> None:
    tokenizer = word_tokenizer(100)
    encoded = tokenizer.encode(word_lines(20, 100))

    assert tokenizer.vocab_size == 100
    assert {len(ids) for ids in encoded} == {SOURCE_PIECES}
    assert not {tokenizer.unk_id, tokenizer.eos_id} & {index for ids in encoded for index in ids}


def job(directory: Path, side: str, **more: Any) -> dict[str, Any]:
    return {
        "side": side, "directory": str(directory), "precision": "fp32",
        "compute_types": ["float32"], "beam_size": 4, "renormalize": True, "limit": LIMIT,
        "workers": 1, "threads": 1, "batch": 8, "one_by_one": False, "lines": word_lines(12, 60),
        "began": time.monotonic(), **more,
    }  # fmt: skip


def measured(job: dict[str, Any], *, outputs: bool = True) -> Measured:
    return measure(loaded(job), job, outputs=outputs)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model and its export; do not change them."""
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    folder = tmp_path_factory.mktemp("models")
    config = ModelConfig(
        encoder_layers=1, decoder_layers=1, width=16, heads=2, feed_forward_width=32,
        output_bias=True,
    )  # fmt: skip
    model = random_model(config, word_tokenizer(60))
    for name in ("tfm", "ctranslate2-fp32"):
        (folder / name).mkdir()
    save(folder / "tfm", model)
    export(model, "ctranslate2-fp32", folder / "ctranslate2-fp32")
    return folder


@needs_engine
@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_both_sides_write_equally_many_tokens_and_find_the_same(
    models: Path, beam_size: int, workers: int
) -> None:
    how = {"beam_size": beam_size, "workers": workers}
    ours = measured(job(models / "tfm", "tfm", **how))
    theirs = measured(job(models / "ctranslate2-fp32", "ctranslate2", **how))

    assert (ours.precision, theirs.precision) == ("fp32", "float32")
    for one in (ours, theirs):
        assert (one.sentences, one.pieces, len(one.outputs)) == (12, 12 * LIMIT, 12)
        assert {len(set(output.split("\n"))) for output in one.outputs} == {beam_size}
        assert min(one.seconds, one.cpu_seconds, one.load_seconds, one.peak_mib) > 0
    assert agreement(ours.outputs, theirs.outputs) == "all 12"


@needs_engine
def test_sentences_one_by_one_are_all_translated(models: Path) -> None:
    one = measured(job(models / "tfm", "tfm", one_by_one=True), outputs=False)

    assert (one.sentences, one.pieces, one.outputs) == (12, 12 * LIMIT, ())


@needs_engine
def test_translations_of_another_length_are_no_measurement(models: Path) -> None:
    theirs = job(models / "ctranslate2-fp32", "ctranslate2")
    side = loaded(theirs)

    with pytest.raises(RuntimeError, match=r"translations of \[30\] tokens, wanted 29"):
        measure(side, {**theirs, "limit": 29}, outputs=False)


@needs_engine
def test_process_of_a_side_does_a_round_whenever_it_is_asked(models: Path) -> None:
    with Running(job(models / "tfm", "tfm"), dict(os.environ)) as process:
        first, second = (process.round(outputs=outputs) for outputs in (True, False))

    assert process.refused == ""
    assert (len(first.outputs), second.outputs) == (12, ())


def test_process_of_a_side_tells_why_it_refuses(models: Path) -> None:
    asked = job(models / "ctranslate2-fp32", "ctranslate2", compute_types=["int3"])

    with Running(asked, dict(os.environ)) as process:
        assert process.refused == "this processor has no int3"


@pytest.mark.parametrize(
    ("side", "asked", "told"),
    [
        ("tfm", {"precision": "int3"}, "the engine has no int3"),
        ("ctranslate2", {"compute_types": ["int3"]}, "this processor has no int3"),
        ("hf", {"limit": 0}, "one length only"),
    ],
)
def test_what_a_side_cannot_do_is_refused(
    side: str, asked: dict[str, Any], told: str, models: Path
) -> None:
    if side == "hf":
        pytest.importorskip("transformers", reason="needs tfm-cli[hf]")

    with pytest.raises(RefusedError, match=told):
        loaded(job(models / "tfm", side, **asked))


class SweptBench(Bench):
    """A bench whose processes are not started; it tells how fast each arrangement is."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, threads=1, sentences=64, lines=1, updates=1, batch=0, precision="", model=None,
            source=None, reference=None,
        )  # fmt: skip
        (folder / "base").mkdir()
        (folder / "base" / "source.txt").write_text("a\n" * 64)
        self.tried: list[Arrangement] = []

    def _tried(self, work: Any, name: str, one: Arrangement) -> float:
        self.tried.append(one)
        best = ("CT2_USE_MKL", "0") in one.environment
        return one.batch + 100.0 * best


def test_sweep_finds_how_to_multiply_and_then_how_much_at_once(tmp_path: Path) -> None:
    bench, side = SweptBench(tmp_path), Side("ctranslate2")

    bench.arrange(BY_NAME["base-beam4-fp32"], side, sweep=True)

    assert [one.batch for one in bench.tried] == [32, 32, 32, 32, 16, 64]
    assert len({one.environment for one in bench.tried[:4]}) == 4
    assert str(side.arrangement) == "1x1, batch 64, FORCE_CPU_ISA=AVX512, USE_MKL=0"
