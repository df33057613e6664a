"""The numbers of a report, against sacreBLEU and against what can be counted by hand."""

import random
from collections import Counter

import pytest
import sacrebleu

from tfm_cli.evaluation.scores import MetricOptions, corpus_scores
from tfm_cli.evaluation.significance import paired_test
from tfm_cli.pictures.report import (
    Report,
    System,
    Texts,
    build_report,
    findings_of_line,
    largest_weights,
    length_bounds,
    marks_between,
    nearest_marks,
    repeats,
    true_words,
    word_counts,
    word_spans,
)

WORDS = ["we", "saw", "the", "old", "red", "house", "near", "a", "lake", ".", ",", "3.5", "Anna's"]
NUM_LINES = 60
NOISE = 1e-4  # of intervals: sacreBLEU computes them in single precision


@pytest.fixture(autouse=True)
def _default_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)


def drawn(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=n % 14 + 1)) for n in range(NUM_LINES)]


def worn(lines: list[str], share: float, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join("it" if draw.random() < share else w for w in line.split()) for line in lines]


REFERENCES = [drawn(1), worn(drawn(1), 0.1, 9)]
SYSTEMS = [
    System("one", worn(REFERENCES[0], 0.2, 2)),
    System("two", ["", *worn(REFERENCES[0], 0.3, 3)[1:]]),
]


@pytest.fixture(scope="module")
def report() -> Report:
    texts = Texts(systems=SYSTEMS, references=REFERENCES, source=drawn(4))
    return build_report(texts, metrics=["bleu", "ter"], num_resamples=100)


def test_scores_are_those_of_a_paired_test(report: Report) -> None:
    systems = [(system.name, system.translations) for system in SYSTEMS]
    wanted = paired_test(systems, REFERENCES, metrics=["bleu", "ter", "chrf"], num_samples=100)

    found = report.comparison

    assert found.signatures == wanted.signatures
    assert found.short_signatures == wanted.short_signatures
    assert found.test == wanted.test
    for row, expected in zip(found.scores, wanted.scores, strict=True):
        assert (row.system, row.metric) == (expected.system, expected.metric)
        assert row.value == pytest.approx(expected.value, abs=1e-6)
        assert row.p_value == expected.p_value
        assert row.confidence is not None
        assert expected.confidence is not None
        assert row.confidence.mean == pytest.approx(expected.confidence.mean, abs=NOISE)
        assert row.confidence.half_width == pytest.approx(expected.confidence.half_width, abs=NOISE)


def test_scores_of_one_system_are_those_with_a_confidence_interval() -> None:
    options = MetricOptions(chrf_word_order=2, tokenize="char")
    texts = Texts(systems=SYSTEMS[:1], references=REFERENCES)
    wanted = corpus_scores(
        SYSTEMS[0].translations, REFERENCES, metrics=["chrf", "bleu"], options=options,
        num_resamples=50,
    )  # fmt: skip

    found = build_report(texts, metrics=["chrf", "bleu"], options=options, num_resamples=50)

    assert found.comparison.signatures == {each.name: each.signature for each in wanted}
    assert found.comparison.test == ""
    for row, expected in zip(found.comparison.scores, wanted, strict=True):
        assert (row.metric, row.p_value) == (expected.name, None)
        assert row.value == pytest.approx(expected.value, abs=1e-6)
        assert row.confidence is not None
        assert expected.confidence is not None
        assert row.confidence.mean == pytest.approx(expected.confidence.mean, abs=NOISE)
        assert row.confidence.half_width == pytest.approx(expected.confidence.half_width, abs=NOISE)


def test_sentence_chrf_is_that_of_sacrebleu(report: Report) -> None:
    for system, scores in zip(SYSTEMS, report.chrf, strict=True):
        lines = zip(system.translations, *REFERENCES, strict=True)
        wanted = [sacrebleu.sentence_chrf(text, references).score for text, *references in lines]
        assert scores == wanted


def test_each_line_is_in_one_group_whose_scores_are_those_of_its_lines(report: Report) -> None:
    for groups, values in (
        (report.by_length, report.lengths),
        (report.by_rarest, report.rarest),
    ):
        lines = [line for group in groups for line in group.lines]
        assert sorted(lines) == [line for line in range(NUM_LINES) if values[line] is not None]
        for group in groups:
            for line in group.lines:
                value = values[line]
                assert value is not None
                assert group.first <= value <= (group.last or 10**9)
        references = [[each[line] for line in groups[0].lines] for each in REFERENCES]
        hypotheses = [SYSTEMS[1].translations[line] for line in groups[0].lines]
        wanted = corpus_scores(hypotheses, references, metrics=["bleu", "ter", "chrf"])
        found = [score for score in groups[0].scores if score.system == "two"]
        for row, expected in zip(found, wanted, strict=True):
            assert row.metric == expected.name
            assert row.value == pytest.approx(expected.value, abs=1e-6)


def test_rarest_word_is_counted_in_the_first_reference_or_in_the_training_text() -> None:
    texts = Texts(systems=[System("s", ["x", "x", "x"])], references=[["a b", "A c", "…"]])
    trained = Texts(
        systems=texts.systems, references=texts.references, training_text=iter(["a a b", "a B"])
    )

    assert build_report(texts).rarest == [1, 1, None]
    report = build_report(trained)
    assert report.rarest == [2, 0, None]
    assert [(group.label, group.lines) for group in report.by_rarest] == [("0", [1]), ("2", [0])]


@pytest.mark.parametrize(
    ("lengths", "bounds"),
    [
        ([], [1]),
        ([3, 1], [1, 2, 3]),
        ([0, 5], [0, 1, 2, 3, 4, 5]),
        (list(range(1, 101)), [1, 21, 41, 61, 81]),
        ([7] * 99 + [400], [1, 2, 3, 4, 5, 6, 7, 8]),
        ([9] * 99 + [400], [1, 3, 5, 7, 9, 11]),
        ([3_000_000], [1]),
    ],
)
def test_lengths_are_grouped_by_equal_widths(lengths: list[int], bounds: list[int]) -> None:
    assert length_bounds(lengths) == bounds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Le chien, l'été !", ["Le", "chien", ",", "l", "'", "été", "!"]),
        ("e\u0301te\u0301 x", ["e\u0301te\u0301", "x"]),
        ("他们去3次。OK", ["他", "们", "去", "3", "次", "。", "OK"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می‌خواهم ذهب", ["می‌خواهم", "ذهب"]),
        ("กินข้าว", ["กิ", "น", "ข้", "า", "ว"]),
        ("😀 x\u3000y\u00a0z", ["😀", "x", "y", "z"]),
    ],
)
def test_words_are_split_at_blanks_and_punctuation(text: str, words: list[str]) -> None:
    assert [text[begin:end] for begin, end in word_spans(text)] == words


def test_true_words_are_counted_without_punctuation_and_case() -> None:
    assert list(true_words("Oui, oui : 3 € !")) == ["Oui", "oui", "3"]
    assert word_counts(["Oui, oui !", "Straße STRASSE"]) == Counter(oui=2, strasse=2)


@pytest.mark.parametrize(
    ("text", "other", "own", "lacking"),
    [
        ("a b c", "a b c", [], []),
        ("a x c", "a b c", ["x"], ["b"]),
        ("a c", "a b c", [], ["b"]),
        ("", "a b", [], ["a b"]),
        ("x y", "", ["x y"], []),
        ("the big, red", "the big red", [","], []),
        ("今日は天気がいい", "今日は天気が良い", ["い"], ["良"]),
        ("ذهب إلى البيت", "ذهب إلى المدرسة", ["البيت"], ["المدرسة"]),
        ("😀 b", "😀 c", ["b"], ["c"]),
    ],
)
def test_words_that_differ_are_marked(
    text: str, other: str, own: list[str], lacking: list[str]
) -> None:
    marks = marks_between(text, other)

    assert [text[begin:end] for begin, end in marks.own] == own
    assert [other[begin:end] for begin, end in marks.other] == lacking


def test_marks_leave_a_common_subsequence(report: Report) -> None:
    for system, marks in enumerate(report.marks):
        for line, each in enumerate(marks):
            text = SYSTEMS[system].translations[line]
            reference = REFERENCES[each.reference][line]
            assert unmarked(text, each.own) == unmarked(reference, each.other)
    for line, each in enumerate(report.between):
        first, second = (system.translations[line] for system in SYSTEMS)
        assert unmarked(first, each.own) == unmarked(second, each.other)


def unmarked(text: str, runs: tuple[tuple[int, int], ...]) -> str:
    for begin, end in reversed(runs):
        text = f"{text[:begin]} {text[end:]}"
    return "".join(text.split())


def test_nearest_reference_is_the_one_that_shares_most_words() -> None:
    marks = nearest_marks("a b c d", ["x y c d", "a b c e", "a b c e"])

    assert marks.reference == 1
    assert marks.own == ((6, 7),)


@pytest.mark.parametrize(
    ("translation", "source", "references", "kinds"),
    [
        ("Le chien dort.", "The dog sleeps.", ["Le chien dort."], []),
        ("", "The dog sleeps.", ["Le chien dort."], ["empty"]),
        ("  ", None, ["oui"], ["empty"]),
        ("", "", [""], []),
        ("", "x", ["oui", ""], []),
        ("The  dog sleeps.", "The dog sleeps.", ["Le chien dort."], ["copies"]),
        ("Paris", "Paris", ["Paris"], []),
        ("Paris", None, ["Londres"], []),
        ("the dog dort.", "The dog sleeps.", ["Le chien dort."], ["untranslated"]),
        ("Le dog dort.", "The dog sleeps.", ["Le chien dort."], []),
        ("Berlin Paris", "Paris Berlin", ["Paris et Berlin"], []),
        ("très très très bon", "very good", ["très bon"], ["repetitions"]),
        ("très très bon", "very good", ["très bon"], []),
        ("non non non", "no no no", ["non non non"], []),
        ("il va il va bien", "he is well", ["il va bien ici"], ["repetitions"]),
        ("... ... ...", "and so", ["et ainsi"], []),
        ("研究研究", "to study", ["学习一下"], []),
        ("我们去我们去", "we go", ["我们要去了"], []),
        ("我们去吧我们去吧", "let us go", ["我们去吧走吧"], ["repetitions"]),
        ("oui", "a b", ["oui je le veux"], ["short"]),
        ("oui", "a b", ["oui je le veux", "oui bien"], []),
        ("a b c d e f g", "x", ["a b c", "z"], ["long"]),
        ("a b c", "x", ["z"], []),
    ],
)
def test_lines_that_stand_out(
    translation: str, source: str | None, references: list[str], kinds: list[str]
) -> None:
    assert list(findings_of_line(translation, source, references)) == kinds


@pytest.mark.parametrize("period", [1, 2, 5, 17, 40])
def test_loops_of_any_period_are_repetitions(period: int) -> None:
    words = [f"w{number}" for number in range(period)]

    assert repeats(["begin", *words * 3, "end"])
    assert not repeats(["begin", *words, "end"])


def test_findings_and_length_ratio_of_a_report() -> None:
    references = [["un deux", "trois quatre cinq six", "sept"], ["un", "trois quatre", "sept"]]
    one = System("one", ["un", "", "seven"])
    two = System("two", ["un un un", "trois quatre cinq six", "sept"])
    source = ["one two", "three four five six", "seven"]

    report = build_report(Texts(systems=[one, two], references=references, source=source))
    without = build_report(Texts(systems=[one], references=references))

    assert report.findings == {
        "empty": [[1], []],
        "copies": [[2], []],
        "untranslated": [[], []],
        "repetitions": [[], [0]],
        "short": [[], []],
        "long": [[], []],
    }
    # Words by those of the nearest reference: 1 + 0 + 1 by 1 + 2 + 1, and 3 + 4 + 1 by 2 + 4 + 1.
    assert report.length_ratios == [2 / 4, 8 / 7]
    assert list(without.findings) == ["empty", "repetitions", "short", "long"]


def test_control_characters_are_visible_before_words_are_marked() -> None:
    text = "a \u202e x"
    report = build_report(Texts(systems=[System("s", [text])], references=[["a x"]]))

    shown = report.texts.systems[0].translations[0]
    (begin, end) = report.marks[0][0].own[0]

    assert shown == "a \\u202e x"
    assert shown[begin:end] == "\\u202e"


def test_largest_weights_of_an_alignment() -> None:
    rows = [[0.05, 0.5, 0.1, 0.2, 0.15], [0.0] * 5, [0.0999, 0, 0, 0, 0.9]]

    assert largest_weights(rows) == (((1, 0.5), (3, 0.2), (4, 0.15)), (), ((4, 0.9),))
