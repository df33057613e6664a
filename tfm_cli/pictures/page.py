"""Pages: sections of text, tables and charts, as one HTML file or as images.

An HTML page contains everything: the library that draws the charts once, the numbers once, and a
policy by which a browser requests nothing and runs no other script. Text is data, never markup:
only `Drawing` and `Widget` take markup, which must come from this package.
"""

import base64
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Protocol

import tfm_cli
from tfm_cli.console import one_line, visible
from tfm_cli.errors import ConfigError
from tfm_cli.files.atomic import atomic_directory, atomic_file, check_writable, link_target
from tfm_cli.files.ownership import is_empty_directory, is_picture, is_pictures_directory
from tfm_cli.pictures import charts
from tfm_cli.pictures.charts import DARK, LIGHT, Data, Json
from tfm_cli.pictures.sheet import Sheet

IMAGE_SCALE = 2  # pixels of a PNG image for each pixel of the page
_SUFFIXES = (".html", ".svg", ".png")
_CODE = re.compile("`([^`]+)`")
_SHORT_CELL = 32  # characters up to which a cell is not broken into lines
_MADE_BY = f"tfm {tfm_cli.__version__}"


def text_html(text: str) -> str:
    """Return text as HTML, with its control characters made visible."""
    return escape(visible(text))


def isolated_html(text: str) -> str:
    """Return text of any language as HTML, with a direction of its own."""
    return f'<bdi dir="auto">{text_html(text)}</bdi>'


def json_html(value: object) -> str:
    r"""Return JSON for a `script` element, in which `<`, `>` and `&` are escaped as `\uXXXX`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


class Block(Protocol):
    """A part of a section."""

    @property
    def is_picture(self) -> bool:
        """Return True if a directory of images has a file for it."""

    @property
    def script(self) -> str:
        """Return the trusted JavaScript that the block needs, or nothing."""

    def html(self, name: str) -> str:
        """Return the block as HTML; `name` is unique in the page."""

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the block to an image."""


@dataclass(frozen=True)
class Prose:
    """A paragraph; a part between backticks is code. Text of users is isolated in `quoted`.

    Attributes:
        text: the paragraph; each `{}` stands for the next of `quoted`.
        quoted: text of any language.
        heading: True for a heading of the third level.
    """

    text: str
    quoted: tuple[str, ...] = ()
    heading: bool = False
    is_picture = False
    script = ""

    def html(self, name: str) -> str:
        """Return the paragraph as HTML."""
        text = _with_code(self.text)
        parts = text.split("{}") if self.quoted else []
        shown = parts[0] if parts else text
        for part, quoted in zip(parts[1:], self.quoted, strict=True):
            shown += isolated_html(quoted) + part
        tag = "h3" if self.heading else "p"
        return f"<{tag}>{shown}</{tag}>"

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the paragraph to an image."""
        text = _CODE.sub(r"\1", self.text)
        for quoted in self.quoted:
            text = text.replace("{}", one_line(quoted), 1)
        sheet.add_text(text, size=16 if self.heading else 14, bold=self.heading)


@dataclass(frozen=True)
class Formula:
    """A formula: in Unicode, and if it has more than one line as trusted MathML as well."""

    text: str
    mathml: str = ""
    is_picture = False
    script = ""

    def html(self, name: str) -> str:
        """Return the formula as HTML."""
        if self.mathml:
            return f'<div class="formula" role="math">{self.mathml}</div>'
        return f'<div class="formula" role="math">{text_html(self.text)}</div>'

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the formula to an image."""
        sheet.add_text(self.text, size=16, role="ink")


@dataclass(frozen=True)
class Table:
    """A table of text and numbers; numbers are aligned at their end."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    caption: str = ""
    is_picture = False
    script = ""

    def html(self, name: str) -> str:
        """Return the table as HTML."""
        caption = f"<caption>{text_html(self.caption)}</caption>" if self.caption else ""
        head = "".join(f'<th scope="col" dir="auto">{text_html(text)}</th>' for text in self.header)
        body = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in self.rows)
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="'
            f'{text_html(self.caption or "table")}"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the table to an image."""
        if self.caption:
            sheet.add_text(_CODE.sub(r"\1", self.caption), role="muted")
        sheet.add_rows([self.header, *([_cell_text(cell) for cell in row] for row in self.rows)])


def _cell_text(cell: str | float | None) -> str:
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else f"{cell:.6g}"


def _cell_html(cell: str | float | None) -> str:
    if isinstance(cell, str):
        is_short = ' class="short"' if len(cell) <= _SHORT_CELL else ""
        return f'<td dir="auto"{is_short}>{text_html(cell)}</td>'
    return f'<td class="number">{_cell_text(cell)}</td>'


@dataclass(frozen=True)
class Chart:
    """An Altair chart, or its specification as a dictionary.

    Attributes:
        chart: it refers to data of the page by `charts.named`.
        alternative: the text for those who do not see it: what it shows, not how.
        caption: the text below it.
        lists_numbers: True adds a table of the numbers, which opens on request.
    """

    chart: object
    alternative: str
    caption: str = ""
    lists_numbers: bool = True
    is_picture = True
    script = ""
    _spec: list[Json] = field(default_factory=list, init=False, repr=False, compare=False)

    def spec(self) -> Json:
        """Return its specification."""
        if not self._spec:
            self._spec.append(charts.specification(self.chart))
        return self._spec[0]

    def html(self, name: str) -> str:
        """Return the chart as HTML, which the page's script draws."""
        names = " ".join(sorted(charts.names_of_data(self.spec())))
        numbers = ""
        if self.lists_numbers and names:
            numbers = f'<details data-names="{names}"><summary>Numbers</summary></details>'
        return (
            f'<figure id="{name}" data-names="{names}">'
            f'<script type="application/json">{json_html(self.spec())}</script>'
            f'<div class="bindings"></div>'
            f'<div class="chart" role="img" tabindex="0" '
            f'aria-label="{text_html(self.alternative)}"></div>'
            f"{_caption_html(self.caption)}{numbers}</figure>"
        )

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the chart to an image."""
        sheet.add_drawing(charts.svg(self.spec(), data))
        if self.caption:
            sheet.add_text(_CODE.sub(r"\1", self.caption), role="muted")


def _caption_html(caption: str) -> str:
    if not caption:
        return ""
    return f'<figcaption dir="auto">{_with_code(caption)}</figcaption>'


def _with_code(text: str) -> str:
    """Return a text as HTML, in which a part between backticks is code."""
    return _CODE.sub(r"<code>\1</code>", text_html(text))


@dataclass(frozen=True)
class Drawing:
    """A trusted SVG image of a fixed size, whose texts the caller has escaped."""

    svg: str
    alternative: str
    caption: str = ""
    is_picture = True
    script = ""

    def html(self, name: str) -> str:
        """Return the image as HTML."""
        return (
            f'<figure id="{name}"><div class="drawing" role="img" tabindex="0" '
            f'aria-label="{text_html(self.alternative)}">{self.svg}</div>'
            f"{_caption_html(self.caption)}</figure>"
        )

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add the image to another."""
        sheet.add_drawing(self.svg)
        if self.caption:
            sheet.add_text(_CODE.sub(r"\1", self.caption), role="muted")


@dataclass(frozen=True)
class Widget:
    """Trusted HTML with a script of its own, and the SVG image that stands for it in a file.

    Attributes:
        markup: HTML; its texts are escaped by the caller.
        script: JavaScript, which runs once after the page is read; `tfm.data` and `tfm.rows` read
            the data of the page. Equal scripts of several widgets are in a page once.
        svg: an image of the same; without one an image of the page leaves the widget out.
        caption: the text below it.
    """

    markup: str
    script: str = ""
    svg: str = ""
    caption: str = ""

    @property
    def is_picture(self) -> bool:
        """Return True if it has an image."""
        return bool(self.svg)

    def html(self, name: str) -> str:
        """Return the widget as HTML."""
        return f'<figure id="{name}">{self.markup}{_caption_html(self.caption)}</figure>'

    def draw(self, sheet: Sheet, data: Mapping[str, Data]) -> None:
        """Add its image to another."""
        if self.svg:
            sheet.add_drawing(self.svg)
            if self.caption:
                sheet.add_text(_CODE.sub(r"\1", self.caption), role="muted")


@dataclass(frozen=True)
class Section:
    """A heading with the blocks below it."""

    heading: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """Return the heading as a part of a file name and of an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")[:60] or "section"


class Page:
    """A page that is built by its sections and its data, and then written.

    Args:
        title: the title, in English or with text of a user.
        introduction: paragraphs below the title.
    """

    def __init__(self, title: str, *introduction: Block) -> None:
        self.title = title
        self._introduction = introduction
        self._sections: list[Section] = []
        self._data: dict[str, Data] = {}

    def add_section(self, heading: str, *blocks: Block) -> None:
        """Add a section at the end."""
        self._sections.append(Section(heading, blocks))

    def add_data(self, name: str, data: Data) -> None:
        """Add data, to which charts refer by this name: lower-case letters, digits and hyphens."""
        if not re.fullmatch("[a-z][a-z0-9-]*", name):
            raise ValueError(f"`{name}` is no name of data")
        if name in self._data:
            raise ValueError(f"there are data named `{name}`")
        self._data[name] = data

    def data(self, name: str) -> Data:
        """Return the data with a name."""
        return self._data[name]

    # HTML

    def html(self) -> str:
        """Return the page as HTML."""
        libraries = charts.load()
        library = libraries.vl_convert.javascript_bundle(vl_version=libraries.vega_lite)
        own = (_read("page.js"), *dict.fromkeys(filter(None, (b.script for b in self._blocks()))))
        scripts = [_safe_script(script) for script in (library, *own)]
        data = "".join(
            f'<script type="application/json" id="data-{name}">{json_html(each.to_json())}</script>'
            for name, each in self._data.items()
        )
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="generator" content="{_MADE_BY}">'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{text_html(self.title)}</title>'
            f"<style>{_style()}</style></head>\n<body>{self._body()}\n{data}\n"
            f"{''.join(f'<script>{script}</script>' for script in scripts)}\n</body></html>\n"
        )

    def _body(self) -> str:
        parts = [
            '<a class="skip" href="#content">Skip to the content</a>',
            f'<header><h1 dir="auto">{text_html(self.title)}</h1>',
            *(block.html(f"introduction-{n}") for n, block in enumerate(self._introduction, 1)),
            "<noscript><p>The charts are drawn by a script in this file, and scripts are "
            "turned off.</p></noscript></header>",
        ]
        if len(self._sections) > 2:
            links = (
                f'<li><a href="#section-{n}">{text_html(section.heading)}</a></li>'
                for n, section in enumerate(self._sections, 1)
            )
            parts.append(f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>')
        parts.append('<main id="content" tabindex="-1">')
        for n, section in enumerate(self._sections, 1):
            parts.append(f'<section aria-labelledby="section-{n}">')
            parts.append(f'<h2 id="section-{n}" dir="auto">{text_html(section.heading)}</h2>')
            parts += [b.html(f"block-{n}-{place}") for place, b in enumerate(section.blocks, 1)]
            parts.append("</section>")
        parts.append(f"</main><footer>{_MADE_BY}</footer>")
        return "\n".join(parts)

    def _blocks(self) -> Iterator[Block]:
        yield from self._introduction
        for section in self._sections:
            yield from section.blocks

    # Images

    def svg(self) -> str:
        """Return the whole page as one SVG image in the light scheme."""
        sheet = Sheet()
        sheet.add_text(self.title, size=24, bold=True)
        for block in self._introduction:
            block.draw(sheet, self._data)
        for section in self._sections:
            sheet.add_space(16)
            sheet.add_text(section.heading, size=19, bold=True)
            for block in section.blocks:
                block.draw(sheet, self._data)
        return sheet.svg(title=self.title, comment=_MADE_BY)

    def _pictures(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the SVG image of each picture."""
        for n, section in enumerate(self._sections, 1):
            pictures = [block for block in section.blocks if block.is_picture]
            for place, block in enumerate(pictures, 1):
                sheet = Sheet()
                block.draw(sheet, self._data)
                number = f"-{place}" if len(pictures) > 1 else ""
                title = f"{self.title}: {section.heading}"
                yield f"{n:02d}-{section.name}{number}", sheet.svg(title=title, comment=_MADE_BY)

    # Files

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the page to a file by its suffix, or its pictures to a directory.

        Args:
            path: `.html`, `.svg` or `.png` for the whole page; a name without a suffix for a
                directory, which gets an SVG and a PNG image of each picture.
            overwrite: replace a file that tfm did not make.

        Raises:
            ConfigError: another suffix, or a file that must not be replaced.
            ResourceError: the output cannot be written, or a library is missing.
        """
        check_output(path, overwrite=overwrite)
        target = Path(path)
        if is_directory_name(path):
            with atomic_directory(target, may_replace=_may_replace) as directory:
                for name, image in self._pictures():
                    for suffix, content in ((".svg", image.encode()), (".png", png(image))):
                        with atomic_file(directory / f"{name}{suffix}", follow=False) as stream:
                            stream.write(content)
            return
        if target.suffix == ".html":
            content = self.html().encode()
        else:
            image = self.svg()
            content = image.encode() if target.suffix == ".svg" else png(image)
        with atomic_file(target) as stream:
            stream.write(content)


def is_directory_name(path: str | Path) -> bool:
    """Return True if an output is a directory of pictures."""
    return str(path).endswith("/") or Path(path).is_dir() or not Path(path).suffix


def check_output(path: str | Path, *, overwrite: bool = False, option: str = "--output") -> None:
    """Raise an error if `Page.write` would, before any long work begins.

    Args:
        path: the output.
        overwrite: as for `Page.write`.
        option: the flag that names the output.
    """
    charts.load()
    target = Path(path)
    if str(path) == "-" or not (is_directory_name(path) or target.suffix in _SUFFIXES):
        raise ConfigError(
            f"{path}: pictures are written as .html, .svg or .png, or to a directory",
            hint=f"name such a file with `{option}`",
        )
    if is_directory_name(path):
        check_writable(target, folder=True)
        if target.exists() and not _may_replace(target):
            raise ConfigError(
                f"{path}: holds files that are not pictures of tfm",
                hint=f"name another directory with `{option}`",
            )
        return
    check_writable(target)
    if overwrite or not target.exists() or not target.is_file():
        return
    if target.stat().st_size and not is_picture(link_target(target)):
        raise ConfigError(
            f"{path}: exists, and is not a picture of tfm",
            hint="name another file, or replace it with `--overwrite`",
        )


def _may_replace(directory: Path) -> bool:
    return is_empty_directory(directory) or is_pictures_directory(directory)


def png(image: str) -> bytes:
    """Return an SVG image as PNG, marked as made by tfm."""
    content = bytes(charts.load().vl_convert.svg_to_png(image, scale=IMAGE_SCALE))
    text = b"tEXtSoftware\x00" + _MADE_BY.encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    end = 8 + 25  # the signature and the chunk IHDR
    return content[:end] + chunk + content[end:]


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _style() -> str:
    def variables(colors: Mapping[str, str]) -> str:
        return "".join(f"--{role}:{value};" for role, value in colors.items())

    return (
        f":root{{{variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme: dark){{:root{{{variables(DARK)}}}}}\n"
        f"{_read('page.css')}"
    )


def _safe_script(script: str) -> str:
    """Return a script that cannot end its element: `</script` and `<!--` are only in strings."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def _policy(scripts: Sequence[str]) -> str:
    """Return a policy that allows these scripts, inline styles, and nothing else."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
