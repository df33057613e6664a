"""Training that starts from the weights of another model."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tests.runs import left_behind, metrics, write_part
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.model_directory.weights import load_model, weights_facts


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    return write_part(tiny_corpus, tmp_path, pairs=20, valid=2)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "model"


def fine_tuning(text: list[str], output: Path, pretrained: Path, *more: str) -> list[str]:
    flags = ["-o", str(output), "--pretrained-model", str(pretrained), "--max-updates", "2"]
    flags += ["--lr", "1e-6", "--disp-freq", "1", "--device", "cpu"]
    return ["train", *text, *flags, *more]


def test_fine_tuning_starts_with_the_weights_and_the_tokenizer(
    output: Path, tiny_corpus: TinyCorpus, tiny_model: Path, run_tfm: RunTfm
) -> None:
    before = weights_facts(tiny_model)
    pretrained = load_model(tiny_model, torch.device("cpu"))

    result = run_tfm(fine_tuning(tiny_corpus.train_arguments(), output, tiny_model))

    assert result.code == 0, result.err
    assert f"starting from the weights and the tokenizers of `{tiny_model}`" in result.err
    first, _, last = metrics(output)
    assert before is not None
    assert last["loss"] == pytest.approx(before.scores["loss"], rel=1e-2)
    assert first["loss"] == pytest.approx(before.scores["loss"], abs=0.1)  # of one batch
    tuned = load_model(output, torch.device("cpu"))
    assert tuned.tokenizers.files() == pretrained.tokenizers.files()
    assert tuned.config.model == pretrained.config.model
    assert tuned.config.training.pretrained_model == str(tiny_model)
    weights = tuned.transformer.state_dict()
    for name, weight in pretrained.transformer.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)  # the rate is tiny


def test_unknown_tokens_of_the_training_text_are_logged_once_with_file_and_line(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    path = Path(text[3])
    lines = path.read_text(encoding="utf-8").split("\n")
    assert "einhundert" not in " ".join(lines)
    lines[4] = "einhundert zwei"
    path.write_text("\n".join(lines), encoding="utf-8")
    (unknown, pieces) = (1, sum(len(line.split()) for line in lines))

    result = run_tfm(fine_tuning(text, output, tiny_model))

    assert result.code == 0, result.err
    matching = [line for line in result.err.split("\n") if "are unknown" in line]
    assert matching == [
        f"warning: training text: {unknown} of {pieces} target tokens are unknown "
        f"({100 * unknown / pieces:.1f} %), the tokenizer changes 1 of 20 target lines (5.0 %), "
        f"first {path}:5: `einhundert`; the vocabulary of a trained model cannot grow: replace "
        "this text on both sides, drop its pairs, or train a new model"
    ]


def test_fine_tuning_that_was_stopped_is_resumed(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    whole = output.parent / "whole"
    run_tfm(fine_tuning(text, output, tiny_model, "--dropout", "0.3"))

    more = ["--dropout", "0.3", "--max-updates", "4"]
    result = run_tfm(fine_tuning(text, output, tiny_model, *more))
    run_tfm(fine_tuning(text, whole, tiny_model, *more))

    assert result.code == 0, result.err
    assert left_behind(output) == left_behind(whole)
    assert load_config(output).settings.model.dropout == 0.3


def test_fine_tuning_that_began_needs_the_pretrained_model_no_more(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    pretrained = Path(shutil.copytree(tiny_model, output.parent / "pretrained"))
    run_tfm(fine_tuning(text, output, pretrained))
    shutil.rmtree(pretrained)

    result = run_tfm(fine_tuning(text, output, pretrained, "--max-updates", "3"))

    assert result.code == 0, result.err
    assert "resuming after update 2" in result.err


def test_pretrained_model_can_be_named_in_a_file(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'[training]\npretrained_model = "{tiny_model}"\nmax_updates = 1\n')

    result = run_tfm(["train", *text, "-o", str(output), "-c", str(file), "--device", "cpu"])

    assert result.code == 0, result.err
    assert load_config(output).settings.model == load_config(tiny_model).settings.model


def test_pretrained_model_of_another_shape_is_refused_with_all_differences(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    more = ["--set", "model.width=64", "--set", "model.norm=pre"]

    result = run_tfm(fine_tuning(text, output, tiny_model, *more))

    assert result.code == 2
    assert result.err == (
        f"error: {tiny_model}: the settings ask for another shape than its model\n"
        "  model.width: 32 → 64\n"
        "  model.norm: post → pre\n"
        "hint: leave these settings out: they are taken from the pretrained model\n"
    )
    assert not output.exists()


def test_missing_pretrained_model_is_refused(
    text: list[str], output: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(fine_tuning(text, output, output.parent / "none"))

    assert result.code == 4
    assert "none: there is no such model directory" in result.err


def test_own_tokenizer_beside_a_pretrained_model_is_refused(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm(fine_tuning(text, output, tiny_model, "--tokenizer", "own.model"))

    assert result.code == 2
    assert "--tokenizer: must not be set with --pretrained-model" in result.err


def test_warm_up_is_short_unless_it_is_given(
    text: list[str], tiny_model: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    command = fine_tuning(text, tmp_path / "plain", tiny_model, "--preset", "base")
    given = fine_tuning(text, tmp_path / "given", tiny_model, "--lr-warmup", "30")

    results = [run_tfm(command), run_tfm(given), run_tfm(command)]

    assert [result.code for result in results] == [0, 0, 0], results[2].err
    rates = {name: metrics(tmp_path / name)[1]["learn_rate"] for name in ("plain", "given")}
    assert load_config(tmp_path / "plain").settings.training.lr_warmup == 200
    assert rates == pytest.approx({"plain": 1e-6 * 2 / 200, "given": 1e-6 * 2 / 30})


def test_settings_without_effect_are_named(
    text: list[str], output: Path, tiny_model: Path, run_tfm: RunTfm
) -> None:
    more = ["--vocab-size", "300", "--set", "tokenizer.model_type=bpe", "--preset", "small"]

    result = run_tfm(fine_tuning(text, output, tiny_model, *more))
    plain = run_tfm(fine_tuning(text, output.parent / "plain", tiny_model))
    resumed = run_tfm(["train", "-o", str(output), "--max-updates", "3"])

    assert result.code == 0, result.err
    assert (
        "warning: `--vocab-size`, `tokenizer.model_type` are ignored: the tokenizer is that of "
        f"`{tiny_model}`\n" in result.err
    )
    assert f"preset `small`: its recipe is used, the shape is that of `{tiny_model}`" in result.err
    assert "\nmodel: 1+1 layers, width 32, " in result.err
    assert resumed.code == 0, resumed.err
    assert "ignored" not in plain.err + resumed.err
