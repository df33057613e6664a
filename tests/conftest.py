"""Fixtures of many tests: a corpus, a model trained on it, and the command line."""

import contextlib
import fcntl
import gc
import logging
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests import traps
from tfm_cli.errors import END_SIGNALS
from tfm_cli.files import faults

# Tests run in parallel on few cores; processes that tests start have one thread each as well.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts background jobs with SIGINT ignored, which children inherit; tests send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as `nohup` leaves it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(trylast=True)  # after they were shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none, and start those with the longest timeouts.

    The longest go first, so that none runs alone at the end.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))

    def may_take(item: pytest.Item) -> int:
        timeout = item.get_closest_marker("timeout")
        return timeout.args[0] // 900 if timeout else 0

    items.sort(key=may_take, reverse=True)


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection, since there are many and they stay."""
    gc.collect()
    gc.freeze()


_WORDS = {
    "zero": "null", "one": "eins", "two": "zwei", "three": "drei", "four": "vier",
    "five": "fünf", "six": "sechs", "seven": "sieben", "eight": "acht", "nine": "neun",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


RunTfm = Callable[..., Result]
TFM = (sys.executable, "-m", "tfm_cli")  # `tfm` in a process of its own


@dataclass(frozen=True)
class TinyCorpus:
    """Numbers spelled in English and German, word by word."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def lines(self, name: str) -> list[str]:
        return (self.directory / name).read_text(encoding="utf-8").split("\n")[:-1]

    def train_arguments(self) -> list[str]:
        """Return the flags that name the training and validation text."""
        return [
            "-s", self.path("train.en"), "-t", self.path("train.de"),
            "--valid-source", self.path("valid.en"), "--valid-target", self.path("valid.de"),
        ]  # fmt: skip


# A shape for which an update takes a few milliseconds.
TINY_SHAPE = [
    "--preset", "tiny", "--vocab-size", "60",
    "--set", "model.encoder_layers=1",
    "--set", "model.decoder_layers=1",
    "--set", "model.width=32",
    "--set", "model.heads=2",
    "--set", "model.feed_forward_width=64",
    "--set", "tokenizer.byte_fallback=false",
    "--set", "tokenizer.model_type=word",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _traps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which tfm runs code from a file or opens a connection."""
    load = torch.load

    def guarded(*arguments: Any, **options: Any) -> Any:
        asked = "interop" in request.path.parts and options.get("weights_only") is True
        assert asked, "torch.load is only for `tfm import --allow-pickle`"
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", guarded)
    traps.set_traps()
    traps.found.clear()
    yield
    assert not traps.found


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Restore the signal handlers after each test."""
    before = {number: signal.getsignal(number) for number in END_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_fault_stays() -> Iterator[None]:
    """Remove injected faults after each test."""
    yield
    faults.reset_faults()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, which is fastest and most stable when tests run in parallel on few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_corpus(directory: Path) -> TinyCorpus:
    """Write a corpus that a tiny model learns in a second or two; it is always the same."""
    chance = random.Random(7)
    for name, count in (("train", 600), ("valid", 40), ("test", 40)):
        rows = [chance.choices(list(_WORDS), k=chance.randint(2, 7)) for _ in range(count)]
        english = "".join(" ".join(row) + "\n" for row in rows)
        german = "".join(" ".join(_WORDS[word] for word in row) + "\n" for row in rows)
        (directory / f"{name}.en").write_text(english, encoding="utf-8", newline="\n")
        (directory / f"{name}.de").write_text(german, encoding="utf-8", newline="\n")
    return TinyCorpus(directory)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    """Return a corpus that a tiny model learns in a second or two."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def invoke(arguments: list[str], stdin: str | bytes = "") -> Result:
    """Run `tfm` in this process."""
    from tfm_cli.cli import app

    result = CliRunner().invoke(app, arguments, input=stdin, prog_name="tfm")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def run_tfm() -> RunTfm:
    """Return a function that runs `tfm`: `run_tfm(["translate", …], stdin)`."""
    return invoke


@pytest.fixture(scope="session")
def tiny_model(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that translates the tiny corpus without errors; tests must not change it."""
    return _made_once("tiny", lambda place: train_tiny(tiny_corpus, place), tmp_path_factory)


@pytest.fixture(scope="session")
def sample_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model trained for minutes on the sample corpus; tests must not change it."""

    def train(place: Path) -> None:
        torch.set_num_threads(1)
        result = invoke(["train", "--output", str(place)])
        assert result.code == 0, result.err

    return _made_once("sample", train, tmp_path_factory)


def _made_once(
    name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a directory that the first test process that needs it creates."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        place = tmp_path_factory.mktemp(name) / "made"
        make(place)
        return place
    shared = tmp_path_factory.getbasetemp().parent
    place, aside = shared / name, shared / f"{name}.part"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait
        if not place.exists():
            with contextlib.suppress(FileNotFoundError):  # left by one that failed
                shutil.rmtree(aside)
            make(aside)
            aside.rename(place)
    return place


def train_tiny(tiny_corpus: TinyCorpus, directory: Path) -> None:
    """Train a model that translates the tiny corpus without errors."""
    torch.set_num_threads(1)
    arguments = [
        "train", *tiny_corpus.train_arguments(), "--output", str(directory), *TINY_SHAPE,
        "--max-updates", "300", "--max-tokens", "512", "--lr", "5e-3", "--lr-warmup", "50",
        "--valid-freq", "100", "--save-freq", "100", "--dropout", "0.0", "--device", "cpu",
        "--set", "training.ema_decay=0.9", "--precision", "fp32",  # alike on every processor
    ]  # fmt: skip
    result = invoke(arguments)
    assert result.code == 0, result.err


@pytest.fixture
def log_messages() -> Iterator[list[str]]:
    """Return the messages that the package logs from now on."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("tfm_cli")
    before = logger.handlers, logger.level
    logger.handlers = [Listener()]
    logger.setLevel(logging.INFO)
    yield messages
    logger.handlers, level = before
    logger.setLevel(level)
