"""`torchrun -m tfm_cli translate`: the same file as of one process, or a failure of all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import RunTfm, TinyCorpus
from tests.tiers import representative

pytestmark = pytest.mark.slow

PATIENCE = 120  # seconds, for a machine that has much else to do
ROOT = Path(__file__).resolve().parents[2]
# Progress is kept at once, however fast a tiny model is.
EAGER = """
import tfm_cli.translation.resumable_output
from tfm_cli.cli import main
tfm_cli.translation.resumable_output.COMMIT_SECONDS = 0.0
main()
"""


@pytest.fixture
def flags(tiny_model: Path) -> list[str]:
    return [
        "translate", "--model", str(tiny_model), "--device", "cpu", "--precision", "fp32",
        "--buffer-size", "8", "--with-score",
    ]  # fmt: skip


def torchrun(directory: Path, world: int, flags: list[str]) -> subprocess.CompletedProcess[str]:
    script = directory / "eager.py"
    script.write_text(EAGER, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(world), str(script), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


@representative("world", [2, 3])
def test_ranks_write_what_one_process_writes(
    flags: list[str], run_tfm: RunTfm, tiny_corpus: TinyCorpus, tmp_path: Path, world: int
) -> None:
    long = ["--max-length", "6", "--input", tiny_corpus.path("test.en")]
    whole = run_tfm([*flags, *long])

    done = torchrun(tmp_path, world, [*flags, *long, "--output", str(tmp_path / "out")])
    piped = torchrun(tmp_path, world, [*flags, *long, "--quiet"])

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == whole.out.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eager.py", "out"]
    assert done.stderr.count("translated 40 lines in ") == 1
    warnings = [line for line in whole.err.split("\n") if line.startswith("warning: line ")]
    assert warnings
    assert sorted(line for line in done.stderr.split("\n") if "warning: line " in line) == (
        sorted(warnings)
    )
    assert piped.stdout == whole.out


def test_failure_of_one_rank_ends_all_and_another_number_of_ranks_resumes(
    flags: list[str], run_tfm: RunTfm, tmp_path: Path
) -> None:
    good = '{"text": "one two"}\n'
    (tmp_path / "in").write_text(good * 44 + "?\n" + good * 20, encoding="utf-8")  # rank 1's
    job = [*flags, "--json-input", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]

    began = time.monotonic()
    failed = torchrun(tmp_path, 2, job)
    seconds = time.monotonic() - began
    (tmp_path / "in").write_text(good * 65, encoding="utf-8")
    mended = torchrun(tmp_path, 3, job)

    assert failed.returncode != 0
    assert seconds < 60
    assert failed.stderr.count(f"{tmp_path / 'in'}:45: is not a JSON object") == 1
    assert "lines are written; the same command resumes after them" in failed.stderr
    assert mended.returncode == 0, mended.stderr
    assert f"{tmp_path / 'out'}: resuming after line " in mended.stderr
    assert (tmp_path / "out").read_text(encoding="utf-8") == run_tfm(
        [*flags, "--json-input"], good * 65
    ).out


@pytest.mark.torture
def test_refusal_of_rank_0_ends_all(
    flags: list[str], tmp_path: Path, tiny_corpus: TinyCorpus
) -> None:
    (tmp_path / "out").mkdir()

    done = torchrun(
        tmp_path, 2, [*flags, "-i", tiny_corpus.path("test.en"), "-o", str(tmp_path / "out")]
    )

    assert done.returncode != 0
    assert f"error: {tmp_path / 'out'}: cannot be written: it is a directory" in done.stderr
