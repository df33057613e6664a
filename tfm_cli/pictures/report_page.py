"""The page of a report: scores, groups of lines, lines that stand out, and all lines to search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tfm_cli.evaluation.significance import LEVEL, SystemScore
from tfm_cli.pictures.charts import Columns, Data, Json, color, named
from tfm_cli.pictures.page import Block, Chart, Page, Prose, Table, Widget, isolated_html, text_html
from tfm_cli.pictures.report import (
    DEFINITIONS,
    GROUP_RESAMPLES,
    KINDS,
    NEEDS_SOURCE,
    Group,
    Links,
    Report,
    Runs,
)
from tfm_cli.pictures.sheet import Sheet

_LETTERS = "AB"
_BIN = 5  # width of a bar of the distribution


class Link(NamedTuple):
    """A number in a table that leads to its lines."""

    text: str
    view: str


class Note(NamedTuple):
    """Words in a table."""

    text: str


Cell = str | Link | Note


@dataclass(frozen=True)
class LinkedTable:
    """A table whose numbers of lines lead to the lines."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    is_picture = False
    script = ""

    def html(self, name: str) -> str:
        """Return the table as HTML."""
        is_number = [not isinstance(cell, Note) for cell in self.rows[0]]
        head = "".join(
            f'<th scope="col"{" class=number" if index and is_number[index] else ""}>'
            f"{isolated_html(text)}</th>"
            for index, text in enumerate(self.header)
        )
        body = "".join(
            f'<tr><th scope="row">{isolated_html(str(first))}</th>'
            f"{''.join(map(_cell_html, rest))}</tr>"
            for first, *rest in self.rows
        )
        caption = text_html(self.caption)
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table>'
            f"<caption>{caption}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the table to an image."""
        rows = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in self.rows]
        Table(self.header, rows, self.caption).draw(sheet, data)


def _cell_html(cell: Cell) -> str:
    if isinstance(cell, Note):
        return f"<td>{text_html(cell.text)}</td>"
    if isinstance(cell, str):
        return f'<td class="number">{text_html(cell)}</td>'
    return f'<td class="number"><a href="#{cell.view}">{text_html(cell.text)}</a></td>'


def report_page(report: Report) -> Page:
    """Return the page of a report."""
    names = [system.name for system in report.texts.systems]
    page = Page(_title(names), *_introduction(report))
    views = _Views()
    page.add_section("Scores", *_scores(report))
    page.add_section("Scores by length", *_by_length(report, page, views))
    page.add_section("Scores by the rarest word", *_by_rarest(report, page, views))
    page.add_section("Distribution of sentence chrF", *_distribution(report, page))
    page.add_section("Lines that stand out", *_findings(report, views))
    page.add_data("lines", _lines(report))
    page.add_data("views", views.data())
    page.add_data("systems", Columns({"name": names}))
    markup = f"<style>{_read('report.css')}</style>{_read('report.html')}"
    page.add_section("Lines", Widget(markup, _read("report.js")))
    return page


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


class _Views:
    """The sets of lines to which the tables lead."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._labels: list[str] = []
        self._lines: list[str] = []

    def link_to(self, name: str, label: str, lines: Sequence[int]) -> str | Link:
        """Return the link to some lines; only their number if there are none."""
        if not lines:
            return "0"
        self._names.append(f"lines-{name}")
        self._labels.append(label)
        self._lines.append(_deltas(lines))
        return Link(f"{len(lines):,}", f"lines-{name}")

    def data(self) -> Columns:
        """Return the sets as data of a page."""
        return Columns({"name": self._names, "label": self._labels, "lines": self._lines})


def _title(names: Sequence[str]) -> str:
    return f"Evaluation of {' and '.join(names)}"


def _short_names(report: Report) -> list[str]:
    """Return `A` and `B`, or the word for the only system."""
    return list(_LETTERS) if len(report.texts.systems) > 1 else ["translation"]


def _introduction(report: Report) -> list[Block]:
    texts = report.texts
    count = f"{len(report.lengths):,} lines"
    named_systems = "; ".join(f"{letter} is {{}}" for letter in _short_names(report))
    references = len(texts.references)
    against = "one reference" if references == 1 else f"{references} references"
    quoted = tuple(system.name for system in texts.systems)
    if len(quoted) == 1:
        return [Prose(f"{count} of {{}} against {against}.", quoted)]
    return [Prose(f"{count} of two systems against {against}: {named_systems}.", quoted)]


def _scores(report: Report) -> list[Block]:
    comparison = report.comparison
    header = ["metric", "system", "score", "95 % interval", "p-value"]
    rows: list[list[str | float | None]] = []
    for score in comparison.scores:
        interval = score.confidence
        assert interval is not None
        shown = f"{interval.mean:.2f} ± {interval.half_width:.2f}"
        p_value = "" if score.p_value is None else f"{score.p_value:.4f}"
        rows.append([score.metric, score.system, f"{score.value:.2f}", shown, p_value])
    if not comparison.test:
        header, rows = header[:-1], [row[:-1] for row in rows]
    blocks: list[Block] = [Table(header, rows, "All lines")]
    if comparison.test:
        p_values = [s.p_value for s in comparison.scores if s.p_value is not None]
        number = sum(p_value < LEVEL for p_value in p_values)
        blocks.append(
            Prose(
                f"{comparison.test[0].upper()}{comparison.test[1:]}: B differs from A by "
                f"{number} of {len(p_values)} metrics (p < {LEVEL})."
            )
        )
    else:
        blocks.append(Prose("The intervals are from bootstrap resampling."))
    blocks += [Prose(signature) for signature in comparison.quoted_signatures()]
    return blocks


def _by_length(report: Report, page: Page, views: _Views) -> list[Block]:
    return [
        Prose(
            "Length is counted in words of the first reference, without punctuation; in scripts "
            "that are written without spaces, such as Chinese, each character counts as a word."
        ),
        *_grouped(report, report.by_length, page, views, "length", "words of the reference"),
    ]


def _by_rarest(report: Report, page: Page, views: _Views) -> list[Block]:
    place = "in the first reference itself"
    if report.texts.training_text is not None:
        place = "in the training text"
    return [
        Prose(
            "Lines are grouped by their rarest word: the word of the first reference that occurs "
            f"least often {place}. Case is ignored."
        ),
        *_grouped(
            report, report.by_rarest, page, views, "rarest", "occurrences of the rarest word"
        ),
    ]


def _grouped(
    report: Report, groups: Sequence[Group], page: Page, views: _Views, name: str, title: str
) -> list[Block]:
    """Return a chart for each metric and a table of the groups."""
    if not groups:
        return [Prose("No reference has a word.")]
    letters = dict(zip([s.name for s in report.texts.systems], _short_names(report), strict=True))
    metrics = list(report.comparison.signatures)
    columns: dict[str, list[str | float | bool | None]] = {
        key: [] for key in ("group", "metric", "system", "score", "low", "high", "lines")
    }
    for group in groups:
        for score in group.scores:
            low = high = None
            if score.confidence is not None:
                mean, half_width = score.confidence.mean, score.confidence.half_width
                low, high = mean - half_width, mean + half_width
            values = (
                group.label, score.metric, letters[score.system], score.value, low, high,
                len(group.lines),
            )  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    page.add_data(f"by-{name}", Columns(columns))
    order = [group.label for group in groups]
    charts = [
        Chart(
            _group_chart(f"by-{name}", metric, title, order, has_two=len(letters) > 1),
            f"{metric} by {title}, for each system with its interval; the table below has the "
            "numbers.",
            f"{metric}: points are corpus scores of the group, lines their 95 % intervals from "
            f"{GROUP_RESAMPLES} resamples.",
            lists_numbers=metric == metrics[-1],
        )
        for metric in metrics
    ]
    header = [title, "lines"]
    header += [
        f"{metric} {letter}" if len(letters) > 1 else metric
        for metric in metrics
        for letter in letters.values()
    ]
    rows: list[list[Cell]] = []
    for number, group in enumerate(groups, 1):
        label = f"{title[0].upper()}{title[1:]}: {group.label}"
        row: list[Cell] = [group.label]
        row.append(views.link_to(f"{name}-{number}", label, group.lines))
        row += [_score_text(score) for score in group.scores]
        rows.append(row)
    return [*charts, LinkedTable(header, rows, f"Scores by {title}")]


def _score_text(score: SystemScore) -> str:
    interval = "" if score.confidence is None else f" ± {score.confidence.half_width:.1f}"
    return f"{score.value:.1f}{interval}"


def _group_chart(
    data: str, metric: str, title: str, order: Sequence[str], *, has_two: bool
) -> Json:
    x: Json = {"field": "group", "type": "ordinal", "sort": list(order), "title": title}
    x["axis"] = {"labelAngle": 0, "labelOverlap": True}
    tooltip = [
        {"field": field, "type": kind, "format": ".2f"} if kind == "quantitative" else
        {"field": field, "type": kind}
        for field, kind in (
            ("group", "nominal"), ("system", "nominal"), ("score", "quantitative"),
            ("low", "quantitative"), ("high", "quantitative"), ("lines", "nominal"),
        )
    ]  # fmt: skip
    encoding: Json = {"x": x, "tooltip": tooltip}
    if has_two:
        encoding["xOffset"] = {"field": "system", "scale": {"paddingInner": 0.4, "paddingOuter": 1}}
        system = {"field": "system", "type": "nominal", "scale": {"domain": list(_LETTERS)}}
        encoding["color"] = encoding["shape"] = system  # equal domains share a legend
    score = {"field": "score", "type": "quantitative", "title": metric, "scale": {"zero": False}}
    low = {"field": "low", "type": "quantitative", "title": metric, "scale": {"zero": False}}
    without_shape = {name: value for name, value in encoding.items() if name != "shape"}
    return {
        "width": "container",
        "height": 240,
        "data": named(data),
        "transform": [{"filter": {"field": "metric", "equal": metric}}],
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.6, "color": color("series-1")},
                "encoding": {**without_shape, "y": low, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {**encoding, "y": score},
            },
        ],
    }


def _distribution(report: Report, page: Page) -> list[Block]:
    is_difference = len(report.chrf) > 1
    values = report.chrf[0]
    title = "sentence chrF"
    if is_difference:
        values = [second - first for first, second in zip(*report.chrf, strict=True)]
        title = "sentence chrF of B − that of A"
    bins = [min(int(value // _BIN), 100 // _BIN - 1) for value in values]
    first, last = min(bins), max(bins)
    counts = [bins.count(number) for number in range(first, last + 1)]
    begins: list[str | float | bool | None] = [n * _BIN for n in range(first, last + 1)]
    ends: list[str | float | bool | None] = [n * _BIN + _BIN for n in range(first, last + 1)]
    page.add_data("distribution", Columns({"from": begins, "to": ends, "lines": list(counts)}))
    spec = {
        "width": "container",
        "height": 200,
        "data": named("distribution"),
        "mark": {"type": "bar", "color": color("series-1")},
        "encoding": {
            "x": {"field": "from", "bin": "binned", "type": "quantitative", "title": title},
            "x2": {"field": "to"},
            "y": {"field": "lines", "type": "quantitative", "title": "lines"},
            "tooltip": [{"field": name} for name in ("from", "to", "lines")],
        },
    }
    if is_difference:
        better = sum(value > 0 for value in values), sum(value < 0 for value in values)
        equal = len(values) - sum(better)
        text = (
            f"B has the higher sentence chrF in {better[0]:,} lines, A in {better[1]:,}; it is "
            f"equal in {equal:,}."
        )
    else:
        mean = sum(values) / len(values)
        text = f"The mean of sentence chrF is {mean:.2f}."
    return [Prose(text), Chart(spec, f"Number of lines by {title}. {text}")]


def _findings(report: Report, views: _Views) -> list[Block]:
    letters = _short_names(report)
    rows: list[list[Cell]] = []
    for kind, of_systems in report.findings.items():
        row: list[Cell] = [KINDS[kind]]
        for letter, lines in zip(letters, of_systems, strict=True):
            label = f"{KINDS[kind]} ({letter})" if len(letters) > 1 else KINDS[kind]
            row.append(views.link_to(f"{kind}-{letter.lower()}", label, lines))
        rows.append([*row, Note(DEFINITIONS[kind])])
    ratios = [f"{ratio:.3f}" for ratio in report.length_ratios]
    nearest = "" if len(report.texts.references) == 1 else ", the nearest in length of each line"
    meaning = f"Words of all translations, divided by words of the references{nearest}."
    rows.append(["Length ratio", *ratios, Note(meaning)])
    header = ["kind", *(letters if len(letters) > 1 else ["lines"]), "what is counted"]
    blocks: list[Block] = [LinkedTable(header, rows, "Number of lines, with a link to them")]
    if not report.texts.source:
        missing = " and ".join(KINDS[kind].lower() for kind in NEEDS_SOURCE)
        text = f"Not counted without the source, which `--source` names: {missing}."
        blocks.append(Prose(text))
    return blocks


# The lines. Text is there once; marks and alignments are short strings of numbers.


def _lines(report: Report) -> Columns:
    """Return the columns that `report.js` reads."""
    texts = report.texts
    columns: dict[str, Sequence[str | float | bool | None]] = {"length": report.lengths}
    columns["rarest"] = report.rarest
    if texts.source:
        columns["source"] = texts.source
    for number, reference in enumerate(texts.references):
        columns[f"reference-{number}"] = reference
    for number, (system, scores, marks) in enumerate(
        zip(texts.systems, report.chrf, report.marks, strict=True)
    ):
        lines = list(zip(system.translations, marks, strict=True))
        columns[f"system-{number}"] = system.translations
        columns[f"chrf-{number}"] = scores
        columns[f"marks-{number}"] = [encoded_runs(text, each.own) for text, each in lines]
        columns[f"missing-{number}"] = [
            encoded_runs(texts.references[each.reference][line], each.other)
            for line, each in enumerate(marks)
        ]
        if len(texts.references) > 1:
            columns[f"nearest-{number}"] = [each.reference for each in marks]
        if system.alignments:
            columns[f"alignment-{number}"] = [
                encoded_alignment(links, text, source)
                for links, text, source in zip(
                    system.alignments, system.translations, texts.source, strict=True
                )
            ]
    for number, system in enumerate(texts.systems if report.between else ()):
        lines = list(zip(system.translations, report.between, strict=True))
        columns[f"between-{number}"] = [
            encoded_runs(text, each.other if number else each.own) for text, each in lines
        ]
    return Columns(columns)


def _deltas(numbers: Sequence[int]) -> str:
    """Return ascending numbers as the distances from each to the next, from 0."""
    before = [0, *numbers]
    return ",".join(str(number - last) for number, last in zip(numbers, before, strict=False))


def encoded_runs(text: str, runs: Runs) -> str:
    """Return parts of a text as distances between their bounds, in units of UTF-16."""
    bounds = [bound for run in runs for bound in run]
    if text.isascii() or max(text, default="") <= "\uffff":
        return _deltas(bounds)
    return _deltas([bound + sum(c > "\uffff" for c in text[:bound]) for bound in bounds])


def encoded_alignment(links: Links, text: str, source: str) -> str:
    """Return a word alignment with weights in percent, such as `0:83,2:11;1:97`.

    It is empty if it does not belong to the words of the texts.
    """
    num_words = len(source.split())
    if len(links) != len(text.split()) or any(i >= num_words for word in links for i, _ in word):
        return ""
    words = [",".join(f"{index}:{100 * weight:.0f}" for index, weight in word) for word in links]
    return ";".join(words)
