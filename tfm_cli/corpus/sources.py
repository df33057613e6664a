"""Which files a corpus is in, and how each of them holds its pairs."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfm_cli.config.settings import DataConfig
from tfm_cli.errors import ConfigError, DataError, ResourceError
from tfm_cli.text.repairs import Repairs

Format = Literal["lines", "tsv", "jsonl"]
STANDARD_INPUT = "standard input"
_COMPRESSED = (".gz", ".zst", ".xz")
_BY_SUFFIX: dict[str, Format] = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of pairs, or two files that are aligned line by line.

    Attributes:
        paths: of the source and the target, or of the one file.
        names: what messages call them.
        format: `lines` for two files; `tsv` or `jsonl` for one.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    format: Format

    @property
    def name(self) -> str:
        """What messages call it, in a list with others: the first name."""
        return self.names[0]


def aligned_files(
    source_paths: Sequence[str], target_paths: Sequence[str]
) -> tuple[CorpusFile, ...]:
    """The first source with the first target, and so on.

    Raises:
        ConfigError: there are more files on one side.
    """
    if len(source_paths) != len(target_paths):
        counts = f"{len(source_paths)} and {len(target_paths)}"
        raise ConfigError(f"source and target must be as many files, got {counts}")
    both = zip(source_paths, target_paths, strict=True)
    return tuple(CorpusFile(paths, paths, "lines") for paths in both)


def training_files(data: DataConfig, *, standard_input: str = "-") -> tuple[CorpusFile, ...]:
    """The files of the training text: aligned ones first, then those of pairs.

    Args:
        data: names them.
        standard_input: where the content of standard input is.

    Raises:
        ConfigError: a file of pairs is of no known format, or standard input is named twice.
    """
    if data.pairs.count("-") > 1:
        raise ConfigError("data.pairs: standard input can be read only once, and is named twice")
    files = []
    for path in data.pairs:
        place, name = (standard_input, STANDARD_INPUT) if path == "-" else (path, path)
        files.append(CorpusFile((place,), (name,), _format_of(path, data.pairs_format)))
    return (*aligned_files(data.source, data.target), *files)


def _format_of(path: str, wanted: str) -> Format:
    for known in ("tsv", "jsonl"):
        if wanted == known:
            return known
    name = path.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    found = _BY_SUFFIX.get(Path(name).suffix)
    if found is None:
        shown = STANDARD_INPUT if path == "-" else path
        raise ConfigError(
            f"{shown}: its name does not tell how it holds pairs, wanted `.tsv` or `.jsonl`",
            hint="set `--pairs-format tsv` or `--pairs-format jsonl`",
        )
    return found


# A line that holds both sides of a pair: columns, or a JSON object.

Pair = tuple[str, str]


def parse_pairs(
    lines: Iterable[str], held: Format, repairs: Repairs, *, name: str, num_lines: int = 0
) -> Iterator[Pair]:
    """The pair of each line, in order; a blank line is a pair of blanks.

    Args:
        lines: text without line feeds.
        held: `tsv` or `jsonl`.
        repairs: counts lines with more than two columns, and objects with a name twice.
        name: what messages call the file.
        num_lines: those before the first of `lines`.

    Raises:
        DataError: a line has no two columns, or is no object with both sides; with its number.
    """
    for number, line in enumerate(lines, start=num_lines + 1):
        if not line.strip():
            yield "", ""
        elif held == "tsv":
            columns = line.split("\t")
            if len(columns) < 2:
                raise _error(name, number, "has 1 column, wanted source<TAB>target")
            if len(columns) > 2:
                repairs.add("columns", number)
            yield columns[0], columns[1]
        else:
            yield _from_object(line, repairs, name, number)


def _from_object(line: str, repairs: Repairs, name: str, number: int) -> Pair:
    wanted = "wanted an object with `source` and `target`"
    is_repeated = False

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_repeated
        fields = dict(pairs)
        is_repeated = is_repeated or len(fields) < len(pairs)
        return fields

    try:
        found = json.loads(line, object_pairs_hook=table)
    except json.JSONDecodeError as error:
        reason = f"{error.msg[:1].lower()}{error.msg[1:]}".removesuffix(" at")
        told = f"is no JSON: {reason} at character {error.pos + 1}"
        raise _error(name, number, told) from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of too many digits
        raise _error(name, number, f"cannot be understood as JSON, {wanted}") from error
    if not isinstance(found, dict):
        raise _error(name, number, f"is no object, {wanted}")
    if is_repeated:
        repairs.add("repeated", number)
    missing = [f"`{side}`" for side in ("source", "target") if side not in found]
    if missing and "translation" in found:
        told = "has `translation`, which does not say which language is the source"
        raise _error(name, number, f"{told}, {wanted}")
    if missing:
        raise _error(name, number, f"lacks {' and '.join(missing)}, {wanted}")
    for side in ("source", "target"):
        if not isinstance(found[side], str):
            raise _error(name, number, f"`{side}` is no string")
    return _one_line(found["source"]), _one_line(found["target"])


def _one_line(text: str) -> str:
    """Text without line feeds, and with U+FFFD for half a surrogate pair, which JSON can spell."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\n", " ").replace("\0", "")


def _error(name: str, number: int, told: str) -> DataError:
    return DataError(f"{name}:{number}: {told}")


# The sample corpus that comes with the package: generated English and French sentences.

_PACKAGE = Path(__file__).resolve().parent.parent


def sample_path(name: str) -> str:
    """Where a file of the sample corpus is, such as `train.en`.

    Raises:
        ResourceError: it was not installed with the package.
    """
    # Inside an installed package, or beside it in a checkout.
    for directory in (_PACKAGE / "data", _PACKAGE.parent / "data"):
        if (directory / name).is_file():
            return str(directory / name)
    raise ResourceError(
        f"the sample corpus (`{name}`) is not installed", hint="reinstall the package `tfm-cli`"
    )
