"""The section `tests`: those marked `gpu`, run by pytest."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.gpu.section import Job

ROOT = Path(__file__).resolve().parents[2]
MARK = "mark.gpu"
_OUTCOMES = ("failure", "error", "skipped")


def files_with_marked_tests() -> list[Path]:
    """Return the files with tests marked `gpu`; to collect all others would take long."""
    return [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if MARK in path.read_text(encoding="utf-8") and path.parent != Path(__file__).parent
    ]


def report(job: Job) -> None:
    """Run the tests, and write how many passed, failed and were skipped, and which failed."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["--junitxml", str(results), "-p", "no:randomly"]
        command += [str(path.relative_to(ROOT)) for path in files_with_marked_tests()]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        if not results.is_file():
            raise RuntimeError(f"pytest left no results, exit code {done.returncode}")
        # pytest wrote it just now.
        cases = list(ElementTree.parse(results).iter("testcase"))
    names: dict[str, list[str]] = {kind: [] for kind in ("passed", *_OUTCOMES)}
    for case in cases:
        kind = next((each for each in _OUTCOMES if case.find(each) is not None), "passed")
        names[kind].append(f"{case.get('classname')}::{case.get('name')}")
    failed = [*names["failure"], *names["error"]]
    job.add(
        passed=len(names["passed"]), failed=len(failed), skipped=len(names["skipped"]),
        failures=", ".join(failed),
        # On a CPU all are skipped, on a GPU none.
        holds=not failed and bool(cases) and bool(names["passed"]) == job.is_gpu,
    )  # fmt: skip
