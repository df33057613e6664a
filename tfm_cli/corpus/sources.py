"""The files of a corpus, and the format in which each of them holds pairs."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfm_cli.config.settings import DataConfig
from tfm_cli.errors import ConfigError, DataError, ResourceError, plain_reason
from tfm_cli.text.reader import Repairs

Format = Literal["lines", "tsv", "jsonl"]
Pair = tuple[str, str]
STANDARD_INPUT = "standard input"
_COMPRESSED = (".gz", ".zst", ".xz")
_BY_SUFFIX: dict[str, Format] = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of pairs, or two files that are aligned line by line.

    Attributes:
        paths: the paths of source and target, or of the one file.
        names: their names in messages.
        format: `lines` for two files; `tsv` or `jsonl` for one.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    format: Format

    @property
    def name(self) -> str:
        """Return the first name, for lists of files in messages."""
        return self.names[0]


def aligned_files(
    source_paths: Sequence[str], target_paths: Sequence[str]
) -> tuple[CorpusFile, ...]:
    """Return pairs of files: the first source with the first target, and so on.

    Raises:
        ConfigError: there are more files on one side.
    """
    if len(source_paths) != len(target_paths):
        counts = f"{len(source_paths)} and {len(target_paths)}"
        raise ConfigError(f"source and target must be as many files, got {counts}")
    both = zip(source_paths, target_paths, strict=True)
    return tuple(CorpusFile(paths, paths, "lines") for paths in both)


def training_files(data: DataConfig, *, standard_input: str = "-") -> tuple[CorpusFile, ...]:
    """Return the files of the training text: aligned ones first, then files of pairs.

    Args:
        data: the settings that name them.
        standard_input: path of a copy of standard input.

    Raises:
        ConfigError: the format of a file of pairs is unknown, or standard input is named twice.
    """
    if data.pairs.count("-") > 1:
        raise ConfigError("data.pairs: standard input can be read only once, and is named twice")
    files = []
    for path in data.pairs:
        content, name = (standard_input, STANDARD_INPUT) if path == "-" else (path, path)
        files.append(CorpusFile((content,), (name,), _format_of(path, data.pairs_format)))
    return (*aligned_files(data.source, data.target), *files)


def _format_of(path: str, setting: str) -> Format:
    """Return the format of the setting; with `auto`, that of the file name."""
    for known in ("tsv", "jsonl"):
        if setting == known:
            return known
    name = path.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    by_suffix = _BY_SUFFIX.get(Path(name).suffix)
    if by_suffix is None:
        shown = STANDARD_INPUT if path == "-" else path
        raise ConfigError(
            f"{shown}: its name does not show the format of its pairs, expected `.tsv` or `.jsonl`",
            hint="set `--pairs-format tsv` or `--pairs-format jsonl`",
        )
    return by_suffix


def parse_pairs(
    lines: Iterable[str], file_format: Format, repairs: Repairs, *, name: str, num_lines: int = 0
) -> Iterator[Pair]:
    """Yield the pair of each line, in order; that of a blank line is two empty strings.

    Args:
        lines: text without line feeds.
        file_format: `tsv` or `jsonl`.
        repairs: counts lines with more than two columns, and objects with a repeated name.
        name: the name of the file in messages.
        num_lines: the number of preceding lines.

    Raises:
        DataError: a line does not have two columns, or is not an object with both sides.
    """
    for number, line in enumerate(lines, start=num_lines + 1):
        if not line.strip():
            yield "", ""
        elif file_format == "tsv":
            columns = line.split("\t")
            if len(columns) < 2:
                raise _error(name, number, "has 1 column, expected source<TAB>target")
            if len(columns) > 2:
                repairs.add("columns", number)
            yield columns[0], columns[1]
        else:
            yield _parse_object(line, repairs, name, number)


def _parse_object(line: str, repairs: Repairs, name: str, number: int) -> Pair:
    expected = "expected an object with `source` and `target`"
    is_repeated = False

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_repeated
        fields = dict(pairs)
        is_repeated = is_repeated or len(fields) < len(pairs)
        return fields

    try:
        table = json.loads(line, object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        raise _error(name, number, f"is not JSON: {plain_reason(error)}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number with many digits
        raise _error(name, number, f"cannot be parsed as JSON, {expected}") from error
    if not isinstance(table, dict):
        raise _error(name, number, f"is not an object, {expected}")
    if is_repeated:
        repairs.add("repeated", number)
    missing = [f"`{side}`" for side in ("source", "target") if side not in table]
    if missing and "translation" in table:
        message = "has `translation`, in which no language is marked as the source"
        raise _error(name, number, f"{message}, {expected}")
    if missing:
        raise _error(name, number, f"lacks {' and '.join(missing)}, {expected}")
    for side in ("source", "target"):
        if not isinstance(table[side], str):
            raise _error(name, number, f"`{side}` is not a string")
    return _one_line(table["source"]), _one_line(table["target"])


def _one_line(text: str) -> str:
    """Return text without NUL, with line feeds as spaces and lone surrogates as U+FFFD."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\n", " ").replace("\0", "")


def _error(name: str, number: int, message: str) -> DataError:
    return DataError(f"{name}:{number}: {message}")


def sample_path(name: str) -> str:
    """Return the path of a file of the sample corpus, such as `train.en`.

    Raises:
        ResourceError: it was not installed with the package.
    """
    # The folder is inside an installed package, or beside it in a checkout.
    for directory in (_PACKAGE / "data", _PACKAGE.parent / "data"):
        if (directory / name).is_file():
            return str(directory / name)
    raise ResourceError(
        f"the sample corpus (`{name}`) is not installed", hint="reinstall the package `tfm-cli`"
    )
