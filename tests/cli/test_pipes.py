"""Pipes: readers that leave, that are slow, that never were; input that never ends."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import pytest

from tests.bench.memory import measure
from tests.conftest import TFM, RunTfm
from tests.forked import PATIENCE, wait_for
from tests.tiers import representative
from tfm_cli.translation.search import BatchSearch

Start = Callable[..., subprocess.Popen[bytes]]
TRANSLATE = ["translate", "--device", "cpu", "-gq", "--max-length", "16", "--on-long", "cut"]
ENCODE = ["tokenize", "encode", "-q"]


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    """Begins a command in a session of its own; nothing of it is left behind."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(arguments: list[str], **streams: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*TFM, *arguments, "-m", str(tiny_model)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            **streams,  # type: ignore[call-overload] # mypy cannot know which
        )  # fmt: skip
        begun.append(process)
        return cast("subprocess.Popen[bytes]", process)

    yield begin
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):  # what nobody reads any more
                if stream is not None:
                    stream.close()


def members(group: int) -> list[int]:
    """The processes of a group, whoever their parent is by now; not those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def feed(stream: IO[bytes], block: bytes) -> threading.Thread:
    """Write a block again and again, until nobody reads any more."""

    def work() -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                stream.write(block)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@representative("arguments", [ENCODE, [*TRANSLATE, "--workers", "2"]], ids=" ".join)
@representative("lines", [0, 1])
def test_r33_reader_that_leaves_ends_all_without_a_word(
    lines: int, arguments: list[str], start: Start
) -> None:
    reading, writing = os.pipe()
    process = start(arguments, stdout=writing)
    os.close(writing)
    assert process.stdin is not None
    assert process.stderr is not None
    with open(reading, "rb") as output:  # noqa: PTH123 - a descriptor has no path
        if not lines:
            output.close()
        thread = feed(process.stdin, b"one two three\n" * 5000)
        if lines:
            assert output.readline().strip()

    assert process.wait(timeout=PATIENCE) == 0
    wait_for(lambda: not members(process.pid), patience=2)
    assert process.stderr.read() == b""
    thread.join(timeout=PATIENCE)


@pytest.mark.slow
@representative("arguments", [ENCODE, TRANSLATE], ids=" ".join)
def test_r33_closed_output_is_told_before_any_work(arguments: list[str], tiny_model: Path) -> None:
    command = " ".join([*TFM, *arguments, "-m", str(tiny_model)])

    done = subprocess.run(
        ["bash", "-c", f"{command} >&-"], input="one\n", capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip

    assert done.returncode == 5
    assert done.stderr == "error: standard output: cannot be written: it is closed\n"


def resident_mib(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@pytest.mark.slow
@representative(
    "arguments", [ENCODE, [*TRANSLATE, "--workers", "1", "--buffer-size", "64"]], ids=" ".join
)
def test_r34_slow_reader_holds_the_input_back(arguments: list[str], start: Start) -> None:
    process = start(arguments, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    given = process.stdin.fileno()
    line = b"one two three four five\n"
    process.stdin.write(line * 2000)
    process.stdin.flush()
    assert process.stdout.readline()
    fcntl.fcntl(given, fcntl.F_SETFL, os.O_NONBLOCK)
    taken, sizes, quiet = 0, [resident_mib(process.pid)], time.monotonic()

    while time.monotonic() - quiet < 2 and taken < 100_000_000:  # until it takes no more
        if select.select([], [given], [], 0.1)[1]:
            with contextlib.suppress(BlockingIOError):
                taken += os.write(given, (line * 1000)[taken % len(line) :])
                quiet = time.monotonic()
        sizes.append(resident_mib(process.pid))

    assert taken < 4_000_000  # pipes, a chunk, a window; of input without end
    assert max(sizes) < sizes[0] + 40
    process.stdin.close()
    assert process.stdout.read().count(b"\n") == (len(line) * 2000 + taken + 23) // len(line) - 1
    assert process.wait(timeout=PATIENCE) == 0


@pytest.mark.slow
def test_r35_memory_is_that_of_a_window_whatever_comes_in(tiny_model: Path) -> None:
    result = measure(tiny_model, 12, workers=1)

    assert result.lines_out == result.lines_in > 60_000
    assert result.peak < result.base + 200  # MiB


def test_r26_blank_lines_cost_no_search(
    tiny_model: Path, run_tfm: RunTfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*_: object) -> None:
        raise AssertionError("the model is asked for what a blank line means")

    monkeypatch.setattr(BatchSearch, "__call__", searched)

    result = run_tfm([*TRANSLATE, "-m", str(tiny_model), "--workers", "1"], "\n \n\t\n" * 20_000)

    assert (result.code, result.out, result.err) == (0, "\n" * 60_000, "")


@pytest.mark.slow
@representative("flags", [["--n-best", "2"], ["-f", "json"], ["--alignment", "hard"]])
def test_r26_blank_lines_among_others_come_out_in_their_places(
    flags: list[str], tiny_model: Path, run_tfm: RunTfm
) -> None:
    command = [
        "translate",
        "-q",
        "--device",
        "cpu",
        "-m",
        str(tiny_model),
        "--workers",
        "1",
        *flags,
    ]
    apart = [run_tfm(command, f"{line}\n").out for line in ("one", "", " ", "five")]

    together = run_tfm(command, "one\n\n \nfive\n").out

    def without_index(text: str) -> list[str]:
        return [line.partition(" ||| ")[2] or line for line in text.split("\n")]

    expected = "".join(apart)
    assert without_index(together) == without_index(expected) or flags[0] != "--n-best"
    assert together == expected or flags[0] == "--n-best"
