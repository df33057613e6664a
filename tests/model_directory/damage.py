"""Ways to damage a file."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Harm(NamedTuple):
    """The damaged content of a file, with a name for the damage."""

    file: str
    kind: str
    content: bytes


def cuts(directory: Path) -> Iterator[Harm]:
    """Yield each file truncated to nothing, one byte, half, and all but one byte."""
    for path in sorted(directory.iterdir()):
        if path.is_file():
            whole = path.read_bytes()
            for size in (0, 1, len(whole) // 2, len(whole) - 1):
                yield Harm(path.name, f"cut at {size} of {len(whole)}", whole[:size])


def flips(directory: Path, *, number: int, seed: int) -> Iterator[Harm]:
    """Yield files with one flipped bit, spread evenly over all files."""
    rng = random.Random(seed)
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    for _ in range(number):
        name = rng.choice(sorted(files))
        place, bit = rng.randrange(len(files[name])), rng.randrange(8)
        content = bytearray(files[name])
        content[place] ^= 1 << bit
        yield Harm(name, f"bit {bit} of byte {place}", bytes(content))


def copied(directory: Path, to: Path) -> Path:
    """Return a copy of a folder of regular files."""
    to.mkdir(parents=True)
    for path in directory.iterdir():
        if path.is_file():
            shutil.copy(path, to)
    return to


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Return True if tensors are bit-equal."""
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )
