"""Blocks encoded by several processes, or by this one; the answers come in order either way."""

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import tfm_cli
from tfm_cli.corpus import messages
from tfm_cli.corpus.blocks import Block
from tfm_cli.corpus.encoding import EncodedBlock, encode_block
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.messages import read_frame, write_frame
from tfm_cli.errors import ResourceError, TfmError
from tfm_cli.parallel.child_processes import SuspensionMonitor
from tfm_cli.parallel.cpu_cores import BLAS_THREADS
from tfm_cli.tokenizer.pair import TokenizerPair

_AT_HAND = 2  # blocks of a process: the one it works on, and the next

Answer = tuple[Block, EncodedBlock]


@contextlib.contextmanager
def encoders(tokenizers: TokenizerPair, filters: Filters, *, workers: int) -> Iterator["Encode"]:
    """What encodes blocks; processes that it has end with it, and with this one.

    Args:
        tokenizers: of the two sides.
        filters: which pairs may stay.
        workers: processes; 0 has this one do it.

    Raises:
        ResourceError: no process can be started.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        stop_watch = SuspensionMonitor("a process that prepares text")
        stack.callback(stop_watch.close)
        for _ in range(workers):
            process = _Process(tokenizers, filters, stop_watch)
            stack.callback(process.end)
            processes.append(process)
        yield Encode(tokenizers, filters, processes)


class Encode:
    """Turns blocks into ids; a class because it holds the processes."""

    def __init__(
        self, tokenizers: TokenizerPair, filters: Filters, processes: list["_Process"]
    ) -> None:
        self._tokenizers = tokenizers
        self._filters = filters
        self._processes = processes

    def __call__(self, blocks: Iterable[Block]) -> Iterator[Answer]:
        """Each block with what it encodes to, in order.

        Raises:
            DataError: as the blocks' lines or files ask for; what stands first in the text is
                told, however many processes there are.
            ResourceError: a process was killed.
        """
        if not self._processes:
            for block in blocks:
                yield block, encode_block(block, self._tokenizers, self._filters, threads=0)
            return
        idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            idle.put(process)

        def answered(block: Block) -> EncodedBlock:
            process = idle.get()
            try:
                return process.encode(block)
            finally:
                idle.put(process)

        waiting: deque[tuple[Block, Future[EncodedBlock]]] = deque()
        iterator = iter(blocks)
        at_end, failure = False, None
        many = len(self._processes)
        threads = ThreadPoolExecutor(many)
        try:
            while True:
                while not at_end and len(waiting) < _AT_HAND * many:
                    try:
                        new = next(iterator, None)
                    except TfmError as error:  # raised below, behind what was read before it
                        new, failure = None, error
                    if new is None:
                        at_end = True
                    else:
                        waiting.append((new, threads.submit(answered, new)))
                if not waiting:
                    break
                block, future = waiting.popleft()
                yield block, future.result()
            if failure is not None:
                raise failure
        finally:
            for process in self._processes if waiting else ():
                process.end()  # so that nobody waits for an answer
            threads.shutdown(cancel_futures=True)


class _Process:
    """A process that encodes blocks, one at a time."""

    def __init__(
        self, tokenizers: TokenizerPair, filters: Filters, stop_watch: SuspensionMonitor
    ) -> None:
        package = Path(tfm_cli.__file__).parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        try:
            # -P: nothing is imported from where the user happens to be. A group of its own: Ctrl-C
            # is for the process that asked.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tfm_cli.corpus.encoder_process"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path, BLAS_THREADS: "1"}, process_group=0,
            )  # fmt: skip
        except OSError as error:
            raise ResourceError(
                f"cannot start a process to prepare text: {error.strerror}",
                hint="set `--data-workers` lower",
            ) from error
        self._stop_watch = stop_watch
        stop_watch.add(self._process.pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # which the first block will tell
            write_frame(self._requests, *messages.of_work(tokenizers, filters))

    def encode(self, block: Block) -> EncodedBlock:
        """What it answers.

        Raises:
            DataError: a line is no UTF-8, or holds no pair.
            ResourceError: it was killed, or stopped for too long.
        """
        try:
            write_frame(self._requests, *messages.of_block(block))
            answer = read_frame(self._answers)
        except (EOFError, OSError, ValueError):  # ValueError: it was ended by us
            answer = None
        if answer is None:
            code = self._process.wait()
            if reason := self._stop_watch.reason(self._process.pid):
                raise reason
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = "if memory ran out, set `--data-workers` lower"
            raise ResourceError(f"a process that prepares text {how}", hint=hint)
        return messages.to_encoded(answer)

    def end(self) -> None:
        """End it, whatever it does; it owns nothing that would be lost."""
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self._answers):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
