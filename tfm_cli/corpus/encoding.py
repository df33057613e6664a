"""Encoding of blocks of lines as token ids, in this process or in a pool of processes."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

import tfm_cli
from tfm_cli.corpus.filters import Filters, filter_lengths, filter_texts
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags
from tfm_cli.corpus.parallel_text import Block, block_pairs
from tfm_cli.errors import DataError, ResourceError, TfmError
from tfm_cli.parallel.child_processes import SuspensionMonitor
from tfm_cli.parallel.cpu_cores import BLAS_THREADS
from tfm_cli.text.reader import Repairs
from tfm_cli.tokenizer.pair import TokenizerPair

# SentencePiece returns Python integers, which take twenty times the memory of an array.
_PAIRS_AT_A_TIME = 4096
_QUEUED_PER_PROCESS = 2  # the block that is being encoded, and the next
_CHILD_PROGRAM = """
import sys
from tfm_cli.corpus.encoding import Connection, serve
serve(Connection(int(sys.argv[1])))
"""


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The pairs of a block that pass the filters, source and target.

    Attributes:
        ids: token ids of all segments of a side, concatenated, without </s>.
        lengths: tokens of each segment, including </s>.
        hashes: a hash of the texts of each pair; empty unless duplicates are dropped.
        dropped: the number of dropped pairs, by reason.
        repairs: repaired lines of each of the block's files.
        round_trips: text of each side that decoding does not restore, before filtering by length.
        tags: source lines by language tag, before any filtering.
    """

    ids: tuple[np.ndarray, np.ndarray]
    lengths: tuple[np.ndarray, np.ndarray]
    hashes: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    repairs: tuple[Repairs, ...] = ()
    round_trips: tuple[RoundTrip, RoundTrip] = field(
        default_factory=lambda: (RoundTrip(), RoundTrip())
    )
    tags: SourceTags = field(default_factory=SourceTags)


def id_type(vocab_size: int) -> np.dtype[np.generic]:
    """Return the narrowest type for the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def length_type(max_length: int) -> np.dtype[np.generic]:
    """Return the narrowest type for lengths with </s>, given the largest one without."""
    return np.dtype(np.uint16 if max_length + 1 < 1 << 16 else np.int32)


def encode_block(
    block: Block, tokenizers: TokenizerPair, filters: Filters, *, threads: int
) -> EncodedBlock:
    """Encode the pairs of a block, and drop those that do not pass the filters.

    Args:
        block: lines of corpus files.
        tokenizers: the tokenizers of the two sides.
        filters: rules for the pairs to drop.
        threads: the number of threads of SentencePiece; 0 for one that suits the machine.

    Raises:
        DataError: a line is not UTF-8 and the filters refuse it, or it holds no pair.
    """
    dropped: Counter[str] = Counter()
    read = block_pairs(block, bad_utf8=filters.bad_utf8)
    dropped["invalid UTF-8"] += read.num_left_out
    sources, targets = filter_texts(read.sources, read.targets, filters, dropped)
    tags = SourceTags()
    tags.add(
        tokenizers.source, read.sources, position=lambda index: (block.file, read.numbers[index])
    )
    trips = RoundTrip(), RoundTrip()

    def position(first: int, index: int) -> tuple[int, int]:
        # The filters treat equal pairs alike, so this pair is the first one that is equal to it.
        pair = sources[first + index], targets[first + index]
        pairs = enumerate(zip(read.sources, read.targets, strict=True))
        return block.file, read.numbers[next(i for i, other in pairs if other == pair)]

    def count_round_trips(first: int, side: int, ids: list[list[int]]) -> None:
        lines = (sources, targets)[side][first : first + len(ids)]
        trips[side].add(tokenizers[side], lines, ids, position=partial(position, first))

    parts = [
        encode_pairs(
            sources[first : first + _PAIRS_AT_A_TIME], targets[first : first + _PAIRS_AT_A_TIME],
            tokenizers, filters, dropped, threads=threads,
            observe=partial(count_round_trips, first),
        )
        for first in range(0, max(1, len(sources)), _PAIRS_AT_A_TIME)
    ]  # fmt: skip
    return EncodedBlock(
        _joined([part.ids for part in parts]),
        _joined([part.lengths for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        dropped,
        read.repairs,
        trips,
        tags,
    )


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def encode_pairs(
    sources: list[str],
    targets: list[str],
    tokenizers: TokenizerPair,
    filters: Filters,
    dropped: Counter[str],
    *,
    threads: int = 0,
    observe: Callable[[int, list[list[int]]], None] = lambda side, ids: None,
) -> EncodedBlock:
    """Return ids, lengths and hashes of the pairs that pass the filters by length.

    Args:
        sources: text that passes the filters of text.
        targets: the same of the other side.
        tokenizers: the tokenizers of the two sides.
        filters: rules for the pairs to drop.
        dropped: the number of dropped pairs by reason; changed in place.
        threads: as in `encode_block`.
        observe: called with the index of each side and the ids of all its lines.
    """
    flat, lengths = [], []
    for side, lines in enumerate((sources, targets)):
        ids = tokenizers[side].encode(lines, threads=threads)
        observe(side, ids)
        lengths.append(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        total = int(lengths[-1].sum())
        dtype = id_type(tokenizers[side].vocab_size)
        flat.append(np.fromiter(chain.from_iterable(ids), dtype=dtype, count=total))
    select = filter_lengths(lengths[0], lengths[1], filters, dropped)
    narrow = length_type(filters.max_length)
    hashes = _hashes(sources, targets) if filters.duplicates else np.zeros(0, dtype=np.uint64)
    if not select.all():
        flat = [ids[np.repeat(select, counts)] for ids, counts in zip(flat, lengths, strict=True)]
        lengths = [counts[select] for counts in lengths]
        hashes = hashes[select] if filters.duplicates else hashes
    source_lengths, target_lengths = ((counts + 1).astype(narrow) for counts in lengths)
    return EncodedBlock((flat[0], flat[1]), (source_lengths, target_lengths), hashes)


def _hashes(sources: list[str], targets: list[str]) -> np.ndarray:
    """Return a 64-bit hash of each pair of texts.

    The probability that two of 100 million different pairs have the same hash is 1 in 4,000.
    """
    raw = b"".join(
        hashlib.blake2b(f"{source}\0{target}".encode(), digest_size=8).digest()
        for source, target in zip(sources, targets, strict=True)
    )
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)


# A pool of processes, none of which imports PyTorch
#
# Blocks and results travel through a socket pair as pickles that this package writes and reads; no
# file is ever unpickled. A process ends as soon as the other end of its socket is closed, and the
# system closes it however the parent ends.


@contextlib.contextmanager
def encoding_pool(
    tokenizers: TokenizerPair, filters: Filters, *, num_processes: int
) -> Iterator["EncodingPool"]:
    """Start processes that encode blocks, and end them at the end of the block.

    Args:
        tokenizers: the tokenizers of the two sides.
        filters: rules for the pairs to drop.
        num_processes: 0 encodes in this process.

    Raises:
        ResourceError: a process cannot be started.
    """
    with contextlib.ExitStack() as stack:
        processes = []
        monitor = SuspensionMonitor("a process that prepares text")
        stack.callback(monitor.close)
        for _ in range(num_processes):
            process = _Process(monitor)
            stack.callback(process.close)
            processes.append(process)
        for process in processes:  # in a second loop, since `send` blocks until the process runs
            process.send((tokenizers.files(), filters))
        yield EncodingPool(tokenizers, filters, processes)


class EncodingPool:
    """A pool of processes that encode blocks; without any, this process encodes them."""

    def __init__(
        self, tokenizers: TokenizerPair, filters: Filters, processes: list["_Process"]
    ) -> None:
        self._tokenizers = tokenizers
        self._filters = filters
        self._processes = processes

    @property
    def pids(self) -> list[int]:
        """Return the process IDs."""
        return [process.pid for process in self._processes]

    def encode(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, EncodedBlock]]:
        """Yield each block with its encoding, in order.

        Raises:
            DataError: a file cannot be read, or a line is malformed. With any number of processes,
                it is the first error in the order of the text.
            ResourceError: a process was killed, or stopped for too long.
        """
        if not self._processes:
            for block in blocks:
                yield block, encode_block(block, self._tokenizers, self._filters, threads=0)
            return
        idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            idle.put(process)

        def encode_remotely(block: Block) -> EncodedBlock:
            process = idle.get()
            try:
                return process.encode(block)
            finally:
                idle.put(process)

        pending: deque[tuple[Block, Future[EncodedBlock]]] = deque()
        iterator = iter(blocks)
        at_end, failure = False, None
        num_processes = len(self._processes)
        threads = ThreadPoolExecutor(num_processes)
        try:
            while True:
                while not at_end and len(pending) < _QUEUED_PER_PROCESS * num_processes:
                    try:
                        new = next(iterator, None)
                    except TfmError as error:  # raised below, after the blocks that precede it
                        new, failure = None, error
                    if new is None:
                        at_end = True
                    else:
                        pending.append((new, threads.submit(encode_remotely, new)))
                if not pending:
                    break
                block, future = pending.popleft()
                yield block, future.result()
            if failure is not None:
                raise failure
        finally:
            for process in self._processes if pending else ():
                process.kill()  # a thread that waits for its result would block the shutdown
            threads.shutdown(cancel_futures=True)


class _Process:
    """A child process that encodes one block at a time."""

    def __init__(self, monitor: SuspensionMonitor) -> None:
        package = Path(tfm_cli.__file__).parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        self._connection, child_end = Pipe()
        with child_end, contextlib.ExitStack() as on_failure:
            on_failure.callback(self._connection.close)
            try:
                # -P: no module is imported from the user's working directory. In a process group of
                # its own, the child does not receive the SIGINT of Ctrl-C; the parent ends it.
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-c", _CHILD_PROGRAM, str(child_end.fileno())],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    pass_fds=[child_end.fileno()],
                    env={**os.environ, "PYTHONPATH": path, BLAS_THREADS: "1"}, process_group=0,
                )  # fmt: skip
            except OSError as error:
                raise ResourceError(
                    f"cannot start a process to prepare text: {error.strerror}",
                    hint="set `--data-workers` lower",
                ) from error
            on_failure.pop_all()
        self._monitor = monitor
        monitor.add(self.pid)

    @property
    def pid(self) -> int:
        """Return the process ID."""
        return self._child.pid

    def send(self, message: object) -> None:
        """Send an object; a process that has ended is reported by `encode`."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def encode(self, block: Block) -> EncodedBlock:
        """Encode a block in the child.

        Raises:
            DataError: a line is not UTF-8, or holds no pair.
            ResourceError: the process was killed, or stopped for too long.
        """
        try:
            self._connection.send(block)
            result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._reason_for_end() from error
        if isinstance(result, DataError):
            raise result
        assert isinstance(result, EncodedBlock)
        return result

    def _reason_for_end(self) -> ResourceError:
        code = self._child.wait()
        if reason := self._monitor.reason(self.pid):
            return reason
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "if memory ran out, set `--data-workers` lower"
        return ResourceError(f"a process that prepares text {how}", hint=hint)

    def kill(self) -> None:
        """Kill the process, which has no state worth saving; `encode` then raises."""
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        """Kill the process and close the connection, which no thread may be using."""
        self.kill()
        self._connection.close()


def serve(connection: Connection) -> None:
    """Receive the tokenizers and filters, then answer each block with its encoding or DataError.

    It returns when the other end is closed, even in the middle of a message.
    """
    work = _receive(connection)
    if work is None:
        return
    files, filters = work
    tokenizers = TokenizerPair.from_files(files, origin="tokenizer")
    while (block := _receive(connection)) is not None:
        result: EncodedBlock | DataError
        try:
            result = encode_block(block, tokenizers, filters, threads=1)
        except DataError as error:
            result = error
        with contextlib.suppress(OSError):  # if the other end is closed, `_receive` returns None
            connection.send(result)


def _receive(connection: Connection) -> Any:
    """Return the next message; None if the other end is closed."""
    try:
        return connection.recv()
    except (EOFError, OSError):  # OSError in the middle of a message
        return None
