"""Reports of `tfm check`: tables as text, or one JSON object."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tfm_cli.console import counted, one_line, visible
from tfm_cli.corpus.check.findings import Finding
from tfm_cli.corpus.check.inspection import CorpusInspection, FileProperties
from tfm_cli.corpus.check.statistics import Overlap, Repeats
from tfm_cli.corpus.line_checks import LinePosition

SIDES = ("source", "target")
LEVELS = ("error", "warning", "note")
_COMMONEST = 20


@dataclasses.dataclass(frozen=True, slots=True)
class CorpusReport:
    """The results of the check of one corpus; `overlap` is None for the training corpus."""

    corpus: CorpusInspection
    repeats: Repeats
    overlap: Overlap | None
    findings: Sequence[Finding]
    known_tags: Sequence[str] = ()  # of the tokenizer or, without one, of the training corpus


def as_json(reports: Sequence[CorpusReport], *, tokenizer: str | None, max_length: int) -> str:
    """Return one JSON object, which always has the same keys."""
    findings = [finding for report in reports for finding in report.findings]
    counts = {f"{level}s": _count(findings, level) for level in LEVELS}
    table = {
        "ok": not counts["errors"],
        **counts,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "corpora": {report.corpus.name: _corpus_table(report) for report in reports},
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    # Control characters occur in strings only, and `visible` escapes them as JSON does.
    return visible(json.dumps(table, ensure_ascii=False, indent=2))


def _corpus_table(report: CorpusReport) -> dict[str, Any]:
    corpus, overlap = report.corpus, report.overlap
    tags = corpus.tags.against(report.known_tags)
    lengths = {
        side: {
            "total": counts.total,
            "mean": round(counts.mean, 2),
            "median": counts.quantile(0.5),
            "p99": counts.quantile(0.99),
            "max": counts.longest,
        }
        for side, counts in zip(SIDES, corpus.lengths, strict=True)
    }
    ratio = {
        "p1": round(corpus.ratios.quantile(0.01), 3),
        "median": round(corpus.ratios.quantile(0.5), 3),
        "p99": round(corpus.ratios.quantile(0.99), 3),
        **{f"beyond_{factor}": corpus.ratios.beyond(factor) for factor in (2, 3, 9)},
    }
    tokens = None
    if corpus.unknown is not None:
        tokens = {
            "too_long": dataclasses.asdict(corpus.too_long),
            "unknown": {
                side: {
                    **_first(corpus, index, trip.unknown, trip.first_unknown),
                    "commonest": [
                        {"text": text, "count": count}
                        for text, count in unknown.commonest(_COMMONEST)
                    ],
                }
                for index, (side, unknown, trip) in enumerate(
                    zip(SIDES, corpus.unknown, corpus.round_trips, strict=True)
                )
            },
            "changed": {
                side: {
                    **_first(corpus, index, trip.changed, trip.first_changed),
                    "text": trip.first_changed.text if trip.first_changed else None,
                    "becomes": trip.first_changed.becomes if trip.first_changed else None,
                }
                for index, (side, trip) in enumerate(zip(SIDES, corpus.round_trips, strict=True))
            },
        }
    return {
        "files": [
            {side: dataclasses.asdict(file) for side, file in zip(SIDES, pair, strict=True)}
            for pair in corpus.files
        ],
        "pairs": corpus.pairs,
        "pairs_with_text": corpus.with_text,
        "usable_pairs": corpus.usable,
        "blank": {
            kind: dataclasses.asdict(occurrences) for kind, occurrences in corpus.blank.items()
        },
        "identical_sides": dataclasses.asdict(corpus.identical),
        "repeats": dataclasses.asdict(report.repeats),
        "overlap_with_train": None if overlap is None else dataclasses.asdict(overlap),
        "unit": corpus.unit,
        "lengths": lengths,
        "ratio": ratio,
        "tokens": tokens,
        "language_tags": {
            "known": list(report.known_tags),
            "untagged": _first(corpus, 0, tags.untagged, tags.first_untagged),
            "unknown": _first(corpus, 0, tags.unknown, tags.first_unknown),
        },
    }


def _first(
    corpus: CorpusInspection, side: int, count: int, first: LinePosition | None
) -> dict[str, Any]:
    if first is None:
        return {"count": count, "file": None, "line": None}
    return {"count": count, "file": corpus.files[first.file][side].path, "line": first.line}


def as_text(reports: Sequence[CorpusReport]) -> str:
    """Return a table of files, a table of counts, and the findings with their remedies."""
    files = [["", "file", "lines", "ends", "odd lines"]]
    files += [
        [report.corpus.name, one_line(file.path), *_file_cells(file)]
        for report in reports
        for pair in report.corpus.files
        for file in pair
    ]
    tables = [_aligned(files, left=2)]
    # A corpus that could not be read has no counts.
    readable = [report for report in reports if report.corpus.pairs or not _has_problem(report)]
    if readable:
        columns = [_column(report) for report in readable]
        rows = [["", *(report.corpus.name for report in readable)]]
        rows += [[name, *(column[name] for column in columns)] for name in columns[0]]
        tables.append(_aligned(rows, left=1))
    findings = [finding for report in reports for finding in report.findings]
    lines = [line for table in tables for line in (*table, "")]
    for level in LEVELS:
        for finding in (one for one in findings if one.level == level):
            lines.append(f"{finding.level}: {one_line(finding.message)}")
            if level != "note":
                lines.append(f"  {finding.hint}")
    counts = (_count(findings, level) for level in LEVELS)
    lines.append(", ".join(map(counted, counts, LEVELS)))
    return visible("\n".join(lines))


def _column(report: CorpusReport) -> dict[str, str]:
    corpus, repeats, overlap = report.corpus, report.repeats, report.overlap
    unit, whole = corpus.unit, corpus.with_text
    ratio = corpus.ratios
    column = {
        "pairs": str(corpus.pairs),
        "usable": str(corpus.usable),
        "blank source, target, both": " ".join(
            str(occurrences.count) for occurrences in corpus.blank.values()
        ),
        "identical sides": _share(corpus.identical.count, whole),
        "repeated pairs": _share(repeats.pairs, whole),
        "different sources": str(repeats.sources),
        "… with several targets": _share(repeats.several_targets, repeats.sources),
        "pairs also in train": "" if overlap is None else _share(overlap.pairs, whole),
        "sources also in train": "" if overlap is None else _share(overlap.sources, whole),
    }
    for side, counts in zip(SIDES, corpus.lengths, strict=True):
        column[f"{side} {unit}"] = str(counts.total)
        spread = f"{counts.mean:.1f} {counts.quantile(0.5)} {counts.quantile(0.99)}"
        column[f"{side} {unit} per line: mean, median, 99 %, max"] = f"{spread} {counts.longest}"
    shown = " ".join(f"{ratio.quantile(share):.2f}" for share in (0.01, 0.5, 0.99))
    column[f"target {unit} / source {unit}: 1 %, median, 99 %"] = shown
    for factor in (2, 3, 9):
        column[f"… beyond {factor} either way"] = _share(ratio.beyond(factor), whole)
    if corpus.unknown is not None:
        column["too long"] = _share(corpus.too_long.count, corpus.pairs)
        for side, unknown, counts in zip(SIDES, corpus.unknown, corpus.lengths, strict=True):
            column[f"unknown {side} tokens"] = _share(unknown.count, counts.total)
        for side, trip in zip(SIDES, corpus.round_trips, strict=True):
            column[f"{side} lines changed by the tokenizer"] = _share(trip.changed, trip.lines)
    return column


def _has_problem(report: CorpusReport) -> bool:
    return any(file.problem for pair in report.corpus.files for file in pair)


def _file_cells(file: FileProperties) -> list[str]:
    """Return lines, line ends and odd lines; ? for each if the file was not read to its end."""
    if file.problem:
        return ["?", "?", "?"]
    return [str(file.lines), _ends(file), str(_odd(file))]


def _ends(file: FileProperties) -> str:
    return "LF, CRLF" if file.other_ends.count else file.line_end


def _odd(file: FileProperties) -> int:
    kinds = [file.invalid, file.nul, file.cut, *file.separators.values(), *file.bad.values()]
    return sum(occurrences.count for occurrences in kinds)


def _share(count: int, whole: int) -> str:
    return f"{count} ({100 * count / max(1, whole):.1f} %)" if count else "0"


def _count(findings: Sequence[Finding], level: str) -> int:
    return sum(finding.level == level for finding in findings)


def _aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
