"""The public Python API: training, translation and evaluation in a program.

Nothing here sets a signal handler, a thread count or a logging handler; messages go to Python's
loggers below `tfm_cli`. Errors that a caller can resolve are of the type `TfmError`.
"""

import contextvars
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

from tfm_cli.config.settings import SearchConfig
from tfm_cli.config.validation import coerce, suggestion
from tfm_cli.device import resolve_device
from tfm_cli.errors import ConfigError, TfmError
from tfm_cli.evaluation.scores import MetricOptions, Score
from tfm_cli.evaluation.scores import corpus_scores as evaluate
from tfm_cli.translation.assembly import Candidate, Translation
from tfm_cli.translation.search import (
    BatchHypotheses,
    SearchOptions,
    chosen_search,
    unusable_weights_as_model_error,
)
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.translator import Translator as LineTranslator
from tfm_cli.translation.translator import load_models, resolve_precision

__all__ = [
    "Candidate", "MetricOptions", "Score", "TfmError", "TrainingResult", "Translation",
    "Translator", "evaluate", "train",
]  # fmt: skip

StrPath = str | os.PathLike[str]


class SearchSettings(TypedDict, total=False):
    """Settings of the search, as in section `search` of a model; those of the model by default."""

    beam_size: int
    length_penalty: float
    length_norm: Literal["power", "wu"]
    early_stopping: bool
    renormalize: bool
    n_best: int
    no_repeat_ngram_size: int
    repetition_penalty: float
    max_length: int
    max_length_factor: float
    max_tokens: int
    buffer_size: int
    top_k: int
    top_p: float
    temperature: float
    seed: int


class TranslatorOptions(SearchSettings, total=False):
    """Options of a translator, beside the settings of the search.

    Attributes:
        sampling: sample translations instead of searching for the best; `n_best` is their number.
        scores: compute the score of each candidate and the log-probability of each token.
            Without it, greedy search is faster, and scores may be NaN.
        alignment: compute the attention of each word of a translation to the words of its source.
        on_long: `split` lines of more than `max_length` tokens and join their translations, or
            `cut` them.
        shortlist: file of a shortlist, which restricts the target tokens of each line.
    """

    sampling: bool
    scores: bool
    alignment: bool
    on_long: Literal["split", "cut"]
    shortlist: StrPath


class Translator:
    """A model, or an ensemble of models, in memory.

    Any number of threads may call one translator at the same time; each call is independent of
    the others and has the same result as `tfm translate`.

    Args:
        model: a model directory, or several over the same vocabulary for an ensemble.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` is a GPU if there is one.
        precision: of the matrix products: `auto`, `fp32`, `bf16`, `fp16` or `int8`.
        threads: threads that translate the batches of a call in parallel on a CPU.
        options: see `TranslatorOptions`.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
        ModelError: a model directory or the shortlist is missing or invalid.
        ResourceError: the machine lacks the device, the memory or an engine.
    """

    def __init__(
        self,
        model: StrPath | Sequence[StrPath],
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 1,
        **options: Unpack[TranslatorOptions],
    ) -> None:
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        chosen: dict[str, Any] = dict(options)
        own = {name: chosen.pop(name) for name in _OWN_OPTIONS if name in chosen}
        checked = _checked_settings(chosen)
        self._on_long = own.get("on_long", "split")
        if self._on_long not in ("split", "cut"):
            raise ConfigError(f"on_long must be `split` or `cut`, got `{self._on_long}`")
        scores, sampling = bool(own.get("scores", False)), bool(own.get("sampling", False))
        size, best = checked.get("beam_size"), checked.get("n_best")
        if size and best and best > size and not sampling:
            raise ConfigError(f"n_best must be at most beam_size, got {best} and {size}")
        names = [model] if isinstance(model, str | os.PathLike) else model
        directories = [Path(name) for name in names]
        if not directories:
            raise ConfigError("no model is given")
        resolved = resolve_device(device)
        models = load_models(
            directories, resolved, resolve_precision(precision, resolved, directories),
            sets_threads=False,
        )  # fmt: skip
        settings = chosen_search(models.config.search, checked, sampling=sampling)
        self._options = SearchOptions(
            settings=settings,
            sampling=sampling,
            scores=scores or settings.n_best > 1,
            word_scores=scores,
            shortlist=_shortlist(own.get("shortlist"), models.tokenizers),
        )
        self._engine: Any = models.engine(self._options)
        self._tokenizers = models.tokenizers
        self._alignment = bool(own.get("alignment", False))
        self._name = ", ".join(map(str, directories))
        # Only the native engine can be shared by threads that search at the same time.
        self._num_threads = threads if models.is_native else 1
        self._lock: AbstractContextManager[Any] = (
            nullcontext() if models.is_native else threading.Lock()
        )

    def translate(
        self, lines: Iterable[str], *, prefixes: Iterable[str] | None = None
    ) -> Iterator[Translation]:
        """Yield the translation of each line, in order.

        The lines are read and sorted `buffer_size` at a time, so that the memory is bounded. A
        blank line has a blank translation.

        Args:
            lines: the text of each.
            prefixes: beginning of each translation, "" for none.

        Raises:
            DataError: a prefix is too long.
            ModelError: the weights lead to scores that are not finite numbers.
            ResourceError: there is no memory for a line.
            TypeError: a text is given in place of lines.
            ValueError: the translator is closed, or there are fewer prefixes than lines.
        """
        if self._engine is None:
            raise ValueError("the translator is closed")
        if isinstance(lines, str | bytes):
            raise TypeError("expected lines, got one text; `translate_line` takes one line")
        translator = LineTranslator(
            self._engine, self._tokenizers, self._options,
            on_long=self._on_long, alignment=self._alignment, name=self._name,
        )  # fmt: skip
        return self._windows(translator, iter(lines), repeat("") if prefixes is None else prefixes)

    def translate_line(self, line: str, *, prefix: str = "") -> Translation:
        """Return the translation of one line; see `translate`."""
        (translation,) = self.translate([line], prefixes=[prefix])
        return translation

    def close(self) -> None:
        """Free the model; calls that have begun may end. Closing twice is no error."""
        self._engine = None

    def __enter__(self) -> Self:
        """Return the translator, which is closed at the end of the `with` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _windows(
        self, translator: LineTranslator, lines: Iterator[str], prefixes: Iterable[str]
    ) -> Iterator[Translation]:
        size, prefixes = self._options.settings.buffer_size, iter(prefixes)
        while window := list(islice(lines, size)):
            beginnings = list(islice(prefixes, len(window)))
            if len(beginnings) < len(window):
                raise ValueError("there are fewer prefixes than lines")
            yield from translator.translate_window(
                window, beginnings if any(beginnings) else (), search_all=self._search_all
            )

    def _search_all(
        self,
        search: Callable[[list[Segment]], BatchHypotheses],
        batches: Sequence[list[Segment]],
    ) -> list[BatchHypotheses]:
        """Return the hypotheses of each batch, searched by several threads if there are several."""
        with unusable_weights_as_model_error(self._name), self._lock:
            count = min(self._num_threads, len(batches))
            if count < 2:
                return [search(batch) for batch in batches]
            with ThreadPoolExecutor(count, thread_name_prefix="tfm") as executor:
                return list(executor.map(search, batches))


_OWN_OPTIONS = tuple(
    TranslatorOptions.__annotations__.keys() - SearchSettings.__annotations__.keys()
)


def _checked_settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return settings of the search, each of its type.

    Raises:
        ConfigError: one is unknown, of another type, or out of bounds.
    """
    known = {field.name: field for field in dataclasses.fields(SearchConfig)}
    checked = {}
    for name, given in chosen.items():
        if name not in known:
            names = (*known, *_OWN_OPTIONS)
            raise ConfigError(f"{name}: unknown option{suggestion(name, names)}")
        value, complaint = coerce(given, known[name].type, known[name].metadata)
        if complaint:
            raise ConfigError(f"{name} {complaint}")
        checked[name] = value
    return checked


def _shortlist(path: StrPath | None, tokenizers: Any) -> Any:
    if path is None:
        return None
    from tfm_cli.translation.shortlist import load_shortlist

    return load_shortlist(Path(path), tokenizers)


class TrainingSettings(TypedDict, total=False):
    """Settings of a run by section, with their names in the sections; see the reference."""

    data: Mapping[str, object]
    tokenizer: Mapping[str, object]
    model: Mapping[str, object]
    training: Mapping[str, object]
    validation: Mapping[str, object]
    parallel: Mapping[str, object]
    search: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The end of a run.

    Attributes:
        model: the model directory.
        updates: the number of updates made, over all calls that resumed the run.
        seconds: the time spent on updates and validation, over all calls.
        reason: the reason to stop, in words.
        is_complete: False if the run was stopped before its end, so that another call resumes it.
        best_update: the update after which the weights in `model` were saved; None without any.
        scores: of these weights on the validation text, by metric; empty without validation.
        best_score: the first of them, which selected the weights; None without validation.
    """

    model: Path
    updates: int
    seconds: float
    reason: str
    is_complete: bool
    best_update: int | None
    scores: Mapping[str, float]
    best_score: float | None


def train(
    output: StrPath,
    *,
    settings: Mapping[str, object] | None = None,
    preset: str | None = None,
    overwrite: bool = False,
    allow_change: bool = False,
    stop: threading.Event | None = None,
    **sections: Unpack[TrainingSettings],
) -> TrainingResult:
    """Train a model, or resume the run in a directory, as `tfm train` does in one process.

    The call may be made in any thread. On a KeyboardInterrupt the run is saved after its current
    update before the exception is raised again.

    Args:
        output: the model directory to write; a run in it is resumed with its own settings.
        settings: settings by `section.name`, or tables of settings by section.
        preset: the model shape and training recipe: `tiny`, `small`, `base` or `big`; by default
            `auto`, a choice by the number of pairs and the device.
        overwrite: start over, replacing the model in `output`.
        allow_change: resume with another learning rate, batch size or the like.
        stop: stops the run once it is set: it is saved after its current update.
        sections: tables of settings, such as `training={"max_updates": 1000}`.

    Raises:
        ConfigError: a setting is unknown or wrong, or `output` holds something else.
        DataError: the text is missing, malformed, or without a usable pair.
        ModelError: no checkpoint is intact, or the pretrained model cannot be used.
        ResourceError: the machine lacks memory, disk space, the device or PyTorch.
        DivergedError: the loss or the gradient was not finite.
    """
    tables = _tables(chain((settings or {}).items(), sections.items()))
    interrupted = threading.Event()
    asked = [interrupted, *([stop] if stop else [])]
    future: Future[TrainingResult] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result = context.run(
                _train, Path(output), tables, preset=preset, overwrite=overwrite,
                allow_change=allow_change, stop=lambda: any(each.is_set() for each in asked),
            )  # fmt: skip
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    # The thread keeps a KeyboardInterrupt, which is raised in the main thread, out of an update.
    thread = threading.Thread(target=work, name="tfm-train", daemon=True)
    thread.start()
    try:
        return future.result()
    except KeyboardInterrupt:
        interrupted.set()
        future.exception()  # waits
        raise


def _train(
    output: Path,
    tables: dict[str, dict[str, object]],
    *,
    preset: str | None,
    overwrite: bool,
    allow_change: bool,
    stop: Callable[[], bool],
) -> TrainingResult:
    from tfm_cli.config.loading import Lookups, resolve
    from tfm_cli.errors import INSTALL_TORCH, ResourceError
    from tfm_cli.parallel import Parallel
    from tfm_cli.training.run_settings import (
        Choice,
        automatic_recipe,
        log_ignored,
        pretrained_settings,
        saved_settings,
    )
    from tfm_cli.training.starting import StartOptions, start
    from tfm_cli.training.summary import run_summary
    from tfm_cli.training.time_limit import TimeLimit

    resumed = None if overwrite else saved_settings(output)
    choices: list[Choice] = []
    lookups = Lookups(
        recipe=partial(automatic_recipe, choices=choices), pretrained=pretrained_settings
    )
    config = resolve(preset=preset, flags=tables, resumed=resumed, lookups=lookups)
    if "-" in config.data.pairs:
        raise ConfigError("data.pairs: standard input is read by the command `tfm train` only")
    if resumed is None:
        given = {f"{section}.{name}" for section, table in tables.items() for name in table}
        log_ignored(config, given, str, preset=preset)
    notes = [line for choice in choices for line in choice.lines(config)]
    options = StartOptions(
        overwrite=overwrite, allow_change=allow_change, name_of=str, notes=notes, stop=stop
    )
    try:
        stopped = start(
            config, output, options,
            parallel=Parallel(), limit=TimeLimit(config.training.max_time),
        )  # fmt: skip
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ResourceError("training needs PyTorch", hint=INSTALL_TORCH) from error

    facts = run_summary(output, reason=stopped.reason, is_complete=stopped.is_complete)
    scores = {name: float(score["value"]) for name, score in facts["scores"].items()}
    return TrainingResult(
        model=output,
        updates=facts["updates"] or 0,
        seconds=facts["seconds"] or 0.0,
        reason=stopped.reason,
        is_complete=stopped.is_complete,
        best_update=facts["best_update"],
        scores=scores,
        best_score=scores.get(config.validation.metrics[0]),
    )


def _tables(settings: Iterable[tuple[str, object]]) -> dict[str, dict[str, object]]:
    """Return settings by section and name, with paths as strings; later ones win.

    Raises:
        ConfigError: a table of settings is something else.
    """
    tables: dict[str, dict[str, object]] = {}
    for key, value in settings:
        section, dot, name = str(key).partition(".")
        if dot:
            tables.setdefault(section, {})[name] = _plain_value(value)
        elif isinstance(value, Mapping):
            named = {str(name): _plain_value(each) for name, each in value.items()}
            tables.setdefault(section, {}).update(named)
        else:
            raise ConfigError(f"{key}: must be a table of settings, or `section.name`")
    return tables


def _plain_value(value: object) -> object:
    """Return a path as a string, and sequences and tables of paths likewise."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain_value(each) for each in value]
    if isinstance(value, Mapping):
        return {_plain_value(name): each for name, each in value.items()}
    return value
