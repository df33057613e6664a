"""A disk that is full, refuses, or takes a part only: nothing is lost, and it is told."""

import errno
import resource
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import forked
from tests.conftest import Result, RunTfm
from tests.runs import checkpoints, left_behind
from tests.training.small_run import SmallRun, unfinished
from tfm_cli.files.durable import Operation, watched
from tfm_cli.files.faults import VARIABLE, reset_faults

PARTS = 12


def with_fault(
    fault: str,
    longer: SmallRun,
    output: Path,
    run_tfm: RunTfm,
    patch: pytest.MonkeyPatch,
    *more: str,
) -> Result:
    """Return the result of a run in which an operation on the disk fails."""
    with patch.context() as inside:
        inside.setenv(VARIABLE, fault)
        reset_faults()
        result = run_tfm(longer.command(output, *more))
    reset_faults()
    assert "Traceback" not in result.err
    return result


def ends_as_unbroken(
    result: Result, longer: SmallRun, output: Path, committed: int, run_tfm: RunTfm
) -> None:
    """Check that nothing was lost: it went on by itself, or the same command does."""
    if result.code != 0:
        assert result.code == 5, result.err
        (error,) = (line for line in result.err.split("\n") if line.startswith("error: "))
        assert "cannot be " in error
        found = [int(path.name.removeprefix("update-")) for path in checkpoints(output)]
        assert max(found, default=0) >= committed
        result = run_tfm(longer.command(output))
        assert result.code == 0, result.err
    assert left_behind(output) == longer.left
    # What could not be removed at the very end is removed when the directory is used again.
    others = [name for name in unfinished(output) if not name.endswith(".trash")]
    assert others == []


@pytest.mark.parametrize(
    ("point", "number", "committed"), [("write", 17, 2), ("sync", 12, 0), ("rename", 9, 2)]
)
def test_r04_full_disk_at_some_operations(
    point: str,
    number: int,
    committed: int,
    longer: SmallRun,
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "model"

    result = with_fault(f"{point}:{number}=enospc", longer, output, run_tfm, monkeypatch)

    assert "No space left on device" in result.err
    ends_as_unbroken(result, longer, output, committed, run_tfm)


@pytest.mark.torture
@pytest.mark.parametrize("error", ["enospc", "eio"])
@pytest.mark.parametrize("part", range(PARTS))
def test_r04_every_operation_fails_once(
    part: int,
    error: str,
    small: SmallRun,
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An error of the device is told as a full disk is: each is tried at every other operation.
    first = 2 * part + (error == "eio")
    for number in range(first + 1, len(small.operations) + 1, 2 * PARTS):
        output = tmp_path / f"{number}" / "model"
        result = with_fault(f"durable:{number}={error}", small, output, run_tfm, monkeypatch)
        ends_as_unbroken(result, small, output, small.newest_committed(number - 1), run_tfm)


def test_r04_best_weights_that_are_refused_end_it_and_the_checkpoint_is_named(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    number = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.path.name.startswith(".model.safetensors.") and each.kind == "create"
    )

    result = with_fault(f"durable:{number}=enospc", longer, output, run_tfm, monkeypatch)

    assert "model.safetensors: cannot be written: No space left on device\nhint: " in result.err
    message = f"the last good checkpoint is `{output / 'checkpoints' / 'update-00000002'}`"
    assert f"hint: free some space, and repeat the command to resume; {message}\n" in result.err
    ends_as_unbroken(result, longer, output, 2, run_tfm)


@pytest.mark.parametrize("more", [[], ["--valid-freq", "100"]], ids=["best weights", "saves"])
def test_r04_directory_that_was_moved_away_is_not_made_anew(
    more: list[str], longer: SmallRun, run_tfm: RunTfm, tmp_path: Path
) -> None:
    output, moved = tmp_path / "model", tmp_path / "moved"

    def move(operation: Operation) -> None:
        if operation.kind == "sync_directory" and checkpoints(output) and not moved.exists():
            output.rename(moved)
            (output / "checkpoints").mkdir(parents=True)  # as another program might

    with watched(move):
        result = run_tfm(longer.command(output, *more))

    assert result.code == 5, result.err
    assert f"error: {output}: was moved or removed: there is no `config.json`\n" in result.err
    hint = f"hint: move the directory back to `{output}`, and repeat the command to resume; "
    assert hint in result.err
    assert "free some space" not in result.err
    assert "no checkpoint was saved" not in result.err
    assert not [path for path in output.rglob("*") if path.suffix == ".safetensors"]
    shutil.rmtree(output)
    moved.rename(output)
    assert run_tfm(longer.command(output, *more)).code == 0
    assert more or left_behind(output) == longer.left


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("enospc", "free some space"),
        ("eio", "check the disk"),
        ("erofs", "make `{output}` writable"),
    ],
)
def test_r04_hint_fits_the_cause_where_no_checkpoint_was_saved(
    error: str,
    message: str,
    longer: SmallRun,
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "model"
    more = ["--save-freq", "1", "--valid-freq", "100", "--set", "training.save_retries=0"]
    number = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.path.parent.name.startswith(".update-00000002.") and each.kind == "create"
    )

    result = with_fault(f"durable:{number}+={error}", longer, output, run_tfm, monkeypatch, *more)

    assert result.code == 5, result.err
    again = "and repeat the command; it starts over: no checkpoint was saved"
    assert f"hint: {message.format(output=output)}, {again}\n" in result.err
    assert "goes on" not in result.err


def test_r04_every_write_is_short(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = with_fault("write:1+=short", longer, tmp_path / "model", run_tfm, monkeypatch)

    assert result.code == 0, result.err
    assert left_behind(tmp_path / "model") == longer.left


@pytest.mark.parametrize("error", ["enospc", "edquot", "efbig"])
def test_r04_training_goes_on_while_the_disk_is_full_and_stops_after_some_saves(
    error: str, longer: SmallRun, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    number = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.path.parent.name.startswith(".update-00000004.") and each.kind == "create"
    )
    more = ["--save-freq", "1", "--valid-freq", "100", "--set", "training.save_retries=2"]

    with monkeypatch.context() as inside:
        inside.setenv(VARIABLE, f"durable:{number - 20}+={error}")
        reset_faults()
        result = run_tfm(longer.command(output, *more, "--set", "training.keep_checkpoints=9"))

    assert result.code == 5
    warnings = [line for line in result.err.split("\n") if "training continues" in line]
    assert len(warnings) == 2, result.err
    assert "this may happen 1 more times in a row; the last good checkpoint is" in warnings[0]
    assert "this may happen 0 more times in a row; the last good checkpoint is" in warnings[1]
    assert "error: " in result.err
    assert (
        "hint: free some space, and repeat the command to resume; the last good checkpoint"
        in result.err
    )


def test_r04_message_tells_how_much_is_needed_and_free(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    number = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.path.name == "optimizer.safetensors" and each.kind == "write"
    )
    files = checkpoints(longer.output)[0].glob("*.safetensors")
    needed = sum(4 * tensor.numel() for file in files for tensor in load_file(file).values())

    result = with_fault(f"durable:{number}=enospc", longer, output, run_tfm, monkeypatch)

    message = f"{output}/checkpoints/update-00000002: cannot be written: No space left on device"
    assert f"warning: {message}; it needs {needed:,} bytes, " in result.err
    assert result.code == 0


def test_r04_file_size_limit_of_the_system_is_told(longer: SmallRun, tmp_path: Path) -> None:
    output = tmp_path / "model"

    result = forked.run(
        tmp_path / "words",
        longer.command(output),
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000)),
    )

    assert result.code == 5, result.err
    assert errno.EFBIG == 27
    assert "cannot be written: File too large" in result.err
    assert "Traceback" not in result.err
    assert result.code != -signal.SIGXFSZ
    forked.run(tmp_path / "words", longer.command(output))
    assert left_behind(output) == longer.left


def test_r04_vanished_directory_is_told(longer: SmallRun, tmp_path: Path) -> None:
    output, words = tmp_path / "model", tmp_path / "words"
    saving = next(
        number
        for number, each in enumerate(longer.operations, 1)
        if each.path.parent.name.startswith(".update-00000004.")
    )
    pid = forked.start(words, longer.command(output), {VARIABLE: f"durable:{saving}=sleep"})
    forked.wait_for(lambda: "update      4" in (words / "err").read_text())
    output.rename(tmp_path / "elsewhere")

    result = forked.ended(pid, words)

    assert result.code in (0, 5), result.err
    assert "Traceback" not in result.err
    assert forked.run(words, longer.command(tmp_path / "elsewhere")).code == 0
    assert left_behind(tmp_path / "elsewhere") == longer.left


def test_r06_checkpoint_that_cannot_be_removed_is_a_warning_and_goes_later(
    longer: SmallRun, run_tfm: RunTfm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    renames = [each for each in longer.operations if each.kind == "rename"]
    number = next(n for n, each in enumerate(renames, 1) if each.path.name == "update-00000002")

    result = with_fault(f"rename:{number}=eio", longer, output, run_tfm, monkeypatch)

    assert result.code == 0, result.err
    message = (
        f"warning: {output}/checkpoints/update-00000002: cannot be removed: Input/output error"
    )
    assert message in result.err
    assert [path.name for path in checkpoints(output)] == ["update-00000006", "update-00000007"]
    assert left_behind(output) == longer.left
