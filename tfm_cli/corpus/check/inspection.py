"""What is found in a corpus before anyone learns from it; nothing stops at the first problem."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tfm_cli.corpus.check.file_facts import FileFacts, FileInspection, Occurrences
from tfm_cli.corpus.check.statistics import LengthCounts, LineHashes, RatioCounts, UnknownPieces
from tfm_cli.corpus.line_checks import RoundTrip, TagPositions
from tfm_cli.tokenizer.pair import TokenizerPair

# Called with the number of pairs so far and with the share of the corpus that was read.
Progress = Callable[[int, float], None]


class CorpusInspection:
    """What is found in a corpus; memory does not grow with it.

    Lengths, ratios, hashes and identical sides are those of pairs with text on both sides, taken
    without the blanks around them, which tokenizers leave out.

    Args:
        name: `train`, `valid` or `test`.
        tokenizers: count lengths in pieces; without them, lengths are in words.
        max_length: pairs with more pieces on a side would be dropped.

    Attributes:
        files: source and target of each pair of files.
        pairs: aligned lines.
        with_text: pairs with text on both sides.
        usable: pairs that training would learn from; without tokenizers, those with text.
        blank: pairs with a blank source only, a blank target only, both blank.
        too_long: pairs with more than `max_length` pieces on a side.
        tokenizers: those that lengths are counted by, if any.
        round_trips: what these make the source and the target lose.
        tags: language tags of source lines.
    """

    def __init__(self, name: str, tokenizers: TokenizerPair | None, *, max_length: int) -> None:
        self.name = name
        self.files: list[tuple[FileFacts, FileFacts]] = []
        self.pairs = 0
        self.with_text = 0
        self.usable = 0
        self.blank = {"source": Occurrences(), "target": Occurrences(), "both": Occurrences()}
        self.identical = Occurrences()
        self.too_long = Occurrences()
        self.lengths = LengthCounts(), LengthCounts()
        self.ratios = RatioCounts()
        self.hashes = LineHashes()
        self.unknown: tuple[UnknownPieces, UnknownPieces] | None = None
        self.tokenizers = tokenizers
        self.round_trips = RoundTrip(), RoundTrip()
        self.tags = TagPositions()
        self._max_length = max_length
        if tokenizers is not None:
            self.unknown = UnknownPieces(tokenizers.source), UnknownPieces(tokenizers.target)

    @property
    def unit(self) -> str:
        """What lengths are counted in."""
        return "words" if self.tokenizers is None else "pieces"

    def read(self, source_path: str, target_path: str, progress: Progress) -> None:
        """Look at all of a file and at its translation."""
        with contextlib.ExitStack() as closing:
            files = (FileInspection(source_path, closing), FileInspection(target_path, closing))
            self.files.append((files[0].facts, files[1].facts))
            line = 1
            for sources, targets in paired_windows(*files):
                self._look_at(sources, targets, source_path, line)
                line += len(sources)
                progress(self.pairs, min(file.share() for file in files))

    def _look_at(self, sources: list[str], targets: list[str], path: str, line: int) -> None:
        self.pairs += len(sources)
        self.tags.add(sources, file=len(self.files) - 1, first_number=line)
        texts = [source.strip() for source in sources], [target.strip() for target in targets]
        full = [index for index, pair in enumerate(zip(*texts, strict=True)) if all(pair)]
        if len(full) < len(sources):
            self._note_blank(texts, path, line)
            texts = [texts[0][index] for index in full], [texts[1][index] for index in full]
        self._add(self.identical, np.array(list(map(str.__eq__, *texts)), bool), full, path, line)
        self.with_text += len(full)
        self.hashes.add(*texts)
        if self.tokenizers is None:
            counts = _word_counts(texts[0]), _word_counts(texts[1])
        else:
            # The lines as they are, as in training: a normaliser may turn a blank into text.
            lines = [sources[index] for index in full], [targets[index] for index in full]
            numbers = [line + index for index in full]
            counts = self._piece_counts(lines, self.tokenizers, numbers)
        some = (counts[0] > 0) & (counts[1] > 0)  # a normaliser may leave nothing of a line
        if self.tokenizers is not None:
            long = some & (np.maximum(*counts) > self._max_length)
            self._add(self.too_long, long, full, path, line)
            self.usable += int(some.sum() - long.sum())
        else:
            self.usable += len(full)
        self.lengths[0].add(counts[0])
        self.lengths[1].add(counts[1])
        self.ratios.add(counts[0][some], counts[1][some])

    def _note_blank(self, texts: tuple[list[str], list[str]], path: str, line: int) -> None:
        for number, (source, target) in enumerate(zip(*texts, strict=True), line):
            if not source or not target:
                kind = "target" if source else "source" if target else "both"
                self.blank[kind].add(1, path, number)

    @staticmethod
    def _add(
        seen: Occurrences, found: np.ndarray, indexes: list[int], path: str, line: int
    ) -> None:
        places = np.flatnonzero(found)
        if len(places):
            seen.add(len(places), path, line + indexes[places[0]])

    def _piece_counts(
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
            trip.add(tokenizer, texts, encoded, place=lambda index: (file, numbers[index]))
            counts.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return counts[0], counts[1]


def paired_windows(
    source: FileInspection, target: FileInspection
) -> Iterator[tuple[list[str], list[str]]]:
    """Lines of both sides, as many of each; at most one window of a side waits for the other.

    Where one side is longer, the rest of it is read as well, so that it is looked at and counted.
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
    """Look at all files of a corpus, whatever is wrong with some of them.

    Args:
        name: `train`, `valid` or `test`.
        paths: files of the source, and as many of the target.
        tokenizers: count lengths in pieces.
        max_length: pairs with more pieces on a side would be dropped.
        progress: is told how far this is.
    """
    found = CorpusInspection(name, tokenizers, max_length=max_length)
    sizes = [_size(source) + _size(target) for source, target in zip(*paths, strict=True)]
    for index, (source, target) in enumerate(zip(*paths, strict=True)):

        def tell(pairs: int, share: float, *, index: int = index) -> None:
            done = sum(sizes[:index]) + share * sizes[index]
            progress(pairs, done / max(1, sum(sizes)))

        found.read(source, target, tell)
    return found


def corpus_size(paths: tuple[Sequence[str], Sequence[str]]) -> int:
    """Bytes of all files of a corpus; those that cannot be read count nothing."""
    return sum(_size(path) for side in paths for path in side)


def _word_counts(lines: list[str]) -> np.ndarray:
    return np.fromiter(map(len, map(str.split, lines)), np.int64, len(lines))


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
