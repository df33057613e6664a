"""The summary of a run for programs, read from its directory without PyTorch."""

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any

import tfm_cli
from tfm_cli.errors import ModelError
from tfm_cli.files.layout import CONFIG_FILE, WEIGHTS_FILE
from tfm_cli.files.untrusted import open_regular
from tfm_cli.model_directory.description import describe


def identity(output: Path) -> tuple[int, int] | None:
    """Return what tells the settings of a run in a directory from those that replace them."""
    with contextlib.suppress(OSError):
        status = (output / CONFIG_FILE).lstat()
        return status.st_ino, status.st_mtime_ns
    return None


def run_summary(
    output: Path, *, reason: str, is_complete: bool, replaced: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the results of a run as a JSON object, whose names stay the same.

    What does not exist yet, such as the scores before the first validation, is null or empty.

    Args:
        output: the directory of the run; it may be missing.
        reason: why the command ended.
        is_complete: False if the same command would resume training.
        replaced: the `identity` of a run that this one replaces, and whose results are not its own.
    """
    summary: dict[str, Any] = {
        "model": str(output),
        "complete": is_complete,
        "reason": reason,
        **dict.fromkeys(("updates", "epochs", "target_tokens", "seconds", "best_update")),
        "scores": {},
        "sha256": {},
        "tfm_version": tfm_cli.__version__,
    }
    if replaced is not None and identity(output) == replaced:  # this run has not begun
        return summary
    with contextlib.suppress(ModelError, OSError):
        description = describe(output, verify=False)
        training = description.training
        summary["updates"] = training.updates
        summary["epochs"] = training.epoch
        summary["target_tokens"] = training.target_tokens
        summary["seconds"] = training.seconds
        summary["best_update"] = training.weights_update
        summary["scores"] = {
            metric: {"value": value, "signature": training.signatures.get(metric)}
            for metric, value in training.scores.items()
        }
        hashes = dict(description.saved.tokenizer_files)
        if description.precision:  # there are weights
            with io.BufferedReader(open_regular(output / WEIGHTS_FILE)) as file:
                hashes[WEIGHTS_FILE] = hashlib.file_digest(file, "sha256").hexdigest()
        summary["sha256"] = dict(sorted(hashes.items()))
    return summary
