"""A process that learns a SentencePiece model: `python -m tfm_cli.tokenizer.training_process`.

SentencePiece answers to no signal while it learns and leaves the memory that it took with the
process. This one can be ended at any time, and its memory goes with it. Nothing that it imports
needs PyTorch.
"""

import contextlib
import ctypes
import gc
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import sentencepiece

import tfm_cli
from tfm_cli.errors import ResourceError
from tfm_cli.parallel.child_processes import SuspensionMonitor

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_FAILED = 3  # the exit code with which SentencePiece's complaint comes instead of a model


def learned(lines: Iterable[bytes], options: Mapping[str, Any]) -> bytes:
    """Return the model that SentencePiece learns here, as its trainer writes it.

    Raises:
        RuntimeError, ValueError: in SentencePiece's words.
    """
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=writer, **options
    )
    return writer.getvalue()


def learned_apart(lines: list[bytes], options: Mapping[str, Any]) -> bytes:
    """Return what `learned` would, from a process of its own, which ends with this call.

    Args:
        lines: without line feeds; the list is empty afterwards, as they are needed there alone.
        options: of SentencePiece's trainer.

    Raises:
        ResourceError: the process cannot be started, or was killed.
        RuntimeError, MemoryError: as `learned` does.
    """
    package = Path(tfm_cli.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    try:
        # -P: nothing is imported from where the user happens to be. A group of its own: Ctrl-C is
        # for the process that asked.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path}, process_group=0, pass_fds=_descriptors(options),
        )  # fmt: skip
    except OSError as error:
        told = f"cannot start a process to learn the tokenizer: {error.strerror}"
        raise ResourceError(told) from error
    assert process.stdin is not None
    assert process.stdout is not None
    stop_watch = SuspensionMonitor("the process that learns the tokenizer")
    stop_watch.add(process.pid)
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as requests:
            requests.write(json.dumps(dict(options)).encode() + b"\n")
            for line in lines:
                requests.write(line + b"\n")
        lines.clear()
        gc.collect()  # gives back what the sample took, which Python would else keep for tuples
        answer = process.stdout.read()
        code = process.wait()
    finally:
        stop_watch.close()
        process.kill()
        process.wait()
        process.stdout.close()
    if reason := stop_watch.reason(process.pid):
        raise reason
    if code == _FAILED:
        kind, words = json.loads(answer)
        raise MemoryError if kind == MemoryError.__name__ else RuntimeError(words)
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ResourceError(
            f"the process that learns the tokenizer {how}",
            hint="if memory ran out, set `input_sentence_size` lower",
        )
    return answer


def _descriptors(options: Mapping[str, Any]) -> list[int]:
    """Return the open files that options name, which the other process needs as well."""
    names = [str(value) for value in options.values()]
    return [int(each.rpartition("/")[2]) for each in names if each.startswith("/dev/fd/")]


def serve(requests: BinaryIO, answers: BinaryIO) -> int:
    """Learn from what comes, answer with the model, and return the exit code."""
    options = json.loads(requests.readline())
    try:
        answers.write(learned((line.removesuffix(b"\n") for line in requests), options))
    except (RuntimeError, ValueError, MemoryError) as error:
        answers.write(json.dumps([type(error).__name__, str(error)]).encode())
        return _FAILED
    return 0


def _end_with_parent() -> None:
    """Have Linux end this process with the one that started it; SentencePiece notices nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    _end_with_parent()
    # What a library prints must not come between the answers.
    with os.fdopen(os.dup(1), "wb") as own:
        os.dup2(2, 1)
        try:
            code = serve(sys.stdin.buffer, own)
            own.flush()
        except (BrokenPipeError, json.JSONDecodeError):  # the process that asked is no more
            os._exit(1)
    os._exit(code)
