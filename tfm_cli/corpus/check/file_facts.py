"""What is found in one file of a corpus, line by line, before it is a pair with another."""

import contextlib
from dataclasses import dataclass, field

from tfm_cli.corpus.parallel_text import check_files
from tfm_cli.errors import DataError
from tfm_cli.text.characters import BAD_KINDS, SEPARATORS, bad_kinds, is_plain, separator_kinds
from tfm_cli.text.reader import LineReader, open_lines

WINDOW_LINES = 4096
LONG_LINE_BYTES = 4192  # SentencePiece learns nothing from longer lines


@dataclass(slots=True)
class Occurrences:
    """How often something was seen, and where first: in lines, or in pairs by their source."""

    count: int = 0
    file: str | None = None
    line: int | None = None

    def add(self, count: int, file: str, line: int | None) -> None:
        """Count more of it, the first of which stands there."""
        if count and not self.count:
            self.file, self.line = file, line
        self.count += count


@dataclass(slots=True)
class FileFacts:
    """What was found in a file; all counts are of lines.

    Attributes:
        problem: why it cannot be read, or not to its end; empty if it was.
        line_end: that of the first line, LF or CRLF.
        invalid: lines that are no UTF-8; `invalid_byte` is the first such byte and its place.
        other_ends: lines that end in the other way than the first.
        cut: lines that are too long for any command.
        long: lines that a tokenizer does not learn from.
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
    """Reads a file in windows and notes what it finds, to the end or to where it is damaged."""

    def __init__(self, path: str, closing: contextlib.ExitStack) -> None:
        self.facts = FileFacts(path)
        self._reader: LineReader | None = None
        try:
            check_files([path])
            self._reader = closing.enter_context(open_lines(path, invalid="replace"))
        except DataError as error:
            self._stop(error)

    def window(self) -> list[str]:
        """The next lines; none at the end, or where no more can be read."""
        if self._reader is None:
            return []
        try:
            lines = self._reader.window(WINDOW_LINES)
        except DataError as error:  # what was read of this window is lost with it
            self._finish(self._reader)
            self._stop(error)
            return []
        if lines:
            self._look_at(lines, self._reader.num_lines - len(lines) + 1, self._reader.has_crlf)
        else:
            self._finish(self._reader)
        return lines

    def share(self) -> float:
        """How much of it was read, from 0 to 1."""
        return 1.0 if self._reader is None else self._reader.share() or 0.0

    def _look_at(self, lines: list[str], first: int, has_crlf: bool) -> None:
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
        if max(map(len, lines)) * 4 <= LONG_LINE_BYTES:  # a character has four bytes at most
            return
        for index, line in enumerate(lines):
            if len(line) * 4 > LONG_LINE_BYTES and len(line.encode()) > LONG_LINE_BYTES:
                facts.long.add(1, facts.path, first + index)

    def _finish(self, reader: LineReader) -> None:
        facts, repairs = self.facts, reader.repairs
        facts.lines = reader.num_lines
        facts.line_end = "CRLF" if reader.has_crlf else "LF"
        facts.byte_order_mark = reader.has_bom
        facts.last_line_ends = not reader.lacks_final_newline
        facts.binary = bool(reader.binary_reason)
        facts.invalid_byte = reader.first_invalid
        facts.invalid = Occurrences()
        facts.invalid.add(repairs.counts["invalid"], facts.path, repairs.first.get("invalid"))
        facts.nul = Occurrences()
        facts.nul.add(repairs.counts["nul"], facts.path, repairs.first.get("nul"))
        facts.cut = Occurrences()
        facts.cut.add(repairs.counts["clipped"], facts.path, repairs.first.get("clipped"))
        if reader.has_crlf:
            facts.other_ends = Occurrences()
            facts.other_ends.add(repairs.counts["bare"], facts.path, repairs.first.get("bare"))
        replaced = facts.bad["replacement"]
        # The reader puts U+FFFD where a line is no UTF-8; those were not in the file.
        replaced.count -= facts.invalid.count
        if facts.invalid.count:
            replaced.file, replaced.line = (facts.path if replaced.count else None), None
        self._reader = None

    def _stop(self, error: DataError) -> None:
        self.facts.problem = str(error)
        self.facts.hint = error.hint or ""
        self._reader = None
