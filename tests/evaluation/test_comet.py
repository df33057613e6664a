import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import fake_comet
from tfm_cli.errors import ConfigError, ModelError, ResourceError, TfmError
from tfm_cli.evaluation.comet import (
    PROGRAM,
    CometModel,
    CometScores,
    comet_scores,
    find_model,
    find_python,
    visible_gpu,
)

SOURCE = ["ein Haus", " ", '\U0001f600 {"a": 1}\u2028x']
REFERENCE = ["a small house", "", "all is \u2028 well"]
HYPOTHESES = [["a house", "", "well"], ["a small house", "x", "all is well"]]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fake_comet.environment(tmp_path_factory.mktemp("comet")))


def scores(python: str, model: Path) -> CometScores:
    return comet_scores(python, find_model(model), HYPOTHESES, SOURCE, REFERENCE)


def test_scores_are_those_of_the_package(python: str, tmp_path: Path) -> None:
    found = scores(python, fake_comet.model(tmp_path / "model"))

    for segments, mean, lines in zip(found.segments, found.systems, HYPOTHESES, strict=True):
        expected = list(map(fake_comet.score, SOURCE, lines, REFERENCE))
        assert segments == pytest.approx(expected)
        assert mean == pytest.approx(sum(expected) / len(expected))
    assert found.version == fake_comet.VERSION
    assert found.uses_references


def test_the_other_python_imports_nothing_from_here(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("comet.py", "torch.py", "json.py"):
        Path(name).write_text("raise SystemExit(9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    found = scores(python, fake_comet.model(tmp_path / "model"))

    assert len(found.systems) == 2


def test_program_needs_no_newer_python_than_3_8() -> None:
    import ast

    ast.parse(PROGRAM.read_text(), feature_version=(3, 8))


def test_model_of_a_cache_has_its_name_revision_and_license(tmp_path: Path) -> None:
    folder = tmp_path / "models--Unbabel--wmt22-comet-da" / "snapshots" / ("f49d" * 10)

    model = find_model(fake_comet.model(folder))

    assert model == CometModel(
        name="Unbabel/wmt22-comet-da",
        revision="f49df49df49d",
        kind="regression_metric",
        encoder="xlm-roberta-large",
        license="apache-2.0",
        checkpoint=folder / "checkpoints" / "model.ckpt",
    )


def test_model_without_a_card_has_no_license(tmp_path: Path) -> None:
    model = fake_comet.model(tmp_path / "own")
    (model / "README.md").unlink()

    found = find_model(model)

    assert (found.name, found.license, found.revision) == ("own", "", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: there is no such directory"),
        ("file", "file: is not a directory"),
        ("empty", "empty: has no checkpoint, expected checkpoints/model.ckpt"),
        ("two", "two: has 2 checkpoints, expected checkpoints/model.ckpt"),
        ("bare", "bare/hparams.yaml: does not exist, or has no `class_identifier`"),
    ],
)
def test_unusable_model_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for one, checkpoints in (("two", ("a.ckpt", "b.ckpt")), ("bare", ("model.ckpt",))):
        (tmp_path / one / "checkpoints").mkdir(parents=True)
        for checkpoint in checkpoints:
            (tmp_path / one / "checkpoints" / checkpoint).touch()

    with pytest.raises(ModelError) as caught:
        find_model(tmp_path / name)

    assert str(caught.value) == f"{tmp_path}/{message}"
    assert caught.value.hint


def test_unusable_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()

    for name, reason in (
        ("nowhere", "does not exist"),
        ("text", "cannot be executed"),
        ("", "is a directory, expected a Python"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            find_python(str(tmp_path / name))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("orders", "kind", "message"),
    [
        ('{"load": "no tokenizer\\n of it"}', ModelError, "COMET cannot load it: OSError: no tok"),
        ("torn", ModelError, "COMET cannot load it: JSONDecodeError"),
        ('{"predict": "raise"}', ResourceError, "COMET failed: RuntimeError: CUDA out of memory"),
        ('{"predict": "exit"}', ResourceError, "ended with exit code 3: out of patience"),
        ('{"predict": "kill"}', ResourceError, "was killed by signal 9"),
        ('{"predict": "nan"}', ResourceError, "gave no valid scores: segment 2 has .*nan"),
        ('{"predict": "short"}', ResourceError, "no valid scores: 2 scores for 3 segments"),
        ('{"predict": "mean"}', ResourceError, "which is not the mean of its segments"),
    ],
)
def test_failure_is_reported(
    orders: str, kind: type[TfmError], message: str, python: str, tmp_path: Path
) -> None:
    model = fake_comet.model(tmp_path / "model", orders)

    with pytest.raises(kind, match=message):
        scores(python, model)


def test_environment_without_comet_has_a_hint(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    python = str(tmp_path / "bare" / "bin" / "python")

    with pytest.raises(ResourceError, match="has no package unbabel-comet") as caught:
        scores(python, fake_comet.model(tmp_path / "model"))

    assert caught.value.hint == f"install it with `{python} -m pip install unbabel-comet`"


def test_comet_is_not_to_be_installed_where_tfm_is(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="has no package unbabel-comet") as caught:
        scores(sys.executable, fake_comet.model(tmp_path / "model"))

    assert str(caught.value.hint).startswith("`python3 -m venv comet`")


def test_package_that_cannot_be_imported_gives_its_reason(tmp_path: Path) -> None:
    python = fake_comet.environment(tmp_path / "old", package="import torchmetrics_of_old")

    with pytest.raises(ResourceError, match=r"cannot import unbabel-comet: .*torchmetrics_of_old"):
        scores(str(python), fake_comet.model(tmp_path / "model"))


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("exec cat >/dev/null", "expected a JSON object, found nothing"),
        ("echo hello", "expected a JSON object, found `hello"),
        ("echo '{}'", "expected `segments`"),
        ("exec yes", "bytes that begin with `y"),
    ],
)
def test_program_that_is_no_python_is_reported(script: str, found: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

    with pytest.raises(ResourceError, match=r"gave no valid scores: .*" + found):
        scores(str(program), fake_comet.model(tmp_path / "model"))


def test_messages_of_the_other_python_are_passed_on_if_wanted(python: str, tmp_path: Path) -> None:
    model = find_model(fake_comet.model(tmp_path / "model"))

    with (tmp_path / "stderr").open("wb") as stream:
        comet_scores(python, model, HYPOTHESES, SOURCE, REFERENCE, device="cuda", stderr=stream)

    assert (tmp_path / "stderr").read_text().count("GPU available: False 16 1 True\n") == 2


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_process_ends_with_this_one(number: int, python: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    model = fake_comet.model(
        tmp_path / "model", json.dumps({"predict": "hang", "pid": str(pid_file)})
    )
    (tmp_path / "text").write_text("a\n")
    arguments = ["text", "-i", "text", "--source", "text", "--comet-python", python]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfm_cli", "evaluate", *arguments, "--comet-model", model],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    guard = threading.Timer(60, process.kill)
    guard.start()
    while not pid_file.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.1)
    pid = int(pid_file.read_text())

    process.send_signal(number)
    _, stderr = process.communicate()
    guard.cancel()
    deadline = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not _is_running(pid)
    assert "Traceback" not in stderr
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == expected[signal.Signals(number)]


@pytest.mark.parametrize(
    ("index", "visible", "expected"),
    [(1, None, "1"), (1, "2,3", "3"), (0, "GPU-a, GPU-b", "GPU-a"), (2, "2,3", ""), (0, "", "")],
)
def test_gpu_is_one_of_those_that_are_visible(
    index: int, visible: str | None, expected: str
) -> None:
    assert visible_gpu(index, visible) == expected
