"""Reading of parallel text: blocks of whole lines, as units of work, and pairs of lines."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfm_cli.console import Show, counted
from tfm_cli.corpus.sources import CorpusFile, Format, Pair, aligned_files, parse_pairs
from tfm_cli.errors import DataError
from tfm_cli.text.reader import MAX_LINE_BYTES, LineReader, Repairs, open_lines

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 18
MAX_BLOCK_LINES = 16_384


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive lines of a corpus file, undecoded.

    Attributes:
        file: index of the file in the corpus.
        format: the format of its pairs.
        names: the name of the file in messages, or of the two files.
        num_lines: the number of preceding lines.
        crlf: True if lines end in CRLF, for each side.
        sides: bytes of the source and of the target, or of both in one.
        share: the share of all files that was read up to the end of the block; None if unknown.
    """

    file: int
    format: Format
    names: tuple[str, ...]
    num_lines: int
    crlf: tuple[bool, ...]
    sides: tuple[bytes, ...]
    share: float | None = field(default=None, compare=False)


def read_blocks(files: Sequence[CorpusFile]) -> Iterator[Block]:
    """Yield the blocks of all files, in order.

    Raises:
        DataError: a file cannot be read, or files do not align. Misaligned files are reported
            together after the last block.
    """
    misaligned = []
    sizes = [_size(file) for file in files]
    for index, file in enumerate(files):
        with contextlib.ExitStack() as stack:
            buffers = [
                _LineBuffer(stack.enter_context(open_lines(path)), name)
                for path, name in zip(file.paths, file.names, strict=True)
            ]
            num_lines = 0
            while True:
                for buffer in buffers:
                    buffer.fill()
                count = min(MAX_BLOCK_LINES, *(buffer.num_lines for buffer in buffers))
                if not count:
                    break
                sides = tuple(buffer.take(count) for buffer in buffers)
                crlf = tuple(buffer.crlf for buffer in buffers)
                share = _share(buffers[0].reader, sizes, index)
                yield Block(index, file.format, file.names, num_lines, crlf, sides, share)
                num_lines += count
            counts = [num_lines + buffer.count_rest() for buffer in buffers]
        if len(set(counts)) > 1:
            lines = f"{counts[0]} and {counts[1]} lines"
            misaligned.append(f"{file.names[0]} and {file.names[1]} do not align: {lines}")
    if misaligned:
        hint = "line N of one file must be the translation of line N of the other"
        raise DataError("\n  ".join(misaligned), hint=hint)


def _size(file: CorpusFile) -> int:
    with contextlib.suppress(OSError):  # opening the file reports it
        return sum(Path(path).stat().st_size for path in file.paths)
    return 0


def _share(reader: LineReader, sizes: Sequence[int], index: int) -> float | None:
    """Return the share of all files that was read, while reading the one with this index."""
    inside = reader.share()
    if inside is None or not sum(sizes):
        return None
    return (sum(sizes[:index]) + inside * sizes[index]) / sum(sizes)


class _LineBuffer:
    """A buffer of undecoded lines of one file, taken from its start by their number."""

    def __init__(self, reader: LineReader, name: str) -> None:
        self.reader = reader
        reader.name = name
        self._content = b""
        self._ends = np.zeros(0, dtype=np.int64)  # offset of the end of each buffered line
        self._at_end = False

    @property
    def num_lines(self) -> int:
        """Return the number of buffered lines."""
        return len(self._ends)

    @property
    def crlf(self) -> bool:
        """Return True if lines end in CRLF."""
        return bool(self.reader.crlf)

    def fill(self) -> None:
        """Read until a whole block is buffered, or the file ends."""
        if self._at_end or (len(self._content) >= BLOCK_BYTES and self.num_lines):
            return
        more = self.reader.block(BLOCK_BYTES)
        self._at_end = not more
        self._content += more
        ends = np.flatnonzero(np.frombuffer(self._content, dtype=np.uint8) == ord("\n")) + 1
        if self._content and not self._content.endswith(b"\n"):  # the last line of the file
            ends = np.append(ends, len(self._content))
        self._ends = ends

    def take(self, count: int) -> bytes:
        """Remove and return the next `count` lines, which must be buffered."""
        end = int(self._ends[count - 1])
        taken, self._content = self._content[:end], self._content[end:]
        self._ends = self._ends[count:] - end
        return taken

    def count_rest(self) -> int:
        """Return the number of lines up to the end of the file, and skip them."""
        count = self.num_lines
        while block := self.reader.block(BLOCK_BYTES):
            count += block.count(b"\n") + (not block.endswith(b"\n"))
        return count


class BlockPairs(NamedTuple):
    """The decoded pairs of a block."""

    sources: list[str]
    targets: list[str]
    repairs: tuple[Repairs, ...]  # of each file
    num_left_out: int  # pairs that were dropped because a line is not UTF-8
    numbers: Sequence[int]  # line number of each pair


def block_pairs(block: Block, *, bad_utf8: str = "refuse") -> BlockPairs:
    """Decode the pairs of a block.

    Args:
        block: whole lines.
        bad_utf8: the treatment of lines that are not UTF-8: `refuse`, `replace` or `drop-pair`.

    Raises:
        DataError: a line is not UTF-8 and `bad_utf8` is `refuse`, or it holds no pair.
    """
    repairs = tuple(Repairs() for _ in block.names)
    sides, left_out = [], set[int]()
    for side in range(len(block.names)):
        lines, invalid = _decode_side(block, side, repairs[side], bad_utf8)
        sides.append(lines)
        if bad_utf8 == "drop-pair":
            left_out.update(invalid)
    if len(sides) == 2:
        sources, targets = sides
    else:
        for index in left_out:
            sides[0][index] = ""  # a dropped line need not hold a pair
        pairs = list(
            parse_pairs(
                sides[0], block.format, repairs[0], name=block.names[0], num_lines=block.num_lines
            )
        )
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    first = block.num_lines + 1
    numbers: Sequence[int] = range(first, first + len(sources))
    if left_out:
        valid = [index for index in range(len(sources)) if index not in left_out]
        sources, targets = [sources[i] for i in valid], [targets[i] for i in valid]
        numbers = [numbers[index] for index in valid]
    return BlockPairs(sources, targets, repairs, len(left_out), numbers)


def _decode_side(
    block: Block, side: int, repairs: Repairs, bad_utf8: str
) -> tuple[list[str], list[int]]:
    """Return the lines of a side, and the indices of those that are not UTF-8."""
    raw, crlf = block.sides[side], block.crlf[side]
    if len(raw) <= MAX_LINE_BYTES and b"\0" not in raw:  # so no line is too long or has a NUL
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode()
            lines = (text.replace("\r\n", "\n") if crlf else text).split("\n")
            if not lines[-1]:  # the empty string after the last line feed
                lines.pop()
            _count_other_ends(raw, repairs, crlf=crlf, num_lines=block.num_lines)
            return lines, []
    reader = LineReader.within(
        raw, block.names[side], num_lines=block.num_lines, crlf=crlf,
        invalid="refuse" if bad_utf8 == "refuse" else "replace",
    )  # fmt: skip
    lines, invalid = [], list[int]()
    for index, line in enumerate(reader):
        lines.append(line)
        if reader.repairs.counts["invalid"] > len(invalid):
            invalid.append(index)
    if invalid and bad_utf8 == "drop-pair":
        reader.repairs.count_as("invalid", "left_out")
    repairs.merge(reader.repairs)
    return lines, invalid


def _count_other_ends(raw: bytes, repairs: Repairs, *, crlf: bool, num_lines: int) -> None:
    """Count the lines whose end differs from that of the first line of the file."""
    count = raw.count(b"\r\n")
    if crlf:
        count = raw.count(b"\n") - count
    if count:
        lines = raw.split(b"\n")[:-1]
        first = next(i for i, line in enumerate(lines) if line.endswith(b"\r") != crlf)
        repairs.add("bare" if crlf else "crlf", num_lines + first + 1, count)


def read_pairs(source_paths: Sequence[str], target_paths: Sequence[str]) -> Iterator[Pair]:
    """Yield pairs of lines of the first source and target file, then of the second, and so on.

    Args:
        source_paths: files in the source language.
        target_paths: their translations, file by file and line by line.

    Raises:
        ConfigError: there are more files on one side.
        DataError: as in `read_corpus`.
    """
    return read_corpus(aligned_files(source_paths, target_paths))


def read_corpus(
    files: Sequence[CorpusFile],
    *,
    bad_utf8: str = "refuse",
    warn: bool = True,
    show: Show = lambda words, share: None,
) -> Iterator[Pair]:
    """Yield the pairs of all files, in order.

    Args:
        files: the corpus.
        bad_utf8: as in `block_pairs`.
        warn: warn of repaired lines; False if an earlier pass has done so.
        show: called after each block with the progress.

    Raises:
        DataError: a file is missing or not UTF-8, a line holds no pair, or files do not align.
            Misaligned files are reported together after the last pair.
    """
    repairs: list[dict[str, Repairs]] = [{} for _ in files]
    current, num_pairs = 0, 0

    # Reading blocks rather than single lines is ten times as fast.
    for block in read_blocks(files):
        for index in range(current, block.file):
            warn_of_repairs(repairs[index] if warn else {})
        current = block.file
        sources, targets, block_repairs, *_ = block_pairs(block, bad_utf8=bad_utf8)
        for name, later in zip(block.names, block_repairs, strict=True):
            repairs[block.file].setdefault(name, Repairs()).merge(later)
        num_pairs += len(sources)
        show(counted(num_pairs, "pair"), block.share)
        yield from zip(sources, targets, strict=True)
    for index in range(current, len(files)):
        warn_of_repairs(repairs[index] if warn else {})


def warn_of_repairs(repairs: dict[str, Repairs]) -> None:
    """Log a warning for each kind of repair, given those of each file by name."""
    for name, counts in repairs.items():
        for note in counts.notes(MAX_LINE_BYTES):
            logger.warning("%s: %s", name, note)


def check_files(paths: Iterable[str]) -> None:
    """Raise a DataError that names every path that is not a readable file.

    Training reads text twice, for the tokenizer and for the ids, so a pipe is not accepted.
    """
    problems = [
        f"{path}: {reason}" for path in dict.fromkeys(paths) if (reason := _why_unusable(path))
    ]
    if problems:
        title = [f"{len(problems)} files cannot be used"] if len(problems) > 1 else []
        raise DataError("\n  ".join(title + problems))


def _why_unusable(name: str) -> str:
    if name == "-":
        return "standard input can be read only once, expected a file"
    path = Path(name)
    try:
        if not path.exists():
            return "there is no such file"
        if path.is_dir():
            return "is a directory, expected a file"
        if not path.is_file():
            return "can be read only once, expected a file"
    except OSError as error:  # such as a name that is too long
        return f"cannot be read: {error.strerror}"
    return "" if os.access(path, os.R_OK) else "cannot be read: no permission"
