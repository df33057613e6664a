"""Training of a SentencePiece model on any number of lines, in bounded memory.

The same lines and seed give the same model, byte for byte.
"""

import contextlib
import csv
import ctypes
import dataclasses
import gc
import heapq
import io
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import sentencepiece

import tfm_cli
from tfm_cli.config.settings import TokenizerConfig, is_rule_file
from tfm_cli.errors import END_SIGNALS, ConfigError, DataError, ResourceError, TfmError
from tfm_cli.parallel.child_processes import SuspensionMonitor
from tfm_cli.text.language_tags import LANGUAGE_TAG
from tfm_cli.tokenizer.model_file import SPACE_SYMBOL, reason_of
from tfm_cli.tokenizer.normalization import (
    SILENT,
    check_rule,
    trainer_options,
    without_rule_file_name,
)

# Training takes 10 to 80 times as much memory as its text: 0.8 GB for this much ordinary text.
MAX_SAMPLE_BYTES = 40 << 20
MAX_LINE_BYTES = 4192  # SentencePiece's own default of max_sentence_length
# The number of threads changes the last digits of a unigram model's scores, since each thread sums
# a share of the text. A fixed number, SentencePiece's default, gives every machine the same model.
THREADS = 16
SPECIAL_IDS = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
_SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")  # SentencePiece's own spellings of them
_BYTE_PIECES = 256
# With more text, training runs in a child process: a megabyte takes about a second.
_CHILD_PROCESS_BYTES = 1 << 20
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_FAILED = 3  # the child's exit code if it wrote SentencePiece's error instead of a model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """The training lines, as UTF-8 and in order, with counts of the lines read and skipped."""

    lines: list[bytes]
    num_read: int
    num_blank: int
    num_too_long: int


def draw_sample(
    lines: Iterable[str],
    *,
    max_lines: int,
    seed: int,
    shuffle: bool = True,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_bytes: int = MAX_SAMPLE_BYTES,
) -> Sample:
    """Return a uniform random sample of at most `max_lines` lines and `max_bytes` bytes.

    Each line gets a random key and the lines with the smallest keys are kept, so that one pass over
    any number of lines needs memory for the sample only. Blank and over-long lines are skipped.

    Args:
        lines: text without line feeds.
        max_lines: maximum number of lines in the sample.
        seed: seed of the keys.
        shuffle: False takes the first lines instead and does not read the rest.
        max_line_bytes: skip longer lines.
        max_bytes: maximum number of bytes in the sample.
    """
    rng = random.Random(seed)
    heap: list[tuple[float, int, bytes]] = []  # (-key, line number, line): largest key first
    num_read = num_blank = num_too_long = held = 0
    bound = 1.0  # a line with this key or a larger one is not in the sample
    for line in lines:
        num_read += 1
        if not line or line.isspace():
            num_blank += 1
            continue
        text = line.encode("utf-8", "replace")
        if len(text) > max_line_bytes:
            num_too_long += 1
            continue
        if not shuffle and (len(heap) == max_lines or held + len(text) > max_bytes):
            num_read -= 1
            break
        key = rng.random()
        if key >= bound:
            continue
        heapq.heappush(heap, (-key, num_read, text))
        held += len(text)
        while len(heap) > max_lines or held > max_bytes:
            negative_key, _, dropped = heapq.heappop(heap)
            bound = -negative_key
            held -= len(dropped)
    selected = [text for _, _, text in sorted(heap, key=lambda entry: entry[1])]
    return Sample(selected, num_read, num_blank, num_too_long)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """Options of `train_tokenizer` that are not settings of a run.

    Args:
        threads: number of threads, which changes the last digits of a unigram model's scores.
        shuffle: train on lines drawn at random instead of the first ones.
        max_line_bytes: skip longer lines.
        max_sample_bytes: maximum size of the text to train on.
        extra: further options of SentencePiece's trainer, by their own names.
    """

    threads: int = THREADS
    shuffle: bool = True
    max_line_bytes: int = MAX_LINE_BYTES
    max_sample_bytes: int = MAX_SAMPLE_BYTES
    extra: Mapping[str, str | bool] = field(default_factory=dict)


def train_tokenizer(
    lines: Iterable[str],
    config: TokenizerConfig,
    *,
    seed: int,
    soft_limit: bool = False,
    tags: Callable[[], Sequence[str]] = tuple,
    options: TrainerOptions = TrainerOptions(),
) -> bytes:
    """Train a SentencePiece model, deterministically, with pad 0, unk 1, <s> 2 and </s> 3.

    Args:
        lines: text without line feeds, of any length; only a sample of it is held in memory.
        config: size, type and normalization of the model; `config.model` is ignored.
        seed: seed of the sample.
        soft_limit: accept fewer tokens than `vocab_size` if the text yields no more.
        tags: returns the language tags, each of which becomes one piece; called after all lines
            were read. User-defined symbols that look like tags are tags as well.
        options: the other options.

    Returns:
        The serialized model.

    Raises:
        DataError: no line is usable, or the file of normalization rules is not.
        ConfigError: the text needs fewer or more tokens than `vocab_size`, or an option is invalid.
        ResourceError: memory ran out.
    """
    user_defined, control = _own_symbols(options.extra)
    rule = config.normalization_rule_name
    check_rule(rule)
    sample = _usable_sample(lines, options, max_lines=config.input_sentence_size, seed=seed)
    new_tags = [tag for tag in tags() if tag not in user_defined]
    user_defined = [*map(_tag_piece, user_defined), *map(_tag_piece, new_tags)]
    trainer_arguments: dict[str, object] = {
        **options.extra,
        "user_defined_symbols": user_defined,
        **SPECIAL_IDS,
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hard_vocab_limit": not soft_limit,
        "character_coverage": config.character_coverage,
        "byte_fallback": config.byte_fallback,
        "input_sentence_size": 0,  # the sample was drawn above
        "max_sentence_length": options.max_line_bytes,
        "num_threads": options.threads,
        "minloglevel": SILENT,
    }
    counts = dataclasses.replace(sample, lines=[])  # a child process empties the list of lines
    try:
        with trainer_options(rule) as normalization:
            model = _train(sample.lines, trainer_arguments | normalization)
    except MemoryError as error:
        hint = "set `input_sentence_size` lower"
        raise ResourceError("not enough memory to train the tokenizer", hint=hint) from error
    except (RuntimeError, ValueError) as error:
        raise _explained(error, config, counts, num_symbols=len(user_defined + control)) from error
    if is_rule_file(rule):
        model = without_rule_file_name(model)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    if (num_pieces := int(processor.GetPieceSize())) < config.vocab_size:
        message = "tokenizer: %d tokens instead of %d, the text yields no more"
        logger.info(message, num_pieces, config.vocab_size)
    _check_yielded(processor, user_defined, config.model_type)
    return model


def _usable_sample(
    lines: Iterable[str], options: TrainerOptions, *, max_lines: int, seed: int
) -> Sample:
    """Draw the sample to train on, log how much of the text it is, and refuse an empty one."""
    sample = draw_sample(
        lines, max_lines=max_lines, seed=seed, shuffle=options.shuffle,
        max_line_bytes=options.max_line_bytes, max_bytes=options.max_sample_bytes,
    )  # fmt: skip
    if sample.num_too_long:
        logger.warning(
            "tokenizer: lines of more than %d bytes, left out: %d",
            options.max_line_bytes, sample.num_too_long,
        )  # fmt: skip
    if not sample.lines:
        raise _no_usable_lines(sample)
    num_usable = sample.num_read - sample.num_blank - sample.num_too_long
    if len(sample.lines) < num_usable:
        logger.info("tokenizer: training on %d of %d lines", len(sample.lines), num_usable)
    return sample


def _train(lines: list[bytes], arguments: Mapping[str, object]) -> bytes:
    """Train in this process, or with more text in a child process, which empties the list."""
    if sum(map(len, lines)) > _CHILD_PROCESS_BYTES:
        return train_in_child(lines, arguments)
    with _default_signal_handlers():
        return train_sentencepiece(lines, arguments)


@contextlib.contextmanager
def _default_signal_handlers() -> Iterator[None]:
    """Let a signal end the process at once, since Python handles none while SentencePiece trains.

    At this point a handler would have nothing to clean up. Ignored signals stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {each: signal.getsignal(each) for each in END_SIGNALS}
    before = {each: handler for each, handler in handlers.items() if callable(handler)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_symbols(extra: Mapping[str, str | bool]) -> tuple[list[str], list[str]]:
    """Return the user-defined and the control symbols; raise a ConfigError for unusable ones."""
    listed = [str(extra.get(name, "")) for name in ("user_defined_symbols", "control_symbols")]
    user_defined, control = (next(csv.reader([each])) if each else [] for each in listed)
    symbols = user_defined + control
    clashes = [f"`{symbol}`" for symbol in symbols if symbol in _SPECIAL_PIECES]
    if clashes:
        raise ConfigError(f"the model has these symbols already: {', '.join(clashes)}")
    with_space = [f"`{symbol}`" for symbol in user_defined if " " in symbol]
    if with_space:
        raise ConfigError(
            f"no text yields these symbols, which have a space: {', '.join(with_space)}",
            hint=f"leave the space out, or write `{SPACE_SYMBOL}` for it",
        )
    return user_defined, control


def _tag_piece(symbol: str) -> str:
    """Return the piece of a language tag, or the symbol itself if it is not a tag."""
    return SPACE_SYMBOL + symbol if LANGUAGE_TAG.fullmatch(symbol) else symbol


def _check_yielded(
    processor: sentencepiece.SentencePieceProcessor, symbols: Sequence[str], model_type: str
) -> None:
    """Raise a ConfigError for user-defined symbols that the model never produces from text."""
    never = []
    for symbol in symbols:
        text = symbol.replace(SPACE_SYMBOL, " ")
        # Spaces at the ends of a line are dropped, and some models split at spaces only.
        lines = [text, f"a{text}a", f"a {text} a"]
        if not any(symbol in pieces for pieces in processor.Encode(lines, return_type=str)):
            never.append(f"`{symbol}`")
    if never:
        message = f"no text yields these symbols: {', '.join(never)}"
        hint = None
        if model_type == "word":
            hint = f"write `{SPACE_SYMBOL}` before a word, or choose another `model_type`"
        raise ConfigError(message, hint=hint)


def _no_usable_lines(sample: Sample) -> DataError:
    counts = f"{sample.num_read} read, {sample.num_blank} blank, {sample.num_too_long} too long"
    return DataError(f"0 usable lines to train a tokenizer on: {counts}")


def _explained(
    error: Exception, config: TokenizerConfig, sample: Sample, *, num_symbols: int
) -> TfmError:
    """Convert an error of SentencePiece to one that refers to the settings."""
    cause, vocab_size = str(error), config.vocab_size
    if "sentences_.empty()" in cause or "(all_chars_count) > (0)" in cause:
        return _no_usable_lines(sample)
    if match := re.search(r"Vocabulary size too high .* <= (\d+)", cause):
        message = f"`vocab_size` is {vocab_size}, but the text yields at most {match[1]} tokens"
        return ConfigError(message, hint=f"set `vocab_size` to {match[1]} or less, or add text")
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", cause):
        message = (
            f"`vocab_size` is {vocab_size}, but the characters need at least {match[1]} tokens"
        )
        hint = f"set `vocab_size` to {match[1]} or more, or `character_coverage` lower"
        return ConfigError(message, hint=hint)
    if "(vocab_size) >= (0)" in cause:
        needed = len(_SPECIAL_PIECES) + num_symbols + (_BYTE_PIECES if config.byte_fallback else 0)
        message = f"`vocab_size` is {vocab_size}, but the special tokens alone need {needed}"
        return ConfigError(message, hint=f"set `vocab_size` above {needed}")
    return ConfigError(f"the tokenizer cannot be trained: {reason_of(error) or cause}")


# SentencePiece's trainer, in this process or in a child process
#
# While SentencePiece trains, Python handles no signals, and the memory it allocates is not returned
# to the system. A child process, `python -m tfm_cli.tokenizer.training`, can be killed at any time
# and frees its memory when it ends. It imports no PyTorch.


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
