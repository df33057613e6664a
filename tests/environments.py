"""Python environments without some packages, such as PyTorch."""

import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import tfm_cli

PACKAGE = Path(tfm_cli.__file__).resolve().parent
# The packages that translation on a CPU needs, without PyTorch.
SMALL_PACKAGES = ("numpy", "rich", "sacrebleu", "sentencepiece", "typer")


def environment(folder: Path, packages: Iterable[str] = SMALL_PACKAGES) -> Path:
    """Create an environment with packages and their dependencies, and return its interpreter.

    The packages are links to those of the tests, so nothing is downloaded.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for distribution in _with_required(packages):
        for name in {file.parts[0] for file in distribution.files or ()}:
            path = Path(str(distribution.locate_file(name)))
            if name not in ("..", "__pycache__") and path.exists():
                (site / name).symlink_to(path)
    return python


def link_package(python: Path) -> None:
    """Link the package `tfm_cli` of this checkout into an environment."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "tfm_cli").symlink_to(PACKAGE)


def install(python: Path, *arguments: str) -> None:
    """Install packages with pip into an environment that lacks pip."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*command, "--no-index", "--no-deps", *arguments], check=True)


def _with_required(packages: Iterable[str]) -> list[metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another system or version of Python
            continue
        for required in found[name].requires or ():
            if "extra ==" not in required and (match := re.match(r"[\w.-]+", required)):
                waiting.append(match[0])
    return list(found.values())
