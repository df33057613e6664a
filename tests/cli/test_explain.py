"""`tfm explain`: what it writes, and what it refuses."""

import json
import time
from pathlib import Path

import pytest

from tests.conftest import RunTfm

SENTENCE = "one three five"


def test_text_shows_tokens_and_a_map(run_tfm: RunTfm, tiny_model: Path) -> None:
    result = run_tfm(["explain", SENTENCE, "--model", str(tiny_model)])

    assert result.code == 0
    assert result.out.startswith(f"source  {SENTENCE}\ntarget  eins drei fünf\n")
    assert "encoder-decoder attention, layer" in result.out
    assert "\x1b" not in result.out
    assert result.err == ""


@pytest.mark.parametrize("argument", ["-", "one\n\ntwo six"])
def test_several_lines_are_explained_one_by_one(
    run_tfm: RunTfm, tiny_model: Path, argument: str
) -> None:
    arguments = ["explain", argument, "-m", str(tiny_model)]

    text = run_tfm(arguments, "one\n\ntwo six\n")
    numbers = run_tfm([*arguments, "--format", "json"], "one\n\ntwo six\n")

    assert text.out.count("source  ") == 2
    assert [json.loads(line)["sentence"] for line in numbers.out.splitlines()] == ["one", "two six"]


def test_json_has_the_chosen_layer_and_head_and_the_given_target(
    run_tfm: RunTfm, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "numbers.json"

    result = run_tfm(
        ["explain", SENTENCE, "-m", str(tiny_model), "--target", "eins </script>", "--layer", "1",
         "--head", "2", "--beam", "2", "--format", "json", "-o", str(output)],
    )  # fmt: skip

    assert (result.code, result.out) == (0, "")
    numbers = json.loads(output.read_text(encoding="utf-8"))
    assert (numbers["layer"], numbers["head"]) == (0, 1)
    assert numbers["target_text"] == "eins </script>"
    assert numbers["translation"] == "eins drei fünf"
    assert numbers["search"]["comparison"]["beam_size"] == 2
    assert numbers["search"]["example_note"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "`SENTENCE` is missing"),
        (["  "], 3, "the sentence is blank"),
        (["one", "--layer", "9"], 2, "`--layer 9`: encoder and decoder have"),
        (["one", "--head", "9"], 2, "choose a head from 1 to 2"),
        (["one", "--head", "0"], 2, "`--head` must be at least 1"),
        (["one\ntwo", "--target", "eins"], 2, "`--target` needs one sentence, got 2 lines"),
        (["one\ntwo", "--contrast", "six"], 2, "`--contrast` needs one sentence, got 2 lines"),
        (["one", "--contrast", ""], 3, "`--contrast` is blank"),
        (["one", "--contrast", "one"], 2, "both sentences have the same translation, `eins`"),
        (["one\ntwo", "-o", "page.html"], 2, "a page shows one sentence, got 2 lines"),
        (["one", "-o", "page.pdf"], 2, "page.pdf"),
        (["one", "--format", "xml"], 2, "--format"),
        (["--cost", "--target", "eins"], 2, "`--target` needs one sentence, got 0 lines"),
        (["--cost", "--cost-seconds", "0"], 2, "`--cost-seconds` must be at least 1"),
        (["one " * 600], 3, "the sentence has"),
    ],
)
def test_refused(
    run_tfm: RunTfm, tiny_model: Path, arguments: list[str], code: int, words: str
) -> None:
    result = run_tfm(["explain", *arguments, "--model", str(tiny_model)])

    assert result.code == code
    assert words in result.err
    assert result.out == ""


def test_a_directory_without_a_model_is_refused(run_tfm: RunTfm, tmp_path: Path) -> None:
    result = run_tfm(["explain", "one", "--model", str(tmp_path)])

    assert result.code == 4


def test_control_characters_of_a_sentence_do_not_reach_the_terminal(
    run_tfm: RunTfm, tiny_model: Path
) -> None:
    sentence = "one \x1b[31m\u202e two \udcff"

    result = run_tfm(["explain", sentence, "-m", str(tiny_model)])

    assert result.code == 0
    assert not {"\x1b", "\u202e"} & set(result.out)
    assert "\\u001b" in result.out


def test_text_takes_less_than_a_second_beyond_loading(tiny_model: Path) -> None:
    import torch

    from tfm_cli.model_directory.weights import load_model
    from tfm_cli.pictures.explaining import explain
    from tfm_cli.pictures.terminal import attention_map, explanation_text

    model = load_model(tiny_model, torch.device("cpu"))
    start = time.process_time()
    explanation = explain(model, "one two three four five six seven eight nine")
    shown = attention_map(explanation, "cross", None, None)
    text = explanation_text(explanation, shown, width=80, color=False)

    assert time.process_time() - start < 1
    assert text.count("\n") > 10


def test_cost_is_shown_without_a_sentence(run_tfm: RunTfm, tiny_model: Path) -> None:
    arguments = ["explain", "--cost", "--cost-seconds", "1", "-m", str(tiny_model)]

    text = run_tfm(arguments)
    numbers = json.loads(run_tfm([*arguments, "--format", "json"]).out)

    assert text.code == 0
    assert text.out.startswith("Self-attention against recurrence\nmachine: ")
    assert f"command: tfm explain --cost --model {tiny_model} --cost-seconds 1 (" in text.out
    assert text.err == "measuring for about 1 second\n"
    assert list(numbers) == ["cost"]
    assert numbers["cost"]["shape"]["width"] == 32


def test_cost_follows_the_explanation(run_tfm: RunTfm, tiny_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["explain", SENTENCE, "--cost", "--cost-seconds", "1", "-m", str(tiny_model)]

    text = run_tfm(arguments)
    numbers = json.loads(run_tfm([*arguments, "--format", "json"]).out)
    result = run_tfm([*arguments, "-o", str(page)])

    assert text.out.startswith(f"source  {SENTENCE}\n")
    assert "\n\nSelf-attention against recurrence\n" in text.out
    assert numbers["sentence"] == SENTENCE
    assert numbers["cost"]["machine"]["threads"] == 1
    assert result.code == 0, result.err
    assert "One training update" in page.read_text("utf-8")


def test_page_without_cost_names_the_command_that_measures(
    run_tfm: RunTfm, tiny_model: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"

    result = run_tfm(["explain", SENTENCE, "-m", str(tiny_model), "-o", str(page)])

    assert result.code == 0, result.err
    text = page.read_text("utf-8")
    assert f"tfm explain --cost --model {tiny_model}" in text
    assert "arXiv:1902.10186" in text


def test_contrast_shows_what_carries_the_difference(
    run_tfm: RunTfm, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["explain", SENTENCE, "-m", str(tiny_model), "--contrast", "one six five"]

    text = run_tfm(arguments).out
    made = json.loads(run_tfm([*arguments, "--format", "json"]).out)["contrast"]

    assert "contrast  one six five\nafter `eins`: ▁drei here, ▁sechs there; their log-odds" in text
    changed = next(line for line in text.splitlines() if "▁three → ▁six" in line)
    assert changed.split()[4] == "100"  # before the first layer, nothing else differs
    assert made["log_odds"] > 0 > made["other_log_odds"]
    assert [len(row) for row in made["shares"]] == [len(made["source"]["pieces"])] * len(
        made["shares"]
    )
