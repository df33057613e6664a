"""`tfm tokenize`: train a SentencePiece model, encode text as tokens, decode tokens to text."""

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tfm_cli.cli.commands import CommandGroup, Commands
from tfm_cli.cli.options import (
    Command,
    Options,
    model_files,
    option,
    quiet_option,
    refuse_overwriting,
    set_up_logging,
)
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.config.validation import Problems, from_mapping
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.files.atomic import atomic_file, check_writable
from tfm_cli.text.language_tags import TagCounts, listed
from tfm_cli.text.reader import LineReader, open_lines
from tfm_cli.text.writer import open_output, write_lines

if TYPE_CHECKING:
    from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_HEADINGS: dict[str, tuple[str, ...]] = {"Text": (), "Tokens": (), "Sampling": (), "Messages": ()}
_WINDOW_LINES = 256
_BATCH_CHARACTERS = 1 << 20  # long lines are converted a few at a time, to bound the memory

# The arguments are lines, the name of their input in messages, and the number of the first line;
# the result has as many lines.
Convert = Callable[[list[str], str, int], list[str]]


class TokenizeGroup(CommandGroup):
    """Tokenize text with SentencePiece: train, encode, decode."""

    members: ClassVar[Commands] = {
        "train": ("tokenize", "TRAIN"),
        "encode": ("tokenize", "ENCODE"),
        "decode": ("tokenize", "DECODE"),
    }


# `tfm tokenize train`


class TrainOptions(Options):
    """The options of `tfm tokenize train` that are not settings."""

    inputs: tuple[str, ...] = option(
        "Text",
        "--input",
        "-i",
        metavar="FILE",
        default=("-",),
        shown_default="-",
        help="Training text, plain or compressed. Repeatable or comma-separated.",
    )
    shuffle_input_sentence: bool = option(
        "Text",
        "--shuffle-input-sentence",
        default=True,
        help="Draw lines at random if there are more; otherwise take the first ones.",
    )
    random_seed: int = option(
        "Text",
        "--random-seed",
        "--seed",
        default=1,
        ge=0,
        le=2**31 - 1,
        help="Seed of that draw.",
    )
    max_sentence_length: int = option(
        "Text",
        "--max-sentence-length",
        default=4192,
        ge=1,
        le=2**30,
        help="Lines with more bytes are skipped and counted.",
    )
    model_prefix: str = option(
        "Tokenizer",
        "--model-prefix",
        metavar="PREFIX",
        default=...,
        help="Prefix of the files to write, with the suffixes .model and .vocab.",
    )
    hard_vocab_limit: bool = option(
        "Tokenizer",
        "--hard-vocab-limit",
        default=True,
        help="Refuse a text that yields too few tokens; otherwise learn fewer.",
    )
    split_digits: bool = option(
        "Tokenizer", "--split-digits", default=False, help="Make every digit a token."
    )
    user_defined_symbols: str = option(
        "Tokenizer",
        "--user-defined-symbols",
        metavar="SYMBOLS",
        default="",
        help="Comma-separated symbols that always are one token.",
    )
    control_symbols: str = option(
        "Tokenizer",
        "--control-symbols",
        metavar="SYMBOLS",
        default="",
        help="Comma-separated symbols to which no text is encoded.",
    )
    num_threads: int = option(
        "Speed",
        "--num-threads",
        default=16,
        ge=1,
        le=128,
        help="Number of threads, on which the last digits of scores depend.",
    )
    quiet: bool = quiet_option()


def train(options: TrainOptions) -> None:
    """Train a SentencePiece model on text.

    The flags are SentencePiece's own. By default, unlike in SentencePiece, unknown characters are
    spelled as bytes and the text is not normalized. The special tokens are <pad> 0, <unk> 1,
    <s> 2, </s> 3. The same text and flags give the same file.

    Example:  tfm tokenize train -i train.de,train.en --model-prefix ende
    """
    from tfm_cli.tokenizer.tokenizer import Tokenizer
    from tfm_cli.tokenizer.training import TrainerOptions, train_tokenizer

    set_up_logging(options.quiet)
    config = _checked_settings(options)
    paths = _split_paths(options.inputs)
    model_path, vocab_path = _output_paths(options.model_prefix, paths)
    readers: list[LineReader] = []
    counts = TagCounts()
    model_bytes = train_tokenizer(
        counts.watch(_lines_of(paths, readers)),
        config,
        seed=options.random_seed,
        soft_limit=not options.hard_vocab_limit,
        tags=lambda: counts.tags,
        options=TrainerOptions(
            threads=options.num_threads,
            shuffle=options.shuffle_input_sentence,
            max_line_bytes=options.max_sentence_length,
            extra={
                "split_digits": options.split_digits,
                "user_defined_symbols": options.user_defined_symbols,
                "control_symbols": options.control_symbols,
            },
        ),
    )
    tokenizer = Tokenizer(model_bytes, name=str(model_path))
    pieces = tokenizer.scored_pieces
    if tags := tokenizer.language_tags:
        logger.info("language tags, one token each: %s", listed(tags))
    with atomic_file(vocab_path) as stream:
        stream.write("".join(f"{piece}\t{score:g}\n" for piece, score in pieces).encode())
    with atomic_file(model_path) as stream:
        stream.write(model_bytes)
    num_lines = sum(reader.num_lines for reader in readers)
    message = "wrote %s and %s: %d %s tokens from %d lines"
    logger.info(message, model_path, vocab_path, len(pieces), config.model_type, num_lines)


def _checked_settings(options: TrainOptions) -> TokenizerConfig:
    problems = Problems()
    config = from_mapping({"tokenizer": options.settings["tokenizer"]}, problems)
    problems.raise_if_any()
    return config.tokenizer


def _split_paths(inputs: tuple[str, ...]) -> list[str]:
    """Return the paths of `--input`, which may be separated by commas, as in SentencePiece."""
    paths: list[str] = []
    for given in inputs:
        is_path = given == "-" or Path(given).exists()  # a comma may be part of a name
        paths += [given] if is_path else [path for path in given.split(",") if path]
    _check_exist(paths)
    return paths


def _output_paths(prefix: str, read: list[str]) -> tuple[Path, Path]:
    """Return the paths of the model and its vocabulary, both of which can be written."""
    if not Path(prefix).name or prefix.endswith("/"):
        raise ConfigError(f"`--model-prefix` must end in the name of a file, got `{prefix}`")
    paths = Path(f"{prefix}.model"), Path(f"{prefix}.vocab")
    for path in paths:
        refuse_overwriting(path, read, option="--model-prefix")
        check_writable(path)
    return paths


def _lines_of(paths: list[str], readers: list[LineReader]) -> Iterator[str]:
    """Yield the lines of all inputs, one input after the other; append their readers."""
    for path in paths:
        with open_lines(path) as reader:
            readers.append(reader)
            yield from reader
        _log_notes(reader)


# `tfm tokenize encode` and `decode`


class ConversionOptions(Options):
    """The options that `tfm tokenize encode` and `tfm tokenize decode` share."""

    files: tuple[str, ...] = option(
        "Text", metavar="FILE", default=(), help="Text, as with --input."
    )
    inputs: tuple[str, ...] = option(
        "Text",
        "--input",
        "-i",
        metavar="FILE",
        default=(),
        shown_default="-",
        help="Text to read, plain or compressed. Repeatable.",
    )
    output: str = option(
        "Text",
        "--output",
        "-o",
        metavar="FILE",
        default="-",
        help="File to write; - for standard output.",
    )
    model: Path = option(
        "Tokens",
        "--model",
        "-m",
        metavar="FILE|DIR",
        default=...,
        help="SentencePiece model, or a model directory that `tfm train` wrote.",
    )
    side: Literal["source", "target"]
    quiet: bool = quiet_option()


def _side_option(default: Literal["source", "target"]) -> Any:
    return option(
        "Tokens",
        "--side",
        default=default,
        help="Which tokenizer of a model directory that has one for each language.",
    )


class EncodeOptions(ConversionOptions):
    """The options of `tfm tokenize encode`."""

    side: Literal["source", "target"] = _side_option("source")
    output_format: Literal["piece", "id"] = option(
        "Tokens", "--output-format", default="piece", help="Tokens as strings, or as ids."
    )
    nbest_size: int = option(
        "Sampling",
        "--nbest-size",
        default=1,
        ge=-1,
        le=512,
        help="Sample from this many best segmentations; -1 for all, 1 for the best one.",
    )
    alpha: float = option(
        "Sampling",
        "--alpha",
        default=0.1,
        ge=0,
        le=1,
        help="Smoothing of the distribution (unigram), or dropout of merges (bpe).",
    )
    seed: int = option(
        "Sampling", "--seed", default=1, ge=0, le=2**31 - 1, help="Seed of the sampling."
    )


class DecodeOptions(ConversionOptions):
    """The options of `tfm tokenize decode`."""

    side: Literal["source", "target"] = _side_option("target")
    input_format: Literal["piece", "id"] = option(
        "Tokens", "--input-format", default="piece", help="Tokens as strings, or as ids."
    )


def encode(options: EncodeOptions) -> None:
    """Encode text as tokens, separated by spaces, line by line.

    Example:  tfm tokenize encode --model ende.model < news.en > news.pieces
    """
    from tfm_cli.tokenizer.sampling import LineSampler

    set_up_logging(options.quiet)
    paths = _checked_paths(options)
    tokenizer = _load(options)
    rng = random.Random(options.seed)
    is_sampling = options.nbest_size not in (0, 1)
    sampler = None
    if is_sampling:
        sampler = LineSampler(tokenizer, nbest_size=options.nbest_size, alpha=options.alpha)

    def pieces_of(lines: list[str]) -> list[list[str]]:
        if sampler is None:
            return tokenizer.encode_pieces(lines)
        return [sampler.pieces(line, seed=rng.getrandbits(32)) for line in lines]

    def to_pieces(lines: list[str], name: str, first: int) -> list[str]:
        return [" ".join(pieces) for pieces in pieces_of(lines)]

    def to_ids(lines: list[str], name: str, first: int) -> list[str]:
        if is_sampling:
            encoded = [tokenizer.piece_ids(pieces) for pieces in pieces_of(lines)]
        else:
            encoded = tokenizer.encode(lines)
        return [" ".join(map(str, ids)) for ids in encoded]

    convert_lines(paths, options.output, to_ids if options.output_format == "id" else to_pieces)


def decode(options: DecodeOptions) -> None:
    """Decode tokens to text, line by line.

    Example:  tfm tokenize decode --model ende.model < news.pieces > news.en
    """
    set_up_logging(options.quiet)
    paths = _checked_paths(options)
    tokenizer = _load(options)

    def from_pieces(lines: list[str], name: str, first: int) -> list[str]:
        # Only U+0020 separates pieces: a model may have pieces with other spaces in them.
        return tokenizer.decode_pieces(
            [[piece for piece in line.split(" ") if piece] for line in lines]
        )

    def from_ids(lines: list[str], name: str, first: int) -> list[str]:
        size = tokenizer.vocab_size
        return tokenizer.decode(
            [_ids_of(line, f"{name}:{number}", size) for number, line in enumerate(lines, first)]
        )

    convert_lines(paths, options.output, from_ids if options.input_format == "id" else from_pieces)


def convert_lines(paths: list[str], output: str, convert: Convert) -> None:
    """Write one line for each line of the inputs, in order, as soon as it has been read."""
    with open_output(output) as stream:
        for path in paths:
            with open_lines(path, invalid="replace") as reader:
                while window := reader.window(_WINDOW_LINES):
                    number = reader.num_lines - len(window) + 1
                    for batch in _batches(window):
                        write_lines(stream, convert(batch, reader.name, number))
                        number += len(batch)
                    stream.flush()
            _log_notes(reader)


def _batches(lines: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for line in lines:
        if batch and characters + len(line) > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(line)
        characters += len(line)
    yield batch


def _ids_of(line: str, position: str, vocab_size: int) -> list[int]:
    """Return the ids on a line, given its file and number for errors.

    Raises:
        DataError: a word is not an id of the vocabulary.
    """
    ids, expected = [], f"expected 0 to {vocab_size - 1}"
    for word in line.split():
        # int() would also take `+1`, `1_000` and the digits of other scripts.
        if not (word.isascii() and word.isdigit()):
            raise DataError(f"{position}: `{word[:40]}` is not an id, {expected}")
        if len(word) > 9 or int(word) >= vocab_size:
            raise DataError(f"{position}: id {word[:40]} is too large, {expected}")
        ids.append(int(word))
    return ids


def _checked_paths(options: ConversionOptions) -> list[str]:
    """Return the paths to read: arguments, `--input`, or standard input.

    Raises:
        ConfigError: both are given, or the output is one of the files that are read.
        DataError: a file does not exist.
    """
    if options.files and options.inputs:
        raise ConfigError("give files as arguments or with `--input`, not both")
    paths = [*options.files, *options.inputs] or ["-"]
    _check_exist(paths)
    refuse_overwriting(options.output, [*paths, *model_files(options.model)])
    check_writable(options.output)
    return paths


def _check_exist(paths: list[str]) -> None:
    missing = [path for path in paths if path != "-" and not Path(path).exists()]
    if missing:
        raise DataError("\n  ".join(f"{path}: there is no such file" for path in missing))


def _log_notes(reader: LineReader) -> None:
    for note in reader.notes():
        logger.warning("%s: %s", reader.name, note)


def _load(options: ConversionOptions) -> "Tokenizer":
    from tfm_cli.model_directory.config_file import load_named_tokenizers

    tokenizers = load_named_tokenizers(options.model)
    return tokenizers.source if options.side == "source" else tokenizers.target


TRAIN = Command(
    train,
    TrainOptions,
    {
        "Text": ("tokenizer.input_sentence_size",),
        "Tokenizer": (
            "tokenizer.vocab_size", "tokenizer.model_type", "tokenizer.character_coverage",
            "tokenizer.byte_fallback", "tokenizer.normalization_rule_name",
        ),
        "Speed": (),
        "Messages": (),
    },
)  # fmt: skip
ENCODE = Command(encode, EncodeOptions, _HEADINGS)
DECODE = Command(decode, DecodeOptions, _HEADINGS)
