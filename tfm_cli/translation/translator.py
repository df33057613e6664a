"""Lines in, translations out, in order, whatever their number, length and content."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from tfm_cli.config.settings import SearchConfig
from tfm_cli.console import counted
from tfm_cli.device import resolve_device
from tfm_cli.errors import ConfigError, DataError
from tfm_cli.native.search import CACHE_BYTES
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.translation.alignment import Aligner
from tfm_cli.translation.assembly import ShortfallWatch, joined
from tfm_cli.translation.loading import load_models, resolve_precision
from tfm_cli.translation.result import Translation
from tfm_cli.translation.search import BatchSearch
from tfm_cli.translation.search_engine import (
    Found,
    SearchEngine,
    SearchOptions,
    useless_weights_refused,
)
from tfm_cli.translation.segments import Lines, Segment, Segmenter
from tfm_cli.translation.shortlist import load_shortlist
from tfm_cli.translation.worker_pool import Group, Workers, num_workers

logger = logging.getLogger(__name__)

# Of each of many workers, which may have more than `CACHE_BYTES` in all: smaller batches are slow.
_LEAST_CACHE_BYTES = 1 << 28

SearchAll = Callable[[Callable[[list[Segment]], Found], Sequence[list[Segment]]], list[Found]]


class Translator:
    """A model and how it searches; a class because it holds the weights and counts lines.

    Args:
        engine: the models that translate together, which search by `options`.
        tokenizers: of the models.
        options: how translations are looked for.
        on_long: what becomes of a line of more than `search.max_length` pieces: `split` it,
            preferably after a sentence, and join the translations; or `cut` it.
        alignment: note which words of the line each word of its translations came from.
        workers: processes that translate side by side, once there is work for several; on a CPU.
        name: what messages call the model, or the models that translate together.
        warns_of_shortfalls: warn of the first translation that is far too short for its line.
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
        warns_of_shortfalls: bool = False,
    ) -> None:
        search = options.settings
        if search.n_best > search.beam_size and not options.sampling:
            found = f"{search.n_best} and {search.beam_size}"
            raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {found}")
        self._engine = engine
        self._search_batch = BatchSearch(engine, tokenizers.target, options)
        self._name = name
        self._window_lines = search.buffer_size
        self._num_workers = workers
        self._segmenter = Segmenter(
            tokenizers,
            search,
            beam_size=search.n_best if options.sampling else search.beam_size,
            on_long=on_long,
            longest=min(search.max_length, engine.most_pieces),
        )
        self._joined = partial(
            joined,
            target=tokenizers.target,
            n_best=search.n_best,
            word_scores=options.word_scores,
            are_samples=options.sampling,
            aligner=Aligner(engine, tokenizers, search.max_tokens) if alignment else None,
            watch=ShortfallWatch() if warns_of_shortfalls else None,
        )
        self._n_best = search.n_best
        self._has_told_of_few = False  # candidates

    @staticmethod
    def load(
        model_dir: Path,
        *,
        search: SearchConfig | None = None,
        sampling: bool = False,
        on_long: str = "split",
        device: str = "auto",
        precision: str = "auto",
        others: Sequence[Path] = (),
        scores: bool = True,
        word_scores: bool = False,
        alignment: bool = False,
        shortlist: Path | None = None,
        workers: int = 1,
    ) -> "Translator":
        """The translator of a model directory; without `search`, as the model's settings say.

        Of `workers` 0 means as many as suit the machine. They are forked off after all is loaded;
        nothing may have started threads of its own then, which they would miss.

        Raises:
            ConfigError: there is no such device or precision, or workers are no use there.
            ModelError: a directory is wrong, or one of `others` has other tokenizers, or the file
                `shortlist` is missing or of another model.
            ResourceError: the machine lacks the device, or the means to start workers or to
                compute.
        """
        place = resolve_device(device)
        chosen = resolve_precision(precision, place, [model_dir, *others])
        count = num_workers(workers, device=place.type)
        models = load_models([model_dir, *others], place, chosen)
        options = SearchOptions(
            settings=search or models.config.search,
            sampling=sampling,
            scores=scores,
            word_scores=word_scores,
            shortlist=None if shortlist is None else load_shortlist(shortlist, models.tokenizers),
            cache_bytes=max(CACHE_BYTES // count, _LEAST_CACHE_BYTES),
        )
        return Translator(
            models.engine(options),
            models.tokenizers,
            options,
            on_long=on_long,
            alignment=alignment,
            workers=count,
            name=", ".join(map(str, [model_dir, *others])),
            warns_of_shortfalls=True,
        )

    def translate(self, lines: Iterable[str], *, name: str = "") -> Iterator[Translation]:
        """One translation for each line, in order, read and translated a window at a time.

        Args:
            lines: to translate; one with line feeds is translated line by line.
            name: what warnings call the text.
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
        """One translation for each line; all are sorted by length and translated together, here.

        Args:
            lines: the window.
            prefixes: what the translation of each line begins with; empty for none. A blank
                line's translation is blank all the same.
            search_all: gives what is found for each batch, by the search that it is given, as when
                several processes share the batches.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
            ModelError: the weights compute no finite numbers, which `search_all` gets to know as
                a NonFiniteScoresError.
        """
        batches = self._segmenter.batches(Lines(lines, prefixes))
        if search_all is not None:
            return self._finished(lines, batches, search_all(self._search_batch, batches))
        with useless_weights_refused(self._name):
            return self._finished(lines, batches, [self._search_batch(one) for one in batches])

    def translate_windows(
        self, windows: Iterable[Lines]
    ) -> Generator[list[Translation], None, None]:
        """What `translate_window` says of each window; batches are shared out among the workers.

        Several workers translate the next window before the last one's translations are given
        out, and end with this generator. A window without lines has no translations; they are all
        given out before the window behind it is asked for.

        Raises:
            DataError: as `windows` does, or a prefix is too long; what was before is given out.
            ModelError: the weights compute no finite numbers.
        """
        under_way: deque[tuple[Sequence[str], list[list[Segment]], Group[Found]]] = deque()
        search = Workers(
            self._search_batch, most=self._num_workers, begin=self._engine.begin_process
        )

        def oldest(most_left: int) -> Iterator[list[Translation]]:
            while under_way and (len(under_way) > most_left or not under_way[0][2].missing):
                lines, batches, group = under_way.popleft()
                with useless_weights_refused(self._name):
                    translations = self._finished(lines, batches, search.finish(group))
                yield translations

        with search:
            try:
                for window in windows:
                    if window.lines:
                        batches = self._segmenter.batches(window)
                        under_way.append((window.lines, batches, search.begin(batches)))
                    yield from oldest(1 if window.lines else 0)
            except DataError:
                yield from oldest(0)
                raise
            yield from oldest(0)

    def _finished(
        self, lines: Sequence[str], batches: Sequence[Sequence[Segment]], found: Sequence[Found]
    ) -> list[Translation]:
        """The translations of a window; told once is that a line has fewer than were wanted."""
        translations = self._joined(lines, batches, found)
        if self._n_best == 1 or self._has_told_of_few:
            return translations
        numbers = {segment.line: segment.number for batch in batches for segment in batch}
        for index, number in sorted(numbers.items()):
            count = len(translations[index].candidates)
            if count < self._n_best:
                logger.warning(
                    "line %d: a wider search finds no more than %s; asked for were %d",
                    number, counted(count, "different translation"), self._n_best,
                )  # fmt: skip
                self._has_told_of_few = True
                break
        return translations
