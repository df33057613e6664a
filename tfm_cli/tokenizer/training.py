"""Learn a SentencePiece model from any number of lines, in bounded memory.

The same lines and the same seed give the same bytes.
"""

import contextlib
import csv
import dataclasses
import heapq
import logging
import random
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import sentencepiece

from tfm_cli.config.settings import TokenizerConfig, is_rule_file
from tfm_cli.errors import END_SIGNALS, ConfigError, DataError, ResourceError, TfmError
from tfm_cli.text.language_tags import LANGUAGE_TAG
from tfm_cli.tokenizer.normalization import (
    SILENT,
    check_rule,
    trainer_options,
    without_rule_file_name,
)
from tfm_cli.tokenizer.training_process import learned, learned_apart

# Learning takes 10 to 80 times as much memory as its text: 0.8 GB for this much of usual text.
MAX_SAMPLE_BYTES = 40 << 20
MAX_LINE_BYTES = 4192  # SentencePiece's own default of max_sentence_length
# The threads of a training share out floating-point sums, so their number alters the last digits
# of a unigram model's scores. One fixed number, SentencePiece's default, gives every machine the
# same model, however many cores it has.
THREADS = 16
SPECIAL_IDS = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
_SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>")  # SentencePiece's own spellings of them
_BLANK = "▁"  # what SentencePiece writes for it
# What stands before a language tag in its piece: a tag begins a line, before which SentencePiece
# puts a blank, so that it would otherwise be two pieces.
TAG_MARK = _BLANK
_BYTE_PIECES = 256
# More text than this is learned from in a process of its own: a megabyte takes about a second.
_ALONE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """The lines, as UTF-8 and in their order, that a model is learned from."""

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
    """At most `max_lines` lines and `max_bytes` bytes, any line as likely as any other.

    Each line gets a random key and those with the smallest keys stay, so that one pass over any
    number of lines needs memory for the sample only. Blank and over-long lines are left out.

    Args:
        lines: text without line feeds.
        max_lines: most lines that are kept.
        seed: of the keys.
        shuffle: draw at random; else the first lines are taken and the rest is not read.
        max_line_bytes: a longer line is left out.
        max_bytes: most bytes that are kept.
    """
    rng = random.Random(seed)
    heap: list[tuple[float, int, bytes]] = []  # (-key, line number, line): largest key first
    num_read = num_blank = num_too_long = held = 0
    bound = 1.0  # no line with this key or a larger one can stay
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
    kept = [text for _, _, text in sorted(heap, key=lambda entry: entry[1])]
    return Sample(kept, num_read, num_blank, num_too_long)


def train_tokenizer(
    lines: Iterable[str],
    config: TokenizerConfig,
    *,
    seed: int,
    threads: int = THREADS,
    soft_limit: bool = False,
    shuffle: bool = True,
    max_line_bytes: int = MAX_LINE_BYTES,
    max_sample_bytes: int = MAX_SAMPLE_BYTES,
    extra: Mapping[str, str | bool] | None = None,
    tags: Callable[[], Sequence[str]] = tuple,
) -> bytes:
    """A serialized SentencePiece model: pad 0, unk 1, <s> 2, </s> 3; same input, same bytes.

    Args:
        lines: text without line feeds; any number, a sample of it is held in memory.
        config: size and kind of the model, and its normalization; `config.model` is not looked at.
        seed: of the sample.
        threads: another number gives a unigram model whose scores differ in the last digits.
        soft_limit: where the text yields fewer pieces than asked for, learn those.
        shuffle: learn from lines drawn at random, not from the first ones.
        max_line_bytes: a longer line is left out.
        max_sample_bytes: most text that is learned from.
        extra: further options of SentencePiece's trainer, by their own names.
        tags: gives the language tags, each of which becomes one piece; called when all lines were
            read. User-defined symbols that look like tags are tags as well.

    Raises:
        DataError: no line is usable, or the file of normalization rules is not.
        ConfigError: the text does not yield so many pieces, or needs more, or an option is wrong.
        ResourceError: memory ran out.
    """
    user_defined, control = _own_symbols(extra or {})
    rule = config.normalization_rule_name
    check_rule(rule)
    sample = draw_sample(
        lines, max_lines=config.input_sentence_size, seed=seed, shuffle=shuffle,
        max_line_bytes=max_line_bytes, max_bytes=max_sample_bytes,
    )  # fmt: skip
    if sample.num_too_long:
        logger.warning(
            "tokenizer: lines of more than %d bytes, left out: %d",
            max_line_bytes, sample.num_too_long,
        )  # fmt: skip
    if not sample.lines:
        raise _no_usable_lines(sample)
    num_usable = sample.num_read - sample.num_blank - sample.num_too_long
    if len(sample.lines) < num_usable:
        logger.info("tokenizer: learning from %d of %d lines", len(sample.lines), num_usable)
    found = [tag for tag in tags() if tag not in user_defined]
    user_defined = [*map(_tag_piece, user_defined), *map(_tag_piece, found)]
    options: dict[str, object] = {
        **(extra or {}),
        "user_defined_symbols": user_defined,
        **SPECIAL_IDS,
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hard_vocab_limit": not soft_limit,
        "character_coverage": config.character_coverage,
        "byte_fallback": config.byte_fallback,
        "input_sentence_size": 0,  # the sample was drawn above
        "max_sentence_length": max_line_bytes,
        "num_threads": threads,
        "minloglevel": SILENT,
    }
    # The lines are gone once a process of its own has them.
    facts = dataclasses.replace(sample, lines=[])
    try:
        with trainer_options(rule) as normalization:
            options.update(normalization)
            if sum(map(len, sample.lines)) > _ALONE_BYTES:
                model = learned_apart(sample.lines, options)
            else:
                with _ended_by_signals():
                    model = learned(sample.lines, options)
    except MemoryError as error:
        hint = "set `input_sentence_size` lower"
        raise ResourceError("not enough memory to learn the tokenizer", hint=hint) from error
    except (RuntimeError, ValueError) as error:
        raise _explained(error, config, facts, num_symbols=len(user_defined + control)) from error
    if is_rule_file(rule):
        model = without_rule_file_name(model)
    num_pieces = _num_pieces(model)
    if num_pieces < config.vocab_size:
        told = "tokenizer: %d pieces instead of %d, the text yields no more"
        logger.info(told, num_pieces, config.vocab_size)
    _check_yielded(model, user_defined, config.model_type)
    return model


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end the process at once: SentencePiece does not let Python see it for minutes.

    Nothing has been written yet. A signal that is ignored stays ignored.
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


def _num_pieces(model_bytes: bytes) -> int:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model_bytes)
    return int(processor.GetPieceSize())


def _own_symbols(extra: Mapping[str, str | bool]) -> tuple[list[str], list[str]]:
    """Return the caller's user-defined and control symbols; refuse those that could not work."""
    listed = [str(extra.get(name, "")) for name in ("user_defined_symbols", "control_symbols")]
    user_defined, control = (next(csv.reader([each])) if each else [] for each in listed)
    symbols = user_defined + control
    clashes = [f"`{symbol}`" for symbol in symbols if symbol in _SPECIAL_PIECES]
    if clashes:
        raise ConfigError(f"the model has these symbols already: {', '.join(clashes)}")
    with_blank = [f"`{symbol}`" for symbol in user_defined if " " in symbol]
    if with_blank:
        raise ConfigError(
            f"no text yields these symbols, which have a blank: {', '.join(with_blank)}",
            hint=f"leave the blank out, or write `{_BLANK}` for it",
        )
    return user_defined, control


def _tag_piece(symbol: str) -> str:
    """Return the piece of a language tag; what is none stays as it is."""
    return TAG_MARK + symbol if LANGUAGE_TAG.fullmatch(symbol) else symbol


def _check_yielded(model: bytes, symbols: Sequence[str], model_type: str) -> None:
    """Refuse user-defined symbols that the model never makes of text."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    never = []
    for symbol in symbols:
        text = symbol.replace(_BLANK, " ")
        # Blanks at the ends of a line are lost, and some models cut at blanks only.
        lines = [text, f"a{text}a", f"a {text} a"]
        if not any(symbol in pieces for pieces in processor.Encode(lines, return_type=str)):
            never.append(f"`{symbol}`")
    if never:
        told = f"no text yields these symbols: {', '.join(never)}"
        hint = None
        if model_type == "word":
            hint = f"write `{_BLANK}` before a word, or choose another `model_type`"
        raise ConfigError(told, hint=hint)


def reason_of(error: Exception) -> str:
    """What SentencePiece complains of, without the place in its source code."""
    words = re.sub(r"^[A-Z_]+: (\S+\.cc\(\d+\) \[.*\] ?)?", "", str(error)).strip()
    return words[:1].lower() + words[1:].rstrip(".")


def _no_usable_lines(sample: Sample) -> DataError:
    counts = f"{sample.num_read} read, {sample.num_blank} blank, {sample.num_too_long} too long"
    return DataError(f"0 usable lines to learn a tokenizer from: {counts}")


def _explained(
    error: Exception, config: TokenizerConfig, sample: Sample, *, num_symbols: int
) -> TfmError:
    """SentencePiece's complaint in terms of our settings."""
    complaint, asked = str(error), config.vocab_size
    if "sentences_.empty()" in complaint or "(all_chars_count) > (0)" in complaint:
        return _no_usable_lines(sample)
    if found := re.search(r"Vocabulary size too high .* <= (\d+)", complaint):
        message = f"`vocab_size` is {asked}, but the text yields at most {found[1]} pieces"
        return ConfigError(message, hint=f"set `vocab_size` to {found[1]} or less, or add text")
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", complaint):
        message = f"`vocab_size` is {asked}, but the characters need at least {found[1]} pieces"
        hint = f"set `vocab_size` to {found[1]} or more, or `character_coverage` lower"
        return ConfigError(message, hint=hint)
    if "(vocab_size) >= (0)" in complaint:
        needed = len(_SPECIAL_PIECES) + num_symbols + (_BYTE_PIECES if config.byte_fallback else 0)
        message = f"`vocab_size` is {asked}, but the special pieces alone need {needed}"
        return ConfigError(message, hint=f"set `vocab_size` above {needed}")
    return ConfigError(f"the tokenizer cannot be learned: {reason_of(error) or complaint}")
