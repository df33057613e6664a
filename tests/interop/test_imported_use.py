"""An imported model is used like any other: to translate, score, tokenize and fine-tune."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus, invoke
from tests.runs import metrics, write_part
from tfm_cli.model_directory.weights import load_model

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpora" / "multi30k"


@pytest.fixture(scope="module")
def imported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained model that was exported to Hugging Face and imported like a foreign one."""
    directory = tmp_path_factory.mktemp("hugging-face")
    exported = invoke(["export", str(tiny_model), "--to", "hf", "--output", str(directory / "hf")])
    assert exported.code == 0, exported.err
    as_foreign(directory / "hf")
    result = invoke(["import", str(directory / "hf"), "--output", str(directory / "model")])
    assert result.code == 0, result.err
    return directory / "model"


def as_foreign(directory: Path) -> None:
    """Remove the traces of tfm from an export, which keeps Marian's layout."""
    path = directory / "config.json"
    config = json.loads(path.read_bytes())
    config.pop("tfm_positions", None)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_imported_model_translates_as_the_original(
    imported: Path, tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm
) -> None:
    text = "".join(f"{line}\n" for line in tiny_corpus.lines("test.en"))

    result = run_tfm(["translate", "--model", str(imported), "--n-best", "2"], text)

    expected = run_tfm(["translate", "--model", str(tiny_model), "--n-best", "2"], text)
    assert load_model(imported, torch.device("cpu")).config.model.positions == "sinusoidal_halves"
    assert result.code == 0, result.err
    assert [line.split(" ||| ")[1] for line in result.out.split("\n")[:-1]] == [
        line.split(" ||| ")[1] for line in expected.out.split("\n")[:-1]
    ]


def test_imported_model_is_scored(imported: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm) -> None:
    result = run_tfm(
        ["evaluate", tiny_corpus.path("test.de"), "--model", str(imported),
         "--source", tiny_corpus.path("test.en"), "--score-only"]
    )  # fmt: skip

    assert result.code == 0, result.err
    assert float(result.out) > 95


def test_imported_tokenizer_encodes_and_decodes(imported: Path, run_tfm: RunTfm) -> None:
    pieces = run_tfm(["tokenize", "encode", "--model", str(imported)], "seven one\n")
    text = run_tfm(["tokenize", "decode", "--model", str(imported)], pieces.out)

    assert text.out == "seven one\n"


def test_fine_tuning_starts_from_the_imported_models_loss(
    imported: Path, tiny_model: Path, tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    own = metrics(tiny_model)[-1]["loss"]
    text = write_part(tiny_corpus, tmp_path, pairs=100, valid=40)

    result = run_tfm(
        ["train", *text, "-o", str(tmp_path / "tuned"), "--pretrained-model", str(imported),
         "--max-updates", "2", "--lr", "1e-6", "--disp-freq", "1", "--device", "cpu"]
    )  # fmt: skip

    assert result.code == 0, result.err
    first, _, last = metrics(tmp_path / "tuned")
    assert last["loss"] == pytest.approx(own, rel=1e-2)
    assert first["loss"] == pytest.approx(own, abs=0.1)  # of one batch


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"Multi30k is not at {CORPUS.parent.name}/")
def test_fine_tuning_an_imported_model_lowers_its_own_loss(tmp_path: Path, run_tfm: RunTfm) -> None:
    """Fine-tune on 2,000 pairs of Multi30k, after training on 4,000 others."""
    sides = {
        side: (CORPUS / f"train.{side}").read_text(encoding="utf-8").split("\n")
        for side in ("en", "de")
    }
    for side, lines in sides.items():
        (tmp_path / f"first.{side}").write_text("\n".join([*lines[:4000], ""]), encoding="utf-8")
        (tmp_path / f"next.{side}").write_text("\n".join([*lines[4000:6000], ""]), encoding="utf-8")
        valid_lines = (CORPUS / f"val.{side}").read_text(encoding="utf-8").split("\n")[:300]
        (tmp_path / f"valid.{side}").write_text("\n".join([*valid_lines, ""]), encoding="utf-8")
    valid = ["-vs", str(tmp_path / "valid.en"), "-vt", str(tmp_path / "valid.de"),
             "--device", "cpu", "--cpu-threads", "1", "--valid-metrics", "loss"]  # fmt: skip

    def train(text: str, output: str, *more: str) -> list[float]:
        """Return the validation losses of a run."""
        text = str(tmp_path / text)
        result = run_tfm(
            ["train", "-s", f"{text}.en", "-t", f"{text}.de", *valid,
             "-o", str(tmp_path / output), *more]
        )  # fmt: skip
        assert result.code == 0, result.err
        return [line["loss"] for line in metrics(tmp_path / output) if line["event"] == "valid"]

    original = train(
        "first", "ours", "--vocab-size", "1500", "--max-tokens", "1024", "--max-updates", "120",
        "--valid-freq", "120", "--lr-warmup", "100", "--set", "training.ema_decay=0.98",
    )[-1]  # fmt: skip
    assert (
        run_tfm(["export", str(tmp_path / "ours"), "--to", "hf", "-o", str(tmp_path / "hf")]).code
        == 0
    )
    as_foreign(tmp_path / "hf")
    assert run_tfm(["import", str(tmp_path / "hf"), "-o", str(tmp_path / "imported")]).code == 0

    tuning = ["--pretrained-model", str(tmp_path / "imported"), "--set", "training.ema_decay=0"]
    untouched = train(
        "next", "untouched", *tuning, "--lr", "1e-9", "--max-updates", "1", "--valid-freq", "1"
    )[-1]
    tuned = train(
        "next", "tuned", *tuning, "--lr", "5e-4", "--lr-warmup", "20", "--max-updates", "30",
        "--valid-freq", "15", "--max-tokens", "1024",
    )  # fmt: skip

    assert untouched == pytest.approx(original, abs=0.002)
    assert tuned[-1] < untouched - 0.05
    assert tuned[0] < untouched + 0.1  # and it never was an untrained model
