"""What `tfm translate` does with its streams: windows are read, translated, written in order."""

import contextlib
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tfm_cli.console import counted, one_line
from tfm_cli.errors import DataError
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import LineReader
from tfm_cli.text.writer import write_lines
from tfm_cli.translation.input_format import InputLine
from tfm_cli.translation.output_format import Form, rendered, written_fields
from tfm_cli.translation.resumable_output import Output, Position
from tfm_cli.translation.segments import Lines

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

_FIRST_WINDOW = 16  # lines; later windows are larger, up to --buffer-size
_MOST_TEXT_LINES = 1 << 14  # of texts that are translated together, beyond one for each


@dataclass(slots=True)
class Work:
    """What was translated; the time does not count the wait for input."""

    lines: int = 0
    pieces: int = 0
    seconds: float = 0.0
    share: float | None = None  # of the input that was read, from 0 to 1; None where unknown

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return (
            f"{counted(self.lines, 'line')} in {self.seconds:.1f} s: "
            f"{self.lines / seconds:.1f} lines/s, {self.pieces / seconds:.0f} target pieces/s"
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Lines that are translated together."""

    number: int  # from 0, in this run
    texts: list[str]
    start: Position  # before them
    end: Position
    share: float | None  # of the input, up to their end


@dataclass(frozen=True, slots=True)
class Translated:
    """What became of a window."""

    window: Window
    texts: list[str]  # as they are to be written
    pieces: int


# What is being translated, oldest first: a window and some of its lines, and whether they are its
# last ones.
UnderWay = deque[tuple[Window, list[InputLine], bool]]


class WindowReader:
    """The windows of an input from a position on; a class because it times the wait for them.

    While something is under way, a window without lines stands for a pause of the input.
    """

    def __init__(
        self, reader: LineReader, start: Position, under_way: UnderWay, *, buffer_size: int
    ) -> None:
        self.waited_seconds = 0.0  # while nothing was under way
        self._reader = reader
        self._start = start
        self._under_way = under_way
        self._buffer_size = buffer_size

    def __iter__(self) -> Iterator[Window]:
        began = time.monotonic()
        digest = _skip(self._reader, self._start)
        position, number = self._start, 0
        size = min(position.window_lines or _FIRST_WINDOW, self._buffer_size)
        self.waited_seconds += time.monotonic() - began
        while True:
            began, idle = time.monotonic(), not self._under_way
            texts = self._reader.window(size, wait=idle)
            if idle:
                self.waited_seconds += time.monotonic() - began
            if not texts and idle:
                return
            if not texts:
                yield Window(number, [], position, position, None)
                continue
            digest.update(_line_bytes(texts))
            # What follows is the same for whoever goes on from here.
            size = min(4 * size, self._buffer_size)
            end = Position(position.lines + len(texts), digest.hexdigest(), size)
            yield Window(number, texts, position, end, self._reader.share())
            position, number = end, number + 1


class FieldCheck:
    """Warns of JSON fields whose values are lost or changed, once for each name.

    Args:
        form: of the output.
    """

    def __init__(self, form: Form) -> None:
        self._written = written_fields(form) if form.kind == "json" else frozenset[str]()
        self._told: set[tuple[str, str]] = set()

    def __call__(self, line: InputLine, place: str) -> None:
        """Warn of values that occur twice, cannot be read as they are, or are replaced."""
        if line.fields is None:
            return
        for name in line.repeated:
            self._tell(
                place, name, "the name `%s` occurs more than once, and its last value counts"
            )
        for name in line.has_nul:
            self._tell(place, name, "`%s` has NUL characters, which are removed")
        for name in line.has_surrogates:
            self._tell(place, name, "`%s` has half of a surrogate pair, which is read as `?`")
        for name in sorted(self._written & line.fields.keys()):
            self._tell(place, name, "the input has a field `%s`, which the output replaces")

    def _tell(self, place: str, name: str, told: str) -> None:
        if (name, told) not in self._told:
            self._told.add((name, told))
            logger.warning(f"%s: {told}", place, one_line(name)[:60])


def translated_windows(
    windows: Iterator[Window],
    translator: "Translator",
    *,
    understand: Callable[[str, str], InputLine],
    form: Form,
    name: str,
    under_way: UnderWay,
) -> Iterator[Translated]:
    """What becomes of each window, in order.

    Args:
        windows: of the input.
        translator: what translates.
        understand: says what stands on a line, given the line and what messages call it.
        form: of the output.
        name: what messages call the input.
        under_way: gets what is given to the translator, until its translations are there.
    """

    # There may be millions of blank lines, all of which are treated alike.
    blank, blank_texts = understand("", name), list[str]()
    are_numbered = form.n_best > 1
    check_fields = FieldCheck(form)

    def asked() -> Iterator[Lines]:
        for window in windows:
            before = window.start.lines
            lines = [
                understand(text, f"{name}:{number}") if text else blank
                for number, text in enumerate(window.texts, before + 1)
            ]
            for number, line in enumerate(lines, before + 1):
                check_fields(line, f"{name}:{number}")
            done = 0
            for some in parted(lines):
                sources = [line.source for line in some]
                prefixes = [line.target_prefix for line in some]
                if some:
                    under_way.append((window, some, done + len(some) == len(lines)))
                yield Lines(sources, prefixes, before + done, name)
                done += len(some)

    with contextlib.closing(translator.translate_windows(asked())) as translated:
        texts, num_pieces, num_done = list[str](), 0, 0  # of a window
        for translations in translated:
            window, lines, is_end = under_way.popleft()
            both = zip(lines, translations, strict=True)
            for index, (line, one) in enumerate(both, window.start.lines + num_done):
                if line is not blank or are_numbered:
                    texts.extend(rendered(line, one, index, form))
                else:
                    blank_texts = blank_texts or list(rendered(line, one, index, form))
                    texts += blank_texts
            num_pieces += sum(one.num_pieces for one in translations)
            num_done += len(lines)
            if is_end:
                yield Translated(window, texts, num_pieces)
                texts, num_pieces, num_done = [], 0, 0


def parted(lines: list[InputLine]) -> Iterator[list[InputLine]]:
    """Yield the lines of a window, in several lists where their texts have very many lines."""
    some, held = list[InputLine](), 0
    for line in lines:
        count = line.source.count("\n") if line.fields is not None else 0
        if some and held + count > _MOST_TEXT_LINES:
            yield some
            some, held = [], 0
        some.append(line)
        held += count
    yield some


def of_all_ranks(
    windows: Iterator[Window],
    translate: Callable[[Iterator[Window]], Iterator[Translated]],
    parallel: Parallel,
) -> Iterator[Translated]:
    """All windows in order on rank 0, none on the others; each rank translates its share.

    Window i is rank i's, modulo their number. Every rank reads all of the input, and what it read
    is compared.
    """
    unwritten: deque[Window] = deque()

    def own() -> Iterator[Window]:
        for window in windows:
            if not window.texts:
                yield window
                continue
            is_own = window.number % parallel.world == parallel.rank
            unwritten.append(window if is_own else replace(window, texts=[]))
            if is_own:
                yield window

    for translated in translate(own()):
        if not parallel.is_main:
            unwritten.clear()
            parallel.send(_packed(translated))
            continue
        while unwritten[0] is not translated.window:
            yield _received(unwritten.popleft(), parallel)
        unwritten.popleft()
        yield translated
    while unwritten and parallel.is_main:
        yield _received(unwritten.popleft(), parallel)


def write_windows(
    translated: Iterator[Translated],
    output: Output,
    *,
    waited: Callable[[], float],
    progress: Callable[[Work], None],
) -> Work:
    """Write what comes, window by window.

    Args:
        translated: windows in order.
        output: where translations go.
        waited: seconds that passed in reading.
        progress: is told after each window what was done so far.
    """
    work, began = Work(), time.monotonic()
    for each in translated:
        write_lines(output.stream, each.texts)
        output.mark(each.window.end)
        work.lines += each.window.end.lines - each.window.start.lines
        work.pieces += each.pieces
        work.seconds = time.monotonic() - began - waited()
        work.share = each.window.share
        progress(work)
    return work


def _skip(reader: LineReader, start: Position) -> "hashlib._Hash":
    """Read what was translated before, and give its hash to go on with.

    Raises:
        DataError: it is not what was translated.
    """
    digest, left = hashlib.sha256(), start.lines
    while left and (texts := reader.window(min(left, 1 << 14))):
        digest.update(_line_bytes(texts))
        left -= len(texts)
    if digest.hexdigest() != start.sha256:
        what = (
            "line is not the one that was" if start.lines == 1 else "lines are not those that were"
        )
        raise DataError(
            f"{reader.name}: the first {start.lines} {what} translated",
            hint="give the same input to go on, or use `--overwrite` to begin again",
        )
    return digest


def _line_bytes(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass")


def _packed(translated: Translated) -> bytes:
    """What rank 0 must know of a window: a header and the lines."""
    header = {"sha256": translated.window.end.sha256, "pieces": translated.pieces}
    lines = [json.dumps(header), *(text.replace("\n", " ") for text in translated.texts)]
    return "\n".join(lines).encode("utf-8", "replace")


def _received(window: Window, parallel: Parallel) -> Translated:
    """What another rank made of a window.

    Raises:
        DataError: it has read something else.
    """
    rank = window.number % parallel.world
    header, *texts = parallel.receive(rank).decode("utf-8").split("\n")
    facts = json.loads(header)
    if facts["sha256"] != window.end.sha256:
        told = f"rank {rank} has read another input than rank 0, up to line {window.end.lines}"
        raise DataError(told, hint="give all machines the same file")
    return Translated(window, texts, facts["pieces"])
