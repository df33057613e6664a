"""`tfm tokenize`: learn a SentencePiece model, cut text into pieces, put pieces together again."""

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfm_cli import console
from tfm_cli.cli.options import CommandGroup, flag, model_files, refuse_overwriting, rule_name
from tfm_cli.config.settings import TokenizerConfig
from tfm_cli.config.validation import Problems, from_mapping
from tfm_cli.errors import DataError
from tfm_cli.files.atomic import atomic_file, check_writable
from tfm_cli.text.language_tags import TagCounts, listed
from tfm_cli.text.reader import LineReader, open_lines
from tfm_cli.text.writer import open_output, write_lines

if TYPE_CHECKING:
    from tfm_cli.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


# Where `tfm tokenize` reads and writes: several inputs as one text, converted line by line.

_WINDOW_LINES = 256
_BATCH_CHARACTERS = 1 << 20  # long lines are converted a few at a time, so that memory stays small

# Lines, what messages call their input, and the number of the first; gives as many lines.
Convert = Callable[[list[str], str, int], list[str]]


def given_inputs(files: list[str] | None, inputs: list[str] | None) -> list[str]:
    """What is to be read: the arguments, or what `--input` says, or standard input."""
    if files and inputs:
        raise typer.BadParameter("give files as arguments or with --input, not both")
    paths = files or inputs or ["-"]
    _check_readable(paths)
    return paths


def listed_inputs(inputs: list[str] | None) -> list[str]:
    """The same for SentencePiece's habit of files between commas."""
    paths: list[str] = []
    for given in inputs or ["-"]:
        whole = given == "-" or Path(given).exists()  # a comma may be part of a name
        paths += [given] if whole else [path for path in given.split(",") if path]
    _check_readable(paths)
    return paths


def _check_readable(paths: list[str]) -> None:
    missing = [path for path in paths if path != "-" and not Path(path).exists()]
    if missing:
        raise DataError("\n  ".join(f"{path}: there is no such file" for path in missing))


def lines_of(paths: list[str], readers: list[LineReader]) -> Iterator[str]:
    """The lines of all inputs, one after the other; their readers, which count, join `readers`."""
    for path in paths:
        with open_lines(path) as reader:
            readers.append(reader)
            yield from reader
        _tell(reader)


def check_output(paths: list[str], output: str, model: Path) -> None:
    """Refuse an output that cannot be written, or that is read as well."""
    refuse_overwriting(output, [*paths, *model_files(model)])
    check_writable(output)


def convert_lines(paths: list[str], output: str, convert: Convert) -> None:
    """Write a line for each line of the inputs, in order; what has come is answered at once."""
    with open_output(output) as stream:
        for path in paths:
            with open_lines(path, invalid="replace") as reader:
                while window := reader.window(_WINDOW_LINES):
                    number = reader.num_lines - len(window) + 1
                    for batch in _batches(window):
                        write_lines(stream, convert(batch, reader.name, number))
                        number += len(batch)
                    stream.flush()
            _tell(reader)


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


def _tell(reader: LineReader) -> None:
    for note in reader.notes():
        logger.warning("%s: %s", reader.name, note)


def ids_of(line: str, place: str, vocab_size: int) -> list[int]:
    """The ids on a line, which messages call by its place.

    Raises:
        DataError: one is no id.
    """
    ids = []
    for word in line.split():
        # int() would also take `+1`, `1_000` and the digits of other scripts.
        if not (word.isascii() and word.isdigit()):
            raise DataError(f"{place}: `{word[:40]}` is no id, wanted 0 to {vocab_size - 1}")
        if len(word) > 9 or int(word) >= vocab_size:
            raise DataError(f"{place}: id {word[:40]} is too large, wanted 0 to {vocab_size - 1}")
        ids.append(int(word))
    return ids


_DEFAULTS = TokenizerConfig()

Model = Annotated[
    Path,
    typer.Option("--model", "-m", help="SentencePiece model, or a directory `tfm train` wrote."),
]
Files = Annotated[list[str] | None, typer.Argument(help="The same as --input.", show_default=False)]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", help="Text to read, plain or compressed; repeatable. [default: -]"
    ),
]
Output = Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")]
Side = Annotated[
    Literal["source", "target"],
    typer.Option(help="Which tokenizer, of a model directory that has one for each language."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]

app = typer.Typer(
    cls=CommandGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Cut text into pieces with SentencePiece: learn a model, encode, decode.",
)


@app.command()
def train(
    model_prefix: Annotated[
        str, typer.Option(help="Writes this name with .model and with .vocab after it.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            help="Text to learn from, plain or compressed; repeatable or a,b. [default: -]",
        ),
    ] = None,
    vocab_size: Annotated[int, flag(TokenizerConfig, "vocab_size")] = _DEFAULTS.vocab_size,
    hard_vocab_limit: Annotated[
        bool, typer.Option(help="Refuse a text that yields fewer pieces; else learn fewer.")
    ] = True,
    model_type: Annotated[str, flag(TokenizerConfig, "model_type")] = _DEFAULTS.model_type,
    character_coverage: Annotated[
        float, flag(TokenizerConfig, "character_coverage")
    ] = _DEFAULTS.character_coverage,
    byte_fallback: Annotated[
        bool, flag(TokenizerConfig, "byte_fallback", "--byte-fallback/--no-byte-fallback")
    ] = _DEFAULTS.byte_fallback,
    input_sentence_size: Annotated[
        int, flag(TokenizerConfig, "input_sentence_size")
    ] = _DEFAULTS.input_sentence_size,
    shuffle_input_sentence: Annotated[
        bool, typer.Option(help="Draw those lines at random; else take the first ones.")
    ] = True,
    random_seed: Annotated[
        int,
        typer.Option("--random-seed", "--seed", min=0, max=2**31 - 1, help="Seed of the drawing."),
    ] = 1,
    max_sentence_length: Annotated[
        int,
        typer.Option(min=1, max=2**30, help="Longer lines, in bytes, are left out and counted."),
    ] = 4192,
    split_digits: Annotated[bool, typer.Option(help="Make every digit a piece.")] = False,
    normalization_rule_name: Annotated[
        str, flag(TokenizerConfig, "normalization_rule_name", metavar="NAME|FILE")
    ] = _DEFAULTS.normalization_rule_name,
    user_defined_symbols: Annotated[
        str, typer.Option(help="Symbols, as a,b, that are always one piece.", show_default=False)
    ] = "",
    control_symbols: Annotated[
        str, typer.Option(help="Symbols, as a,b, that text never yields.", show_default=False)
    ] = "",
    num_threads: Annotated[
        int,
        typer.Option(
            min=1, max=128, help="Threads; another number alters the last digits of scores."
        ),
    ] = 16,
    quiet: Quiet = False,
) -> None:
    """Learn a SentencePiece model from text.

    The flags are SentencePiece's own. By default, bytes spell unknown characters, and no rule
    normalises the text, unlike in SentencePiece. The special pieces are <pad> 0, <unk> 1, <s> 2,
    </s> 3. The same text and flags give the same file.

    Example:  tfm tokenize train -i train.de,train.en --model-prefix ende --vocab-size 8000
    """
    from tfm_cli.tokenizer.tokenizer import Tokenizer
    from tfm_cli.tokenizer.training import TrainerOptions, train_tokenizer

    console.setup(console.QUIET if quiet else console.NORMAL)
    config = _checked(
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=character_coverage,
        input_sentence_size=input_sentence_size,
        byte_fallback=byte_fallback,
        normalization_rule_name=rule_name(normalization_rule_name),
    )
    paths = listed_inputs(inputs)
    model_path, vocab_path = _outputs(model_prefix, paths)
    readers: list[LineReader] = []
    counts = TagCounts()
    model_bytes = train_tokenizer(
        counts.watch(lines_of(paths, readers)),
        config,
        seed=random_seed,
        soft_limit=not hard_vocab_limit,
        tags=lambda: counts.tags,
        options=TrainerOptions(
            threads=num_threads,
            shuffle=shuffle_input_sentence,
            max_line_bytes=max_sentence_length,
            extra={
                "split_digits": split_digits,
                "user_defined_symbols": user_defined_symbols,
                "control_symbols": control_symbols,
            },
        ),
    )
    tokenizer = Tokenizer(model_bytes, name=str(model_path))
    pieces = tokenizer.scored_pieces
    if tags := tokenizer.language_tags:
        logger.info("language tags, a piece each: %s", listed(tags))
    with atomic_file(vocab_path) as stream:
        stream.write("".join(f"{piece}\t{score:g}\n" for piece, score in pieces).encode())
    with atomic_file(model_path) as stream:
        stream.write(model_bytes)
    num_lines = sum(reader.num_lines for reader in readers)
    told = "wrote %s and %s: %d %s pieces from %d lines"
    logger.info(told, model_path, vocab_path, len(pieces), model_type, num_lines)


@app.command()
def encode(
    model: Model,
    files: Files = None,
    inputs: Inputs = None,
    output: Output = "-",
    side: Side = "source",
    output_format: Annotated[
        Literal["piece", "id"], typer.Option(help="Pieces as text, or their numbers.")
    ] = "piece",
    nbest_size: Annotated[
        int,
        typer.Option(
            min=-1, max=512, help="Sample among this many best; -1 for all, 1 takes the best."
        ),
    ] = 1,
    alpha: Annotated[
        float,
        typer.Option(min=0, max=1, help="Sampling: smoothing (unigram) or dropout (bpe)."),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the sampling.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Cut text into pieces: a line in, a line out, blanks between the pieces.

    Example:  tfm tokenize encode --model ende.model < news.en > news.pieces
    """
    console.setup(console.QUIET if quiet else console.NORMAL)
    paths = given_inputs(files, inputs)
    check_output(paths, output, model)
    tokenizer = _load(model, side)
    rng = random.Random(seed)

    def pieces_of(lines: list[str]) -> list[list[str]]:
        if nbest_size in (0, 1):
            return tokenizer.encode_pieces(lines)
        return [
            tokenizer.sample_pieces(
                line, seed=rng.getrandbits(32), nbest_size=nbest_size, alpha=alpha
            )
            for line in lines
        ]

    def to_pieces(lines: list[str], name: str, first: int) -> list[str]:
        return [" ".join(pieces) for pieces in pieces_of(lines)]

    def to_ids(lines: list[str], name: str, first: int) -> list[str]:
        if nbest_size in (0, 1):
            encoded = tokenizer.encode(lines)
        else:
            encoded = [tokenizer.piece_ids(pieces) for pieces in pieces_of(lines)]
        return [" ".join(map(str, ids)) for ids in encoded]

    convert_lines(paths, output, to_ids if output_format == "id" else to_pieces)


@app.command()
def decode(
    model: Model,
    files: Files = None,
    inputs: Inputs = None,
    output: Output = "-",
    side: Side = "target",
    input_format: Annotated[
        Literal["piece", "id"], typer.Option(help="What is read: pieces, or their numbers.")
    ] = "piece",
    quiet: Quiet = False,
) -> None:
    """Put pieces together to text again: a line in, a line out.

    Example:  tfm tokenize decode --model ende.model < news.pieces > news.en
    """
    console.setup(console.QUIET if quiet else console.NORMAL)
    paths = given_inputs(files, inputs)
    check_output(paths, output, model)
    tokenizer = _load(model, side)

    def from_pieces(lines: list[str], name: str, first: int) -> list[str]:
        # Only the blank parts pieces: other spaces may be text that a model leaves as it is.
        return tokenizer.decode_pieces(
            [[piece for piece in line.split(" ") if piece] for line in lines]
        )

    def from_ids(lines: list[str], name: str, first: int) -> list[str]:
        size = tokenizer.vocab_size
        return tokenizer.decode(
            [ids_of(line, f"{name}:{number}", size) for number, line in enumerate(lines, first)]
        )

    convert_lines(paths, output, from_ids if input_format == "id" else from_pieces)


def _load(model: Path, side: Literal["source", "target"]) -> "Tokenizer":
    from tfm_cli.model_directory.config_file import load_named_tokenizers

    tokenizers = load_named_tokenizers(model)
    return tokenizers.source if side == "source" else tokenizers.target


def _checked(**settings: bool | int | float | str) -> TokenizerConfig:
    problems = Problems()
    config = from_mapping({"tokenizer": settings}, problems)
    problems.raise_if_any()
    return config.tokenizer


def _outputs(prefix: str, read: list[str]) -> tuple[Path, Path]:
    if not Path(prefix).name or prefix.endswith("/"):
        raise typer.BadParameter(f"`{prefix}` names no file", param_hint="--model-prefix")
    paths = Path(f"{prefix}.model"), Path(f"{prefix}.vocab")
    for path in paths:
        refuse_overwriting(path, read, option="--model-prefix")
        check_writable(path)
    return paths
