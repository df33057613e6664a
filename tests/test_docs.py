"""What the documentation says is true: its commands run and its tree is the tree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfm_cli
from tests.conftest import RunTfm

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMISE = re.compile(r"^\| R(\d+) \| .*? \| (.*) \|$", flags=re.MULTILINE)
COMMANDS = (
    ["train"], ["translate"], ["evaluate"], ["import"], ["export"], ["shortlist"],
    ["check"], ["tokenize"], ["tokenize", "train"], ["tokenize", "encode"], ["tokenize", "decode"],
)  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_documented_and_has_an_example(
    command: list[str], run_tfm: RunTfm
) -> None:
    result = run_tfm([*command, "--help"])

    assert result.code == 0
    assert f"tfm {' '.join(command)}" in README
    assert command == ["tokenize"] or "Example:" in result.out


def test_tree_in_the_readme_is_the_tree() -> None:
    (tree,) = [block for block in blocks("text") if "tfm_cli/\n" in block]
    entries: set[str] = set()
    folder = ""
    for line in tree.split("\n"):
        match = re.match(r"(?P<indent>[│ ]*)[├└]── (?P<name>\S+)", line)
        if match and match["name"].endswith("/"):
            folder = match["name"]
        elif match:
            inside = folder if match["indent"] else ""
            entries.add(inside + match["name"])

    package = ROOT / "tfm_cli"
    files = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    wanted = {f for f in files if Path(f).name != "__init__.py"}
    assert entries == wanted


def test_flags_in_the_readme_exist(run_tfm: RunTfm) -> None:
    known = {"--version", "--install-completion"}
    known |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"}  # torchrun's
    known |= {"--max-restarts", "--no-deps"}  # … and pip's
    for command in COMMANDS:
        known |= set(re.findall(r"--[a-z][a-z-]*", run_tfm([*command, "--help"]).out))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))

    assert named <= known


def test_each_promise_names_tests_that_there_are() -> None:
    rows = [row for page in PAGES for row in PROMISE.findall(page.read_text(encoding="utf-8"))]
    lacking = [
        name
        for _, shown in rows
        for name in re.findall(r"`([^`]*)`", shown)
        if not is_test(*name.split("::"))
    ]

    assert [int(number) for number, _ in rows] == list(range(1, 57))
    assert [number for number, shown in rows if f"r{number:0>2}_" not in shown] == []
    assert lacking == []


def is_test(file: str, function: str) -> bool:
    path = ROOT / "tests" / file
    return path.is_file() and f"\ndef {function}(" in path.read_text(encoding="utf-8")


def test_no_placeholder_is_left() -> None:
    words = {line.strip() for line in README.split("\n")}

    assert not {word for word in words if re.fullmatch(r"[A-Z]{4,}", word)}


def test_version_stands_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert f"## {tfm_cli.__version__} " in changelog


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_shell_blocks_of_the_readme_run_as_they_stand(sample_model: Path, tmp_path: Path) -> None:
    """One block after the other, beside the sample corpus; the run of the first is made already."""
    shutil.copytree(sample_model, tmp_path / "model")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    binaries = Path(sys.executable).parent
    for block in blocks("sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env={
                "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
                "HOME": str(tmp_path),
                "OMP_NUM_THREADS": "1",  # another test has the other core
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
