"""The translator of lines, in order and in windows that bound the memory."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfm_cli.config.settings import RunConfig, SearchConfig
from tfm_cli.console import counted
from tfm_cli.device import Device, decoding_precision, resolve_device, torch_build
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.files.layout import WEIGHTS_FILE
from tfm_cli.model_directory.weight_shapes import stored_precision
from tfm_cli.native import library
from tfm_cli.native.search import CACHE_BYTES
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.assembly import Assembler, Translation, UndertranslationCheck
from tfm_cli.translation.search import (
    BatchHypotheses,
    BatchSearch,
    SearchEngine,
    SearchOptions,
    unusable_weights_as_model_error,
)
from tfm_cli.translation.segments import Lines, Segment, Segmenter
from tfm_cli.translation.worker_pool import Group, WorkerPool, num_workers

if TYPE_CHECKING:
    from tfm_cli.translation.alignment import Aligner, AlignmentRows


logger = logging.getLogger(__name__)

# Minimum for each worker; all of them may exceed `CACHE_BYTES`, since small batches are slow.
_MIN_CACHE_BYTES = 1 << 28

SearchAll = Callable[
    [Callable[[list[Segment]], BatchHypotheses], Sequence[list[Segment]]], list[BatchHypotheses]
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslatorOptions:
    """Options of a translator that is loaded from a model directory.

    Args:
        search: the search settings; None for those saved with the model.
        sampling: sample translations instead of searching for the best.
        on_long: `split` a line of more than `search.max_length` tokens, preferably after a
            sentence, and join the translations; or `cut` it.
        scores: compute the scores of candidates; otherwise they may be NaN.
        word_scores: record the log-probability of each token.
        alignment: align the words of each candidate with those of its line.
        shortlist: file of a shortlist; None for the whole vocabulary.
    """

    search: SearchConfig | None = None
    sampling: bool = False
    on_long: str = "split"
    scores: bool = True
    word_scores: bool = False
    alignment: bool = False
    shortlist: Path | None = None


class Translator:
    """A model or an ensemble with its search, which counts the lines that it translates.

    Args:
        engine: engine of the models, created with `options`.
        tokenizers: tokenizers of the models.
        options: options of the search.
        on_long: see `TranslatorOptions`.
        alignment: see `TranslatorOptions`.
        workers: maximum number of parallel processes; more than one only on a CPU.
        name: name of the models in messages.
        warns_of_undertranslation: warn of the first translation that is far too short for its line.
    """

    def __init__(
        self,
        engine: SearchEngine,
        tokenizers: TokenizerPair,
        options: SearchOptions,
        *,
        on_long: str = "split",
        alignment: bool = False,
        workers: int = 1,
        name: str = "the model",
        warns_of_undertranslation: bool = False,
    ) -> None:
        search = options.settings
        if search.n_best > search.beam_size and not options.sampling:
            values = f"{search.n_best} and {search.beam_size}"
            raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {values}")
        self._engine = engine
        self._search_batch = BatchSearch(engine, tokenizers.target, options)
        self._name = name
        self._window_lines = search.buffer_size
        self._num_workers = workers
        self._max_tokens = min(search.max_length, engine.max_segment_tokens)
        self._segmenter = Segmenter(
            tokenizers,
            search,
            beam_size=search.n_best if options.sampling else search.beam_size,
            on_long=on_long,
            max_tokens=self._max_tokens,
        )
        self._aligner = _aligner(engine, tokenizers, search.max_tokens) if alignment else None
        self._assemble = Assembler(
            target=tokenizers.target,
            n_best=search.n_best,
            word_scores=options.word_scores,
            are_samples=options.sampling,
            aligner=self._aligner,
            undertranslation_check=UndertranslationCheck() if warns_of_undertranslation else None,
        )
        self._n_best = search.n_best
        self._has_warned_of_few = False  # fewer candidates than `n_best`

    @staticmethod
    def load(
        model_dir: Path,
        options: TranslatorOptions = TranslatorOptions(),
        *,
        others: Sequence[Path] = (),
        device: str = "auto",
        precision: str = "auto",
        workers: int = 1,
    ) -> "Translator":
        """Load the translator of a model directory, or of an ensemble.

        Args:
            model_dir: the model directory.
            options: options of the translator.
            others: directories of the other models of an ensemble.
            device: name of the device; `auto` is a GPU if there is one.
            precision: precision of the matrix products.
            workers: maximum number of parallel processes; 0 depends on the machine. They are
                forked after loading, so no threads may be running by then.

        Raises:
            ConfigError: the device or precision is unknown, or does not support several workers.
            ModelError: a directory is invalid, one of `others` has other tokenizers, or the
                shortlist is missing or belongs to another model.
            ResourceError: the machine lacks the device, an engine, or the means to start workers.
        """
        directories = [model_dir, *others]
        resolved = resolve_device(device)
        resolved_precision = resolve_precision(precision, resolved, directories)
        count = num_workers(workers, device=resolved.type)
        models = load_models(directories, resolved, resolved_precision)
        shortlist = None
        if options.shortlist is not None:
            from tfm_cli.translation.shortlist import load_shortlist

            shortlist = load_shortlist(options.shortlist, models.tokenizers)
        search_options = SearchOptions(
            settings=options.search or models.config.search,
            sampling=options.sampling,
            scores=options.scores,
            word_scores=options.word_scores,
            shortlist=shortlist,
            cache_bytes=worker_cache_bytes(count),
        )
        return Translator(
            models.engine(search_options),
            models.tokenizers,
            search_options,
            on_long=options.on_long,
            alignment=options.alignment,
            workers=count,
            name=", ".join(map(str, directories)),
            warns_of_undertranslation=True,
        )

    def translate(self, lines: Iterable[str], *, name: str = "") -> Iterator[Translation]:
        """Yield the translation of each line in order, reading a window of lines at a time.

        Args:
            lines: lines to translate; the lines of a text with line feeds are translated one by
                one.
            name: name of the text in warnings.
        """
        iterator, size = iter(lines), self._window_lines
        windows = iter(lambda: list(islice(iterator, size)), [])
        named = (Lines(window, name=name) for window in windows)
        for translations in self.translate_windows(named):
            yield from translations

    def translate_window(
        self,
        lines: Sequence[str],
        prefixes: Sequence[str] = (),
        *,
        search_all: SearchAll | None = None,
    ) -> list[Translation]:
        """Return the translation of each line of a window, sorting the window by length.

        Args:
            lines: the window.
            prefixes: beginning of the translation of each line, "" for none; a blank line has a
                blank translation even with a prefix.
            search_all: returns the hypotheses of each batch, given the search and the batches; for
                ranks that share the batches.

        Raises:
            DataError: a prefix has more tokens than a segment may have.
            ModelError: the scores are not finite numbers; `search_all` must handle the
                NonFiniteScoresError itself.
        """
        batches = self._segmenter.batches(Lines(lines, prefixes))
        if search_all is not None:
            return self._finished(lines, batches, search_all(self._search_batch, batches))
        with unusable_weights_as_model_error(self._name):
            return self._finished(lines, batches, [self._search_batch(one) for one in batches])

    def translate_windows(
        self, windows: Iterable[Lines]
    ) -> Generator[list[Translation], None, None]:
        """Yield the translations of each window, distributing its batches over the workers.

        With several workers, the next window is submitted before the translations of a window are
        yielded. At a window without lines, which has no translations, all earlier translations are
        yielded before the next window is read. The workers end with this generator.

        Raises:
            DataError: `windows` raises it, or a prefix is too long; the translations before it are
                yielded first.
            ModelError: the scores are not finite numbers.
        """
        pending: deque[tuple[Sequence[str], list[list[Segment]], Group[BatchHypotheses]]] = deque()
        search = WorkerPool(
            self._search_batch,
            max_workers=self._num_workers,
            initializer=self._engine.begin_process,
        )

        def oldest(max_left: int) -> Iterator[list[Translation]]:
            while pending and (len(pending) > max_left or not pending[0][2].missing):
                lines, batches, group = pending.popleft()
                with unusable_weights_as_model_error(self._name):
                    translations = self._finished(lines, batches, search.results(group))
                yield translations

        with search:
            try:
                for window in windows:
                    if window.lines:
                        batches = self._segmenter.batches(window)
                        pending.append((window.lines, batches, search.submit(batches)))
                    yield from oldest(1 if window.lines else 0)
            except DataError:
                yield from oldest(0)
                raise
            yield from oldest(0)

    def align(self, lines: Iterable[str], translations: Iterable[str]) -> Iterator["AlignmentRows"]:
        """Yield the alignment of each translation of another origin, by teacher forcing.

        It is empty where a line has more than one segment, or a translation too many tokens.

        Args:
            lines: the source lines.
            translations: their translations; the translator needs `alignment`.
        """
        assert self._aligner is not None
        pairs = zip(lines, translations, strict=True)
        while window := list(islice(pairs, self._window_lines)):
            segments: dict[int, list[Segment]] = {}
            for batch in self._segmenter.batches(Lines([line for line, _ in window])):
                for segment in batch:
                    segments.setdefault(segment.line, []).append(segment)
            yield from self._aligner.forced(window, segments, max_tokens=self._max_tokens)

    def _finished(
        self,
        lines: Sequence[str],
        batches: Sequence[Sequence[Segment]],
        hypotheses: Sequence[BatchHypotheses],
    ) -> list[Translation]:
        """Assemble the translations of a window; warn once of a line with too few candidates."""
        translations = self._assemble(lines, batches, hypotheses)
        if self._n_best == 1 or self._has_warned_of_few:
            return translations
        numbers = {segment.line: segment.number for batch in batches for segment in batch}
        for index, number in sorted(numbers.items()):
            count = len(translations[index].candidates)
            if count < self._n_best:
                logger.warning(
                    "line %d: even a wider search finds only %s of the %d requested",
                    number, counted(count, "different translation"), self._n_best,
                )  # fmt: skip
                self._has_warned_of_few = True
                break
        return translations


def _aligner(engine: SearchEngine, tokenizers: TokenizerPair, max_tokens: int) -> "Aligner":
    from tfm_cli.translation.alignment import Aligner  # only if alignments are requested

    return Aligner(engine, tokenizers, max_tokens)


# Loading of one model or an ensemble, and of the engine that runs it on a device.


class LoadedModels(NamedTuple):
    """Models in memory.

    Attributes:
        config: configuration of the first model.
        tokenizers: tokenizers of all models.
        engine: returns a search engine of these models, given its options.
        is_native: True in the native engine, False in PyTorch.
    """

    config: RunConfig
    tokenizers: TokenizerPair
    engine: Callable[[SearchOptions], SearchEngine]
    is_native: bool


def worker_cache_bytes(workers: int) -> int:
    """Return the maximum memory, beyond the weights, of each of several processes on a CPU."""
    return max(CACHE_BYTES // workers, _MIN_CACHE_BYTES)


def resolve_precision(name: str, device: Device, directories: Sequence[Path]) -> str:
    """Return the precision to use; `auto` is int8 on a CPU if a model is stored in int8.

    Args:
        name: `auto`, `fp32`, `bf16`, `fp16` or `int8`.
        device: device that the models run on.
        directories: model directories.

    Raises:
        ConfigError: the name is unknown, or the device lacks that precision.
    """
    are_int8 = (stored_precision(each / WEIGHTS_FILE) == "int8" for each in directories)
    if name == "auto" and device.type == "cpu" and any(are_int8):
        return "int8"
    return decoding_precision(name, device)


def load_models(
    directories: Sequence[Path], device: Device, precision: str, *, sets_threads: bool = True
) -> LoadedModels:
    """Load models for the native engine on a CPU, and otherwise for PyTorch.

    Args:
        directories: model directories, at least one.
        device: device that the models run on.
        precision: precision of the matrix products; the device must support it.
        sets_threads: on a CPU, let PyTorch compute with one thread in the whole process.

    Raises:
        ModelError: a directory is invalid, or its tokenizers differ from those of the first.
        ResourceError: there is too little memory, or neither engine is installed.
    """
    if device.type == "cpu" and library.available():
        return _in_native_engine(directories, precision)
    if device.type == "cpu":
        _check_fallback(precision)
    return _in_torch(directories, device, precision, sets_threads=sets_threads)


def _in_native_engine(directories: Sequence[Path], precision: str) -> LoadedModels:
    from tfm_cli.native.model import NativeModel
    from tfm_cli.translation.native_engine import NativeEngine, warn_of_slow_bf16

    models = [NativeModel.load(directory, precision=precision) for directory in directories]
    _check_same_tokenizers(directories, [model.tokenizers for model in models])
    if precision == "bf16":
        warn_of_slow_bf16(models[0])
    first = models[0]
    return LoadedModels(
        first.config,
        first.tokenizers,
        lambda options: NativeEngine(models, options),
        is_native=True,
    )


def _in_torch(
    directories: Sequence[Path], device: Device, precision: str, *, sets_threads: bool
) -> LoadedModels:
    import torch

    from tfm_cli.model.precision import precision_dtype, set_cpu_threads, warn_of_slow_bf16
    from tfm_cli.model_directory.weights import load_model
    from tfm_cli.translation.torch_engine import TorchEngine

    torch_device = torch.device(str(device))
    if device.type == "cpu" and sets_threads:
        set_cpu_threads(1)
    if precision == "bf16":
        warn_of_slow_bf16(torch_device)
    models = [load_model(directory, torch_device) for directory in directories]
    _check_same_tokenizers(directories, [model.tokenizers for model in models])

    def engine(options: SearchOptions) -> SearchEngine:
        return TorchEngine(
            [model.transformer for model in models], models[0].tokenizers, options,
            device=torch_device, dtype=precision_dtype(precision),
            static_steps=device.type == "cuda",
        )  # fmt: skip

    return LoadedModels(models[0].config, models[0].tokenizers, engine, is_native=False)


def _check_fallback(precision: str) -> None:
    """Raise a ResourceError if PyTorch cannot replace the native engine on a CPU."""
    if precision != "int8" and torch_build():
        return
    absent = library.why_absent()
    message = f"`--precision int8` needs the native CPU engine: {absent}"
    if precision != "int8":
        message = f"there is neither the native CPU engine ({absent}) nor PyTorch"
    try:
        library.load()
    except ResourceError as error:
        raise ResourceError(message, hint=error.hint) from error


def _check_same_tokenizers(
    directories: Sequence[Path], tokenizers: Sequence[TokenizerPair]
) -> None:
    for directory, own in zip(directories, tokenizers, strict=True):
        if own.sha256 != tokenizers[0].sha256:
            message = f"{directory}: has other tokenizers than {directories[0]}"
            raise ModelError(message, hint="train them with the same one: `tfm train --tokenizer`")
