"""Scores from the statistics of lines are sacreBLEU's own."""

import random
from collections.abc import Sequence

import pytest
import sacrebleu
import sacrebleu.significance

from tfm_cli.evaluation.line_statistics import (
    LineStatistics,
    confidence,
    line_statistics,
    paired_p_value,
    resampled_scores,
)
from tfm_cli.evaluation.scores import DEFAULTS, build_metrics

NOISE = 1e-4  # of intervals: sacreBLEU computes them in single precision
METRICS = {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF, "ter": sacrebleu.TER}
WORDS = ["we", "saw", "the", "old", "red", "house", "near", "a", "lake", "."]
REFERENCES = [
    [" ".join(random.Random(f"{seed} {n}").choices(WORDS, k=n % 9 + 1)) for n in range(40)]
    for seed in (1, 2)
]


@pytest.fixture(autouse=True)
def _default_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)


def worn(share: float, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join("it" if draw.random() < share else word for word in line.split())
        for line in REFERENCES[0]
    ]


SYSTEMS = [["", *worn(0.2, 1)[1:]], worn(0.4, 2)]


def statistics(name: str) -> list[LineStatistics]:
    metric = build_metrics([name], REFERENCES, DEFAULTS)[name]
    return [line_statistics(metric, system) for system in SYSTEMS]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("lines", [None, [3], [39, 0, 7, 8, 9]])
def test_score_of_lines_is_that_of_the_corpus_of_these_lines(
    name: str, lines: list[int] | None
) -> None:
    chosen = range(40) if lines is None else lines
    references = [[each[line] for line in chosen] for each in REFERENCES]

    found = [each.score(lines) for each in statistics(name)]

    for value, system in zip(found, SYSTEMS, strict=True):
        hypotheses = [system[line] for line in chosen]
        wanted = METRICS[name]().corpus_score(hypotheses, references).score
        assert value == pytest.approx(wanted, abs=1e-9)


def test_line_scores_are_sentence_chrf() -> None:
    for each, system in zip(statistics("chrf"), SYSTEMS, strict=True):
        wanted = [
            sacrebleu.sentence_chrf(text, list(references)).score
            for text, *references in zip(system, *REFERENCES, strict=True)
        ]
        assert each.line_scores() == wanted


@pytest.mark.parametrize("name", METRICS)
def test_intervals_and_p_values_are_those_of_sacrebleu(name: str) -> None:
    named: list[tuple[str, Sequence[str]]] = [(str(i), each) for i, each in enumerate(SYSTEMS)]
    metrics = {name: METRICS[name](references=REFERENCES)}
    _, columns = sacrebleu.significance.PairedTest(named, metrics, None, "bs", 200)()
    (wanted,) = (column for key, column in columns.items() if key != "System")

    systems = statistics(name)
    resampled = resampled_scores(systems, num_resamples=200)
    difference = systems[1].score() - systems[0].score()
    p_value = paired_p_value(resampled[0], resampled[1], difference=difference)

    for scores, result in zip(resampled, wanted, strict=True):
        assert isinstance(result, sacrebleu.significance.Result)
        assert confidence(scores).mean == pytest.approx(result.mean, abs=NOISE)
        assert confidence(scores).half_width == pytest.approx(result.ci, abs=NOISE)
    assert isinstance(wanted[1], sacrebleu.significance.Result)
    assert p_value == wanted[1].p_value


def test_resamples_of_some_lines_are_those_of_their_corpus() -> None:
    lines = [5, 6, 7, 30]
    references = [[each[line] for line in lines] for each in REFERENCES]
    hypotheses = [SYSTEMS[0][line] for line in lines]
    wanted = sacrebleu.CHRF().corpus_score(hypotheses, references, n_bootstrap=50)

    (scores, _) = resampled_scores(statistics("chrf"), num_resamples=50, lines=lines)

    assert confidence(scores).mean == pytest.approx(wanted._mean, abs=NOISE)
    assert confidence(scores).half_width == pytest.approx(wanted._ci, abs=NOISE)


def test_resamples_without_a_seed_are_the_same_for_both_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    one = statistics("chrf")[0]

    first, second = resampled_scores([one, one], num_resamples=5)

    assert first == second
