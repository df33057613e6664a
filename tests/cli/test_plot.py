"""Tests of `tfm plot`: its outputs, its errors, and what it imports."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.pictures.test_curves import LINES, train_line, write


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "model", LINES)


def test_text_is_printed_without_an_output(model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["plot"])

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("model: 300 updates, 4 epochs, 30s; stopped: 300 updates made\n")


@pytest.mark.parametrize("name", ["curves.html", "curves.svg", "curves.png", "curves"])
def test_form_follows_the_name(name: str, model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["plot", "model", "--x", "epochs", "-o", name])

    assert (result.code, result.out, result.err) == (0, "", f"{name}: written\n")
    assert Path(name).exists()


def test_metrics_are_never_overwritten(model: Path, run_tfm: RunTfm) -> None:
    (model / "metrics.jsonl").rename("metrics.html")

    result = run_tfm(["plot", "metrics.html", "-o", "metrics.html", "--overwrite"])

    assert result.code == 2
    assert "which is read" in result.err


def test_foreign_file_is_kept(model: Path, run_tfm: RunTfm) -> None:
    Path("curves.svg").write_text("<svg>mine</svg>")

    result = run_tfm(["plot", "-o", "curves.svg"])

    assert result.code == 2
    assert "error: curves.svg: exists, and is not a picture of tfm\n" in result.err
    assert run_tfm(["plot", "-o", "curves.svg", "--overwrite"]).code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overwrite"], "`--overwrite` needs `--output`"),
        (["--watch", "-o", "a.svg"], "`--watch` and `--output` exclude each other"),
        (["-o", "a.gif"], "a.gif: pictures are written as .html, .svg or .png"),
    ],
)
def test_usage(flags: list[str], message: str, model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["plot", *flags])

    assert result.code == 2
    assert message in result.err


def test_missing_run_is_named(model: Path, run_tfm: RunTfm) -> None:
    result = run_tfm(["plot", "model", "other"])

    assert result.code == 3
    assert result.err.startswith("error: other: does not exist\nhint: ")


def test_text_needs_neither_torch_nor_the_extra(model: Path) -> None:
    code = (
        "import sys; sys.argv = ['tfm', 'plot']\n"
        "for name in ('torch', 'numpy', 'altair', 'vl_convert', 'rich'): sys.modules[name] = None\n"
        "from tfm_cli.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model: ")


def test_watch_ends_with_the_run(model: Path) -> None:
    with (model / ".tfm-train.lock").open("w") as lock:
        lock.write("{}")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = watching()
        assert process.stdout is not None
        assert process.stdout.readline().endswith("30s; running\n")
        write(model, [*LINES, train_line(400)])
        wait_for(process, "model: 400 updates, 5 epochs, 40s; running\n")
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "model: 400 updates, 5 epochs, 40s; ended without a stop\n" in rest


def test_watch_ends_with_130_after_the_key(model: Path) -> None:
    with (model / ".tfm-train.lock").open("w"):
        process = watching()
        wait_for(process, "model: 300 updates, 4 epochs, 30s; running\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (130, "interrupted\n")


def watching() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tfm_cli", "plot", "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    ends = time.monotonic() + 60
    while process.stdout.readline() != line:
        assert time.monotonic() < ends
