"""The numbers behind a score: groups of lines, lines that stand out, words that differ."""

import dataclasses
import difflib
import os
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tfm_cli.console import visible
from tfm_cli.evaluation.line_statistics import (
    LineStatistics,
    confidence,
    line_statistics,
    paired_p_value,
    resampled_scores,
)
from tfm_cli.evaluation.scores import DEFAULTS, MetricOptions, build_metrics, check_aligned
from tfm_cli.evaluation.significance import Comparison, SystemScore
from tfm_cli.text.scripts import script_without_spaces

GROUP_RESAMPLES = 200  # of the bootstrap of a group of lines
_MAX_GROUPS = 8
_WIDTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_COUNTS = (0, 1, 2, 3, 5, 10, 100, 1000, 10_000, 100_000)  # the least of each group

Runs = tuple[tuple[int, int], ...]  # begin and end of parts of a text, in characters
# For each word of a translation, the source words that it attends to, by index and weight.
Links = tuple[tuple[tuple[int, float], ...], ...]
MIN_WEIGHT = 0.1
_MAX_LINKS = 3  # of a word


@dataclass(frozen=True, slots=True)
class System:
    """A system.

    Attributes:
        name: its name, such as that of the file.
        translations: a translation of each line.
        alignments: the word alignment of each line; empty without a model.
    """

    name: str
    translations: Sequence[str]
    alignments: Sequence[Links] = ()


def largest_weights(alignment: Sequence[Sequence[float]]) -> Links:
    """Return the largest weights of each word, at most three, of at least 0.1.

    Args:
        alignment: attention of each word of a translation to each source word, (J, I).
    """
    result = []
    for row in alignment:
        largest = sorted(range(len(row)), key=lambda index: -row[index])[:_MAX_LINKS]
        result.append(tuple((index, row[index]) for index in largest if row[index] >= MIN_WEIGHT))
    return tuple(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The texts of a report, all of as many lines.

    Attributes:
        systems: one or two systems.
        references: one or more references.
        source: the source; empty if it is not known.
        training_text: text in which words are counted; None for the first reference.
    """

    systems: Sequence[System]
    references: Sequence[Sequence[str]]
    source: Sequence[str] = ()
    training_text: Iterable[str] | None = None


class Group(NamedTuple):
    """Lines with a similar value, such as length, and their scores.

    Attributes:
        first: the least value of the group.
        last: the greatest; None without a bound.
        lines: indices of the lines, at least one.
        scores: as in `Comparison`, without p-values; a single line has no intervals.
    """

    first: int
    last: int | None
    lines: list[int]
    scores: tuple[SystemScore, ...]

    @property
    def label(self) -> str:
        """Return the range of its values."""
        if self.last is None:
            return f"{self.first:,}+"
        return f"{self.first:,}" if self.first == self.last else f"{self.first:,}–{self.last:,}"


class Marks(NamedTuple):
    """The words by which a translation differs from its nearest reference, or from another system.

    Attributes:
        own: parts of the translation whose words the other text does not have in this place.
        other: parts of the other text whose words the translation lacks.
        reference: index of the nearest reference.
    """

    own: Runs
    other: Runs
    reference: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The numbers of a report on L lines.

    Attributes:
        texts: its texts, in which control characters are visible.
        comparison: the scores of all lines, with intervals, and with p-values for two systems.
        chrf: sentence chrF of each system, (systems, L).
        lengths: words of the first reference of each line.
        rarest: occurrences of its rarest word; None for a line without a word.
        by_length, by_rarest: lines grouped by these numbers.
        findings: for each kind in `KINDS`, the lines of each system.
        length_ratios: words of each system by words of the references nearest in length.
        marks: the words of each system that differ from a reference, (systems, L).
        between: those of the first system that differ from the second, by line.
    """

    texts: Texts
    comparison: Comparison
    chrf: list[list[float]]
    lengths: list[int]
    rarest: list[int | None]
    by_length: list[Group]
    by_rarest: list[Group]
    findings: dict[str, list[list[int]]]
    length_ratios: list[float]
    marks: list[list[Marks]]
    between: list[Marks] = field(default_factory=list)


def build_report(
    texts: Texts,
    *,
    metrics: Sequence[str] = ("bleu",),
    options: MetricOptions = DEFAULTS,
    num_resamples: int = 1000,
) -> Report:
    """Return the report on one or two systems; chrF is always one of its metrics.

    Args:
        texts: the texts.
        metrics: some of `scores.METRICS`.
        options: options of the metrics.
        num_resamples: resamples of the bootstrap of all lines.

    Raises:
        ConfigError, DataError, ResourceError: as in `scores.corpus_scores`.
    """
    for system in texts.systems:
        check_aligned(system.translations, texts.references)
    names = list(dict.fromkeys([*metrics, "chrf"]))
    options = dataclasses.replace(options, force=True)  # `tfm evaluate` has warned already
    built = build_metrics(names, texts.references, options)
    statistics = {
        name: [line_statistics(metric, system.translations) for system in texts.systems]
        for name, metric in built.items()
    }
    systems = [system.name for system in texts.systems]
    reference = texts.references[0]
    counts = word_counts(reference if texts.training_text is None else texts.training_text)
    lengths = [sum(1 for _ in true_words(line)) for line in reference]
    rarest = [
        min((counts[word.casefold()] for word in true_words(line)), default=None)
        for line in reference
    ]
    shown = visible_texts(texts)
    return Report(
        texts=shown,
        comparison=_comparison(systems, list(statistics.values()), num_resamples),
        chrf=[each.line_scores() for each in statistics["chrf"]],
        lengths=lengths,
        rarest=rarest,
        by_length=_groups(lengths, length_bounds(lengths), systems, list(statistics.values())),
        by_rarest=_groups(rarest, _COUNTS, systems, list(statistics.values())),
        findings=_findings(texts),
        length_ratios=[_length_ratio(system.translations, texts) for system in texts.systems],
        marks=[_marks_of(system, shown.references) for system in shown.systems],
        between=_marks_between(shown.systems),
    )


def visible_texts(texts: Texts) -> Texts:
    """Return the texts as they are shown."""
    return dataclasses.replace(
        texts,
        systems=[
            dataclasses.replace(system, translations=[visible(t) for t in system.translations])
            for system in texts.systems
        ],
        references=[[visible(text) for text in reference] for reference in texts.references],
        source=[visible(text) for text in texts.source],
    )


# Scores.


def _comparison(
    systems: Sequence[str], statistics: Sequence[Sequence[LineStatistics]], num_resamples: int
) -> Comparison:
    """Return the scores of all lines, with the signatures of a paired bootstrap.

    Args:
        systems: names of the systems.
        statistics: by metric and system.
        num_resamples: number of resamples.
    """
    rows, signatures, short_signatures = [], {}, {}
    for of_systems in statistics:
        values = [each.score() for each in of_systems]
        resampled = resampled_scores(of_systems, num_resamples=num_resamples)
        name, signature = of_systems[0].name, of_systems[0].metric.get_signature()
        signature.update("bs", num_resamples)
        signature.update("seed", os.environ.get("SACREBLEU_SEED", "12345").lower())
        signatures[name] = signature.format()
        short_signatures[name] = signature.format(short=True)
        for index, system in enumerate(systems):
            p_value = None
            if index:
                difference = values[index] - values[0]
                p_value = paired_p_value(resampled[0], resampled[index], difference=difference)
            interval = confidence(resampled[index])
            rows.append(SystemScore(system, name, values[index], interval, p_value))
    test = f"paired bootstrap test, {num_resamples} samples" if len(systems) > 1 else ""
    return Comparison(tuple(rows), signatures, short_signatures, test)


def _groups(
    values: Sequence[int | None],
    bounds: Sequence[int],
    systems: Sequence[str],
    statistics: Sequence[Sequence[LineStatistics]],
) -> list[Group]:
    """Return the groups of lines that are not empty.

    Args:
        values: the value of each line; a line with None belongs to no group.
        bounds: the least value of each group, in ascending order.
        systems: names of the systems.
        statistics: by metric and system.
    """
    lines: list[list[int]] = [[] for _ in bounds]
    for line, value in enumerate(values):
        if value is not None:
            lines[bisect_right(bounds, value) - 1].append(line)
    groups = []
    for index, (first, chosen) in enumerate(zip(bounds, lines, strict=True)):
        if not chosen:
            continue
        rows = []
        for of_systems in statistics:
            name = of_systems[0].name
            resampled = resampled_scores(of_systems, num_resamples=GROUP_RESAMPLES, lines=chosen)
            for system, each, scores in zip(systems, of_systems, resampled, strict=True):
                interval = confidence(scores) if len(chosen) > 1 else None
                rows.append(SystemScore(system, name, each.score(chosen), interval))
        last = bounds[index + 1] - 1 if index + 1 < len(bounds) else None
        groups.append(Group(first, last, chosen, tuple(rows)))
    return groups


def length_bounds(lengths: Sequence[int]) -> list[int]:
    """Return the least length of each group.

    Up to the 95th percentile there are at most eight groups of equal width; longer lines are one
    more group, and so are lines without a word.
    """
    ordered = sorted(length for length in lengths if length) or [1]
    long = ordered[-(len(ordered) * -95 // 100) - 1]
    width = next((width for width in _WIDTHS if width * _MAX_GROUPS >= long), long)
    bounds = list(range(1, long + width + 1, width))
    if bounds[-1] > ordered[-1]:
        bounds.pop()
    return bounds if all(lengths) else [0, *bounds]


# Words.


class _Classes(dict[int, str]):
    """The class of each character, by its code: space, letter, character of its own, mark, other.

    Letters form words; a character of a script without spaces is a word by itself; marks belong to
    the character before them.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character.isspace():
            kind = " "
        elif category[0] == "M" or category == "Cf":
            kind = "m"
        elif category[0] in "LN":
            kind = "c" if script_without_spaces(character) else "w"
        else:
            kind = "o"
        self[code] = kind
        return kind


_CLASSES = _Classes()
_TOKEN = re.compile("w[wm]*|[co]m*|m+")
_TRUE_WORD = re.compile("w[wm]*|cm*")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return begin and end of each word and of each other character that is no space.

    In scripts that are written without spaces, such as Chinese, each character is a word.
    """
    return [match.span() for match in _TOKEN.finditer(text.translate(_CLASSES))]


def true_words(text: str) -> Iterator[str]:
    """Yield the words of a text, without punctuation and symbols."""
    for match in _TRUE_WORD.finditer(text.translate(_CLASSES)):
        yield text[match.start() : match.end()]


def word_counts(lines: Iterable[str]) -> Counter[str]:
    """Return the occurrences of each word, in lower case."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(word.casefold() for word in true_words(line))
    return counts


def marks_between(text: str, other: str) -> Marks:
    """Return the words by which a text and another differ, as `difflib` matches them."""
    return _matched(text, other)[0]


def _marks_between(systems: Sequence[System]) -> list[Marks]:
    """Return the words of two systems that differ, by line; nothing for one system."""
    if len(systems) == 1:
        return []
    first, second = (system.translations for system in systems)
    return list(map(marks_between, first, second))


def _marks_of(system: System, references: Sequence[Sequence[str]]) -> list[Marks]:
    """Return the words of a system that differ from the nearest reference, by line."""
    lines = zip(system.translations, *references, strict=True)
    return [nearest_marks(translation, of_line) for translation, *of_line in lines]


def nearest_marks(text: str, references: Sequence[str]) -> Marks:
    """Return the words by which a text differs from the reference that shares most with it."""
    matches = [_matched(text, reference) for reference in references]
    index = max(range(len(matches)), key=lambda each: matches[each][1])
    return matches[index][0]._replace(reference=index)


def _matched(text: str, other: str) -> tuple[Marks, float]:
    """Return the marks of two texts, and the share of words that they have in common."""
    if text == other:
        return Marks((), ()), 1.0
    spans, other_spans = word_spans(text), word_spans(other)
    matcher = difflib.SequenceMatcher(
        None,
        [text[begin:end] for begin, end in spans],
        [other[begin:end] for begin, end in other_spans],
        autojunk=False,
    )
    own, others = [], []
    for tag, begin, end, other_begin, other_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        if begin < end:
            own.append((spans[begin][0], spans[end - 1][1]))
        if other_begin < other_end:
            others.append((other_spans[other_begin][0], other_spans[other_end - 1][1]))
    return Marks(tuple(own), tuple(others)), matcher.ratio()


# Lines that stand out.

KINDS = {
    "empty": "Empty translations",
    "copies": "Copies of the source",
    "untranslated": "Untranslated",
    "repetitions": "Repetitions",
    "short": "Too short",
    "long": "Too long",
}
DEFINITIONS = {
    "empty": "Nothing, where the reference is not empty.",
    "copies": "Equal to the source, which no reference is.",
    "untranslated": "No copy, but at least half of the words, and two, occur in the source and in "
    "no reference.",
    "repetitions": "One word three times in a row, or several words twice in a row, where no "
    "reference does so. Where each character counts as a word: one five times, two three times, "
    "or four twice.",
    "short": "Less than half the words of each reference, and at least three fewer.",
    "long": "More than twice the words of each reference, and at least three more.",
}
NEEDS_SOURCE = ("copies", "untranslated")
_MAX_PERIOD = 40  # words


def _findings(texts: Texts) -> dict[str, list[list[int]]]:
    """Return the lines of each system by kind; without a source some kinds are left out."""
    kinds = [kind for kind in KINDS if texts.source or kind not in NEEDS_SOURCE]
    found: dict[str, list[list[int]]] = {kind: [[] for _ in texts.systems] for kind in kinds}
    sources: Sequence[str | None] = texts.source or [None] * len(texts.references[0])
    for index, system in enumerate(texts.systems):
        lines = zip(system.translations, sources, *texts.references, strict=True)
        for line, (translation, source, *references) in enumerate(lines):
            for kind in findings_of_line(translation, source, references):
                found[kind][index].append(line)
    return found


def findings_of_line(
    translation: str, source: str | None, references: Sequence[str]
) -> Iterator[str]:
    """Yield the keys of `DEFINITIONS` that hold for a translation.

    Args:
        translation: the translation.
        source: its source; None if it is not known.
        references: its references, at least one.
    """
    plain = translation.split()
    if not plain:
        if all(reference.strip() for reference in references):
            yield "empty"
        return
    words = [word.casefold() for word in true_words(translation)]
    of_references = [[w.casefold() for w in true_words(each)] for each in references]
    if source is not None:
        if plain == source.split():
            if all(plain != reference.split() for reference in references):
                yield "copies"
        elif _is_untranslated(words, source, of_references):
            yield "untranslated"
    if repeats(words) and not any(map(repeats, of_references)):
        yield "repetitions"
    lengths = [len(each) for each in of_references]
    if len(words) * 2 < min(lengths) and min(lengths) - len(words) >= 3:
        yield "short"
    if len(words) > 2 * max(lengths) and len(words) - max(lengths) >= 3:
        yield "long"


def _is_untranslated(
    words: Sequence[str], source: str, references: Sequence[Sequence[str]]
) -> bool:
    foreign = {word.casefold() for word in true_words(source)}.difference(*references)
    count = sum(word in foreign for word in words)
    return count >= 2 and 2 * count >= len(words)


def repeats(words: Sequence[str]) -> bool:
    """Return True if words are written again at once, as `DEFINITIONS` counts them."""
    for period in range(1, min(len(words) // 2, _MAX_PERIOD) + 1):
        equal = 0  # words in a row that equal the word one period before
        for word, before in zip(words[period:], words, strict=False):
            equal = equal + 1 if word == before else 0
            again = equal // period * period
            if again >= (4 if script_without_spaces(word[0]) else 2):
                return True
    return False


def _length_ratio(translations: Sequence[str], texts: Texts) -> float:
    """Return words of the translations by words of the references nearest in length."""
    total = of_references = 0
    for translation, *references in zip(translations, *texts.references, strict=True):
        length, *lengths = (sum(1 for _ in true_words(t)) for t in (translation, *references))
        total += length
        of_references += min(lengths, key=lambda each: (abs(each - length), each))
    return total / of_references if of_references else 0.0
