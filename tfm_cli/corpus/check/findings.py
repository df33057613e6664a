"""Findings about a corpus: the level of each, its message and a remedy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tfm_cli.console import counted
from tfm_cli.corpus.check.inspection import (
    LONG_LINE_BYTES,
    CorpusInspection,
    FileProperties,
    Occurrences,
)
from tfm_cli.corpus.check.statistics import Overlap, Repeats
from tfm_cli.corpus.line_checks import (
    MAX_CHANGED,
    MAX_UNKNOWN,
    LinePosition,
    Origin,
    describe_unknown_tag,
    describe_untagged,
    hint_for_changed,
    hint_for_unknown,
)
from tfm_cli.text.language_tags import listed
from tfm_cli.text.reader import MAX_LINE_BYTES

Level = Literal["error", "warning", "note"]

# Larger shares cause a warning or an error, smaller ones a note.
MAX_OVERLAP = 0.01  # of valid or test: above, the score is off by more than noise
MAX_KNOWN_SOURCES = 0.05  # of valid or test: short sentences recur
MAX_REPEATS = 0.05  # a repeated pair has more weight in training than others
MAX_BLANK = 0.01  # blank pairs are dropped, and suggest that one side lost lines
MAX_IDENTICAL = 0.02  # names, numbers and headings are identical in any corpus
MAX_FAR_APART = 0.01  # a pair with this length ratio is hardly a translation
MAX_BAD_CHARACTERS = 0.001  # of lines: above, the damage is systematic
MAX_TOO_LONG = 0.01  # of pairs, which training drops
FAR_APART = 9  # length ratio

_ALIGN = "line N of one file must be the translation of line N of the other"
_UTF8 = "convert the file to UTF-8 (`iconv`) or remove the line on both sides"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem or a peculiarity of a corpus, with a remedy."""

    level: Level
    code: str
    corpus: str
    message: str
    hint: str
    file: str | None = None
    line: int | None = None


def find_problems(
    corpus: CorpusInspection,
    repeats: Repeats,
    overlap: Overlap | None,
    *,
    origin: Origin = "named",
    known_tags: Sequence[str] = (),
) -> list[Finding]:
    """Return all findings about a corpus, errors first.

    Args:
        corpus: the result of its inspection.
        repeats: its repetitions.
        overlap: its overlap with the training corpus; None for the training corpus itself.
        origin: the origin of the tokenizers, on which the remedies depend.
        known_tags: language tags of the tokenizer or, without one, of the training corpus.
    """
    findings = [
        *(finding for pair in corpus.files for finding in _of_files(corpus.name, *pair)),
        *_of_pairs(corpus),
        *_of_repeats(corpus, repeats, overlap),
        *_of_tokens(corpus, origin),
        *_of_tags(corpus, known_tags),
    ]
    order: Mapping[Level, int] = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def _of_files(corpus: str, source: FileProperties, target: FileProperties) -> Iterator[Finding]:
    for facts in (source, target):
        yield from _of_encoding(corpus, facts)
        yield from _of_characters(corpus, facts)
    if not source.problem and not target.problem and source.lines != target.lines:
        counts = f"{source.lines} and {target.lines} lines"
        message = f"{source.path} and {target.path} do not align: {counts}"
        yield Finding("error", "misaligned", corpus, message, _ALIGN, source.path)


def _of_encoding(corpus: str, facts: FileProperties) -> Iterator[Finding]:
    path = facts.path
    if facts.problem:
        hint = facts.hint or "give a text file that can be read"
        yield Finding("error", "unreadable", corpus, facts.problem, hint, path)
    if facts.binary:
        message = f"{path}: looks binary, expected UTF-8 text"
        yield Finding("error", "binary", corpus, message, "give a text file in UTF-8", path)
    if facts.invalid.count:
        message = f"{facts.invalid_byte} is not UTF-8; {_lines(facts.invalid.count)} of that kind"
        yield _located("error", "invalid_utf8", corpus, facts.invalid, message, _UTF8)
    if facts.nul.count and not facts.binary:
        message = f"{_lines(facts.nul.count)} with NUL characters, which are removed"
        hint = "find out which program wrote the NUL characters"
        yield _located("warning", "nul", corpus, facts.nul, message, hint)
    if facts.other_ends.count:
        other = "LF" if facts.line_end == "CRLF" else "CRLF"
        lines = _lines(facts.other_ends.count)
        message = f"{lines} with {other} at the end, but the first line ends in {facts.line_end}"
        hint = "write the file with one kind of line end, preferably LF"
        yield _located("warning", "mixed_line_ends", corpus, facts.other_ends, message, hint)
    if facts.line_end == "CRLF":
        message = f"{path}: lines end in CRLF, which is read as a line end"
        yield Finding("note", "crlf", corpus, message, "no action is needed", path)
    if facts.byte_order_mark:
        message = f"{path}: begins with a byte order mark, which is dropped"
        yield Finding("note", "byte_order_mark", corpus, message, "no action is needed", path, 1)
    if facts.lines and not facts.last_line_ends:
        message = f"{path}: the last line has no line feed"
        hint = "make sure that the file was not cut off"
        yield Finding("note", "unended_last_line", corpus, message, hint, path, facts.lines)


def _of_characters(corpus: str, facts: FileProperties) -> Iterator[Finding]:
    for name, occurrences in facts.separators.items():
        if occurrences.count:
            lines = _lines(occurrences.count)
            message = f"{lines} with {name} inside, which other programs take for a line end"
            hint = "replace it with a space on both sides"
            yield _located("warning", "separator", corpus, occurrences, message, hint)
    for kind, occurrences in facts.bad.items():
        if occurrences.count:
            message = f"{_lines(occurrences.count)} with a {kind} character"
            message = message.replace("mark character", "mark inside")
            hint = "remove such lines on both sides, or find out how the text was damaged"
            level = _level(occurrences.count, facts.lines, MAX_BAD_CHARACTERS)
            yield _located(level, "bad_character", corpus, occurrences, message, hint)
    if facts.cut.count:
        message = f"{_lines(facts.cut.count)} cut at {MAX_LINE_BYTES} bytes"
        hint = "split such lines on both sides, or remove them"
        yield _located("warning", "cut_line", corpus, facts.cut, message, hint)
    if facts.long.count:
        message = f"{_lines(facts.long.count)} with more than {LONG_LINE_BYTES} bytes"
        hint = "split such lines on both sides; no tokenizer is learned from them"
        yield _located("note", "long_line", corpus, facts.long, message, hint)


def _of_pairs(corpus: CorpusInspection) -> Iterator[Finding]:
    name, pairs = corpus.name, corpus.pairs
    if not corpus.usable and not any(side.problem for pair in corpus.files for side in pair):
        message = f"{name}: 0 usable pairs of {pairs}, expected at least one"
        hint = "give files with text on both sides of a line"
        yield Finding("error", "no_usable_pair", name, message, hint)
    blank = sum(occurrences.count for occurrences in corpus.blank.values())
    for kind, occurrences in corpus.blank.items():
        if occurrences.count:
            sides = "both sides blank" if kind == "both" else f"a blank {kind}"
            share = _percent(occurrences.count, pairs)
            message = f"{_pairs(occurrences.count)} with {sides} ({share})"
            hint = "blank pairs are dropped; make sure that no line was lost on one side"
            level = _level(blank, pairs, MAX_BLANK)
            yield _located(level, "blank", name, occurrences, message, hint)
    with_text = corpus.with_text
    if corpus.identical.count:
        count = corpus.identical.count
        message = f"{_pairs(count)} with identical sides ({_percent(count, with_text)})"
        hint = "remove pairs that should have been translated: a model learns to copy from them"
        level = _level(count, with_text, MAX_IDENTICAL)
        yield _located(level, "identical_sides", name, corpus.identical, message, hint)
    far = corpus.ratios.beyond(FAR_APART)
    if far:
        message = (
            f"{name}: {_pairs(far)} with one side more than {FAR_APART} times as long as the "
            f"other, in {corpus.unit} ({_percent(far, with_text)})"
        )
        hint = "remove them; if a script has no spaces, count in tokens with `--tokenizer`"
        level = _level(far, with_text, MAX_FAR_APART)
        yield Finding(level, "length_ratio", name, message, hint)


def _of_repeats(
    corpus: CorpusInspection, repeats: Repeats, overlap: Overlap | None
) -> Iterator[Finding]:
    name, pairs = corpus.name, corpus.with_text
    if repeats.pairs:
        share = _percent(repeats.pairs, pairs)
        message = f"{name}: {_verb(repeats.pairs, 'pair', 'repeat')} an earlier pair ({share})"
        level = _level(repeats.pairs, pairs, MAX_REPEATS)
        hint = "remove the repetitions unless they are intended"
        yield Finding(level, "repeated_pair", name, message, hint)
    if overlap is None:
        return
    if overlap.pairs:
        overlapping = _verb(overlap.pairs, "pair", "occur")
        message = f"{name}: {overlapping} in the training corpus ({_percent(overlap.pairs, pairs)})"
        is_error = overlap.pairs > MAX_OVERLAP * pairs
        hint = "remove them from the training corpus: scores on them are meaningless"
        yield Finding("error" if is_error else "warning", "overlap", name, message, hint)
    if overlap.sources > overlap.pairs:
        count = overlap.sources - overlap.pairs
        sources = _verb(count, "more source", "occur")
        share = _percent(count, pairs)
        message = f"{name}: {sources} in the training corpus with another target ({share})"
        level = _level(count, pairs, MAX_KNOWN_SOURCES)
        hint = "make sure that they are short and common"
        yield Finding(level, "known_source", name, message, hint)


def _of_tokens(corpus: CorpusInspection, origin: Origin) -> Iterator[Finding]:
    if corpus.too_long.count:
        count = corpus.too_long.count
        message = f"{_pairs(count)} over the maximum length ({_percent(count, corpus.pairs)})"
        level = _level(count, corpus.pairs, MAX_TOO_LONG)
        hint = "they are dropped; raise `--max-length` or split them on both sides"
        yield _located(level, "too_long", corpus.name, corpus.too_long, message, hint)
    if corpus.tokenizers is None or corpus.unknown is None:
        return
    pair = (corpus.tokenizers.source, corpus.tokenizers.target)
    columns = zip(("source", "target"), pair, corpus.unknown, corpus.round_trips, strict=True)
    for index, (side, tokenizer, unknown, trip) in enumerate(columns):
        if trip.first_unknown is not None:
            causes = ", ".join(f"`{text}` {count}" for text, count in unknown.commonest(5))
            share = _percent(trip.unknown, trip.pieces)
            message = f"{counted(trip.unknown, f'unknown {side} token')} ({share}): {causes}"
            level = _level(trip.unknown, trip.pieces, MAX_UNKNOWN)
            first = _occurrences(corpus, index, trip.first_unknown, trip.unknown)
            hint = hint_for_unknown(origin)
            yield _located(level, "unknown_token", corpus.name, first, message, hint)
        if trip.first_changed is not None and not trip.is_explained(tokenizer):
            share = _percent(trip.changed, trip.lines)
            lines = f"{_lines(trip.changed)} of the {side} changed by the tokenizer ({share})"
            change = f"`{trip.first_changed.text}` becomes `{trip.first_changed.becomes}`"
            level = _level(trip.changed, trip.lines, MAX_CHANGED)
            first = _occurrences(corpus, index, trip.first_changed, trip.changed)
            hint = hint_for_changed(origin, tokenizer)
            yield _located(level, "changed_line", corpus.name, first, f"{lines}: {change}", hint)


def _of_tags(corpus: CorpusInspection, known: Sequence[str]) -> Iterator[Finding]:
    tags = corpus.tags.against(known)
    if tags.first_untagged is not None:
        first = _occurrences(corpus, 0, tags.first_untagged, tags.untagged)
        message = f"{_sources(tags.untagged, tags.lines)} with {describe_untagged(known)}"
        hint = "begin each line of the source with the tag of its target language"
        yield _located("warning", "untagged", corpus.name, first, message, hint)
    if tags.first_unknown is None:
        return
    first = _occurrences(corpus, 0, tags.first_unknown, tags.unknown)
    level: Level = "warning" if known or corpus.tags.counts.is_tagged else "note"
    hint = "use the tags that are known, or train a new model with these"
    if corpus.tokenizers is not None:
        description = describe_unknown_tag(corpus.tokenizers.source)
    elif known:
        description = (
            f"a language tag that the training corpus does not have: it has {listed(known)}"
        )
    else:
        description = "an apparent language tag at the start"
        hint = "list them in `data.tags` if they are tags; otherwise they are read as text"
    message = f"{_sources(tags.unknown, tags.lines)} with {description}"
    yield _located(level, "unknown_tag", corpus.name, first, message, hint)


def _sources(count: int, whole: int) -> str:
    return f"{counted(count, 'source line')} ({_percent(count, whole)})"


def _occurrences(
    corpus: CorpusInspection, side: int, first: LinePosition, count: int
) -> Occurrences:
    return Occurrences(count, corpus.files[first.file][side].path, first.line)


def _located(
    level: Level, code: str, corpus: str, occurrences: Occurrences, message: str, hint: str
) -> Finding:
    """Return a finding whose message begins with the first file and line."""
    file, line = occurrences.file, occurrences.line
    position = f"{file}:{line}" if line else file
    return Finding(level, code, corpus, f"{position}: {message}", hint, file, line)


def _level(count: int, whole: int, limit: float) -> Level:
    return "warning" if count > limit * whole else "note"


def _lines(count: int) -> str:
    return counted(count, "line")


def _pairs(count: int) -> str:
    return counted(count, "pair")


def _verb(count: int, noun: str, verb: str) -> str:
    return f"{counted(count, noun)} {verb}{'s' if count == 1 else ''}"


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / max(1, whole):.2f} %"
