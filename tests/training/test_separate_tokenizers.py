"""A model with one tokenizer and one vocabulary for each language, from text to translation."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_SHAPE, RunTfm, TinyCorpus
from tfm_cli.model_directory.weights import load_model

pytestmark = pytest.mark.slow

APART = ["--set", "tokenizer.joint=false", "--set", "model.tied_embeddings=2"]


@pytest.fixture(scope="module")
def model(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import invoke

    directory = tmp_path_factory.mktemp("apart") / "model"
    arguments = [
        "train", *tiny_corpus.train_arguments(), "--output", str(directory), *TINY_SHAPE, *APART,
        "--set", "model.output_bias=true", "--set", "model.activation=swish",
        "--set", "model.positions=sinusoidal_halves",
        "--max-updates", "300", "--max-tokens", "512", "--lr", "5e-3", "--lr-warmup", "50",
        "--valid-freq", "100", "--save-freq", "100", "--dropout", "0.0", "--device", "cpu",
        "--set", "training.ema_decay=0.9", "--cpu-threads", "1",
        "--precision", "fp32",  # alike on every processor
    ]  # fmt: skip
    result = invoke(arguments)
    assert result.code == 0, result.err
    return directory


def test_text_is_learned(model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm) -> None:
    result = run_tfm(
        ["evaluate", tiny_corpus.path("test.de"), "--model", str(model),
         "--source", tiny_corpus.path("test.en"), "--score-only"]
    )  # fmt: skip

    assert result.code == 0, result.err
    assert float(result.out) > 95


def test_its_vocabularies_are_two(model: Path) -> None:
    loaded = load_model(model, torch.device("cpu"))

    source, target = loaded.tokenizers.source, loaded.tokenizers.target
    assert "▁seven" in source.pieces
    assert "▁seven" not in target.pieces
    assert "▁sieben" in target.pieces
    assert "▁sieben" not in source.pieces
    assert sorted(path.name for path in model.glob("*.model")) == ["source.model", "target.model"]
    bias = loaded.transformer.output_bias
    assert bias is not None
    assert bool(bias.any())  # it was learned


def test_each_side_is_cut_by_its_own_tokenizer(model: Path, run_tfm: RunTfm) -> None:
    def pieces(command: str, line: str, *side: str) -> str:
        return run_tfm(["tokenize", command, "--model", str(model), *side], f"{line}\n").out

    assert pieces("encode", "seven") == "▁seven\n"
    assert pieces("encode", "sieben", "--side", "target") == "▁sieben\n"
    assert pieces("decode", "▁sieben") == "sieben\n"
    assert pieces("decode", "▁seven", "--side", "source") == "seven\n"


def test_its_tokenizers_serve_another_run(
    model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    shape = [*TINY_SHAPE[4:], "--max-updates", "1", "--device", "cpu", "--tokenizer", str(model)]
    command = ["train", *tiny_corpus.train_arguments(), *shape, "--output", str(tmp_path / "new")]

    refused = run_tfm(command)
    result = run_tfm([*command, "--set", "model.tied_embeddings=0"])

    assert refused.code == 2
    assert "the sides have different vocabularies, which the model would share" in refused.err
    assert "set `model.tied_embeddings` to 2 or 0" in refused.err
    assert result.code == 0, result.err
    for name in ("source.model", "target.model"):
        assert (tmp_path / "new" / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("tied", ["1", "3"])
def test_two_vocabularies_cannot_share_embeddings(
    tied: str, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    result = run_tfm(
        ["train", *tiny_corpus.train_arguments(), "--output", str(tmp_path / "new"),
         "--set", "tokenizer.joint=false", "--set", f"model.tied_embeddings={tied}"]
    )  # fmt: skip

    assert result.code == 2
    assert f"model.tied_embeddings: must be 2 or 0 without tokenizer.joint, got {tied}" in (
        result.err
    )
    assert not (tmp_path / "new").exists()
