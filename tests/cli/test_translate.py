import gzip
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import RunTfm, TinyCorpus
from tfm_cli.cli.translate import COMMAND, translate
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis
from tfm_cli.native.library import LIBRARY, NONE
from tfm_cli.translation import streaming


@pytest.fixture
def model(tiny_model: Path) -> list[str]:
    return ["translate", "--model", str(tiny_model), "--device", "cpu", "--precision", "fp32"]


def lines_of(text: str) -> list[str]:
    assert text == "" or text.endswith("\n")
    return text.split("\n")[:-1]


def test_text_is_translated_line_by_line(
    model: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    result = run_tfm([*model, "--input", tiny_corpus.path("test.en")])

    expected = tiny_corpus.lines("test.de")
    actual = lines_of(result.out)
    assert result.code == 0
    assert sum(one == other for one, other in zip(actual, expected, strict=True)) > 36  # of 40


def test_standard_output_is_data_and_the_rest_is_not(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm(model, "one two\n\nthree")

    assert result.out == "eins zwei\n\ndrei\n"
    assert result.err.startswith("translated 3 lines in ")
    assert result.err.endswith(" target tokens/s\n")


def test_quiet_says_warnings_only(model: list[str], run_tfm: RunTfm) -> None:
    assert run_tfm([*model, "--quiet"], "one\n").err == ""
    assert run_tfm([*model, "-q"], b"one\xff\n").err == (
        "warning: standard input: lines with invalid UTF-8, replaced by U+FFFD: 1 (first: line 1)\n"
    )


def test_empty_input_gives_empty_output(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm(model, "")

    assert (result.code, result.out) == (0, "")


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.lists(st.one_of(
    st.sampled_from([b"one", b" ", b"\r", b"\xe2\x80\xa8", b"\0", b"\xff", b"\x85", b"\n", b"\f"]),
    st.binary(max_size=5),
), max_size=20).map(lambda lines: b"x" + b"\n".join(lines)))  # fmt: skip
def test_as_many_lines_come_out_as_go_in(model: list[str], run_tfm: RunTfm, raw: bytes) -> None:
    result = run_tfm([*model, "--beam", "1"], raw)

    assert result.code == 0
    assert len(lines_of(result.out)) == raw.count(b"\n") + (not raw.endswith(b"\n"))


def test_gzip_and_files_without_last_line_feed_are_read(
    model: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    (tmp_path / "input").write_bytes(gzip.compress(b"one\r\ntwo\r\n") + gzip.compress(b"three"))

    result = run_tfm([*model, "--input", str(tmp_path / "input")])

    assert result.out == "eins\nzwei\ndrei\n"


def test_output_file_has_what_standard_output_would(
    model: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    result = run_tfm([*model, "-o", str(tmp_path / "new" / "out.de")], "five\n")

    assert result.out == ""
    assert (tmp_path / "new" / "out.de").read_bytes() == "fünf\n".encode()
    assert os.listdir(tmp_path / "new") == ["out.de"]  # noqa: PTH208


@pytest.mark.parametrize(
    "flags",
    [
        "--beam-size 2 --length-penalty 0.5 --n-best 2 --max-tokens 99 --buffer-size 9",
        "--beam_size 2 --length_penalty 0.5 --n_best 2 --max_tokens 99 --buffer_size 9",
        "--beam 2 --lenpen 0.5 --nbest 2 --mini-batch-words 99 --maxi-batch 9",
        "-b 2 -n 0.5 --n-best 2 --mini_batch_words 99 --chunk-size 9",
        "-b2 --normalize 0.5 --nbest=2 --max-tokens=99 --chunk_size=9",
    ],
)
def test_flags_go_by_the_names_that_people_know(
    model: list[str], run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    used: list[DecodingOptions] = []

    def remember(*arguments: Any, options: DecodingOptions, **others: Any) -> object:
        used.append(options)
        return beam_search(*arguments, options=options, **others)

    monkeypatch.setenv(LIBRARY, NONE)
    monkeypatch.setattr("tfm_cli.translation.torch_engine.beam_search", remember)

    result = run_tfm([*model, *flags.split()], "one\n")

    assert len(lines_of(result.out)) == 2
    assert [(each.settings.beam_size, each.settings.length_penalty) for each in used] == [(2, 0.5)]


@pytest.mark.parametrize(
    "names", [("--src", "--out"), ("--input", "--output"), ("-i", "-o")], ids=" ".join
)
def test_files_go_by_the_names_that_people_know(
    run_tfm: RunTfm, tmp_path: Path, tiny_model: Path, names: tuple[str, str]
) -> None:
    (tmp_path / "in").write_bytes(b"one\n")
    files = [names[0], str(tmp_path / "in"), names[1], str(tmp_path / "out")]

    result = run_tfm(["translate", "--models", str(tiny_model), *files])

    assert result.code == 0
    assert (tmp_path / "out").read_bytes() == b"eins\n"


def test_score_stands_before_the_text(model: list[str], run_tfm: RunTfm) -> None:
    (line,) = lines_of(run_tfm([*model, "--with-score"], "one\n").out)

    score, text = line.split("\t")
    assert text == "eins"
    assert -1 < float(score) < 0


def test_n_best_list_numbers_the_lines_of_all_windows(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "--n-best", "3", "--buffer-size", "1"], "one\n\ntwo\n")

    rows = [line.split(" ||| ") for line in lines_of(result.out)]
    assert [row[0] for row in rows] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert [row[1] for row in rows[::3]] == ["eins", "", "zwei"]
    assert len({row[1] for row in rows[:3]}) == 3


def test_beam_grows_with_the_n_best_list(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "--n-best", "6"], "one two three\n")

    assert result.code == 0
    assert len(set(lines_of(result.out))) == 6


def test_json_is_an_object_a_line(model: list[str], run_tfm: RunTfm) -> None:
    text = "one two\none\u2028two\n\n"
    result = run_tfm([*model, "--format", "json", "--n-best", "2"], text)

    first, separated, blank = (json.loads(line) for line in lines_of(result.out))
    # To a tokenizer that leaves text as it is, the separator is no blank between two words.
    assert (first["source"], separated["source"]) == ("one two", "one\u2028two")
    assert first["translation"] == first["n_best"][0]["translation"] == "eins zwei"
    assert len(first["n_best"]) == 2
    assert (blank["source"], blank["translation"], blank["score"]) == ("", "", 0)


def test_sampling_is_the_same_for_a_seed(model: list[str], run_tfm: RunTfm) -> None:
    hot = [*model, "--sampling", "--temperature", "5"]
    text = "one two three\n" * 5

    drawn = run_tfm(hot, text).out

    assert run_tfm([*hot, "--buffer-size", "2"], text).out == drawn
    assert run_tfm([*hot, "--seed", "2"], text).out != drawn
    assert run_tfm([*hot, "--top-k", "1"], text).out == "eins zwei drei\n" * 5


def test_n_best_list_of_samples_has_as_many_as_asked_for(model: list[str], run_tfm: RunTfm) -> None:
    hot = [*model, "--sampling", "--temperature", "5"]

    one = run_tfm([*hot], "one two three\n\n").out
    several = run_tfm([*hot, "--n-best", "20"], "one two three\n\n").out
    rows = [line.split(" ||| ") for line in lines_of(several)]
    result = json.loads(lines_of(run_tfm([*hot, "--n-best", "20", "-f", "json"], "one\n").out)[0])

    assert [row[0] for row in rows] == ["0"] * 20 + ["1"] * 20
    assert [rows[0][1], rows[20][1]] == lines_of(one)
    assert len({row[1] for row in rows[:20]}) > 1
    assert len(result["n_best"]) == 20
    assert result["translation"] == result["n_best"][0]["translation"]


def test_greedy_is_a_beam_of_one(model: list[str], run_tfm: RunTfm) -> None:
    text = "one two three\n"

    assert run_tfm([*model, "-g", "--with-score"], text).out == (
        run_tfm([*model, "--beam", "1", "--with-score"], text).out
    )


def test_long_line_is_split_or_cut_with_a_warning(model: list[str], run_tfm: RunTfm) -> None:
    line = "one two three four\n"

    split = run_tfm([*model, "-q", "--max-length", "2"], line)
    cut = run_tfm([*model, "-q", "--max-length", "2", "--on-long", "cut"], line)

    assert split.out == "eins zwei drei vier\n"
    assert split.err == "warning: line 1 has 4 tokens, more than 2: split\n"
    assert cut.out == "eins zwei\n"
    assert cut.err == "warning: line 1 has 4 tokens, more than 2: cut\n"


@pytest.mark.parametrize("flags", [[], ["--json-input"]])
def test_translation_that_lacks_sentences_is_warned_of_once(
    model: list[str], run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    def short(*arguments: Any, **others: Any) -> list[list[Hypothesis]]:
        return [[replace(each, ids=each.ids[:1]) for each in some]
                for some in beam_search(*arguments, **others)]  # fmt: skip

    monkeypatch.setenv(LIBRARY, NONE)
    monkeypatch.setattr("tfm_cli.translation.torch_engine.beam_search", short)
    lines = ["one", "two . three . four . five . six . one .", "one . two . three . four ."]
    if flags:
        lines = [json.dumps({"text": line}) for line in lines]

    result = run_tfm([*model, "-q", *flags], "".join(f"{line}\n" for line in lines))

    (message,) = lines_of(result.err)
    assert message.startswith("warning: line 2: 6 sentences became 1, so its translation may lack")


def test_setting_of_the_sampling_is_idle_without_it(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "-q", "--top_k", "3"], "one\n")

    assert result.out == "eins\n"
    assert result.err == "warning: `--top-k` has no effect without `--sampling`\n"


def test_progress_is_shown_where_a_terminal_has_no_translations_to_show(
    tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown: dict[bool, str] = {}
    for quiet in (False, True):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", "xterm")

        values = {
            "models": [str(tiny_model)], "input_path": tiny_corpus.path("test.en"),
            "output_path": str(tmp_path / "out"), "training_device": "cpu", "quiet": quiet,
        }  # fmt: skip
        translate(COMMAND.parsed(values))

        assert isinstance(sys.stderr, Terminal)
        shown[quiet] = sys.stderr.getvalue()

    assert "translating" in shown[False]
    assert "translated 40 lines in " in shown[False]
    assert shown[True] == ""


# --- what else a line may hold -------------------------------------------------------------------


def test_translations_begin_as_they_are_told_to(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "--force-decode"], "one two\tneun\none two\n\nfive\t\n")

    forced, *others = lines_of(result.out)
    assert forced.startswith("neun ")
    assert others == ["eins zwei", "", "fünf"]


def test_columns_are_kept_and_the_translation_is_the_last(
    model: list[str], run_tfm: RunTfm
) -> None:
    text = "1\tone\n2\t\n\n3\tfive\tneun\n"

    result = run_tfm([*model, "--tsv", "--tsv-column", "2"], text)
    forced = run_tfm([*model, "--tsv", "--tsv-column", "2", "--force-decode"], text)

    assert lines_of(result.out) == ["1\tone\teins", "2\t\t", "", "3\tfive\tneun\tfünf"]
    assert lines_of(forced.out)[3].startswith("3\tfive\tneun\tneun")
    assert lines_of(run_tfm([*model, "--tsv"], "one\t7\n").out) == ["one\t7\teins"]


def test_objects_come_out_with_all_their_fields(model: list[str], run_tfm: RunTfm) -> None:
    text = (
        '{"id": 7, "text": "one", "notes": [1.50, null]}\n\n'
        '{"source": "one two", "target_prefix": "neun"}\n'
    )

    result = run_tfm([*model, "--json-input", "--format", "json"], text)

    first, blank, forced = (json.loads(line) for line in lines_of(result.out))
    assert list(first) == ["id", "text", "notes", "translation", "score"]
    assert (first["id"], first["notes"], first["translation"]) == (7, [1.5, None], "eins")
    assert (blank["source"], blank["translation"]) == ("", "")
    assert forced["target_prefix"] == "neun"
    assert forced["translation"].startswith("neun ")


def test_objects_become_text_where_text_is_asked_for(model: list[str], run_tfm: RunTfm) -> None:
    text = '{"source": "one\\ntwo", "id": 1}\n\n{"text": ""}\n'

    assert run_tfm([*model, "--json-input"], text).out == "eins zwei\n\n\n"


def test_each_line_of_an_object_s_text_is_translated_and_the_breaks_stay(
    model: list[str], run_tfm: RunTfm
) -> None:
    texts = {
        "one\ntwo\n\nthree": "eins\nzwei\n\ndrei",
        "\r\none\r\n two\n\r": "\r\neins\r\nzwei\n\r",
        "one\u2028two\u2029": "eins\u2028zwei\u2029",
        "\n\n": "\n\n",
        "one": "eins",
    }
    given = "".join(json.dumps({"text": text}) + "\n" for text in texts)

    result = run_tfm([*model, "--json-input", "--format", "json"], given)
    as_text = run_tfm([*model, "--json-input"], given)

    actual = [json.loads(line)["translation"] for line in lines_of(result.out)]
    assert actual == list(texts.values())
    assert lines_of(as_text.out) == [" ".join(each.split()) for each in actual]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_texts_of_very_many_lines_are_translated_by_and_by(
    most: int, model: list[str], run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["one\ntwo", "three", "", "one\n\ntwo\nthree\n", "two\nthree", "one"]
    given = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    command = [*model, "--json-input", "--n-best", "2"]
    expected = run_tfm(command, given)

    monkeypatch.setattr(streaming, "_MAX_TEXT_LINES", most)
    result = run_tfm(command, given)

    assert result.out == expected.out
    assert [line.split(" ")[0] for line in lines_of(result.out)[::2]] == list("012345")


def test_lines_of_a_text_share_scores_candidates_and_alignment_as_parts_of_a_line_do(
    model: list[str], run_tfm: RunTfm
) -> None:
    flags = ["--format", "json", "--n-best", "2", "--word-scores", "--alignment", "hard"]
    lines = run_tfm([*model, *flags], "one two\nthree\n").out

    result = run_tfm([*model, *flags, "--json-input"], '{"text": "\\none two\\n\\nthree"}\n')

    first, second = (json.loads(line) for line in lines_of(lines))
    whole = json.loads(result.out)
    assert whole["translation"] == "\neins zwei\n\ndrei"
    assert whole["score"] == pytest.approx((first["score"] + second["score"]) / 2, abs=2e-4)
    assert whole["pieces"] == first["pieces"] + second["pieces"]
    assert whole["word_scores"] == first["word_scores"] + second["word_scores"]
    assert whole["alignment"] == [[0, 0], [1, 1], [2, 2]]
    for rank in (0, 1):
        texts = [each["n_best"][rank]["translation"] for each in (first, second)]
        assert whole["n_best"][rank]["translation"] == f"\n{texts[0]}\n\n{texts[1]}"


def test_prefix_begins_the_first_line_with_text_or_each_line_has_its_own(
    model: list[str], run_tfm: RunTfm
) -> None:
    objects = [
        {"text": "\none\ntwo", "target_prefix": "neun"},
        {"text": "one\n\ntwo", "target_prefix": "\r\n\r\nneun"},
    ]
    given = "".join(json.dumps(each) + "\n" for each in objects)

    result = run_tfm([*model, "--json-input", "--format", "json"], given)

    first, second = (json.loads(line)["translation"].split("\n") for line in lines_of(result.out))
    assert (first[0], first[2]) == ("", "zwei")
    assert first[1].startswith("neun")
    assert second[:2] == ["eins", ""]
    assert second[2].startswith("neun")


def test_lost_values_of_an_object_are_told_once_for_each_name(
    model: list[str], run_tfm: RunTfm
) -> None:
    given = (
        '{"text": "one"}\n{"text": "one", "text": "two", "score": 1}\n'
        '{"text": "one", "text": "three", "score": 1, "translation": "?", "alignment": 2}\n'
    )

    result = run_tfm([*model, "-q", "--json-input", "--format", "json"], given)
    as_text = run_tfm([*model, "-q", "--json-input"], given)

    message = "the name `text` occurs more than once, and its last value counts"
    repeated = f"warning: standard input:2: {message}"
    assert result.err.splitlines() == [
        repeated,
        "warning: standard input:2: the input has a field `score`, which the output replaces",
        "warning: standard input:3: the input has a field `translation`, which the output replaces",
    ]
    actual = [json.loads(line) for line in lines_of(result.out)]
    assert [each["translation"] for each in actual] == ["eins", "zwei", "drei"]
    assert actual[2]["alignment"] == 2
    assert as_text.err.splitlines() == [repeated]


def test_changed_characters_of_an_object_are_told_once(model: list[str], run_tfm: RunTfm) -> None:
    given = '{"text": "one"}\n' + r'{"text": "two\u0000\ud800"}' + "\n"

    result = run_tfm([*model, "-q", "--json-input"], given * 2)

    assert result.code == 0
    assert result.err.splitlines() == [
        "warning: standard input:2: `text` has NUL characters, which are removed",
        "warning: standard input:2: `text` has half of a surrogate pair, which is read as `?`",
    ]


@pytest.mark.parametrize(
    ("flags", "line", "message"),
    [
        ("--json-input", '{"id": 5}', "has neither `source` nor `text`"),
        ("--tsv --tsv-column 2", "one", "has 1 column, but column 2 is the source"),
        ("--force-decode", "one\ta\tb", "has 3 columns, expected `source<TAB>target prefix`"),
    ],
)
def test_line_that_cannot_be_understood_ends_it_before_its_window_is_written(
    model: list[str], run_tfm: RunTfm, flags: str, line: str, message: str
) -> None:
    good = '{"source": "one"}' if flags == "--json-input" else "one\tone"
    text = f"{good}\n{good}\n{good}\n{line}\n{good}\n"

    result = run_tfm([*model, *flags.split(), "--buffer-size", "2"], text)

    assert result.code == 3
    assert len(lines_of(result.out)) == 2  # the window before
    assert result.err.startswith(f"error: standard input:4: {message}\n")


def test_scores_of_the_pieces_are_written(model: list[str], run_tfm: RunTfm) -> None:
    scored = [*model, "--word-scores"]

    (line,) = lines_of(run_tfm([*scored, "--format", "json"], "one two\n").out)
    (text,) = lines_of(run_tfm(scored, "one two\n").out)
    n_best = lines_of(run_tfm([*scored, "--n-best", "2"], "one two\n").out)

    result = json.loads(line)
    assert result["pieces"] == ["▁eins", "▁zwei", "</s>"]
    assert sum(result["word_scores"]) == pytest.approx(result["log_probability"], abs=3e-4)
    scores = " ".join(f"{score:.4f}" for score in result["word_scores"])
    assert text == f"eins zwei ||| WordScores= {scores}"
    assert n_best[0].startswith(f"0 ||| eins zwei ||| WordScores= {scores} ||| logprob=-")
    assert len(n_best[1].split(" ||| ")) == 5


@pytest.mark.slow
def test_repetition_is_avoided_where_that_is_asked_for(model: list[str], run_tfm: RunTfm) -> None:
    text = "one one one one\n"

    blocked = run_tfm([*model, "--no-repeat-ngram-size", "1"], text).out.split()
    penalized = run_tfm([*model, "--repetition-penalty", "1000", "-g"], text).out.split()

    assert run_tfm(model, text).out == "eins eins eins eins\n"
    assert len(set(blocked)) == len(blocked)
    assert penalized.count("eins") == 1


def test_models_translate_together(
    model: list[str], tiny_model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    text = "one two\n\nfive\n"

    result = run_tfm([*model, "--model", str(tiny_model), "--models", str(tiny_model)], text)

    assert result.out == "eins zwei\n\nfünf\n"


def test_models_with_other_tokenizers_are_refused(model: list[str], run_tfm: RunTfm) -> None:
    other = Path(__file__).parents[1] / "golden" / "model_v1"

    result = run_tfm([*model, "--model", str(other)], "one\n")

    assert (result.code, result.out) == (4, "")
    assert result.err == (
        f"error: {other}: has other tokenizers than {model[2]}\n"
        "hint: train them with the same one: `tfm train --tokenizer`\n"
    )


@pytest.mark.parametrize(
    ("flags", "text", "expected"),
    [
        ("--json-input", '{"text": "one"}\n{\n\n{"text": "two"}\n', "eins\n\n\nzwei\n"),
        ("--tsv --tsv-column 2", "a\tone\nb\n\nc\ttwo\n", "a\tone\teins\nb\t\n\nc\ttwo\tzwei\n"),
        ("--force-decode", "one\none\t\tx\ntwo\n", "eins\n\nzwei\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("buffer_size", ["1", "100"])
def test_bad_lines_are_reported_in_their_place(
    model: list[str], run_tfm: RunTfm, flags: str, text: str, expected: str, buffer_size: str
) -> None:
    command = [*model, *flags.split(), "--buffer-size", buffer_size]

    stopped = run_tfm(command, text)
    reported = run_tfm([*command, "--on-error", "report", "--quiet"], text)

    problem = stopped.err.split("\n")[-2 if "hint: " not in stopped.err else -3]
    assert stopped.code == reported.code == 3
    assert reported.out == expected
    assert reported.err == (
        problem.replace("error: ", "warning: ", 1)
        + "\nerror: standard input: 1 line could not be parsed; the others are translated\n"
    )


def test_bad_lines_are_objects_in_json_and_blank_in_n_best_lists(
    model: list[str], run_tfm: RunTfm
) -> None:
    text = '{"text": "one"}\n{"id": 7}\n{"text": "two", "id": 9}\n'
    command = [*model, "--json-input", "--on-error", "report", "--quiet", "--beam", "2"]

    objects = run_tfm([*command, "--format", "json"], text)
    lists = run_tfm([*command, "--n-best", "2"], text)

    rows = [json.loads(line) for line in objects.out.split("\n")[:-1]]
    assert rows[1] == {"error": "has neither `source` nor `text`", "line": 2}
    assert [row.get("translation") for row in rows] == ["eins", None, "zwei"]
    assert [line.partition(" ||| ")[0] for line in lines_of(lists.out)] == [*"001122"]
    assert objects.code == lists.code == 3


def test_many_bad_lines_cause_few_warnings(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "--json-input", "--on-error", "report", "-q"], "?\n" * 100)

    assert (result.code, result.out) == (3, "\n" * 100)
    assert result.err.count("warning: ") == 9
    assert "standard input:9: " in result.err
    assert (
        "; other such lines are only counted\nerror: standard input: 100 lines could" in result.err
    )


def test_good_input_ends_well_with_errors_reported(model: list[str], run_tfm: RunTfm) -> None:
    result = run_tfm([*model, "--tsv", "--on-error", "report", "-q"], "one\n\ntwo\n")

    assert (result.code, result.out, result.err) == (0, "one\teins\n\ntwo\tzwei\n", "")
