import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tfm_cli.config.settings import SearchConfig
from tfm_cli.model_directory.weights import load_model
from tfm_cli.translation.assembly import Translation
from tfm_cli.translation.shortlist import Shortlist, load_shortlist, save_shortlist
from tfm_cli.translation.translator import Translator, TranslatorOptions

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model directory to write in."""
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "model"


@pytest.fixture
def corpus(tiny_corpus: TinyCorpus) -> list[str]:
    return ["-s", tiny_corpus.path("train.en"), "-t", tiny_corpus.path("train.de")]


def test_translations_among_the_pieces_of_the_table_are_as_good(
    model: Path, corpus: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    command = ["translate", "-m", str(model), "-i", tiny_corpus.path("test.en"), "--device", "cpu"]
    table = ["--best", "2", "--frequent", "0"]

    made = run_tfm(["shortlist", "-m", str(model), *corpus, *table, "--device", "cpu"])
    actual = run_tfm([*command, "--shortlist", "--with-score"]).out.split("\n")
    expected = run_tfm([*command, "--with-score"]).out.split("\n")

    assert made.code == 0, made.err
    assert made.out == ""
    assert f"{model}/shortlist.safetensors: has " in made.err
    texts, wanted_texts = ([line.split("\t")[-1] for line in lines] for lines in (actual, expected))
    assert sum(a == b for a, b in zip(texts, wanted_texts, strict=True)) > 37  # of 40 and the end
    # The probabilities are those among fewer pieces, so they are larger.
    assert actual != expected


def test_table_can_stand_elsewhere(
    model: Path, corpus: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    table = tmp_path / "table"
    run_tfm(["shortlist", "-m", str(model), *corpus, "-o", str(table), "--device", "cpu"])

    result = run_tfm(
        ["translate", "-m", str(model), "--shortlist-file", str(table), "--device", "cpu"],
        "one two\n",
    )

    assert not (model / "shortlist.safetensors").exists()
    assert result.out == "eins zwei\n"


def test_table_of_a_model_is_not_written_through_a_link(
    model: Path, corpus: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    place, victim = model / "shortlist.safetensors", tmp_path / "victim"
    victim.write_bytes(b"theirs")
    place.symlink_to(victim)

    result = run_tfm(["shortlist", "-m", str(model), *corpus, "--device", "cpu"])
    asked = run_tfm(["shortlist", "-m", str(model), *corpus, "-o", str(place), "--device", "cpu"])

    assert result.code == 5
    assert f"error: {place}: cannot be written: it is a symbolic link\n" in result.err
    assert asked.code == 0, asked.err
    assert victim.read_bytes() != b"theirs"  # the path was typed, so the link is followed
    assert place.is_symlink()


def test_model_without_a_table_is_told_what_to_do(model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["translate", "-m", str(model), "--shortlist"], "one\n")

    assert result.code == 4
    assert result.err == (
        f"error: {model}/shortlist.safetensors: there is no such shortlist\n"
        "hint: make one with `tfm shortlist`, or name another with `--shortlist-file`\n"
    )


def test_wrong_usage_is_told_before_the_work(
    model: Path, corpus: list[str], tmp_path: Path, run_tfm: RunTfm
) -> None:
    unequal = run_tfm(["shortlist", "-m", str(model), *corpus, "-s", "more.en"])
    missing = run_tfm(["shortlist", "-m", str(tmp_path / "none"), *corpus])
    directory = run_tfm(["shortlist", "-m", str(model), *corpus, "-o", str(tmp_path)])
    absent = run_tfm(["shortlist", "-m", str(model), "-s", "no.en", "-t", "no.de"])

    assert (unequal.code, unequal.err) == (
        2, "error: source and target must be as many files, got 2 and 1\n",
    )  # fmt: skip
    assert missing.code == 4
    assert (directory.code, directory.err) == (
        5, f"error: {tmp_path}: cannot be written: it is a directory\n",
    )  # fmt: skip
    assert absent.code == 3
    assert not (model / "shortlist.safetensors").exists()


def translations(
    model: Path, lines: list[str], prefixes: list[str], table: Path | None, **search: int
) -> list[Translation]:
    config = SearchConfig(**search)  # type: ignore[arg-type]
    translator = Translator.load(
        model,
        TranslatorOptions(search=config, shortlist=table, word_scores=True, alignment=True),
        device="cpu",
        others=[model],
    )
    size = config.buffer_size
    return [
        translation
        for start in range(0, len(lines), size)
        for translation in translator.translate_window(
            lines[start : start + size], prefixes[start : start + size]
        )
    ]


def test_table_of_all_pieces_changes_nothing_to_the_bit(
    model: Path, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    tokenizers = load_model(model, CPU).tokenizers
    source_size, size = tokenizers.vocab_sizes
    none: list[list[int]] = [[]] * source_size
    table = Shortlist.of(none, none, [1] * source_size, range(size))
    save_shortlist(tmp_path / "table", table, tokenizers)
    lines = tiny_corpus.lines("test.en")[:10]
    prefixes = ["", "neun"] * 5

    result = translations(model, lines, prefixes, tmp_path / "table", n_best=2)

    assert result == translations(model, lines, prefixes, None, n_best=2)


def test_translations_with_a_table_do_not_depend_on_neighbors_or_window(
    model: Path, corpus: list[str], tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    options = ["--best", "1", "--frequent", "1", "--device", "cpu"]
    run_tfm(["shortlist", "-m", str(model), *corpus, *options])
    tokenizers = load_model(model, CPU).tokenizers
    table = load_shortlist(model / "shortlist.safetensors", tokenizers)
    (nine,), (eins,) = tokenizers.source.encode(["nine", "eins"])
    assert nine != eins
    seen = table.seen[:]
    seen[nine] = 0  # a line with it may be written with any piece
    save_shortlist(model / "table", dataclasses.replace(table, seen=seen), tokenizers)
    lines = [*tiny_corpus.lines("test.en")[:12], "", "nine", "one"]
    prefixes = ["", "acht", ""] * 5

    together = translations(model, lines, prefixes, model / "table", beam_size=2)
    alone = translations(model, lines, prefixes, model / "table", beam_size=2, buffer_size=1)

    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        assert one.candidates[0].word_scores == pytest.approx(
            other.candidates[0].word_scores, abs=1e-4
        )
