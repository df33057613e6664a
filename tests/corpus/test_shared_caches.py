"""Runs that share a cache of prepared text: none spoils what another one does."""

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import forked
from tests.conftest import TFM, TinyCorpus
from tests.runs import SMALL_RUN, write_part
from tests.tiers import representative
from tfm_cli.files.faults import VARIABLE

ROOT = Path(__file__).parents[2]
PATCH = pytest.MonkeyPatch()  # for processes of commands, whose changes end with them
# Reached while a text is prepared: its folder is there, and some of its files.
PREPARING = "create:6=stop"


@pytest.fixture
def text(tiny_corpus: TinyCorpus, tmp_path: Path) -> list[str]:
    """Flags that name a text."""
    (tmp_path / "text").mkdir()
    return write_part(tiny_corpus, tmp_path / "text", pairs=40, valid=0)


# With a tokenizer at hand, the first work on the disk is that in the cache.
TOKENIZER = ["--set", f"tokenizer.model={ROOT / 'tests' / 'golden' / 'model_v2' / 'source.model'}"]


def command(text: list[str], place: Path, *more: str) -> list[str]:
    """Return a training that keeps prepared text in `cache` beside its output."""
    shared = ["--data-cache", str(place.parent / "cache"), "--data-workers", "0"]
    until = ["--max-updates", "1", "-o", str(place)]
    return ["train", *text, *SMALL_RUN, *TOKENIZER, *shared, *until, *more]


def as_process_7() -> None:
    """Let a process have the same number as another one, as in containers of their own."""
    own = os.getpid()
    same = SimpleNamespace(**{**vars(os), "getpid": lambda: own})
    PATCH.setattr("tfm_cli.files.faults.os", same)  # it stops this process
    PATCH.setattr(os, "getpid", lambda: 7)


def state(pid: int) -> str:
    """Return T for a process that is stopped, Z for one that has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def unfinished(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name.startswith("."))


def start_preparing(arguments: list[str], words: Path) -> int:
    """Begin a run that stops amid its preparation; returns its process."""
    pid = forked.start(words, arguments, {VARIABLE: PREPARING}, prepare=as_process_7)
    forked.wait_for(lambda: state(pid) in ("T", "Z"))
    assert state(pid) == "T", (words / "err").read_text()
    return pid


def test_r56_run_waits_for_another_one_that_prepares_the_same_text(
    text: list[str], tmp_path: Path
) -> None:
    first = start_preparing(command(text, tmp_path / "a"), tmp_path / "words a")
    second = forked.start(
        tmp_path / "words b",
        command(text, tmp_path / "b"),
        {VARIABLE: PREPARING},  # which it reaches only after it has waited
        prepare=as_process_7,
    )
    words = tmp_path / "words b" / "err"
    forked.wait_for(lambda: "waiting for another run" in words.read_text() or state(second) in "TZ")

    os.kill(first, signal.SIGCONT)
    results = [forked.ended(first, tmp_path / "words a")]
    forked.wait_for(lambda: state(second) in "TZ")
    os.kill(second, signal.SIGCONT)
    results.append(forked.ended(second, tmp_path / "words b"))

    assert [result.code for result in results] == [0, 0], [result.err for result in results]
    assert unfinished(tmp_path / "cache") == []
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_r56_run_leaves_alone_what_another_one_prepares_of_another_text(
    text: list[str], tmp_path: Path
) -> None:
    first = start_preparing(command(text, tmp_path / "a"), tmp_path / "words a")
    before = unfinished(tmp_path / "cache")
    assert before

    other = command(text, tmp_path / "b", "--set", "data.drop_identical=true")
    second = forked.run(tmp_path / "words b", other, prepare=as_process_7)
    left = unfinished(tmp_path / "cache")
    os.kill(first, signal.SIGCONT)
    result = forked.ended(first, tmp_path / "words a")

    assert (second.code, result.code) == (0, 0), second.err + result.err
    assert left == before
    assert unfinished(tmp_path / "cache") == []


def test_r56_what_a_killed_run_left_is_swept_by_the_next_one_of_any_text(
    text: list[str], tmp_path: Path
) -> None:
    killed = {VARIABLE: PREPARING.replace("stop", "kill")}
    arguments = command(text, tmp_path / "a")
    assert forked.run(tmp_path / "words", arguments, killed).code == -signal.SIGKILL
    assert unfinished(tmp_path / "cache")

    other = command(text, tmp_path / "b", "--set", "data.drop_identical=true")
    result = forked.run(tmp_path / "words", other)

    assert result.code == 0, result.err
    assert unfinished(tmp_path / "cache") == []


def without_locks() -> None:
    """Let the file system have no locks."""

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    PATCH.setattr(fcntl, "flock", refuse)


def test_r56_nothing_is_swept_where_the_file_system_has_no_locks(
    text: list[str], tmp_path: Path
) -> None:
    first = start_preparing(command(text, tmp_path / "a"), tmp_path / "words a")
    before = unfinished(tmp_path / "cache")

    for place in ("b", "c"):  # of the same text, which is prepared once more, and is there then
        second = forked.run(
            tmp_path / "words b", command(text, tmp_path / place), prepare=without_locks
        )
        assert second.code == 0, second.err
    left = unfinished(tmp_path / "cache")
    os.kill(first, signal.SIGCONT)
    result = forked.ended(first, tmp_path / "words a")

    assert set(before) - set(left) <= {name for name in before if name.endswith(".lock")}
    assert result.code == 0, result.err


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return not subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="needs leave to make namespaces of processes")
@representative("more", [[], ["--set", "data.drop_identical=true"]], ids=["same", "other"])
def test_r56_runs_in_two_namespaces_of_processes_do_not_meet(
    more: list[str], text: list[str], tmp_path: Path
) -> None:
    def begun(place: str, words: Path, *more: str) -> "subprocess.Popen[bytes]":
        # Several seconds; the first process of a namespace cannot be stopped from within.
        slowly = ",".join(f"create:{number}=sleep" for number in range(6, 14))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: slowly}
        with words.open("wb") as stream:
            return subprocess.Popen(
                ["unshare", "--pid", "--fork", *TFM,
                 *command(text, tmp_path / place, *more)],
                stderr=stream, env=environment,
            )  # fmt: skip

    first = begun("a", tmp_path / "words a")
    forked.wait_for(lambda: (tmp_path / "cache").exists() and bool(unfinished(tmp_path / "cache")))
    second = begun("b", tmp_path / "words b", *more)
    codes = [second.wait(forked.PATIENCE), first.wait(forked.PATIENCE)]

    words = "".join((tmp_path / f"words {name}").read_text() for name in "ab")
    assert codes == [0, 0], words
    assert unfinished(tmp_path / "cache") == []
