"""Processes that encode blocks: their results, their start, and every way in which they end."""

import io
import itertools
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import traps
from tests.conftest import TFM, TINY_SHAPE, TinyCorpus
from tests.distributed.torchrun import gone_after
from tests.tiers import representative
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.corpus import encoding
from tfm_cli.corpus.encoding import EncodedBlock, encode_block
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.parallel_text import Block
from tfm_cli.corpus.prepare import prepare
from tfm_cli.corpus.sources import CorpusFile
from tfm_cli.errors import DataError, ResourceError
from tfm_cli.parallel import child_processes
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.training import train_tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

FILTERS = Filters(40)
_COPIES = 400  # of the training text: several seconds of work
BLOCK = Block(0, "lines", ("a", "b"), 7, (False, True), (b"a b\n\0c\n", b"b\r\na a\r\n"), 0.5)
INVALID = Block(0, "lines", ("a", "b"), 7, (False, False), (b"a\n\xff\n", b"a\nb\n"))


@pytest.fixture
def tokenizers() -> TokenizerPair:
    """Return tokenizers whose ids differ from those of SentencePiece."""
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    model = train_tokenizer(["a b c"], settings, seed=1, soft_limit=True)
    pieces = ("</s>", "<unk>", "▁c", "▁b", "▁a", "<pad>")
    vocabulary = Vocabulary(pieces, eos="</s>", unk="<unk>", start="<pad>", banned=("<pad>",))
    return TokenizerPair(Tokenizer(model, vocabulary), Tokenizer(model, vocabulary))


def assert_equal(actual: EncodedBlock, expected: EncodedBlock) -> None:
    both = zip(
        (*actual.ids, *actual.lengths, actual.hashes),
        (*expected.ids, *expected.lengths, expected.hashes),
        strict=True,
    )
    for one, other in both:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for name in ("dropped", "repairs", "round_trips", "tags"):
        assert getattr(actual, name) == getattr(expected, name)


def test_process_returns_the_encoding_or_the_error_of_each_block(
    tokenizers: TokenizerPair,
) -> None:
    filters = Filters(5, duplicates=True)
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send((tokenizers.files(), filters))
        for block in (BLOCK, INVALID, BLOCK):
            ours.send(block)
        thread = threading.Thread(target=encoding.serve, args=(theirs,))
        thread.start()
        first, error, last = (ours.recv() for _ in range(3))
    thread.join()

    expected = encode_block(BLOCK, tokenizers, filters, threads=1)
    assert expected.ids[0].tolist() == [4, 3, 2]
    assert_equal(first, expected)
    assert_equal(last, expected)
    assert isinstance(error, DataError)
    assert str(error).startswith("a:9:")
    assert error.hint is not None


def test_process_returns_quietly_if_its_parent_ends_in_the_middle_of_a_message(
    tokenizers: TokenizerPair,
) -> None:
    message = pickle.dumps((tokenizers.files(), FILTERS))
    whole = struct.pack("!i", len(message)) + message
    for size in (0, 2, 4, len(whole) // 2, len(whole), len(whole) + 2):
        ours, theirs = Pipe()
        with theirs:
            with ours:
                os.write(ours.fileno(), (whole * 2)[:size])
            encoding.serve(theirs)


def test_results_and_the_first_error_come_in_the_order_of_the_text(
    tokenizers: TokenizerPair,
) -> None:
    blocks = [
        Block(0, "lines", ("a", "b"), number, (False, False), (b"a\n", b"b\n"))
        for number in range(9)
    ]
    with encoding.encoding_pool(tokenizers, FILTERS, num_processes=3) as pool:
        numbers = [block.num_lines for block, _ in pool.encode(blocks)]
        with pytest.raises(DataError, match=r"^a:9:"):
            list(pool.encode([BLOCK, INVALID, BLOCK]))

    assert numbers == list(range(9))


def test_pickles_hold_only_names_of_this_package_and_numpy(tokenizers: TokenizerPair) -> None:
    """Only these packages can appear, whatever the text holds."""
    result = encode_block(BLOCK, tokenizers, Filters(5, duplicates=True), threads=1)
    names = set()

    class Names(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            names.add(module.partition(".")[0])
            return super().find_class(module, name)

    for message in (BLOCK, (tokenizers.files(), FILTERS), result, DataError("wrong", hint="h")):
        Names(io.BytesIO(pickle.dumps(message))).load()

    assert names <= {"tfm_cli", "numpy", "collections"}


def test_error_names_the_signal_that_killed_a_process(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = encoding._Process.__init__

    def start_and_kill(self: encoding._Process, *arguments: Any) -> None:
        start(self, *arguments)
        os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(encoding._Process, "__init__", start_and_kill)

    with pytest.raises(ResourceError, match=r"prepares text was killed by signal 9") as caught:
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=2)

    assert "--data-workers" in str(caught.value.hint)
    assert not (tmp_path / "store").exists()


def test_error_names_the_signal_that_killed_a_process_at_work(tokenizers: TokenizerPair) -> None:
    with encoding.encoding_pool(tokenizers, FILTERS, num_processes=2) as pool:
        results = pool.encode(itertools.repeat(BLOCK))
        next(results)
        os.kill(pool.pids[1], signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"prepares text was killed by signal 9"):
            list(results)


@pytest.mark.timeout(60)
def test_error_names_a_process_that_is_stopped(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = encoding._Process.__init__

    def start_and_stop(self: encoding._Process, *arguments: Any) -> None:
        start(self, *arguments)
        os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(encoding._Process, "__init__", start_and_stop)
    monkeypatch.setattr(child_processes, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(child_processes, "_TIMEOUT_SECONDS", 0.5)

    with pytest.raises(ResourceError, match=r"prepares text, PID \d+, was stopped for 0\.5 s"):
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=2)

    assert not (tmp_path / "store").exists()


def test_error_gives_the_reason_if_no_process_can_be_started(
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))

    with pytest.raises(ResourceError, match="cannot start a process to prepare text: No such file"):
        prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=1)


@pytest.mark.parametrize("at_work", [False, True], ids=["idle", "at work"])
def test_r53_processes_end_with_a_parent_that_is_killed(
    at_work: bool, bytes_pair: TokenizerPair, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"

    pid = os.fork()
    if pid == 0:
        try:
            with encoding.encoding_pool(bytes_pair, FILTERS, num_processes=2) as pool:
                results = pool.encode(itertools.repeat(BLOCK))
                next(results)
                pids.with_suffix(".part").write_text(" ".join(map(str, pool.pids)))
                pids.with_suffix(".part").rename(pids)
                for _ in results if at_work else ():
                    pass
                time.sleep(60)
        finally:
            os._exit(99)
    while not pids.exists():
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert all(gone_after(int(each), 5.0) for each in pids.read_text().split())


@pytest.mark.slow
@representative(
    ("number", "at_work"),
    [(signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGINT, True)],
    ids=["killed at work", "killed at the start", "Ctrl-C"],
)
def test_r53_nothing_outlives_training_that_ends_while_it_prepares_text(
    number: signal.Signals, at_work: bool, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    for side in ("en", "de"):
        text = (tiny_corpus.directory / f"train.{side}").read_bytes()
        (tmp_path / f"big.{side}").write_bytes(text * _COPIES)
    command = [
        *TFM, "train", "-s", "big.en", "-t", "big.de",
        "-vs", f"{tiny_corpus.directory}/valid.en", "-vt", f"{tiny_corpus.directory}/valid.de",
        "-o", "model", "--data-workers", "2", "--max-updates", "1", "--device", "cpu", *TINY_SHAPE,
    ]  # fmt: skip
    (tmp_path / "traps").mkdir()
    environment = traps.environment(str(tmp_path / "traps"))
    with (tmp_path / "err").open("wb") as err:
        parent = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=err, start_new_session=True
        )
    deadline = time.monotonic() + 200
    while len(pids := _children(parent.pid)) < 2 or (at_work and not _has_begun(tmp_path)):
        assert parent.poll() is None, (tmp_path / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)

    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.kill()

    code = parent.wait(60)
    assert code == (130 if number == signal.SIGINT else -number)
    # A process that is still importing modules notices the end of its parent after that.
    assert all(gone_after(pid, 5.0 if at_work else 30.0) for pid in pids)
    words = (tmp_path / "err").read_text()
    assert "Traceback" not in words
    assert "trap: " not in words


def _children(pid: int) -> list[int]:
    """Return the process IDs of the pool of a process."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == str(pid) and b"tfm_cli.corpus.encoding" in command:
            pids.append(int(path.name))
    return pids


def _has_begun(directory: Path) -> bool:
    return any(path.stat().st_size > 0 for path in directory.glob("model/corpus/*/source.ids"))


def test_process_does_not_import_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import tfm_cli.corpus.encoding"]

    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    assert b"sentencepiece" in done.stderr
    assert b"torch" not in done.stderr


@pytest.mark.parametrize("name", ["pickle", "socket", "numpy"])
def test_process_imports_nothing_from_the_working_directory(
    name: str,
    two_files: tuple[CorpusFile, ...],
    bytes_pair: TokenizerPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / f"{name}.py").write_text("import os; os._exit(98)")
    monkeypatch.chdir(tmp_path)

    prepare(two_files, bytes_pair, FILTERS, tmp_path / "store", workers=1)

    assert (tmp_path / "store").exists()
