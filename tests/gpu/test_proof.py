"""The plumbing of the proof with sections that fail, and a rehearsal of the real ones."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import proof
from tests.gpu.proof import Proof, Section
from tests.gpu.report import JSON_FILE, MARKDOWN_FILE, Report, cell

ROOT = Path(__file__).resolve().parents[2]


def section(name: str, *, share: float = 100.0, is_vital: bool = False) -> Section:
    return Section(name, name.title(), share, f"tests.gpu.fake_sections:{name}", "", is_vital)


def report_of(budget: float) -> Report:
    return Report("cpu", is_tiny=True, budget_seconds=budget, date="2026-01-01")


def saved(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the sections in the JSON file, by name."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = (directory / JSON_FILE).read_text(encoding="utf-8")
    return {each["name"]: each for each in json.loads(text, parse_constant=refuse)["results"]}


def wait_for_the_end_of(processes: list[int]) -> None:
    """Wait until these processes have ended; one that nobody waits for yet has."""

    def runs(number: int) -> bool:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rsplit(")")[-1]
            return state.split()[0] != "Z"
        return False

    ends = time.monotonic() + 60
    while any(map(runs, processes)):
        assert time.monotonic() < ends
        time.sleep(0.05)


def processes_of(row: dict[str, Any]) -> list[int]:
    return [int(number) for number in row["processes"].split()]


def test_whatever_ends_a_section_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[list[str]] = []
    write = Report.write

    def checked_write(self: Report, directory: Path) -> None:
        write(self, directory)
        states.append([each["outcome"] for each in saved(directory).values()])
        assert (directory / MARKDOWN_FILE).read_text(encoding="utf-8") == self.markdown()

    monkeypatch.setattr(Report, "write", checked_write)
    names = ["fails", "does_not_hold", "fails_in_a_row", "lacks_time", "is_killed", "passes"]

    assert not Proof(tmp_path, report_of(300.0)).run([section(name) for name in names])

    found = saved(tmp_path)
    assert {name: result["outcome"] for name, result in found.items()} == {
        "fails": "failed", "does_not_hold": "failed", "fails_in_a_row": "failed",
        "lacks_time": "passed in part", "is_killed": "killed", "passes": "passed",
    }  # fmt: skip
    assert found["fails"]["rows"] == [{"what": "before the failure", "value": "nan"}]
    assert found["fails"]["error"] == "was encountered"
    assert found["does_not_hold"]["error"] == "1 of the checks do not hold"
    assert found["fails_in_a_row"]["error"] == "RuntimeError: out of memory"
    assert [row["holds"] for row in found["fails_in_a_row"]["rows"]] == [False, True]
    assert found["lacks_time"]["error"] == "no time left for 1 of 2 rows"
    assert found["is_killed"]["rows"] == [{"what": "before the kill"}]
    assert found["is_killed"]["error"] == "SIGKILL"
    assert found["passes"]["peak_mib"] > 1
    assert states[:2] == [["waiting"] * 6, ["running", *["waiting"] * 5]]
    assert ["failed", "running", *["waiting"] * 4] in states


def test_section_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    sections = [section("hangs", share=1e-9), section("passes")]

    assert not Proof(tmp_path, report_of(120.0)).run(sections)

    found = saved(tmp_path)
    assert found["hangs"]["outcome"] == "timed out"
    assert found["hangs"]["error"] == "not done within 5 seconds"
    assert found["passes"]["outcome"] == "passed"
    for row in found["hangs"]["rows"]:  # none on a machine where five seconds do not suffice
        wait_for_the_end_of(processes_of(row))


def test_proof_that_is_killed_leaves_what_it_knows_and_no_process(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from tests.gpu.test_proof import Proof, report_of, section\n"
        f"proof = Proof(Path({str(tmp_path)!r}), report_of(300.0))\n"
        "proof.run([section('passes'), section('hangs'), section('passes')])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 120
        rows: list[dict[str, Any]] = []
        while not rows:
            assert time.monotonic() < ends
            time.sleep(0.1)
            if (tmp_path / JSON_FILE).exists():
                rows = saved(tmp_path).get("hangs", {}).get("rows", [])
    finally:
        process.kill()
        process.wait()

    wait_for_the_end_of(processes_of(rows[0]))
    text = (tmp_path / MARKDOWN_FILE).read_text(encoding="utf-8")
    assert saved(tmp_path)["hangs"]["outcome"] == "running"
    assert "| Hangs | running |" in text
    assert "| a figure | 12,346 | yes |" in text


def test_sections_beyond_the_budget_are_skipped(tmp_path: Path) -> None:
    assert not Proof(tmp_path, report_of(1.0)).run([section("passes")])

    (found,) = saved(tmp_path).values()
    assert found["outcome"] == "no time left"
    assert found["rows"] == []


def test_without_a_device_nothing_else_is_tried(tmp_path: Path) -> None:
    sections = [section("fails", is_vital=True), section("passes")]

    assert not Proof(tmp_path, report_of(60.0)).run(sections)

    assert saved(tmp_path)["passes"]["outcome"] == "skipped"
    assert saved(tmp_path)["passes"]["error"] == "`fails` did not pass"


def test_all_sections_that_pass_are_a_success(tmp_path: Path) -> None:
    assert Proof(tmp_path, report_of(60.0)).run([section("passes")])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (True, "yes"), (False, "no"), (0.12345, "0.1235"), (12345.6, "12,346"),
     (12345, "12,345"), ("a|b\nc", "a\\|b c"), (0.0, "0")],
)  # fmt: skip
def test_cell_is_short(value: object, expected: str) -> None:
    assert cell(value) == expected


def test_every_test_that_needs_a_gpu_has_the_mark() -> None:
    """`-m gpu` runs what has it; nothing is skipped by another condition."""
    asking = {
        path.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if "cuda.is_available()" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert not asking


def rehearse(directory: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Return the sections of a rehearsal, all of which must pass."""
    command = [sys.executable, "-m", "tests.gpu.proof", str(directory), "--device", "cpu"]
    # Far more time than it takes: the machine may do other work.
    command += ["--tiny", "--budget", "1600", *arguments]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return saved(directory)


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_rehearsal_of_memory_splits_batches(tmp_path: Path) -> None:
    found = rehearse(tmp_path, "--only", "machine,memory")

    assert [row.get("holds") for row in found["memory"]["rows"]] == [None, True]
    assert found["memory"]["rows"][1]["splits"] > 0


@pytest.mark.torture
@pytest.mark.timeout(1700)
def test_rehearsal_of_all_sections_passes(tmp_path: Path) -> None:
    found = rehearse(tmp_path)

    assert list(found) == [each.name for each in proof.SECTIONS]
    assert all(each["rows"] for each in found.values())
