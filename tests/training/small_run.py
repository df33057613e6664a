"""The run that is broken in every way: two saves, a best model on schedule and one off it."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import TinyCorpus, invoke
from tests.runs import SMALL_RUN, left_behind, write_part
from tfm_cli.files.durable import Operation, watched
from tfm_cli.files.layout import CHECKPOINTS, LOCK_FILE, ON_SCHEDULE
from tfm_cli.files.ownership import is_temporary

_OFTEN = ["--valid-freq", "3", "--save-freq", "2", "--disp-freq", "2", "--seed", "3"]


@dataclass(frozen=True)
class SmallRun:
    """A run that never stopped: its command, its changes of the disk, what it left behind."""

    text: list[str]
    operations: list[Operation]
    left: dict[str, Any]
    output: Path
    updates: int

    def command(self, output: Path, *more: str) -> list[str]:
        """Return the arguments of `tfm`."""
        until = ["--max-updates", str(self.updates)]
        return ["train", *self.text, *SMALL_RUN, *_OFTEN, *until, "-o", str(output), *more]

    def newest_committed(self, after: int) -> int:
        """The update of the newest checkpoint that is made sure of after so many operations."""
        newest, named = 0, 0
        for each in self.operations[:after]:
            if each.kind == "rename" and each.target and each.target.name.startswith("update-"):
                named = int(each.target.name.removeprefix("update-"))
            elif each.kind == "sync_directory" and each.path.name == "checkpoints":
                newest = max(newest, named)
        return newest


def unbroken_run(corpus: TinyCorpus, directory: Path, *, updates: int = 7) -> SmallRun:
    """Make the run, in this process; one of five updates has all that happens in one of seven."""
    operations: list[Operation] = []
    text = write_part(corpus, directory, pairs=55)
    run = SmallRun(text, operations, {}, directory / "model", updates)
    with watched(operations.append):
        result = invoke(run.command(run.output))
    assert result.code == 0, result.err
    # The last weights, validated off schedule, are the best: those on schedule are kept beside.
    assert (run.output / CHECKPOINTS / ON_SCHEDULE).is_dir()
    return dataclasses.replace(run, left=left_behind(run.output))


def unfinished(output: Path) -> list[str]:
    """Return the entries of a run's directory that no reader should ever see."""
    return [
        name
        for _, folders, files in os.walk(output)
        for name in (*folders, *files)
        if is_temporary(name) or name == LOCK_FILE
    ]
