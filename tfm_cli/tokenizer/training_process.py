"""Training of a SentencePiece model, in this process or in a child process.

While SentencePiece trains, Python handles no signals, and the memory it allocates is not returned
to the system. A child process, `python -m tfm_cli.tokenizer.training_process`, can be killed at any
time and frees its memory when it ends. It imports no PyTorch.
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
_FAILED = 3  # the child's exit code if it wrote SentencePiece's error instead of a model


def train_sentencepiece(lines: Iterable[bytes], options: Mapping[str, Any]) -> bytes:
    """Train in this process and return the serialized model.

    Args:
        lines: without line feeds.
        options: options of SentencePiece's trainer.

    Raises:
        RuntimeError, ValueError: SentencePiece's own error.
    """
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=writer, **options
    )
    return writer.getvalue()


def train_in_child(lines: list[bytes], options: Mapping[str, Any]) -> bytes:
    """Return the same model as `train_sentencepiece`, trained in a child process.

    Args:
        lines: without line feeds; the list is emptied as soon as the child has them.
        options: options of SentencePiece's trainer.

    Raises:
        ResourceError: the child process cannot be started, or was killed.
        RuntimeError, MemoryError: the child's error.
    """
    package = Path(tfm_cli.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    try:
        # -P: import nothing from the current directory. A process group of its own: Ctrl-C goes to
        # this process only.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path}, process_group=0, pass_fds=_descriptors(options),
        )  # fmt: skip
    except OSError as error:
        message = f"cannot start a process to train the tokenizer: {error.strerror}"
        raise ResourceError(message) from error
    assert process.stdin is not None
    assert process.stdout is not None
    monitor = SuspensionMonitor("the process that trains the tokenizer")
    monitor.add(process.pid)
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as requests:
            requests.write(json.dumps(dict(options)).encode() + b"\n")
            for line in lines:
                requests.write(line + b"\n")
        lines.clear()
        gc.collect()  # otherwise Python keeps some of the sample's memory for later tuples
        answer = process.stdout.read()
        code = process.wait()
    finally:
        monitor.close()
        process.kill()
        process.wait()
        process.stdout.close()
    if reason := monitor.reason(process.pid):
        raise reason
    if code == _FAILED:
        kind, message = json.loads(answer)
        raise MemoryError if kind == MemoryError.__name__ else RuntimeError(message)
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ResourceError(
            f"the process that trains the tokenizer {how}",
            hint="if memory ran out, set `input_sentence_size` lower",
        )
    return answer


def _descriptors(options: Mapping[str, Any]) -> list[int]:
    """Return the file descriptors that the options name as `/dev/fd/N`, for the child process."""
    names = [str(value) for value in options.values()]
    return [int(each.rpartition("/")[2]) for each in names if each.startswith("/dev/fd/")]


def serve(requests: BinaryIO, answers: BinaryIO) -> int:
    """Train on the lines of a request, write the model or an error, and return the exit code."""
    options = json.loads(requests.readline())
    try:
        answers.write(train_sentencepiece((line.removesuffix(b"\n") for line in requests), options))
    except (RuntimeError, ValueError, MemoryError) as error:
        answers.write(json.dumps([type(error).__name__, str(error)]).encode())
        return _FAILED
    return 0


def _end_with_parent() -> None:
    """Let Linux kill this process when its parent ends, as SentencePiece would not notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    _end_with_parent()
    # Anything that a library prints goes to stderr, not into the answer.
    with os.fdopen(os.dup(1), "wb") as own:
        os.dup2(2, 1)
        try:
            code = serve(sys.stdin.buffer, own)
            own.flush()
        except (BrokenPipeError, json.JSONDecodeError):  # the parent process has ended
            os._exit(1)
    os._exit(code)
