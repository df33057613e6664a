"""The run of two processes that tests interrupt, and its uninterrupted result."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import TinyCorpus
from tests.distributed import ranks
from tests.runs import SMALL_RUN, left_behind, write_part
from tfm_cli.files import durable
from tfm_cli.files.faults import reset_faults

_OFTEN = ["--disp-freq", "1", "--valid-freq", "6", "--save-freq", "5", "--update-freq", "1"]
UPDATES = 12


@dataclass(frozen=True)
class RanksRun:
    """An uninterrupted run: the flags of its text, its results, its operations on the disk."""

    text: list[str]
    left: dict[str, Any]
    operations: list[str]

    def command(self, output: Path, *more: str, updates: int = UPDATES) -> list[str]:
        """Return the arguments of `tfm`."""
        return command(self.text, output, *more, updates=updates)

    def number_within_save(self, update: int) -> int:
        """Return the number of the operation that renames a checkpoint to its final name."""
        return 1 + self.operations.index(f"rename update-{update:08d}")


def command(text: list[str], output: Path, *more: str, updates: int = UPDATES) -> list[str]:
    """Return the arguments of `tfm`."""
    flags = ["-o", str(output), "--max-updates", str(updates)]
    return ["train", *text, *SMALL_RUN, *_OFTEN, *flags, *more]


def unbroken(corpus: TinyCorpus, directory: Path) -> RanksRun:
    """Run the training on two processes."""
    text = write_part(corpus, directory, pairs=55)
    operations = directory / "operations"

    def watch(rank: int) -> None:
        def note(operation: durable.Operation) -> None:
            with operations.open("a", encoding="utf-8") as stream:
                target = operation.target
                stream.write(f"{operation.kind} {target.name if target else operation.path}\n")

        if rank == 0:
            durable._watchers.append(note)

    done = ranks.run(directory / "s", command(text, directory / "model"), prepare=watch)
    assert [each.code for each in done] == [0, 0], done
    lines = operations.read_text(encoding="utf-8").split("\n")[:-1]
    return RanksRun(text, left_behind(directory / "model"), lines)


def fault(text: str) -> Callable[[int], None]:
    """Return a function that injects a fault in forked processes, as `TFM_FAILPOINT` does."""

    def prepare(rank: int) -> None:
        os.environ["TFM_FAILPOINT"] = text
        reset_faults()

    return prepare
