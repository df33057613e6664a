"""Aligned files as pairs of lines."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from tfm_cli.errors import ConfigError, DataError
from tfm_cli.text import open_lines


def read_pairs(
    source_paths: Sequence[str], target_paths: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Pairs of lines of the first source and target file, then of the second, and so on.

    Args:
        source_paths: files in the source language.
        target_paths: their translations, file by file and line by line.

    Raises:
        ConfigError: there are more files on one side.
        DataError: a file is missing or no UTF-8; or files do not align, which is only known at
            the end and then said of all of them.
    """
    if len(source_paths) != len(target_paths):
        counts = f"{len(source_paths)} and {len(target_paths)}"
        raise ConfigError(f"source and target must be as many files, got {counts}")
    misaligned = []
    for source_path, target_path in zip(source_paths, target_paths, strict=True):
        with open_lines(source_path) as sources, open_lines(target_path) as targets:
            for source, target in zip_longest(sources, targets):
                if source is None or target is None:
                    continue  # one side goes on: count how far
                yield source, target
            if sources.num_lines != targets.num_lines:
                counts = f"{sources.num_lines} and {targets.num_lines} lines"
                misaligned.append(f"{source_path} and {target_path} do not align: {counts}")
    if misaligned:
        hint = "line N of one file must be the translation of line N of the other"
        raise DataError("\n  ".join(misaligned), hint=hint)
