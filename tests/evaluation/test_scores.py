import random
import subprocess
import sys

import pytest
import sacrebleu
import sacrebleu.significance

from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.evaluation.scores import (
    MetricOptions,
    build_metrics,
    check_options,
    corpus_scores,
    lower_is_better,
    render,
    score_corpus,
    sentence_scores,
)

VOCABULARY = "the The a cat dog sat ran , . ! on under 3.5 big red été 猫 -- (mat)"
WORDS = VOCABULARY.split()


def random_text(seed: int, num_lines: int = 40) -> list[str]:
    """Lines of 0 to 12 words, some blank."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 12))) for _ in range(num_lines)]


def worn(text: list[str], seed: int) -> list[str]:
    """The same text with about a fifth of its words replaced."""
    draw = random.Random(seed)
    return [
        " ".join(w if draw.random() < 0.8 else draw.choice(WORDS) for w in line.split())
        for line in text
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_references", [1, 2])
def test_scores_are_those_of_sacrebleus_library(seed: int, num_references: int) -> None:
    reference = random_text(seed)
    references = [reference, worn(reference, seed + 100)][:num_references]
    hypotheses = worn(reference, seed + 200)

    bleu, chrf, ter = corpus_scores(hypotheses, references, metrics=("bleu", "chrf", "ter"))

    assert bleu.value == sacrebleu.corpus_bleu(hypotheses, references).score
    assert chrf.value == sacrebleu.corpus_chrf(hypotheses, references).score
    assert ter.value == sacrebleu.corpus_ter(hypotheses, references).score
    assert (bleu.name, chrf.name, ter.name) == ("BLEU", "chrF2", "TER")


def test_options_reach_the_metrics_and_their_signatures() -> None:
    reference = random_text(1)
    hypotheses = worn(reference, 2)
    options = MetricOptions(
        tokenize="char",
        lowercase=True,
        smooth_method="floor",
        smooth_value=0.5,
        effective_order=True,
        chrf_char_order=4,
        chrf_word_order=2,
    )

    bleu, chrf = corpus_scores(hypotheses, [reference], metrics=("bleu", "chrf"), options=options)

    expected = sacrebleu.corpus_bleu(
        hypotheses,
        [reference],
        tokenize="char",
        lowercase=True,
        smooth_method="floor",
        smooth_value=0.5,
        use_effective_order=True,
    )
    assert bleu.value == expected.score
    version = f"version:{sacrebleu.__version__}"
    assert bleu.signature == f"nrefs:1|case:lc|eff:yes|tok:char|smooth:floor[0.50]|{version}"
    assert (
        chrf.value
        == sacrebleu.corpus_chrf(hypotheses, [reference], char_order=4, word_order=2).score
    )
    assert chrf.name == "chrF2++"
    assert chrf.signature == f"nrefs:1|case:mixed|eff:yes|nc:4|nw:2|space:no|{version}"


def test_text_is_the_line_that_sacrebleu_prints() -> None:
    metric = sacrebleu.BLEU()
    native = metric.corpus_score(["a b c d e"], [["a b c d f"]])
    [score] = corpus_scores(["a b c d e"], [["a b c d f"]])

    assert score.line() == native.format(1, signature=metric.get_signature().format())
    assert score.line() == f"{score.quoted_signature()} = 66.9 80.0/75.0/66.7/50.0 " + (
        "(BP = 1.000 ratio = 1.000 hyp_len = 5 ref_len = 5)"
    )
    assert score.line(3, short=True).startswith(f"BLEU|{score.short_signature} = 66.874 ")
    assert score.bare(0) == "67"


def test_metrics_keep_the_given_order_without_repetitions() -> None:
    actual = corpus_scores(["a"], [["a"]], metrics=("ter", "bleu", "ter"))

    assert [score.metric for score in actual] == ["ter", "bleu"]


def test_rendering_sorts_by_name_and_aligns_at_the_equals_sign() -> None:
    actual = corpus_scores(["a b c d"], [["a b c d"]], metrics=("ter", "chrf", "bleu"))

    lines = render(actual, "text").split("\n")

    assert [line.lstrip()[:3] for line in lines] == ["BLE", "chr", "TER"]
    assert len({line.index(" = ") for line in lines}) == 1
    assert render(actual, "text", value_only=True) == "100.0\n100.0\n0.0"


def test_blank_lines_count_and_trailing_blanks_do_not() -> None:
    reference = random_text(5)
    hypotheses = ["", *worn(reference, 6)[1:]]
    padded = [f"{line} \t\u2003" for line in hypotheses]

    plain = corpus_scores(hypotheses, [reference], metrics=("bleu", "chrf", "ter"))

    assert corpus_scores(padded, [reference], metrics=("bleu", "chrf", "ter")) == plain
    assert plain[0].value == sacrebleu.corpus_bleu(hypotheses, [reference]).score


def test_blank_hypotheses_score_zero() -> None:
    actual = corpus_scores(["", " "], [["a b c d", "e"]], metrics=("bleu", "chrf", "ter"))

    assert [score.value for score in actual] == [0.0, 0.0, 100.0]


def test_confidence_equals_that_of_sacrebleu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    reference = random_text(7)
    hypotheses = worn(reference, 8)

    [first] = corpus_scores(hypotheses, [reference], num_resamples=50)
    [again] = corpus_scores(hypotheses, [reference], num_resamples=50)
    [without] = corpus_scores(hypotheses, [reference])

    native = sacrebleu.BLEU().corpus_score(hypotheses, [reference], n_bootstrap=50)
    assert first.confidence is not None
    assert f"μ = {first.confidence.mean:.2f} ± {first.confidence.half_width:.2f}" in str(native)
    assert "bs:50|seed:12345" in first.signature
    assert first == again
    assert without.confidence is None
    assert without.value == first.value


def test_a_sentences_score_is_sacrebleus_sentence_score() -> None:
    reference = random_text(9, num_lines=10)
    hypotheses = worn(reference, 10)

    values = [score.value for score in sentence_scores(hypotheses, [reference])]

    assert values == [
        sacrebleu.sentence_bleu(hypothesis, [expected]).score
        for hypothesis, expected in zip(hypotheses, reference, strict=True)
    ]


def test_only_ter_is_better_when_lower() -> None:
    assert [lower_is_better(name) for name in ("bleu", "chrf", "ter")] == [False, False, True]


def test_texts_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="hypotheses and reference 2 do not align: 1 and 2 lines"):
        corpus_scores(["a"], [["a"], ["a", "b"]])


@pytest.mark.parametrize(("hypotheses", "references"), [([], [[]]), (["a"], [])])
def test_nothing_to_score_is_refused(hypotheses: list[str], references: list[list[str]]) -> None:
    with pytest.raises(DataError, match="nothing to score"):
        corpus_scores(hypotheses, references)


def test_unknown_names_are_reported_together_with_the_nearest() -> None:
    options = MetricOptions(tokenize="14a", smooth_method="ekp", smooth_value=float("nan"))

    with pytest.raises(ConfigError) as caught:
        check_options(["bleu", "chrff"], options)

    assert str(caught.value).split("\n  ") == [
        "4 settings are wrong",
        "unknown metric `chrff`; did you mean `chrf`?",
        "unknown tokenizer `14a`; did you mean `13a`?",
        "unknown smoothing method `ekp`; did you mean `exp`?",
        "the smoothing value must be at least 0 and finite, got nan",
    ]


def test_name_without_a_near_match_gets_the_whole_list() -> None:
    with pytest.raises(ConfigError, match="`comet`, expected one of bleu, chrf, ter"):
        check_options(["comet"], MetricOptions())


def test_no_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="no metric to compute"):
        corpus_scores(["a"], [["a"]], metrics=())


def test_chrf_without_any_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="chrF has nothing to count"):
        check_options(["chrf"], MetricOptions(chrf_char_order=0))


def test_a_seed_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "lucky")

    with pytest.raises(ConfigError, match="SACREBLEU_SEED must be a whole number or `none`"):
        check_options(["bleu"], MetricOptions())


def test_a_tokenizer_without_its_package_raises_a_resource_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)

    with pytest.raises(ResourceError, match=r"`ja-mecab` needs .*: .*not installed"):
        corpus_scores(["a"], [["a"]], options=MetricOptions(tokenize="ja-mecab"))

    sys.modules.pop("sacrebleu.tokenizers.tokenizer_ja_mecab", None)


def test_a_bootstrap_beyond_memory_raises_a_resource_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    metric = build_metrics(["bleu"], [["a"]], MetricOptions())["bleu"]
    monkeypatch.setattr(sacrebleu.significance, "_bootstrap_resample", exhausted)

    with pytest.raises(ResourceError, match="1000 resamples of 1 lines do not fit into memory"):
        score_corpus("bleu", metric, ["a"], 1000)


def test_importing_the_module_imports_neither_sacrebleu_nor_torch() -> None:
    code = (
        "import sys, tfm_cli.evaluation.scores, tfm_cli.evaluation.significance; "
        "print([name for name in ('sacrebleu', 'torch', 'numpy') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
