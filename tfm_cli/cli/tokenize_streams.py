"""Where `tfm tokenize` reads and writes: several inputs as one text, converted line by line."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from tfm_cli.cli.overwriting import model_files, refuse_overwriting
from tfm_cli.errors import DataError
from tfm_cli.files import check_writable
from tfm_cli.text import LineReader, open_lines
from tfm_cli.text_output import open_output, write_lines

logger = logging.getLogger(__name__)

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
