"""A translation that is killed, again and again, ends as the one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import RunTfm
from tests.tiers import representative

pytestmark = pytest.mark.slow

PATIENCE = 120  # seconds, for a machine that has much else to do
# Progress is kept at once, however fast a tiny model is.
EAGER = """
import tfm_cli.translation.resumable_output
from tfm_cli.cli import main
tfm_cli.translation.resumable_output.COMMIT_SECONDS = 0.0
main()
"""


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "in").write_bytes(b"".join(b"one two\nfive\n\n" for _ in range(700)))
    return [
        "translate", "--model", str(tiny_model), "--device", "cpu", "--precision", "fp32",
        "--buffer-size", "8", "--with-score", "--input", str(tmp_path / "in"),
    ]  # fmt: skip


def start(job: list[str], output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", EAGER, *job, "--output", str(output)],
        stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip


def lines_done(output: Path) -> int:
    journal = output.with_name(f".{output.name}.progress")
    return int(json.loads(journal.read_bytes())["position"]["lines"]) if journal.exists() else 0


def wait_for_more(output: Path, process: subprocess.Popen[str], lines: int) -> None:
    ends = time.monotonic() + PATIENCE
    while lines_done(output) < lines and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)


def test_killed_again_and_again_it_is_equal_to_the_unbroken_run(
    job: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    whole, output, stderr = run_tfm(job).out, tmp_path / "out", []
    output.write_bytes(b"old\n")
    for _ in range(4):
        process = start(job, output)
        wait_for_more(output, process, lines_done(output) + 100)
        process.kill()
        stderr.append(process.communicate(timeout=PATIENCE)[1])
        assert output.read_bytes() == b"old\n"

    process = start(job, output)
    stderr.append(process.communicate(timeout=PATIENCE)[1])

    assert process.returncode == 0
    assert output.read_text(encoding="utf-8") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert stderr[0] == ""
    assert all(": resuming after line " in each for each in stderr[1:])


@representative(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signal_leaves_the_old_output_and_keeps_what_was_done(
    job: list[str], tmp_path: Path, number: int, code: int, word: str
) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"old\n")
    process = start(job, output)
    wait_for_more(output, process, 50)

    process.send_signal(number)

    err = process.communicate(timeout=PATIENCE)[1]
    kept = f"warning: {output}: {lines_done(output)} lines are written"
    assert process.returncode == code
    assert err == f"{kept}; the same command resumes after them\n{word}\n"
    assert output.read_bytes() == b"old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".out.partial", ".out.progress", "in", "out",
    ]  # fmt: skip


def test_second_process_with_the_same_output_is_refused(job: list[str], tmp_path: Path) -> None:
    first = start(job, tmp_path / "out")
    wait_for_more(tmp_path / "out", first, 50)
    first.send_signal(signal.SIGSTOP)

    second = start(job, tmp_path / "out")
    err = second.communicate(timeout=PATIENCE)[1]
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=PATIENCE)

    assert (first.returncode, second.returncode) == (0, 5)
    assert err == (
        f"error: {tmp_path / 'out'}: another process is translating to it\n"
        "hint: wait for its end, or name another `--output`\n"
    )
