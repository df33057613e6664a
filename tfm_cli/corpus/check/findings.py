"""What the facts about a corpus mean: which would spoil a run, and what to do about them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tfm_cli.console import counted
from tfm_cli.corpus.check.file_facts import LONG_LINE_BYTES, FileFacts, Occurrences
from tfm_cli.corpus.check.inspection import CorpusInspection
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

# Shares that are worth a word; below them, what was found is a note.
MAX_OVERLAP = 0.01  # of valid or test: a score that is wrong by more than scores differ by chance
MAX_KNOWN_SOURCES = 0.05  # of valid or test: short sentences do occur twice
MAX_REPEATS = 0.05  # the same pair again weighs more than its neighbours
MAX_BLANK = 0.01  # dropped, and a sign of lines that were lost on one side
MAX_IDENTICAL = 0.02  # teaches to copy; names, numbers and headings are alike in any corpus
MAX_FAR_APART = 0.01  # beyond nine times as long: hardly a translation
MAX_BAD_CHARACTERS = 0.001  # of lines: beyond, it is no accident
MAX_TOO_LONG = 0.01  # of pairs, which training drops
FAR_APART = 9

_ALIGN = "line N of one file must be the translation of line N of the other"
_UTF8 = "convert the file to UTF-8 (`iconv`) or remove the line on both sides"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found, what it means, and what can be done."""

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
    """All that is worth a word about a corpus, errors first.

    Args:
        corpus: what was found in it.
        repeats: what it has twice.
        overlap: what of it stands in the training corpus.
        origin: where the tokenizers are from, on which depends what can be done.
        known_tags: language tags of the tokenizer or, without one, of the training corpus.
    """
    found = [
        *(finding for pair in corpus.files for finding in _of_files(corpus.name, *pair)),
        *_of_pairs(corpus),
        *_of_repeats(corpus, repeats, overlap),
        *_of_pieces(corpus, origin),
        *_of_tags(corpus, known_tags),
    ]
    order: Mapping[Level, int] = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def _of_files(corpus: str, source: FileFacts, target: FileFacts) -> Iterator[Finding]:
    for facts in (source, target):
        yield from _of_encoding(corpus, facts)
        yield from _of_characters(corpus, facts)
    if not source.problem and not target.problem and source.lines != target.lines:
        counts = f"{source.lines} and {target.lines} lines"
        told = f"{source.path} and {target.path} do not align: {counts}"
        yield Finding("error", "misaligned", corpus, told, _ALIGN, source.path)


def _of_encoding(corpus: str, facts: FileFacts) -> Iterator[Finding]:
    path = facts.path
    if facts.problem:
        hint = facts.hint or "give a text file that can be read"
        yield Finding("error", "unreadable", corpus, facts.problem, hint, path)
    if facts.binary:
        told = f"{path}: looks binary, expected UTF-8 text"
        yield Finding("error", "binary", corpus, told, "give a text file in UTF-8", path)
    if facts.invalid.count:
        told = f"{facts.invalid_byte} is not UTF-8; {_lines(facts.invalid.count)} of that kind"
        yield _seen("error", "invalid_utf8", corpus, facts.invalid, told, _UTF8)
    if facts.nul.count and not facts.binary:
        told = f"{_lines(facts.nul.count)} with NUL, which is removed"
        yield _seen("warning", "nul", corpus, facts.nul, told, "find out what wrote the NUL bytes")
    if facts.other_ends.count:
        other = "LF" if facts.line_end == "CRLF" else "CRLF"
        told = (
            f"{_lines(facts.other_ends.count)} in {other}, but the first ends in {facts.line_end}"
        )
        hint = "write the file with one kind of line end, best LF"
        yield _seen("warning", "mixed_line_ends", corpus, facts.other_ends, told, hint)
    if facts.line_end == "CRLF":
        told = f"{path}: lines end in CRLF, which is taken for a line end"
        yield Finding("note", "crlf", corpus, told, "nothing need be done", path)
    if facts.byte_order_mark:
        told = f"{path}: begins with a byte order mark, which is dropped"
        yield Finding("note", "byte_order_mark", corpus, told, "nothing need be done", path, 1)
    if facts.lines and not facts.last_line_ends:
        told = f"{path}: the last line has no line feed"
        hint = "make sure that the file was not cut off"
        yield Finding("note", "unended_last_line", corpus, told, hint, path, facts.lines)


def _of_characters(corpus: str, facts: FileFacts) -> Iterator[Finding]:
    for name, seen in facts.separators.items():
        if seen.count:
            told = f"{_lines(seen.count)} with {name} inside, where other programs end a line"
            hint = "replace it by a blank on both sides"
            yield _seen("warning", "separator", corpus, seen, told, hint)
    for kind, seen in facts.bad.items():
        if seen.count:
            told = f"{_lines(seen.count)} with a {kind} character"
            told = told.replace("mark character", "mark inside")
            hint = "remove such lines on both sides, or find out how the text was damaged"
            level = _level(seen.count, facts.lines, MAX_BAD_CHARACTERS)
            yield _seen(level, "bad_character", corpus, seen, told, hint)
    if facts.cut.count:
        told = f"{_lines(facts.cut.count)} cut at {MAX_LINE_BYTES} bytes"
        hint = "split such lines on both sides, or remove them"
        yield _seen("warning", "cut_line", corpus, facts.cut, told, hint)
    if facts.long.count:
        told = f"{_lines(facts.long.count)} with more than {LONG_LINE_BYTES} bytes"
        hint = "split such lines on both sides; a tokenizer is not learned from them"
        yield _seen("note", "long_line", corpus, facts.long, told, hint)


def _of_pairs(corpus: CorpusInspection) -> Iterator[Finding]:
    name, pairs = corpus.name, corpus.pairs
    if not corpus.usable and not any(side.problem for pair in corpus.files for side in pair):
        told = f"{name}: 0 usable pairs of {pairs}, wanted at least one"
        hint = "give files with text on both sides of a line"
        yield Finding("error", "no_usable_pair", name, told, hint)
    blank = sum(seen.count for seen in corpus.blank.values())
    for kind, seen in corpus.blank.items():
        if seen.count:
            sides = "both sides" if kind == "both" else f"a {kind}"
            share = _percent(seen.count, pairs)
            told = f"{_pairs(seen.count)} with {sides} without text ({share})"
            hint = "they are dropped; make sure that no line was lost on one side"
            yield _seen(_level(blank, pairs, MAX_BLANK), "blank", name, seen, told, hint)
    with_text = corpus.with_text
    if corpus.identical.count:
        count = corpus.identical.count
        told = f"{_pairs(count)} with identical sides ({_percent(count, with_text)})"
        hint = "remove those that should have been translated: they teach to copy"
        level = _level(count, with_text, MAX_IDENTICAL)
        yield _seen(level, "identical_sides", name, corpus.identical, told, hint)
    far = corpus.ratios.beyond(FAR_APART)
    if far:
        told = (
            f"{name}: {_pairs(far)} with one side more than {FAR_APART} times as long as the "
            f"other, in {corpus.unit} ({_percent(far, with_text)})"
        )
        hint = "remove them; where a script has no blanks, count in pieces with `--tokenizer`"
        level = _level(far, with_text, MAX_FAR_APART)
        yield Finding(level, "length_ratio", name, told, hint)


def _of_repeats(
    corpus: CorpusInspection, repeats: Repeats, overlap: Overlap | None
) -> Iterator[Finding]:
    name, pairs = corpus.name, corpus.with_text
    if repeats.pairs:
        share = _percent(repeats.pairs, pairs)
        told = f"{name}: {_standing(repeats.pairs, 'pair')} there before ({share})"
        level = _level(repeats.pairs, pairs, MAX_REPEATS)
        yield Finding(level, "repeated_pair", name, told, "keep one of each, unless it is meant")
    if overlap is None:
        return
    if overlap.pairs:
        share = _percent(overlap.pairs, pairs)
        told = (
            f"{name}: {_standing(overlap.pairs, 'pair')} in the training corpus as well ({share})"
        )
        spoils = overlap.pairs > MAX_OVERLAP * pairs
        hint = "remove them from the training corpus: scores on them mean nothing"
        yield Finding("error" if spoils else "warning", "overlap", name, told, hint)
    if overlap.sources > overlap.pairs:
        count = overlap.sources - overlap.pairs
        what = f"{_standing(count, 'further source')} in the training corpus with another target"
        told = f"{name}: {what} ({_percent(count, pairs)})"
        level = _level(count, pairs, MAX_KNOWN_SOURCES)
        hint = "make sure that they are short and common"
        yield Finding(level, "known_source", name, told, hint)


def _of_pieces(corpus: CorpusInspection, origin: Origin) -> Iterator[Finding]:
    if corpus.too_long.count:
        count = corpus.too_long.count
        told = f"{_pairs(count)} longer than the longest allowed ({_percent(count, corpus.pairs)})"
        level = _level(count, corpus.pairs, MAX_TOO_LONG)
        hint = "they are dropped; raise `--max-length` or split them on both sides"
        yield _seen(level, "too_long", corpus.name, corpus.too_long, told, hint)
    if corpus.tokenizers is None or corpus.unknown is None:
        return
    pair = (corpus.tokenizers.source, corpus.tokenizers.target)
    columns = zip(("source", "target"), pair, corpus.unknown, corpus.round_trips, strict=True)
    for index, (side, tokenizer, unknown, trip) in enumerate(columns):
        if trip.first_unknown is not None:
            causes = ", ".join(f"`{text}` {count}" for text, count in unknown.commonest(5))
            share = _percent(trip.unknown, trip.pieces)
            told = f"{counted(trip.unknown, f'unknown {side} piece')} ({share}): {causes}"
            level = _level(trip.unknown, trip.pieces, MAX_UNKNOWN)
            seen = _first(corpus, index, trip.first_unknown, trip.unknown)
            hint = hint_for_unknown(origin)
            yield _seen(level, "unknown_piece", corpus.name, seen, told, hint)
        if trip.first_changed is not None and not trip.is_explained(tokenizer):
            share = _percent(trip.changed, trip.lines)
            what = f"{_lines(trip.changed)} of the {side} changed by the tokenizer ({share})"
            told = f"{what}: `{trip.first_changed.text}` becomes `{trip.first_changed.becomes}`"
            level = _level(trip.changed, trip.lines, MAX_CHANGED)
            seen = _first(corpus, index, trip.first_changed, trip.changed)
            hint = hint_for_changed(origin, tokenizer)
            yield _seen(level, "changed_line", corpus.name, seen, told, hint)


def _of_tags(corpus: CorpusInspection, known: Sequence[str]) -> Iterator[Finding]:
    tags = corpus.tags.against(known)
    if tags.first_untagged is not None:
        seen = _first(corpus, 0, tags.first_untagged, tags.untagged)
        told = f"{_sources(tags.untagged, tags.lines)} with {describe_untagged(known)}"
        hint = "begin each line of the source with the tag of its target language"
        yield _seen("warning", "untagged", corpus.name, seen, told, hint)
    if tags.first_unknown is None:
        return
    seen = _first(corpus, 0, tags.first_unknown, tags.unknown)
    level: Level = "warning" if known or corpus.tags.counts.is_tagged else "note"
    hint = "use the tags that are known, or train a new model with these"
    if corpus.tokenizers is not None:
        what = describe_unknown_tag(corpus.tokenizers.source)
    elif known:
        what = f"a language tag that the training corpus does not have: it has {listed(known)}"
    else:
        what = "what looks like a language tag at the start"
        hint = "list them in `data.tags` if they are tags; else they are text"
    told = f"{_sources(tags.unknown, tags.lines)} with {what}"
    yield _seen(level, "unknown_tag", corpus.name, seen, told, hint)


def _sources(count: int, whole: int) -> str:
    return f"{counted(count, 'source line')} ({_percent(count, whole)})"


def _first(corpus: CorpusInspection, side: int, place: LinePosition, count: int) -> Occurrences:
    return Occurrences(count, corpus.files[place.file][side].path, place.line)


def _seen(level: Level, code: str, corpus: str, seen: Occurrences, told: str, hint: str) -> Finding:
    place = f"{seen.file}:{seen.line}" if seen.line else seen.file
    return Finding(level, code, corpus, f"{place}: {told}", hint, seen.file, seen.line)


def _level(count: int, whole: int, limit: float) -> Level:
    return "warning" if count > limit * whole else "note"


def _lines(count: int) -> str:
    return counted(count, "line")


def _pairs(count: int) -> str:
    return counted(count, "pair")


def _standing(count: int, what: str) -> str:
    return f"{counted(count, what)} {'stands' if count == 1 else 'stand'}"


def _percent(count: int, whole: int) -> str:
    return f"{100 * count / max(1, whole):.2f} %"
