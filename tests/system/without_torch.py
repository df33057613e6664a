"""A folder with what `tfm` needs to translate, and no PyTorch: a stand-in for an installation."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tfm_cli.native import library

ROOT = Path(__file__).parents[2]
WITHOUT = ("torch", "safetensors", "tfm-cli")


def link_packages(folder: Path) -> None:
    """Link the installed packages that `tfm` depends on, but for PyTorch, into a folder."""
    wanted, known = ["tfm-cli"], set[str]()
    while wanted:
        name = wanted.pop()
        if name in known:
            continue
        known.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system
        for requirement in distribution.requires or ():
            depends_on = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
            if "extra ==" not in requirement and depends_on not in WITHOUT:
                wanted.append(depends_on)
        if name in WITHOUT:
            continue
        tops = {path.parts[0] for path in distribution.files or () if path.parts[0] != ".."}
        for top in tops:
            place, target = folder / top, Path(str(distribution.locate_file(top)))
            if target.exists() and not place.exists():
                place.symlink_to(target)


def run(
    packages: Path, arguments: Sequence[str], text: str = "", *, engine: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run `tfm` with no other packages than these.

    Args:
        packages: a folder that `link_packages` has filled.
        arguments: of the command.
        text: standard input.
        engine: what TFM_NATIVE_LIBRARY says; else the library that is used here.
    """
    engine = engine or str(library.load().path)
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{packages}", library.LIBRARY: engine,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-S", "-m", "tfm_cli", *arguments],
        input=text, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
