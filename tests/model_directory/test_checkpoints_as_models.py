"""A checkpoint of a run is a model: it translates, with what the run above it has."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunTfm, invoke
from tfm_cli.errors import ModelError
from tfm_cli.files.safetensors_file import SafetensorsFile
from tfm_cli.model_directory.config_file import weights_identity
from tfm_cli.model_directory.weights import load_model
from tfm_cli.native import library
from tfm_cli.native.model import NativeModel
from tfm_cli.training import checkpoint

needs_native = pytest.mark.skipif(not library.available(), reason="the native engine is not built")
LINES = "one two\nthree\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four updates with a checkpoint every two: `averaged`, and `plain` without EMA."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "a").write_text("one two\nthree four\n" * 40)
    (folder / "b").write_text("eins zwei\ndrei vier\n" * 40)
    for name, decay in (("averaged", "0.9"), ("plain", "0")):
        result = invoke(
            ["train", "-s", str(folder / "a"), "-t", str(folder / "b"), "-o", str(folder / name),
             "--vocab-size", "300", "--set", "model.encoder_layers=1", "--device", "cpu",
             "--set", "model.decoder_layers=1", "--set", "model.width=16", "--max-updates", "4",
             "--save-freq", "2", "--set", f"training.ema_decay={decay}", "--cpu-threads", "1",
             "-vs", str(folder / "a"), "-vt", str(folder / "b"), "--valid-freq", "4"],
        )  # fmt: skip
        assert result.code == 0, result.err
    return folder


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("update-*"))


@pytest.mark.parametrize("name", ["averaged", "plain"])
def test_weights_are_those_that_validation_uses(name: str, runs: Path) -> None:
    import torch

    for path in checkpoints(runs / name):
        saved = checkpoint.read(path)
        expected = saved.average or saved.weights
        state = load_model(path, torch.device("cpu")).transformer.state_dict()

        assert bool(saved.average) == (name == "averaged")
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())


@needs_native
@pytest.mark.parametrize("name", ["averaged", "plain"])
def test_last_checkpoint_translates_as_the_model_of_the_run(
    name: str, runs: Path, run_tfm: RunTfm
) -> None:
    """The run validates once, after its last update, so both have the same weights."""
    first, last = checkpoints(runs / name)

    def scored(model: Path) -> str:
        result = run_tfm(["translate", "-q", "--with-score", "-m", str(model)], LINES)
        assert result.code == 0, result.err
        return result.out

    assert scored(last) == scored(runs / name)
    assert scored(first) != scored(last)


def test_name_may_be_relative_to_the_checkpoint(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(checkpoints(runs / "plain")[0])

    assert load_model(Path(), torch.device("cpu")).config.model.width == 16


@needs_native
@pytest.mark.parametrize("what", ["changed", "manifest", "missing", "alone"])
def test_checkpoint_that_is_not_what_was_saved_is_refused(
    what: str, runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "averaged", run)
    path = checkpoints(run)[0]
    if what == "changed":
        content = bytearray((path / "average.safetensors").read_bytes())
        content[-1] ^= 1
        (path / "average.safetensors").write_bytes(content)
        message = "average.safetensors: the weights are not those that were saved"
    elif what == "manifest":
        (path / "manifest.json").write_text(json.dumps({"sha256": 5}))
        message = "it has no hashes of its weights"
    elif what == "missing":
        (path / "average.safetensors").unlink()
        message = "has no `average.safetensors`"
    else:
        path = path.rename(tmp_path / path.name)
        message = "is a checkpoint outside its run"

    with pytest.raises(ModelError, match=message):
        NativeModel.load(path)


@pytest.mark.parametrize("how", ["native", "torch", "translate", "score"])
def test_weights_of_a_checkpoint_are_hashed_once(
    how: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    path = checkpoints(runs / "averaged")[0]
    num_bytes = (path / "average.safetensors").stat().st_size
    hashed: list[str] = []
    for name in ("sha256_of_file", "hash_from_disk", "sha256"):
        original = getattr(SafetensorsFile, name)

        def counted(
            file: SafetensorsFile, *rest: Any, name: str = name, original: Any = original
        ) -> str:
            if file._identity.size == num_bytes:
                hashed.append(name)
            return str(original(file, *rest))

        monkeypatch.setattr(SafetensorsFile, name, counted)

    if how == "native":
        if not library.available():
            pytest.skip("the native engine is not built")
        NativeModel.load(path)
    elif how == "torch":
        load_model(path, torch.device("cpu"))
    elif how == "score":
        pair = ["-s", str(runs / "a"), "-t", str(runs / "b"), "--quiet"]
        assert invoke(["score", "-m", str(path), *pair]).code == 0
    else:
        assert invoke(["translate", "-q", "-m", str(path)], LINES).code == 0

    assert hashed == ["sha256_of_file"]


def test_checkpoints_of_a_run_are_different_models(runs: Path) -> None:
    """By their identity an output is never resumed with another checkpoint."""
    models = [*checkpoints(runs / "averaged"), *checkpoints(runs / "plain")]

    assert len({weights_identity(path) for path in models}) == len(models) == 4


@needs_native
def test_nothing_that_a_checkpoint_needs_is_overwritten(
    runs: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "averaged", run)
    path = checkpoints(run)[0]
    (tmp_path / "in").write_text(LINES)
    needed = [
        path / "manifest.json", path / "average.safetensors", path / "model.safetensors",
        run / "config.json", run / "tokenizer.model",
    ]  # fmt: skip
    before = [file.read_bytes() for file in needed]

    for file in needed:
        result = run_tfm(
            ["translate", "-m", str(path), "-i", str(tmp_path / "in"), "-o", str(file)]
        )
        assert result.code == 2, file
        assert "is the same file as" in result.err

    assert [file.read_bytes() for file in needed] == before
