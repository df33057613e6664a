import json
import random
from collections.abc import Callable

import pytest
import sacrebleu
import sacrebleu.significance

from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.evaluation.significance import Comparison, Method, compare, paired_test, render

System = tuple[str, list[str]]

VOCABULARY = "we saw the old red house near a lake ."
REFERENCE = [" ".join(random.Random(n).choices(VOCABULARY.split(), k=9)) for n in range(50)]


@pytest.fixture(autouse=True)
def _default_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)


def worn(share: float, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join("it" if draw.random() < share else word for word in line.split())
        for line in REFERENCE
    ]


@pytest.fixture
def systems() -> list[System]:
    return [("base", worn(0.2, 1)), ("alike", worn(0.2, 2)), ("worse", worn(0.5, 3))]


@pytest.mark.parametrize(("method", "native_name"), [("bootstrap", "bs"), ("randomization", "ar")])
def test_p_values_equal_those_of_sacrebleu(
    systems: list[System], method: Method, native_name: str
) -> None:
    metrics = {"bleu": sacrebleu.BLEU(references=[REFERENCE])}
    signatures, columns = sacrebleu.significance.PairedTest(
        [(name, text) for name, text in systems], metrics, None, native_name, 200
    )()

    actual = paired_test(systems, [REFERENCE], method=method, num_samples=200)

    for row, result in zip(actual.scores, columns["BLEU"], strict=True):
        assert isinstance(result, sacrebleu.significance.Result)
        assert (row.value, row.p_value) == (result.score, result.p_value)
        assert (row.confidence is None) == (method == "randomization")
        if row.confidence:
            assert (row.confidence.mean, row.confidence.half_width) == (result.mean, result.ci)
    assert actual.signatures == {"BLEU": signatures["BLEU"].format()}
    assert f"{native_name}:200|seed:12345" in actual.signatures["BLEU"]


def test_a_test_is_reproducible(systems: list[System]) -> None:
    first = paired_test(systems, [REFERENCE], metrics=("bleu", "chrf"), num_samples=100)
    again = paired_test(systems, [REFERENCE], metrics=("bleu", "chrf"), num_samples=100)

    assert first == again


def test_only_a_significantly_different_system_gets_a_star(systems: list[System]) -> None:
    actual = paired_test(systems, [REFERENCE], num_samples=200)

    base, alike, worse = actual.scores
    assert base.p_value is None
    assert alike.p_value is not None
    assert alike.p_value > 0.05
    assert worse.p_value is not None
    assert worse.p_value < 0.05
    rows = render(actual, "text").split("\n")
    assert [row.endswith(" *") for row in rows[1:4]] == [False, False, True]


def test_table_has_a_row_for_each_metric_and_system_then_signatures_and_test(
    systems: list[System],
) -> None:
    actual = paired_test(systems, [REFERENCE], metrics=("chrf", "bleu"), num_samples=50)

    rows = render(actual, "text", width=2).split("\n")

    assert rows[0].split("  ")[:2] == ["metric", "system"]
    assert [row.split()[:2] for row in rows[1:7]] == [
        [metric, system] for metric in ("chrF2", "BLEU") for system in ("base", "alike", "worse")
    ]
    assert f" {actual.scores[0].value:.2f} " in rows[1]
    assert rows[8] == f"chrF2|{actual.signatures['chrF2']}"
    assert rows[9] == f"BLEU|{actual.signatures['BLEU']}"
    assert rows[11] == "paired bootstrap test, 50 samples; * differs from base (p < 0.05)"


def test_table_without_a_test_has_scores_only(systems: list[System]) -> None:
    actual = compare(systems, [REFERENCE])

    rows = render(actual, "text", short=True).split("\n")

    assert rows[0].split() == ["metric", "system", "score"]
    assert rows[-1] == f"BLEU|{actual.short_signatures['BLEU']}"
    expected = [sacrebleu.corpus_bleu(text, [REFERENCE]).score for _, text in systems]
    assert [row.value for row in actual.scores] == expected


def test_json_holds_every_number_and_the_signature(systems: list[System]) -> None:
    actual = paired_test(systems, [REFERENCE], num_samples=50)

    base, _, worse = json.loads(render(actual, "json"))

    assert base["system"] == "base"
    assert base["BLEU"]["p_value"] is None
    assert worse["BLEU"]["signature"] == actual.signatures["BLEU"]
    assert worse["BLEU"]["score"] == actual.scores[2].value
    confidence = actual.scores[2].confidence
    assert confidence is not None
    assert (worse["BLEU"]["mean"], worse["BLEU"]["ci"]) == (confidence.mean, confidence.half_width)


def test_bare_values_have_one_line_for_each_system(systems: list[System]) -> None:
    actual = compare(systems, [REFERENCE], metrics=("bleu", "chrf"))

    rows = render(actual, "json", value_only=True).split("\n")

    assert len(rows) == 3
    assert rows[0] == f"{actual.scores[0].value:.1f}\t{actual.scores[3].value:.1f}"


def test_paired_test_of_one_system_is_refused() -> None:
    with pytest.raises(ConfigError, match="compares systems with a baseline, got 1"):
        paired_test([("base", REFERENCE)], [REFERENCE])


def test_seed_zero_is_refused(systems: list[System], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "0")

    with pytest.raises(ConfigError, match="cannot be seeded with 0"):
        paired_test(systems, [REFERENCE])


@pytest.mark.parametrize("run", [compare, paired_test])
def test_a_system_of_another_length_is_refused(run: Callable[..., Comparison]) -> None:
    with pytest.raises(DataError, match="do not align: 49 and 50 lines"):
        run([("base", REFERENCE), ("short", REFERENCE[1:])], [REFERENCE])


def test_samples_beyond_memory_raise_a_resource_error(
    systems: list[System], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sacrebleu.significance, "_bootstrap_resample", exhausted)

    with pytest.raises(ResourceError, match="300 resamples of 50 lines do not fit into memory"):
        paired_test(systems, [REFERENCE], num_samples=300)
