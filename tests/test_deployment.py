"""The Dockerfile and the example of a CI job: their commands run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import environments
from tfm_cli.native import library

ROOT = Path(__file__).resolve().parents[1]


def dockerfile_commands() -> list[str]:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    return re.findall(r"^RUN (.*)$", text, re.MULTILINE)


def workflow_commands() -> list[list[str]]:
    page = (ROOT / "docs" / "ci.md").read_text("utf-8")
    (workflow,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    folded = re.findall(r"- run: (?:>-\n)?((?:.+\n(?:          .+\n)*))", workflow)
    return [shlex.split(command) for command in folded]


def test_image_has_the_packages_that_translation_needs() -> None:
    (installed,) = [each for each in dockerfile_commands() if "numpy" in each]
    packages = [word for word in installed.split()[2:] if not word.startswith("--")]

    assert sorted(packages) == sorted(environments.SMALL_PACKAGES)
    assert packages == sorted(packages)


@pytest.mark.skipif(not library.available(), reason="the native engine is not built")
def test_command_of_the_image_runs_without_torch(tiny_model: Path, tmp_path: Path) -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    (command,) = re.findall(r"^#   .* tfm (translate .*)$", text, re.MULTILINE)
    python = environments.environment(tmp_path / "environment")
    environments.link_package(python)

    done = subprocess.run(
        [python, "-m", "tfm_cli", *shlex.split(command.replace("/model", str(tiny_model)))],
        input="one two\n", capture_output=True, text=True, cwd=tmp_path, check=False,
        env={"TFM_NATIVE_LIBRARY": str(library.load().path)},
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "eins zwei\n"), done.stderr


def test_workflow_installs_what_the_readme_installs() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    installs = [command for command in workflow_commands() if command[0] == "pip"]

    assert len(installs) == 2
    assert all(f"$ {' '.join(command)}" in readme for command in installs)


@pytest.mark.torture
@pytest.mark.timeout(300)
def test_workflow_runs_from_check_to_score(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data", tmp_path / "data")
    commands = [command for command in workflow_commands() if command[0] == "tfm"]
    assert [command[1] for command in commands] == ["check", "train", "evaluate"]
    codes = []

    for command in commands:
        # Seconds instead of minutes: the score is then too low, which the last command reports.
        some = ["25s" if word == "20m" else word for word in command[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "tfm_cli", *some],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        codes.append(done.returncode)
        output = done.stdout + done.stderr

    assert codes == [0, 0, 1], output
    assert "nrefs:1|case:mixed|" in output
