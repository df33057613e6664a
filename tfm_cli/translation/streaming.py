"""Streaming translation of an input to an output: windows of lines, in order, in all processes."""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tfm_cli
from tfm_cli import console
from tfm_cli.config.settings import SearchConfig
from tfm_cli.console import counted, one_line
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.parallel import Parallel
from tfm_cli.text.reader import LineReader, is_typed
from tfm_cli.text.writer import open_output, write_lines
from tfm_cli.translation.formats import (
    InputLine,
    OutputFormat,
    format_translation,
    from_text,
    replaced_fields,
)
from tfm_cli.translation.resumable_output import Output, Position, StreamOutput, resumable_file
from tfm_cli.translation.segments import Lines

if TYPE_CHECKING:
    from tfm_cli.translation.translator import Translator


logger = logging.getLogger(__name__)

_FIRST_WINDOW = 16  # lines; later windows are larger, up to --buffer-size
_MAX_ERROR_WARNINGS = 8  # lines with errors that are named
_MAX_TEXT_LINES = 1 << 14  # additional lines in texts that are translated together
# Settings that do not change the output.
_SPEED_ONLY = ("max_tokens", "buffer_size")
_SAMPLING_ONLY = ("top_k", "top_p", "temperature", "seed")  # without sampling, nor do these


@dataclass(slots=True)
class TranslationStats:
    """Counts of the lines and tokens that were translated so far.

    Attributes:
        lines: lines of the input.
        tokens: target tokens.
        seconds: elapsed time, without the time spent waiting for input.
        share: fraction of the input that was read, from 0 to 1; None if unknown.
        errors: lines that could not be parsed, those before a resumed job included.
    """

    lines: int = 0
    tokens: int = 0
    seconds: float = 0.0
    share: float | None = None
    errors: int = 0

    @property
    def _lines_per_second(self) -> float:
        return self.lines / max(self.seconds, 1e-9)

    @property
    def progress_text(self) -> str:
        """Return lines and speed so far, for the progress display."""
        return f"{counted(self.lines, 'line')}, {self._lines_per_second:.1f} lines/s"

    def __str__(self) -> str:
        return (
            f"{counted(self.lines, 'line')} in {self.seconds:.1f} s: "
            f"{self._lines_per_second:.1f} lines/s, "
            f"{self.tokens / max(self.seconds, 1e-9):.0f} target tokens/s"
        )


class LineFormats(NamedTuple):
    """Formats of the lines of input and output.

    Attributes:
        parse: parses an input line, given the line and its position for messages.
        output: the format of the output.
    """

    parse: Callable[[str, str], InputLine]
    output: OutputFormat


class Window(NamedTuple):
    """Lines that are translated together.

    Attributes:
        number: number of the window in this run, from 0.
        texts: the lines; empty while the input has no further line yet.
        start: position before them.
        end: position after them.
        share: fraction of the input up to their end.
    """

    number: int
    texts: list[str]
    start: Position
    end: Position
    share: float | None


class TranslatedWindow(NamedTuple):
    """The output lines of a window, and the number of its lines that could not be parsed."""

    window: Window
    texts: list[str]
    tokens: int
    errors: int = 0


# Lines that are being translated, oldest first: a window, some of its lines, and True if these are
# the last ones of the window.
PendingLines = deque[tuple[Window, list[InputLine], bool]]


class WindowReader:
    """An iterable of the windows of an input, which measures the time spent waiting for input.

    While lines are pending, an empty window means that the input has no further line yet.

    Args:
        reader: the input.
        start: position to resume at.
        pending: lines that are being translated.
        buffer_size: maximum number of lines of a window.
        parse: parses a line before the start; see `LineFormats`.
    """

    def __init__(
        self,
        reader: LineReader,
        start: Position,
        pending: PendingLines,
        *,
        buffer_size: int,
        parse: Callable[[str, str], InputLine] = from_text,
    ) -> None:
        self.waited_seconds = 0.0  # time spent waiting while nothing was pending
        self.num_errors = 0  # lines before the start that cannot be parsed
        self._parse = parse
        self._reader = reader
        self._start = start
        self._pending = pending
        self._buffer_size = buffer_size

    def __iter__(self) -> Iterator[Window]:
        began = time.monotonic()
        digest, self.num_errors = _skip(self._reader, self._start, self._parse)
        position, number = self._start, 0
        size = min(position.window_lines or _FIRST_WINDOW, self._buffer_size)
        self.waited_seconds += time.monotonic() - began
        while True:
            began, is_idle = time.monotonic(), not self._pending
            texts = self._reader.window(size, wait=is_idle)
            if is_idle:
                self.waited_seconds += time.monotonic() - began
            if not texts and is_idle:
                return
            if not texts:
                yield Window(number, [], position, position, None)
                continue
            digest.update(_line_bytes(texts))
            # The size of the next window is part of the position, so that a resumed job has the
            # same windows.
            size = min(4 * size, self._buffer_size)
            end = Position(position.lines + len(texts), digest.hexdigest(), size)
            yield Window(number, texts, position, end, self._reader.share())
            position, number = end, number + 1


class FieldCheck:
    """A check for JSON fields whose values are lost or changed, which warns once of each name.

    Args:
        output_format: the format of the output.
    """

    def __init__(self, output_format: OutputFormat) -> None:
        is_json = output_format.kind == "json"
        self._replaced = replaced_fields(output_format) if is_json else frozenset[str]()
        self._warned: set[tuple[str, str]] = set()

    def __call__(self, line: InputLine, position: str) -> None:
        """Warn of names that occur twice, and of values that are changed or replaced."""
        if line.fields is None:
            return
        for name in line.repeated:
            message = "the name `%s` occurs more than once, and its last value counts"
            self._warn(position, name, message)
        for name in line.has_nul:
            self._warn(position, name, "`%s` has NUL characters, which are removed")
        for name in line.has_surrogates:
            self._warn(position, name, "`%s` has half of a surrogate pair, which is read as `?`")
        for name in sorted(self._replaced & line.fields.keys()):
            self._warn(position, name, "the input has a field `%s`, which the output replaces")

    def _warn(self, position: str, name: str, message: str) -> None:
        if (name, message) not in self._warned:
            self._warned.add((name, message))
            logger.warning(f"%s: {message}", position, one_line(name)[:60])


def translated_windows(
    windows: Iterator[Window],
    translator: "Translator",
    formats: LineFormats,
    *,
    name: str,
    pending: PendingLines,
) -> Iterator[TranslatedWindow]:
    """Yield the translation of each window, in order.

    Args:
        windows: windows of the input.
        translator: the translator.
        formats: formats of input and output.
        name: name of the input in messages.
        pending: holds the lines that were given to the translator until they are translated.
    """
    # There may be millions of blank lines, which all give the same output.
    blank, blank_texts = formats.parse("", name), list[str]()
    is_n_best = formats.output.n_best > 1

    with contextlib.closing(
        translator.translate_windows(_parsed(windows, formats, blank, name, pending))
    ) as translated:
        texts, num_tokens, num_done, num_errors = list[str](), 0, 0, 0  # of the current window
        for translations in translated:
            window, lines, is_end = pending.popleft()
            both = zip(lines, translations, strict=True)
            for index, (line, one) in enumerate(both, window.start.lines + num_done):
                if line is not blank or is_n_best:
                    texts.extend(format_translation(line, one, index, formats.output))
                else:
                    blank_texts = blank_texts or list(
                        format_translation(line, one, index, formats.output)
                    )
                    texts += blank_texts
            num_tokens += sum(one.num_tokens for one in translations)
            num_done += len(lines)
            num_errors += sum(bool(line.error) for line in lines)
            if is_end:
                yield TranslatedWindow(window, texts, num_tokens, num_errors)
                texts, num_tokens, num_done, num_errors = [], 0, 0, 0


def _parsed(
    windows: Iterator[Window],
    formats: LineFormats,
    blank: InputLine,
    name: str,
    pending: PendingLines,
) -> Iterator[Lines]:
    """Yield the parsed lines of each window, and add them to `pending`."""
    check_fields, num_warnings = FieldCheck(formats.output), 0
    for window in windows:
        before = window.start.lines
        lines = [
            formats.parse(text, f"{name}:{number}") if text else blank
            for number, text in enumerate(window.texts, before + 1)
        ]
        for number, line in enumerate(lines, before + 1):
            check_fields(line, f"{name}:{number}")
            if line.error and num_warnings <= _MAX_ERROR_WARNINGS:
                _warn_of_error(
                    line, f"{name}:{number}", is_last=num_warnings == _MAX_ERROR_WARNINGS
                )
                num_warnings += 1
        num_done = 0
        for some in split_window(lines):
            sources = [line.source for line in some]
            prefixes = [line.target_prefix for line in some]
            if some:
                pending.append((window, some, num_done + len(some) == len(lines)))
            yield Lines(sources, prefixes, before + num_done, name)
            num_done += len(some)


def _warn_of_error(line: InputLine, position: str, *, is_last: bool) -> None:
    others = "; other such lines are only counted" if is_last else ""
    logger.warning("%s: %s%s", position, line.error, others)


def split_window(lines: list[InputLine]) -> Iterator[list[InputLine]]:
    """Yield the lines of a window in lists, each with a bounded number of text lines."""
    some, num_text_lines = list[InputLine](), 0
    for line in lines:
        count = line.source.count("\n") if line.fields is not None else 0
        if some and num_text_lines + count > _MAX_TEXT_LINES:
            yield some
            some, num_text_lines = [], 0
        some.append(line)
        num_text_lines += count
    yield some


def merge_ranks(
    windows: Iterator[Window],
    translate: Callable[[Iterator[Window]], Iterator[TranslatedWindow]],
    parallel: Parallel,
) -> Iterator[TranslatedWindow]:
    """Translate the windows of this rank; yield those of all ranks in order on rank 0.

    Window i belongs to rank i modulo the number of ranks. Every rank reads the whole input, and
    rank 0 checks that it was the same for all.
    """
    unwritten: deque[Window] = deque()

    def own() -> Iterator[Window]:
        for window in windows:
            if not window.texts:
                yield window
                continue
            is_own = window.number % parallel.world_size == parallel.rank
            unwritten.append(window if is_own else window._replace(texts=[]))
            if is_own:
                yield window

    for translated in translate(own()):
        if not parallel.is_main:
            unwritten.clear()
            parallel.send(_serialized(translated))
            continue
        while unwritten[0] is not translated.window:
            yield _received(unwritten.popleft(), parallel)
        unwritten.popleft()
        yield translated
    while unwritten and parallel.is_main:
        yield _received(unwritten.popleft(), parallel)


def write_windows(
    translated: Iterator[TranslatedWindow],
    output: Output,
    *,
    waited: Callable[[], float],
    progress: Callable[[TranslationStats], None],
) -> TranslationStats:
    """Write each window, and return the total counts.

    Args:
        translated: windows in order.
        output: the output.
        waited: returns the seconds spent waiting for input.
        progress: called with the counts so far after each window.
    """
    stats, began = TranslationStats(), time.monotonic()
    for each in translated:
        write_lines(output.stream, each.texts)
        output.mark(each.window.end)
        stats.lines += each.window.end.lines - each.window.start.lines
        stats.tokens += each.tokens
        stats.errors += each.errors
        stats.seconds = time.monotonic() - began - waited()
        stats.share = each.window.share
        progress(stats)
    return stats


def _skip(
    reader: LineReader, start: Position, parse: Callable[[str, str], InputLine]
) -> tuple["hashlib._Hash", int]:
    """Skip the lines that were translated before; return their hash and the number of bad ones.

    Raises:
        DataError: the lines differ from those that were translated; or one of them cannot be
            parsed, which an earlier run has reported, and `parse` raises it.
    """
    digest, left, num_errors = hashlib.sha256(), start.lines, 0
    failure: DataError | None = None
    while left and (texts := reader.window(min(left, 1 << 14))):
        digest.update(_line_bytes(texts))
        for number, text in enumerate(texts, start.lines - left + 1):
            try:
                num_errors += bool(parse(text, f"{reader.name}:{number}").error)
            except DataError as error:
                failure = failure or error
        left -= len(texts)
    if digest.hexdigest() != start.sha256:
        lines = counted(start.lines, "line")
        raise DataError(
            f"{reader.name}: the first {lines} changed since the translation",
            hint="give the same input to resume, or use `--overwrite` to begin again",
        )
    if failure is not None:
        raise failure
    return digest, num_errors


def _line_bytes(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass")


def _serialized(translated: TranslatedWindow) -> bytes:
    """Return a translated window as a message to rank 0: a header and the lines."""
    header = {
        "sha256": translated.window.end.sha256,
        "tokens": translated.tokens,
        "errors": translated.errors,
    }
    lines = [json.dumps(header), *(text.replace("\n", " ") for text in translated.texts)]
    return "\n".join(lines).encode("utf-8", "replace")


def _received(window: Window, parallel: Parallel) -> TranslatedWindow:
    """Return the translation of a window, received from another rank.

    Raises:
        DataError: that rank has read another input.
    """
    rank = window.number % parallel.world_size
    header, *texts = parallel.receive(rank).decode("utf-8").split("\n")
    facts = json.loads(header)
    if facts["sha256"] != window.end.sha256:
        message = f"rank {rank} has read another input than rank 0, up to line {window.end.lines}"
        raise DataError(message, hint="give all machines the same file")
    return TranslatedWindow(window, texts, facts["tokens"], facts["errors"])


class Job(NamedTuple):
    """A translation of one input to one output.

    Args:
        input_path: path of the input; `-` is standard input.
        output_path: path of the output; `-` is standard output.
        settings: all that the output depends on except the input, see `job_settings`.
        overwrite: start again instead of resuming an unfinished output.
        formats: formats of the input and output lines.
        buffer_size: maximum number of lines of a window.
    """

    input_path: str
    output_path: str
    settings: Mapping[str, Any]
    overwrite: bool
    formats: LineFormats
    buffer_size: int


def job_settings(
    models: Sequence[Path],
    search: SearchConfig,
    output_format: OutputFormat,
    *,
    sampling: bool,
    precision: str,
    **others: object,
) -> dict[str, Any]:
    """Return all that the output depends on except the input, by the names of the flags.

    Args:
        models: model directories.
        search: the search settings.
        output_format: the format of the output.
        sampling: translations are sampled.
        precision: precision of the matrix products.
        others: other flags by their names in Python.
    """
    from tfm_cli.model_directory.config_file import weights_identity  # imports SentencePiece

    settings = dataclasses.asdict(search) | output_format._asdict()
    for name in (*_SPEED_ONLY, *(() if sampling else _SAMPLING_ONLY)):
        del settings[name]
    settings["format"] = settings.pop("kind")
    settings |= {"sampling": sampling, "precision": precision, **others}
    flags = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    weights = ", ".join(weights_identity(directory)[:12] for directory in models)
    return {"tfm version": tfm_cli.__version__, "weights": weights, **flags}


def check_input(input_path: str, parallel: Parallel) -> None:
    """Raise a ConfigError unless each of several processes can read the input from its start."""
    source = Path(input_path)
    if parallel.world_size > 1 and (
        input_path == "-" or (source.exists() and not source.is_file())
    ):
        raise ConfigError(
            f"`--input {input_path}`: {parallel.world_size} processes cannot all read it",
            hint="name a file that each of them can read",
        )


def run_job(
    job: Job, reader: LineReader, load: Callable[[], "Translator"], *, parallel: Parallel
) -> TranslationStats:
    """Translate the lines that are not in the output yet, in all processes of `parallel`.

    Args:
        job: the job.
        reader: its input.
        load: returns the translator.
        parallel: the processes.
    """
    with parallel.connected(), _opened_output(job, is_main=parallel.is_main) as output:
        start = _broadcast_position(output.start, parallel)
        if start.lines:
            logger.info("%s: resuming after line %d", job.output_path, start.lines)
        translator = load()
        pending: PendingLines = deque()
        windows = WindowReader(
            reader, start, pending, buffer_size=job.buffer_size, parse=job.formats.parse
        )

        def translate(own: Iterator[Window]) -> Iterator[TranslatedWindow]:
            return translated_windows(
                own, translator, job.formats, name=reader.name, pending=pending
            )

        if not parallel.is_main:
            console.setup(console.QUIET)  # other ranks only log warnings about their own lines
        with _progress(job) as progress:
            stats = write_windows(
                merge_ranks(iter(windows), translate, parallel),
                output,
                waited=lambda: windows.waited_seconds,
                progress=progress,
            )
        stats.errors += windows.num_errors
        return stats


@contextlib.contextmanager
def _progress(job: Job) -> Iterator[Callable[[TranslationStats], None]]:
    """Yield a function that shows the progress, unless the user sees the translations themselves.

    Nothing is shown if the input is typed, or if the translations go to the same terminal; lines
    are shown if they go through a pipe.
    """
    shares_terminal = job.output_path == "-" and sys.stderr.isatty() and sys.stdout.isatty()
    if shares_terminal or is_typed(job.input_path):
        yield lambda stats: None
        return
    in_lines = job.output_path == "-" and console.writes_to_pipe()
    with console.progress_display("translating", logger, in_lines=in_lines) as show:
        yield lambda stats: show(stats.progress_text, stats.share)


@contextlib.contextmanager
def _opened_output(job: Job, *, is_main: bool) -> Iterator[Output]:
    """Yield the output of a job; other ranks than 0 write nothing."""
    path = Path(job.output_path)
    if not is_main:
        yield StreamOutput(io.BytesIO())
    elif job.output_path == "-" or (path.exists() and not path.is_file()):
        with open_output(job.output_path) as stream:
            yield StreamOutput(stream)
    else:
        with resumable_file(path, job.settings, overwrite=job.overwrite) as file:
            yield file


def _broadcast_position(start: Position, parallel: Parallel) -> Position:
    """Return the position of rank 0."""
    message = json.dumps(start._asdict()).encode()
    return Position(**json.loads(parallel.broadcast_bytes(message)))
