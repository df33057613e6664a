"""`tfm info`: its text and JSON, and its errors."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tfm_cli.console import display_width
from tfm_cli.model_directory.description import describe, to_json


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "model")
    return Path("model")


def test_json_has_all_facts(model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["info", "model", "--format", "json"])

    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == to_json(describe(model))


def test_text_has_the_facts(model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["info", "model"])

    described = describe(model)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(
        "model               model\nformat              3, written by tfm "
    )
    assert f"\nparameters          {described.parameters['total']:,}\n" in result.out
    assert "\ncan be resumed      from update 300\n" in result.out
    assert all(f"    sha256 {file.sha256}\n" in result.out for file in described.files)
    joined = "".join(result.out.split())
    assert all(signature in joined for signature in described.training.signatures.values())
    versions = {
        part
        for signature in described.training.signatures.values()
        for part in signature.split("|")
        if part.startswith("version:")
    }
    assert all(part in result.out for part in versions)  # a signature is not cut inside a part


@pytest.mark.parametrize("name", ["x" * 200, "文" * 80, "é\n" * 30], ids=["long", "wide", "odd"])
def test_no_line_is_wider_than_80_columns(name: str, model: Path, run_tfm: RunTfm) -> None:
    shutil.copytree(model, name)

    result = run_tfm(["info", name])

    assert result.code == 0, result.err
    assert max(map(display_width, result.out.split("\n"))) <= 80


def test_damaged_model_is_an_error(model: Path, run_tfm: RunTfm) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])

    result = run_tfm(["info", "model"])

    assert (result.code, result.out) == (4, "")
    assert result.err.startswith("error: model/model.safetensors: is damaged")


def test_missing_model_is_an_error(model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["info", "other"])

    assert (result.code, result.out) == (4, "")
    assert "error: other: there is no such model directory\n" in result.err
