import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from tests.odd_files import KINDS, make_odd
from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.files.ownership import is_temporary_of
from tfm_cli.translation import resumable_output as module
from tfm_cli.translation.resumable_output import Position, ResumableFile, resumable_file

SETTINGS = {"--beam-size": 4, "--format": "text"}


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write(output: ResumableFile, text: bytes, lines: int) -> None:
    output.stream.write(text)
    output.mark(Position(lines, f"hash of {lines}", 64))


def journal(**changes: object) -> bytes:
    """Return the journal that `kill` leaves, with some values changed."""
    position = {"lines": 1, "sha256": "hash of 1", "window_lines": 64}
    facts = {"format": 1, "settings": SETTINGS, "position": position, "bytes": 5} | changes
    return json.dumps(facts).encode()


def kill(path: Path, clock: Clock) -> None:
    """Write two lines, commit the first, and end like a process killed by SIGKILL."""
    output = ResumableFile(path, SETTINGS, clock=clock)
    clock.now += module.COMMIT_SECONDS
    write(output, b"eins\n", 1)
    write(output, b"zwei\n", 2)
    output.stream.close()  # as SIGKILL does; buffered bytes may be lost


def test_file_appears_when_it_is_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    with resumable_file(tmp_path / "new" / "out", SETTINGS) as output:
        write(output, b"eins\n", 1)
        assert names(tmp_path / "new") == [".out.partial", ".out.progress"]

    assert (tmp_path / "new" / "out").read_bytes() == b"eins\n"
    assert names(tmp_path / "new") == ["out"]


def test_killed_job_resumes_after_the_last_commit(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "out").write_bytes(b"old\n")
    kill(tmp_path / "out", clock)

    assert (tmp_path / "out").read_bytes() == b"old\n"
    assert (tmp_path / ".out.partial").read_bytes() == b"eins\nzwei\n"
    with ResumableFile(tmp_path / "out", SETTINGS, clock=clock) as output:
        start = output.start
        write(output, b"ZWEI\n", 2)

    assert start == Position(1, "hash of 1", 64)
    assert (tmp_path / "out").read_bytes() == b"eins\nZWEI\n"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_after_long_work_keeps_all_whole_windows(
    tmp_path: Path, error: type[BaseException], log_messages: list[str]
) -> None:
    def fail(output: ResumableFile) -> None:
        write(output, b"eins\nzwei\n", 2)
        output.stream.write(b"dr")
        clock.now += module.COMMIT_SECONDS
        raise error

    clock = Clock()
    with pytest.raises(error), ResumableFile(tmp_path / "out", SETTINGS, clock=clock) as output:
        fail(output)

    shown = f"{tmp_path / 'out'}: 2 lines are written; the same command resumes after them"
    assert log_messages == [shown]
    with ResumableFile(tmp_path / "out", SETTINGS, clock=clock) as output:
        assert output.start.lines == 2
        output.stream.write(b"drei\n")
    assert (tmp_path / "out").read_bytes() == b"eins\nzwei\ndrei\n"


def test_failure_after_short_work_leaves_nothing(tmp_path: Path, log_messages: list[str]) -> None:
    (tmp_path / "out").write_bytes(b"old\n")

    def fail(output: ResumableFile) -> None:
        write(output, b"eins\n", 1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), resumable_file(tmp_path / "out", SETTINGS) as o:
        fail(o)

    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old\n"
    assert log_messages == []


def test_failure_without_progress_keeps_the_old_progress_silently(
    tmp_path: Path, log_messages: list[str]
) -> None:
    kill(tmp_path / "out", Clock())

    with pytest.raises(ValueError, match="x"), resumable_file(tmp_path / "out", SETTINGS):
        raise ValueError("x")

    assert names(tmp_path) == [".out.partial", ".out.progress"]
    assert log_messages == []


def test_other_settings_are_refused_by_name_and_nothing_is_lost(tmp_path: Path) -> None:
    kill(tmp_path / "out", Clock())
    other = {"--beam-size": 5, "--format": "json", "--seed": None}

    with pytest.raises(ConfigError) as refused, resumable_file(tmp_path / "out", other):
        pass

    assert str(refused.value) == (
        f"{tmp_path / 'out'}: was begun with other settings; 2 changes\n  --beam-size: was 4, is 5"
        "\n  --format: was text, is json"
    )
    assert refused.value.hint == (
        "restore them to resume after line 1, or use `--overwrite` to begin again"
    )
    with resumable_file(tmp_path / "out", SETTINGS) as output:
        assert output.start.lines == 1


def test_overwrite_begins_again(tmp_path: Path) -> None:
    kill(tmp_path / "out", Clock())

    with resumable_file(tmp_path / "out", {"--beam-size": 5}, overwrite=True) as output:
        assert output.start == Position()
        assert json.loads((tmp_path / ".out.progress").read_bytes())["bytes"] == 0
        write(output, b"1\n", 1)

    assert (tmp_path / "out").read_bytes() == b"1\n"
    assert names(tmp_path) == ["out"]


NO_PLACE = "has no position to resume at"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged: it is empty"),
        (b"[]", "is damaged: it is not a JSON object"),
        (b"[" * 200_000, "is damaged: it is nested deeper than 8 levels"),
        (b'{"format": 99}', NO_PLACE),
        (b'{"format": 1}', NO_PLACE),
        (journal(bytes=-1), NO_PLACE),
        (journal(bytes="5"), NO_PLACE),
        (journal(settings=[["a", 1]]), NO_PLACE),
        (journal(position={"lines": 1}), NO_PLACE),
        (journal(position={"lines": True, "sha256": "", "window_lines": 0}), NO_PLACE),
        (journal(position={"lines": -1, "sha256": "", "window_lines": 0}), NO_PLACE),
        (journal(position={"lines": 1, "sha256": [], "window_lines": 0}), NO_PLACE),
    ],
    ids=lambda value: None if isinstance(value, bytes) and len(value) > 1000 else repr(value)[:60],
)
def test_journal_that_is_none_begins_again_with_a_word(
    tmp_path: Path, log_messages: list[str], content: bytes, reason: str
) -> None:
    kill(tmp_path / "out", Clock())
    (tmp_path / ".out.progress").write_bytes(content)

    with resumable_file(tmp_path / "out", SETTINGS) as output:
        assert output.start == Position()

    assert log_messages == [f"{tmp_path / '.out.progress'}: {reason}; it begins again"]
    assert (tmp_path / "out").read_bytes() == b""


def test_journal_of_a_job_that_was_finished_means_nothing(tmp_path: Path) -> None:
    kill(tmp_path / "out", Clock())
    (tmp_path / ".out.partial").unlink()  # as after the kill between renaming and removing

    with resumable_file(tmp_path / "out", SETTINGS) as output:
        assert output.start == Position()
        assert json.loads((tmp_path / ".out.progress").read_bytes())["bytes"] == 0


def test_second_process_is_refused_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    with resumable_file(tmp_path / "out", SETTINGS) as output:
        write(output, b"eins\n", 1)
        for overwrite in (False, True):
            with (
                pytest.raises(ResourceError, match="out: another process is translating to it"),
                resumable_file(tmp_path / "out", SETTINGS, overwrite=overwrite),
            ):
                pass

    assert (tmp_path / "out").read_bytes() == b"eins\n"


def test_lock_of_a_file_that_was_finished_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ResumableFile(tmp_path / "out", SETTINGS)
    write(first, b"eins\n", 1)
    lock = fcntl.flock

    def finish_first(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        first.__exit__(None)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)

    with resumable_file(tmp_path / "out", SETTINGS) as second:
        write(second, b"zwei\n", 1)
        assert (tmp_path / "out").read_bytes() == b"eins\n"

    assert (tmp_path / "out").read_bytes() == b"zwei\n"


def test_file_system_without_locks_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with resumable_file(tmp_path / "out", SETTINGS) as output:
        write(output, b"eins\n", 1)

    assert (tmp_path / "out").read_bytes() == b"eins\n"


def test_content_is_on_the_disk_before_the_journal_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []
    clock, sync = Clock(), os.fsync

    def synced(descriptor: int) -> None:
        journaled_bytes = json.loads((tmp_path / ".out.progress").read_bytes())["bytes"]
        steps.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, journaled_bytes))
        sync(descriptor)

    output = ResumableFile(tmp_path / "out", SETTINGS, clock=clock)
    assert json.loads((tmp_path / ".out.progress").read_bytes())["bytes"] == 0
    monkeypatch.setattr(os, "fsync", synced)
    clock.now = module.COMMIT_SECONDS
    write(output, b"eins\n", 1)

    assert steps[::2] == [(".out.partial", 0), (tmp_path.name, 5)]
    assert is_temporary_of(steps[1][0], ".out.progress")
    assert steps[1][1] == 0
    assert json.loads((tmp_path / ".out.progress").read_bytes())["bytes"] == 5
    output.stream.close()


def test_full_disk_is_reported_and_committed_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def fill(output: ResumableFile) -> None:
        write(output, b"zwei\n", 2)
        monkeypatch.setattr(os, "fsync", full)

    kill(tmp_path / "out", Clock())
    with (
        pytest.raises(ResourceError, match="out: cannot be written: No space left on device"),
        resumable_file(tmp_path / "out", SETTINGS) as output,
    ):
        fill(output)
    monkeypatch.undo()

    with resumable_file(tmp_path / "out", SETTINGS) as output:
        assert output.start.lines == 1


def test_reader_of_a_pipe_that_left_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), resumable_file(tmp_path / "out", SETTINGS):
        raise BrokenPipeError


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real").touch(mode=0o600)
    (tmp_path / "link").symlink_to("real")

    with resumable_file(tmp_path / "link", SETTINGS) as output:
        partial = (tmp_path / ".real.partial").stat()
        write(output, b"eins\n", 1)

    assert (
        stat.S_IMODE(partial.st_mode) == stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600
    )
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"eins\n"


def test_long_names_have_files_of_their_own(tmp_path: Path) -> None:
    first, second = ("x" * 250 + end for end in "ab")

    with (
        resumable_file(tmp_path / first, SETTINGS) as one,
        resumable_file(tmp_path / second, SETTINGS) as other,
    ):
        write(one, b"1\n", 1)
        write(other, b"2\n", 1)

    assert [(tmp_path / name).read_bytes() for name in (first, second)] == [b"1\n", b"2\n"]
    assert names(tmp_path) == [first, second]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [".out.partial", ".out.progress"])
def test_private_file_that_leads_elsewhere_is_refused_and_left(
    name: str, kind: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    (tmp_path / "out").write_bytes(b"old")
    make_odd(kind, tmp_path / name, victim)
    before = (tmp_path / name).lstat()

    message = f"{tmp_path / name}: cannot be written: (it is|Is a)"
    for overwrite in (False, True):
        with (
            pytest.raises(ResourceError, match=message),
            resumable_file(tmp_path / "out", SETTINGS, overwrite=overwrite),
        ):
            pass

    assert (tmp_path / name).lstat().st_ino == before.st_ino
    assert victim.read_bytes() == b"theirs"
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out", "victim"])


def test_foreign_file_with_the_name_of_a_partial_one_is_refused_and_left(
    tmp_path: Path,
) -> None:
    (tmp_path / ".out.partial").write_bytes(b"theirs")

    message = f"{tmp_path / '.out.partial'}: cannot be written: tfm is not known to have made it"
    with (
        pytest.raises(ResourceError, match=message) as refused,
        resumable_file(tmp_path / "out", SETTINGS),
    ):
        pass

    assert names(tmp_path) == [".out.partial"]
    assert (tmp_path / ".out.partial").read_bytes() == b"theirs"
    assert "--overwrite" in str(refused.value.hint)
    with resumable_file(tmp_path / "out", SETTINGS, overwrite=True) as output:
        write(output, b"eins\n", 1)
    assert (tmp_path / "out").read_bytes() == b"eins\n"


def test_job_killed_before_its_first_commit_begins_again(tmp_path: Path) -> None:
    output = ResumableFile(tmp_path / "out", SETTINGS)
    write(output, b"eins\n", 1)
    output.stream.close()
    assert (tmp_path / ".out.partial").read_bytes() == b"eins\n"

    with resumable_file(tmp_path / "out", {"--beam-size": 5}) as again:
        assert again.start == Position()
        write(again, b"zwei\n", 1)

    assert (tmp_path / "out").read_bytes() == b"zwei\n"
    assert names(tmp_path) == ["out"]


def test_link_that_leads_to_itself_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")

    with (
        pytest.raises(ResourceError, match="out: cannot be written: Too many levels"),
        resumable_file(tmp_path / "out", SETTINGS),
    ):
        pass

    assert names(tmp_path) == ["out"]
