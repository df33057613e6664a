"""A translation to a file that is killed at any operation resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import RunTfm, TinyCorpus
from tests.tiers import representative
from tfm_cli.files.durable import Operation, watched
from tfm_cli.files.faults import VARIABLE
from tfm_cli.translation import resumable_output

PARTS = 8  # of all operations, so that several processes share them


def often() -> None:
    """Commit after each window."""
    resumable_output.COMMIT_SECONDS = 0.0


@pytest.fixture
def command(tiny_model: Path, tiny_corpus: TinyCorpus) -> Callable[[Path], list[str]]:
    def command_to(output: Path) -> list[str]:
        model = ["-m", str(tiny_model), "--device", "cpu", "--workers", "1"]
        windows = ["--buffer-size", "10", "--beam", "2"]
        return ["translate", *model, *windows, "-i", tiny_corpus.path("test.en"), "-o", str(output)]

    return command_to


@pytest.fixture
def operations(
    command: Callable[[Path], list[str]],
    run_tfm: RunTfm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Operation]:
    """Return the operations on the disk of an uninterrupted translation."""
    changes: list[Operation] = []
    monkeypatch.setattr(resumable_output, "COMMIT_SECONDS", 0.0)
    with watched(changes.append):
        result = run_tfm(command(tmp_path / "whole"))
    assert result.code == 0, result.err
    return changes


@pytest.mark.slow
@representative("action", ["kill", "enospc"])
@representative("part", range(PARTS))
def test_r01_translation_goes_on_after_a_fault_at_operations(
    part: int,
    action: str,
    command: Callable[[Path], list[str]],
    operations: list[Operation],
    tmp_path: Path,
) -> None:
    whole = (tmp_path / "whole").read_bytes()
    assert len(operations) > 20

    for number in range(part + 2, len(operations) + 1, PARTS):
        place = tmp_path / f"{number}"
        place.mkdir()
        fault = {VARIABLE: f"durable:{number}={action}"}
        broken = forked.run(place / "words", command(place / "out"), fault, prepare=often)

        result = forked.run(place / "words", command(place / "out"), prepare=often)

        assert broken.code in ((-9,) if action == "kill" else (0, 5)), broken.err
        assert "Traceback" not in broken.err
        assert result.code == 0, result.err
        assert (place / "out").read_bytes() == whole
        assert sorted(path.name for path in place.iterdir()) == ["out", "words"]
