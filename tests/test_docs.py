"""Tests of the documentation: its commands run, its links lead somewhere, its trees are current.

Every `sh` and `console` block of a page is run. The output of a `console` block is compared; `…` in
an expected line stands for any text. `<!-- not run: REASON -->` before a block exempts it.
"""

import contextlib
import fcntl
import functools
import importlib
import itertools
import operator
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

import tfm_cli
from tests.conftest import RunTfm, invoke
from tests.golden import reference

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WRITTEN = [page for page in PAGES if page.parent != reference.DIRECTORY]  # not generated
COMMANDS = (
    ["train"], ["translate"], ["evaluate"], ["score"], ["average"], ["plot"], ["import"],
    ["export"], ["shortlist"], ["explain"], ["check"], ["sample"], ["info"], ["pack"], ["unpack"],
    ["tokenize"], ["tokenize", "train"], ["tokenize", "encode"], ["tokenize", "decode"],
)  # fmt: skip
# Flags of other programs that the pages name.
OTHER_FLAGS = {
    "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts",
    "--no-deps", "--help", "--install-completion", "--version", "--index-url",
    # of sacrebleu
    "--test-set", "--language-pair", "--origlang", "--subset", "--detail", "--list", "--download",
    "--echo", "--num-refs", "--encoding", "--paired-jobs", "--no-color", "--citation",
    # of benchmarks
    "--pairs", "--seconds", "--check", "--tricks", "--build", "--reference", "--threads",
    "--tiny", "--budget", "--only",
    # of Marian
    "--dropout-src",
    # of TensorBoard
    "--logdir",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    is_exempt: bool


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in these languages, in order."""
    pattern = r"^(<!-- not run: [^\n]*-->\n)?```(\w+)\n(.*?)^```$"
    matches = re.findall(pattern, text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [
        Block(language, text, bool(exempt))
        for exempt, language, text in matches
        if language in languages
    ]


def prose(page: Path) -> str:
    """Return the text of a page without its blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links, but for those of the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith("https://")]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"@[A-Z]+\d*\b|TODO|TBD", text_of(page)) == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}

    assert [str(page) for page in PAGES[1:] if page not in linked] == []


def test_readme_is_short() -> None:
    lines = text_of(ROOT / "README.md").split("\n")

    assert 180 <= len(lines) <= 220
    assert [line for line in lines if len(line) > 120] == []


def test_changelog_is_short_and_names_the_version() -> None:
    changelog = text_of(ROOT / "CHANGELOG.md")

    assert f"## {tfm_cli.__version__} " in changelog
    assert changelog.count("\n") <= 40


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_documented_and_has_an_example(
    command: list[str], run_tfm: RunTfm
) -> None:
    result = run_tfm([*command, "--help"])

    assert result.code == 0
    assert any(f"tfm {' '.join(command)}" in text_of(page) for page in WRITTEN)
    assert command == ["tokenize"] or "Example:" in result.out


def test_tree_of_the_readme_has_every_folder() -> None:
    (tree,) = [b.text for b in blocks(ROOT / "README.md", "text") if b.text.startswith("tfm_cli/")]
    folders: list[str] = []
    path: list[str] = []
    for indent, name in re.findall(r"^((?:[│ ]   )*)[├└]── (\S+/)", tree, flags=re.MULTILINE):
        path = [*path[: len(indent) // 4], name]
        folders.append("".join(path))
    package = ROOT / "tfm_cli"
    expected = {f"{path.parent.relative_to(package)}/" for path in package.rglob("*.py")}

    assert sorted(folders) == sorted(expected - {"./"})


def test_flags_in_the_pages_exist(run_tfm: RunTfm) -> None:
    known = set(OTHER_FLAGS)
    for command in COMMANDS:
        known |= set(re.findall(r"--[a-z][a-z-]*", run_tfm([*command, "--help"]).out))
    unknown = {
        (page.name, flag)
        for page in WRITTEN
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text_of(page))
        if flag not in known
    }

    assert unknown == set()


def test_settings_in_the_pages_exist() -> None:
    known = {name for name, _ in reference.setting_names()} | {"training.learn_rat"}  # an example
    sections = {name.partition(".")[0] for name in known}
    unknown = {
        (page.name, name)
        for page in WRITTEN
        for name in re.findall(r"(?<![\w./])([a-z]+\.[a-z][a-z_0-9]+)(?=[`=])", text_of(page))
        if name.partition(".")[0] in sections
        and name not in known
        and not name.endswith((".model", ".safetensors", ".json", ".md"))  # files
    }

    assert unknown == set()


def test_code_in_the_pages_exists() -> None:
    """A link such as [`AddAndNorm`](../tfm_cli/model/layers.py) names what is in that module."""
    pattern = r"\[`([\w.]+)(?<!\.py)`\]\((?:\.\./)?(tfm_cli/[\w/]+)\.py\)"
    missing = set()
    for page in WRITTEN:
        for name, path in re.findall(pattern, text_of(page)):
            module = importlib.import_module(path.replace("/", "."))
            try:
                operator.attrgetter(name)(module)
            except AttributeError:
                missing.add((page.name, name, path))

    assert missing == set()


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_reference_is_current(name: str) -> None:
    """`make golden` writes these pages anew."""
    assert text_of(reference.DIRECTORY / name) == reference.pages()[name]


def test_each_promise_names_tests_that_exist() -> None:
    page = text_of(ROOT / "docs" / "reliability.md")
    rows = re.findall(r"^\| R(\d+) \| .*? \| (.*) \|$", page, flags=re.MULTILINE)
    named = {number: re.findall(r"`(test_\w+)`", shown) for number, shown in rows}
    tests = "".join(text_of(path) for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"^def (test_\w+)\(", tests, flags=re.MULTILINE))

    assert sorted(int(number) for number, _ in rows) == list(range(1, 57))
    assert [number for number, shown in rows if f"r{number:0>2}_" not in shown] == []
    assert sorted(set(itertools.chain(*named.values())) - existing) == []


@pytest.fixture(scope="module")
def documented_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the sample corpus that was trained for seconds: its translations are of no use."""
    directory = tmp_path_factory.mktemp("documented")
    for side in ("en", "fr"):
        lines = (ROOT / "data" / f"train.{side}").read_text("utf-8").split("\n")[:2000]
        (directory / side).write_text("\n".join(lines) + "\n", "utf-8")
    result = invoke(
        ["train", "-s", str(directory / "en"), "-t", str(directory / "fr"), "--output",
         str(directory / "model"), "--vocab-size", "400", "--set", "model.encoder_layers=1",
         "--set", "model.decoder_layers=1", "--set", "model.width=32", "--max-updates", "20",
         "--disp-freq", "5", "--device", "cpu", "--cpu-threads", "1"],
    )  # fmt: skip
    assert result.code == 0, result.err
    return directory / "model"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name) for page, name in zip(PAGES, NAMES, strict=True)]
)
def test_commands_of_a_page_run(page: Path, documented_model: Path, tmp_path: Path) -> None:
    """Run a page's blocks one after the other, beside the sample corpus and a model."""
    if not any(not block.is_exempt for block in blocks(page, "sh", "console")):
        pytest.skip("the page has no command")
    shutil.copytree(documented_model, tmp_path / "model")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for block in blocks(page, "sh", "console"):
        if block.is_exempt:
            continue
        if block.language == "sh":
            code, output = run(block.text, tmp_path)
            assert code == 0, f"{block.text}\n{output}"
        for command, expected in transcript(block.text) if block.language == "console" else []:
            _, output = run(command, tmp_path)
            assert matches(output, expected), f"{command}\n{output}\n--- expected:\n{expected}"


# Pages for the first hour, for who learns the architecture, who trains, and who translates.
USES = ("quickstart.md", "lesson.md", "training.md", "translation.md")
PROGRESS = re.compile("update +[0-9]|valid +[0-9]|  [1-3] (source|reference|translation) ")


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", USES)
def test_commands_of_a_page_run_on_a_terminal_of_80_columns(
    name: str, documented_model: Path, tmp_path: Path
) -> None:
    """The cursor is there again after each command, and no progress line wraps."""
    shutil.copytree(documented_model, tmp_path / "model")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    progress: list[str] = []
    for block in blocks(ROOT / "docs" / name, "sh", "console"):
        if block.is_exempt:
            continue
        commands = [block.text]
        if block.language == "console":
            commands = [command for command, _ in transcript(block.text)]
        for command in commands:
            code, shown = run_on_terminal(command, tmp_path)
            assert code == 0, f"{command}\n{shown}"
            assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h"), shown
            plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
            lines = [part for line in plain.split("\n") for part in line.split("\r")]
            progress += [line for line in lines if PROGRESS.match(line)]
    assert [line for line in progress if len(line) > 80] == []
    assert progress or name != "training.md"


def run_on_terminal(commands: str, directory: Path) -> tuple[int, str]:
    """Run shell commands on a terminal of 80 columns; return the exit code and what it shows."""
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1 << 16):
                shown.extend(part)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=directory,
            env={**environment(directory), "TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            timeout=300,
            check=False,
        )
    finally:
        os.close(terminal)
        thread.join()
        os.close(ours)
    return done.returncode, shown.decode("utf-8")


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of commands, whose home directory is the one they run in."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(directory),
        "OMP_NUM_THREADS": "1",  # another test has the other core
    }


def run(commands: str, directory: Path) -> tuple[int, str]:
    """Run shell commands; return the exit code and all output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=directory,
        env=environment(directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def transcript(text: str) -> list[tuple[str, str]]:
    """Return each command of a `console` block with the output that follows it."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert parts[0] == "", "a transcript begins with a command"
    pairs = []
    for part in parts[1:]:
        lines = part.split("\n")
        length = 1
        while lines[length - 1].endswith("\\"):
            length += 1
        pairs.append(("\n".join(lines[:length]), "\n".join(lines[length:])))
    return pairs


def matches(output: str, expected: str) -> bool:
    """Return True if output is as expected, where `…` stands for any text."""
    pattern = ".*".join(re.escape(part) for part in expected.rstrip("\n").split("…"))
    return re.fullmatch(pattern, output.rstrip("\n"), re.DOTALL) is not None
