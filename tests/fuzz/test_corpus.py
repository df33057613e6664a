"""The fuzz targets run on the whole corpus of known odd inputs."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.fuzz import CORPUS, mutated
from tests.fuzz.targets import TARGETS, place_of


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(place_of(os.getpid()), ignore_errors=True)


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_fails_on_the_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())

    answers = {TARGETS[name](path.read_bytes()) for path in inputs}

    assert len(answers) > len(inputs) // 3


def test_corpus_is_small_and_has_only_known_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(path.stat().st_size <= 4096 for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_fails_on_a_mutated_corpus(name: str) -> None:
    rng = random.Random(1)
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]

    for _ in range(150):
        TARGETS[name](mutated(rng.choice(inputs), rng.choice(inputs), rng))


@pytest.mark.slow
def test_fuzzer_reports_the_number_of_inputs() -> None:
    program = Path(__file__).parent / "fuzz.py"

    done = subprocess.run(
        [sys.executable, program, "json", "--seconds", "1", "--seed", "1", "--plain"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("json: ")
    assert done.stdout.endswith("kinds of answers in 1 s, seed 1, none broke it\n")


@pytest.mark.slow
def test_fuzzer_reports_a_crash_and_saves_the_input(tmp_path: Path) -> None:
    program = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from tests.fuzz import fuzz, targets\n"
        "targets.TARGETS['json'] = lambda content: os.kill(os.getpid(), 11)\n"
        "sys.exit(fuzz.fuzz_plain('json', seconds=5, seed=1))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stdout == f"json: broken (status 11) by {tmp_path / 'tfm-fuzz-json-1'}\n"
    assert (tmp_path / "tfm-fuzz-json-1").exists()
