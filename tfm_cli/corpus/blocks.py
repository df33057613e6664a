"""Corpus files cut into blocks of whole lines, for several processes to work on."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfm_cli.corpus.sources import CorpusFile, Format, Pair, parse_pairs
from tfm_cli.errors import DataError
from tfm_cli.text.reader import MAX_LINE_BYTES, LineReader, open_lines
from tfm_cli.text.repairs import Repairs

BLOCK_BYTES = 1 << 18
MAX_BLOCK_LINES = 16_384


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive lines of a corpus file, as they stand in it.

    Attributes:
        file: which one of the corpus, from 0.
        format: how it holds its pairs.
        names: what messages call it, or the two of it.
        num_lines: lines before these.
        crlf: whether lines end in CRLF, of each side.
        sides: bytes of the source and of the target, or of both in one.
        share: how much of all files was read up to here; None where nobody can tell.
    """

    file: int
    format: Format
    names: tuple[str, ...]
    num_lines: int
    crlf: tuple[bool, ...]
    sides: tuple[bytes, ...]
    share: float | None = field(default=None, compare=False)


def read_blocks(files: Sequence[CorpusFile]) -> Iterator[Block]:
    """The blocks of all files, in order.

    Raises:
        DataError: a file cannot be read, or files do not align, which is only known at the end
            and then said of all of them.
    """
    misaligned = []
    sizes = [_size(file) for file in files]
    for index, file in enumerate(files):
        with contextlib.ExitStack() as stack:
            cutters = [
                _Cutter(stack.enter_context(open_lines(path)), name)
                for path, name in zip(file.paths, file.names, strict=True)
            ]
            num_lines = 0
            while True:
                for cutter in cutters:
                    cutter.fill()
                count = min(MAX_BLOCK_LINES, *(cutter.ready for cutter in cutters))
                if not count:
                    break
                sides = tuple(cutter.take(count) for cutter in cutters)
                crlf = tuple(cutter.crlf for cutter in cutters)
                share = _share(cutters[0].reader, sizes, index)
                yield Block(index, file.format, file.names, num_lines, crlf, sides, share)
                num_lines += count
            counts = [num_lines + cutter.count_rest() for cutter in cutters]
        if len(set(counts)) > 1:
            misaligned.append(misalignment_message(file, counts))
    raise_if_misaligned(misaligned)


def _size(file: CorpusFile) -> int:
    with contextlib.suppress(OSError):  # which is told when it is opened
        return sum(Path(path).stat().st_size for path in file.paths)
    return 0


def _share(reader: LineReader, sizes: Sequence[int], index: int) -> float | None:
    """How much of all files was read, by how much of one was."""
    inside = reader.share()
    if inside is None or not sum(sizes):
        return None
    return (sum(sizes[:index]) + inside * sizes[index]) / sum(sizes)


def misalignment_message(file: CorpusFile, counts: Sequence[int]) -> str:
    """What is wrong with two files that have different numbers of lines."""
    return f"{file.names[0]} and {file.names[1]} do not align: {counts[0]} and {counts[1]} lines"


def raise_if_misaligned(told: Sequence[str]) -> None:
    """Raise a DataError of all files that do not align."""
    if told:
        hint = "line N of one file must be the translation of line N of the other"
        raise DataError("\n  ".join(told), hint=hint)


class _Cutter:
    """Hands out the lines of one file by their number."""

    def __init__(self, reader: LineReader, name: str) -> None:
        self.reader = reader
        reader.name = name
        self._held = b""
        self._ends = np.zeros(0, dtype=np.int64)  # where each line that is held ends
        self._at_end = False

    @property
    def ready(self) -> int:
        """Lines that are held."""
        return len(self._ends)

    @property
    def crlf(self) -> bool:
        """Whether lines end in CRLF."""
        return bool(self.reader.crlf)

    def fill(self) -> None:
        """Hold a block again, unless the file ends."""
        if self._at_end or (len(self._held) >= BLOCK_BYTES and self.ready):
            return
        more = self.reader.block(BLOCK_BYTES)
        self._at_end = not more
        self._held += more
        ends = np.flatnonzero(np.frombuffer(self._held, dtype=np.uint8) == ord("\n")) + 1
        if self._held and not self._held.endswith(b"\n"):  # the last line of the file
            ends = np.append(ends, len(self._held))
        self._ends = ends

    def take(self, count: int) -> bytes:
        """The next lines; as many must be held."""
        end = int(self._ends[count - 1])
        taken, self._held = self._held[:end], self._held[end:]
        self._ends = self._ends[count:] - end
        return taken

    def count_rest(self) -> int:
        """Lines that are left, to the end of the file."""
        count = self.ready
        while block := self.reader.block(BLOCK_BYTES):
            count += block.count(b"\n") + (not block.endswith(b"\n"))
        return count


class BlockPairs(NamedTuple):
    """The lines of each side of a block that belong together, and what became of the others."""

    sources: list[str]
    targets: list[str]
    repairs: tuple[Repairs, ...]  # in each of its files
    num_left_out: int  # pairs with a line that is no UTF-8
    numbers: Sequence[int]  # of the line that each pair stands on


def block_pairs(block: Block, *, bad_utf8: str = "refuse") -> BlockPairs:
    """The pairs of a block.

    Args:
        block: whole lines.
        bad_utf8: what becomes of lines that are no UTF-8: `refuse`, `replace` or `drop-pair`.

    Raises:
        DataError: a line is no UTF-8 and that is refused, or holds no pair; with file and line.
    """
    repairs = tuple(Repairs() for _ in block.names)
    sides, left_out = [], set[int]()
    for side in range(len(block.names)):
        lines, invalid = _lines(block, side, repairs[side], bad_utf8)
        sides.append(lines)
        if bad_utf8 == "drop-pair":
            left_out.update(invalid)
    if len(sides) == 2:
        sources, targets = sides
    else:
        for index in left_out:
            sides[0][index] = ""  # nobody wants to know whether it holds a pair
        pairs: list[Pair] = list(
            parse_pairs(
                sides[0], block.format, repairs[0], name=block.names[0], num_lines=block.num_lines
            )
        )
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    first = block.num_lines + 1
    numbers: Sequence[int] = range(first, first + len(sources))
    if left_out:
        kept = [index for index in range(len(sources)) if index not in left_out]
        sources, targets = [sources[i] for i in kept], [targets[i] for i in kept]
        numbers = [numbers[index] for index in kept]
    return BlockPairs(sources, targets, repairs, len(left_out), numbers)


def _lines(block: Block, side: int, repairs: Repairs, bad_utf8: str) -> tuple[list[str], list[int]]:
    """The lines of a side, and which of them are no UTF-8."""
    raw, crlf = block.sides[side], block.crlf[side]
    if len(raw) <= MAX_LINE_BYTES and b"\0" not in raw:  # so no line is too long, none has a NUL
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode()
            lines = (text.replace("\r\n", "\n") if crlf else text).split("\n")
            if not lines[-1]:  # what follows the last line feed
                lines.pop()
            _note_other_ends(raw, repairs, crlf=crlf, num_lines=block.num_lines)
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


def _note_other_ends(raw: bytes, repairs: Repairs, *, crlf: bool, num_lines: int) -> None:
    """Count the lines that end in the other way than the first one of the file."""
    count = raw.count(b"\r\n")
    if crlf:
        count = raw.count(b"\n") - count
    if count:
        ended = raw.split(b"\n")[:-1]
        first = next(i for i, line in enumerate(ended) if line.endswith(b"\r") != crlf)
        repairs.add("bare" if crlf else "crlf", num_lines + first + 1, count)
