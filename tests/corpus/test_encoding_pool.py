"""Processes that encode: how they are started, ended and lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tfm_cli.corpus import encoding_pool
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.prepare import prepare
from tfm_cli.corpus.sources import CorpusFile
from tfm_cli.errors import ResourceError
from tfm_cli.parallel import child_processes
from tfm_cli.tokenizer.pair import TokenizerPair

FILTERS = Filters(40)


def test_process_that_is_killed_is_told(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = encoding_pool._Process.__init__

    def killed(self: encoding_pool._Process, *arguments: Any) -> None:
        before(self, *arguments)
        self._process.kill()

    monkeypatch.setattr(encoding_pool._Process, "__init__", killed)

    with pytest.raises(ResourceError, match=r"prepares text was killed by signal 9") as caught:
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=2)

    assert "--data-workers" in str(caught.value.hint)
    assert not (tmp_path / "store").exists()


@pytest.mark.timeout(60)
def test_process_that_is_stopped_is_named(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = encoding_pool._Process.__init__

    def stopped(self: encoding_pool._Process, *arguments: Any) -> None:
        before(self, *arguments)
        self._process.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(encoding_pool._Process, "__init__", stopped)
    monkeypatch.setattr(child_processes, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(child_processes, "_TIMEOUT_SECONDS", 0.5)

    with pytest.raises(ResourceError, match=r"prepares text, PID \d+, was stopped for 0\.5 s"):
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=2)

    assert not (tmp_path / "store").exists()


def test_process_that_cannot_be_started_is_told(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))

    with pytest.raises(ResourceError, match="cannot start a process to prepare text: No such file"):
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=1)


def test_process_ends_with_the_one_that_asked() -> None:
    code = (
        "import os, signal, sys; from tfm_cli.corpus import encoders; "
        "from tfm_cli.corpus.filters import Filters; from tfm_cli.tokenizer.pair import *\n"
        "class Nothing:\n    def files(self): return {}\n"
        "one = encoders._Process(Nothing(), Filters(9), encoders.SuspensionMonitor('x'))\n"
        "print(one._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )

    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)

    assert found.returncode == -signal.SIGKILL
    process_id, deadline = int(found.stdout), time.monotonic() + 20
    while _is_running(process_id):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text("utf-8")
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_process_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tfm_cli.corpus.encoder_process"]

    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    assert b"sentencepiece" in found.stderr
    assert b"torch" not in found.stderr
