"""Which files a corpus is in, and how each of them holds its pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfm_cli.config import DataConfig
from tfm_cli.errors import ConfigError

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
