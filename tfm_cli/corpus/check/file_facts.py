"""Inspection of one corpus file, line by line, without its counterpart."""

import contextlib
from dataclasses import dataclass, field

from tfm_cli.corpus.parallel_text import check_files
from tfm_cli.errors import DataError
from tfm_cli.text.characters import BAD_KINDS, SEPARATORS, bad_kinds, is_plain, separator_kinds
from tfm_cli.text.reader import LineReader, open_lines

WINDOW_LINES = 4096
LONG_LINE_BYTES = 4192  # SentencePiece does not learn from longer lines


@dataclass(slots=True)
class Occurrences:
    """The number of lines of a kind, and the position of the first; for pairs, of its source."""

    count: int = 0
    file: str | None = None
    line: int | None = None

    def add(self, count: int, file: str, line: int | None) -> None:
        """Count more lines, the first of which is `line` of `file`."""
        if count and not self.count:
            self.file, self.line = file, line
        self.count += count


@dataclass(slots=True)
class FileFacts:
    """Properties of a file; all counts are of lines.

    Attributes:
        problem: the reason why it was not read to its end; empty if it was.
        hint: a remedy for the problem.
        line_end: that of the first line, LF or CRLF.
        invalid: lines that are not UTF-8.
        invalid_byte: the first such byte and its position.
        other_ends: lines whose end differs from that of the first.
        cut: lines that exceed the maximum length, at which every command cuts them.
        long: lines that the training of a tokenizer skips.
        separators: lines that contain a separator, by its name.
        bad: lines that contain a bad character, by its kind.
    """

    path: str
    problem: str = ""
    hint: str = ""
    lines: int = 0
    line_end: str = "LF"
    byte_order_mark: bool = False
    last_line_ends: bool = True
    binary: bool = False
    invalid_byte: str = ""
    invalid: Occurrences = field(default_factory=Occurrences)
    nul: Occurrences = field(default_factory=Occurrences)
    other_ends: Occurrences = field(default_factory=Occurrences)
    cut: Occurrences = field(default_factory=Occurrences)
    long: Occurrences = field(default_factory=Occurrences)
    separators: dict[str, Occurrences] = field(
        default_factory=lambda: {name: Occurrences() for name in SEPARATORS.values()}
    )
    bad: dict[str, Occurrences] = field(
        default_factory=lambda: {kind: Occurrences() for kind in BAD_KINDS}
    )


class FileInspection:
    """A reader that records the properties of a file, up to its end or to damage.

    Args:
        path: the file.
        open_files: closes the file at the end.
    """

    def __init__(self, path: str, open_files: contextlib.ExitStack) -> None:
        self.facts = FileFacts(path)
        self._reader: LineReader | None = None
        try:
            check_files([path])
            self._reader = open_files.enter_context(open_lines(path, invalid="replace"))
        except DataError as error:
            self._stop(error)

    def window(self) -> list[str]:
        """Return the next lines; an empty list at the end, or if no more can be read."""
        if self._reader is None:
            return []
        try:
            lines = self._reader.window(WINDOW_LINES)
        except DataError as error:  # the lines of this window before the damage are lost
            self._finish(self._reader)
            self._stop(error)
            return []
        if lines:
            self._inspect(lines, self._reader.num_lines - len(lines) + 1, self._reader.has_crlf)
        else:
            self._finish(self._reader)
        return lines

    def share(self) -> float:
        """Return the share of the file that was read, from 0 to 1."""
        return 1.0 if self._reader is None else self._reader.share() or 0.0

    def _inspect(self, lines: list[str], first: int, has_crlf: bool) -> None:
        facts = self.facts
        for index, line in enumerate(lines):
            if is_plain(line):
                continue
            inside = line
            if not has_crlf and line.endswith("\r"):
                facts.other_ends.add(1, facts.path, first + index)
                inside = line[:-1]
            for name in separator_kinds(inside):
                facts.separators[name].add(1, facts.path, first + index)
            for kind in bad_kinds(inside):
                facts.bad[kind].add(1, facts.path, first + index)
        if max(map(len, lines)) * 4 <= LONG_LINE_BYTES:  # a character has at most four bytes
            return
        for index, line in enumerate(lines):
            if len(line) * 4 > LONG_LINE_BYTES and len(line.encode()) > LONG_LINE_BYTES:
                facts.long.add(1, facts.path, first + index)

    def _finish(self, reader: LineReader) -> None:
        facts = self.facts
        facts.lines = reader.num_lines
        facts.line_end = "CRLF" if reader.has_crlf else "LF"
        facts.byte_order_mark = reader.has_bom
        facts.last_line_ends = not reader.lacks_final_newline
        facts.binary = bool(reader.binary_reason)
        facts.invalid_byte = reader.first_invalid
        facts.invalid = self._repaired(reader, "invalid")
        facts.nul = self._repaired(reader, "nul")
        facts.cut = self._repaired(reader, "clipped")
        if reader.has_crlf:
            facts.other_ends = self._repaired(reader, "bare")
        replaced = facts.bad["replacement"]
        # The reader replaces bytes that are not UTF-8 by U+FFFD; those lines do not count here.
        replaced.count -= facts.invalid.count
        if facts.invalid.count:
            replaced.file, replaced.line = (facts.path if replaced.count else None), None
        self._reader = None

    def _repaired(self, reader: LineReader, kind: str) -> Occurrences:
        repairs, occurrences = reader.repairs, Occurrences()
        occurrences.add(repairs.counts[kind], self.facts.path, repairs.first.get(kind))
        return occurrences

    def _stop(self, error: DataError) -> None:
        self.facts.problem = str(error)
        self.facts.hint = error.hint or ""
        self._reader = None
