"""Inspection of corpus files and of whole corpora, which continues after problems."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfm_cli.corpus.check.statistics import LengthCounts, LineHashes, RatioCounts, UnknownTokens
from tfm_cli.corpus.line_checks import RoundTrip, TagPositions
from tfm_cli.corpus.parallel_text import check_files
from tfm_cli.errors import DataError
from tfm_cli.text.characters import BAD_KINDS, SEPARATORS, bad_kinds, is_plain, separator_kinds
from tfm_cli.text.reader import LineReader, open_lines
from tfm_cli.tokenizer.pair import TokenizerPair

WINDOW_LINES = 4096
LONG_LINE_BYTES = 4192  # SentencePiece does not learn from longer lines

# Called with the number of pairs so far and with the share of the corpus that was read.
Progress = Callable[[int, float], None]


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
class FileProperties:
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
        self.facts = FileProperties(path)
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


class CorpusInspection:
    """Properties of a corpus, collected in bounded memory.

    Lengths, ratios, hashes and identical sides are those of pairs with text on both sides. The
    text is stripped of surrounding spaces, since tokenizers ignore them.

    Args:
        name: `train`, `valid` or `test`.
        tokenizers: lengths are counted in their tokens; if None, in words.
        max_length: training drops pairs with more tokens on a side.

    Attributes:
        files: source and target of each pair of files.
        pairs: aligned lines.
        with_text: pairs with text on both sides.
        usable: pairs that training would use; without tokenizers, those with text.
        blank: pairs with a blank source only, a blank target only, or both blank.
        identical: pairs whose sides are equal.
        too_long: pairs with more than `max_length` tokens on a side.
        lengths: histograms of source and target lengths.
        ratios: a histogram of the ratios of target to source lengths.
        hashes: hashes of all pairs.
        unknown: unknown tokens of source and target; None without tokenizers.
        round_trips: text of source and target that the tokenizers do not restore.
        tags: language tags of source lines.
    """

    def __init__(self, name: str, tokenizers: TokenizerPair | None, *, max_length: int) -> None:
        self.name = name
        self.files: list[tuple[FileProperties, FileProperties]] = []
        self.pairs = 0
        self.with_text = 0
        self.usable = 0
        self.blank = {"source": Occurrences(), "target": Occurrences(), "both": Occurrences()}
        self.identical = Occurrences()
        self.too_long = Occurrences()
        self.lengths = LengthCounts(), LengthCounts()
        self.ratios = RatioCounts()
        self.hashes = LineHashes()
        self.unknown: tuple[UnknownTokens, UnknownTokens] | None = None
        self.tokenizers = tokenizers
        self.round_trips = RoundTrip(), RoundTrip()
        self.tags = TagPositions()
        self._max_length = max_length
        if tokenizers is not None:
            self.unknown = UnknownTokens(tokenizers.source), UnknownTokens(tokenizers.target)

    @property
    def unit(self) -> str:
        """Return the unit of lengths."""
        return "words" if self.tokenizers is None else "tokens"

    def read(self, source_path: str, target_path: str, progress: Progress) -> None:
        """Inspect a file and its translation."""
        with contextlib.ExitStack() as open_files:
            files = (
                FileInspection(source_path, open_files),
                FileInspection(target_path, open_files),
            )
            self.files.append((files[0].facts, files[1].facts))
            line = 1
            for sources, targets in paired_windows(*files):
                self._inspect(sources, targets, source_path, line)
                line += len(sources)
                progress(self.pairs, min(file.share() for file in files))

    def _inspect(self, sources: list[str], targets: list[str], path: str, line: int) -> None:
        """Inspect consecutive pairs, the first of which is on `line`."""
        self.pairs += len(sources)
        self.tags.add(sources, file=len(self.files) - 1, first_number=line)
        texts = [source.strip() for source in sources], [target.strip() for target in targets]
        full = [index for index, pair in enumerate(zip(*texts, strict=True)) if all(pair)]
        if len(full) < len(sources):
            self._count_blank(texts, path, line)
            texts = [texts[0][index] for index in full], [texts[1][index] for index in full]
        is_identical = np.array(list(map(str.__eq__, *texts)), bool)
        self._add(self.identical, is_identical, full, path, line)
        self.with_text += len(full)
        self.hashes.add(*texts)
        if self.tokenizers is None:
            lengths = _word_counts(texts[0]), _word_counts(texts[1])
        else:
            # Not stripped, as in training: a normalizer may turn a blank into text.
            lines = [sources[index] for index in full], [targets[index] for index in full]
            numbers = [line + index for index in full]
            lengths = self._token_counts(lines, self.tokenizers, numbers)
        # A normalizer may remove all text of a line.
        is_nonempty = (lengths[0] > 0) & (lengths[1] > 0)
        if self.tokenizers is not None:
            is_too_long = is_nonempty & (np.maximum(*lengths) > self._max_length)
            self._add(self.too_long, is_too_long, full, path, line)
            self.usable += int(is_nonempty.sum() - is_too_long.sum())
        else:
            self.usable += len(full)
        self.lengths[0].add(lengths[0])
        self.lengths[1].add(lengths[1])
        self.ratios.add(lengths[0][is_nonempty], lengths[1][is_nonempty])

    def _count_blank(self, texts: tuple[list[str], list[str]], path: str, line: int) -> None:
        for number, (source, target) in enumerate(zip(*texts, strict=True), line):
            if not source or not target:
                kind = "target" if source else "source" if target else "both"
                self.blank[kind].add(1, path, number)

    @staticmethod
    def _add(
        occurrences: Occurrences, select: np.ndarray, indices: list[int], path: str, line: int
    ) -> None:
        """Count the selected pairs; `indices` are their offsets from `line`."""
        selected = np.flatnonzero(select)
        if len(selected):
            occurrences.add(len(selected), path, line + indices[selected[0]])

    def _token_counts(
        self, lines: tuple[list[str], list[str]], tokenizers: TokenizerPair, numbers: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.unknown is not None
        counts = []
        file = len(self.files) - 1
        pair = (tokenizers.source, tokenizers.target)
        columns = zip(lines, pair, self.unknown, self.round_trips, strict=True)
        for texts, tokenizer, unknown, trip in columns:
            encoded = tokenizer.encode(texts)
            unknown.add(texts, encoded)
            trip.add(tokenizer, texts, encoded, position=lambda index: (file, numbers[index]))
            counts.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return counts[0], counts[1]


def paired_windows(
    source: FileInspection, target: FileInspection
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield equally many lines of both sides; at most one window of a side is buffered.

    If one side is longer, the rest of it is read as well, so that all of its lines are inspected
    and counted.
    """
    waiting: tuple[list[str], list[str]] = ([], [])
    while True:
        for lines, file in zip(waiting, (source, target), strict=True):
            if not lines:
                lines.extend(file.window())
        size = min(map(len, waiting))
        if not size:
            break
        yield waiting[0][:size], waiting[1][:size]
        for lines in waiting:
            del lines[:size]
    for file in (source, target):
        while file.window():
            pass


def inspect_corpus(
    name: str,
    paths: tuple[Sequence[str], Sequence[str]],
    tokenizers: TokenizerPair | None,
    *,
    max_length: int,
    progress: Progress = lambda pairs, share: None,
) -> CorpusInspection:
    """Inspect all files of a corpus, including those that follow a damaged one.

    Args:
        name: `train`, `valid` or `test`.
        paths: files of the source, and as many of the target.
        tokenizers: as in `CorpusInspection`.
        max_length: as in `CorpusInspection`.
        progress: called after each window.
    """
    inspection = CorpusInspection(name, tokenizers, max_length=max_length)
    sizes = [_size(source) + _size(target) for source, target in zip(*paths, strict=True)]
    for index, (source, target) in enumerate(zip(*paths, strict=True)):

        def report(pairs: int, share: float, *, index: int = index) -> None:
            done = sum(sizes[:index]) + share * sizes[index]
            progress(pairs, done / max(1, sum(sizes)))

        inspection.read(source, target, report)
    return inspection


def corpus_size(paths: tuple[Sequence[str], Sequence[str]]) -> int:
    """Return the number of bytes of all files that can be read."""
    return sum(_size(path) for side in paths for path in side)


def _word_counts(lines: list[str]) -> np.ndarray:
    return np.fromiter(map(len, map(str.split, lines)), np.int64, len(lines))


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
