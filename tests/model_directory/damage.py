"""Ways in which a file comes to harm."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Harm(NamedTuple):
    """What is left of a file, and a name for what was done to it."""

    file: str
    kind: str
    content: bytes


def cuts(directory: Path) -> Iterator[Harm]:
    """Each file, with nothing, one byte, half and all but one byte left of it."""
    for path in sorted(directory.iterdir()):
        if path.is_file():
            whole = path.read_bytes()
            for size in (0, 1, len(whole) // 2, len(whole) - 1):
                yield Harm(path.name, f"cut at {size} of {len(whole)}", whole[:size])


def flips(directory: Path, *, number: int, seed: int) -> Iterator[Harm]:
    """One bit of one file turned, so many times, over all files alike."""
    chance = random.Random(seed)
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    for _ in range(number):
        name = chance.choice(sorted(files))
        place, bit = chance.randrange(len(files[name])), chance.randrange(8)
        content = bytearray(files[name])
        content[place] ^= 1 << bit
        yield Harm(name, f"bit {bit} of byte {place}", bytes(content))


def copied(directory: Path, to: Path) -> Path:
    """A folder with the same plain files."""
    to.mkdir(parents=True)
    for path in directory.iterdir():
        if path.is_file():
            shutil.copy(path, to)
    return to


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether tensors are equal to the bit."""
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )
