"""Lines in, translations out, in order, whatever their number, length and content."""

import logging
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from tfm_cli.arithmetic import set_cpu_threads, warn_of_slow_bf16
from tfm_cli.config import SearchConfig
from tfm_cli.decoding.utf8 import Utf8
from tfm_cli.device import decoding_precision, resolve_device
from tfm_cli.engine.prepared import PreparedTransformer
from tfm_cli.errors import ConfigError, DataError, ModelError
from tfm_cli.log import counted
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_dir import load_model
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.alignment import Aligner
from tfm_cli.translation.joining import joined
from tfm_cli.translation.scope import Restrictable
from tfm_cli.translation.searching import BatchSearch, Found, fixed_search, is_plainly_greedy
from tfm_cli.translation.segments import Segment, Segmenter
from tfm_cli.translation.shortfall import ShortfallWatch
from tfm_cli.translation.shortlist import Shortlist, load_shortlist
from tfm_cli.translation.translation import Translation
from tfm_cli.translation.useless_weights import useless_weights_refused
from tfm_cli.translation.window import Lines
from tfm_cli.translation.workers import Group, Workers, num_workers

logger = logging.getLogger(__name__)

SearchAll = Callable[[Callable[[list[Segment]], Found], Sequence[list[Segment]]], list[Found]]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Translator:
    """A model and how it searches; a class because it holds the weights and counts lines.

    Args:
        transformer: in evaluation mode, on `device`.
        tokenizers: of the model.
        search: how translations are looked for.
        sampling: draw translations by chance instead of looking for the best.
        on_long: what becomes of a line of more than `search.max_length` pieces: `split` it,
            preferably after a sentence, and join the translations; or `cut` it.
        device: where the model is.
        dtype: arithmetic of the matrix products, where nothing is prepared.
        others: models over the same vocabulary, which translate together with `transformer`.
        scores: note how good translations are; without, greedy search is faster, and they are NaN.
        word_scores: note the pieces of translations and the log-probability of each.
        alignment: note which words of the line each word of its translations came from.
        shortlist: the pieces that translations are searched among; else the whole vocabulary.
        prepare: precision in which weights that are made ready for a CPU do the search; None to
            let the models as they are do it. They may lose what only training needs.
        fixed_steps: let a single model search in steps of fixed shapes, which a GPU replays,
            wherever nothing is asked for that needs others.
        workers: processes that translate side by side, once there is work for several; on a CPU.
        worker_threads: of each of several, inside an operation.
        name: what messages call the model, or the models that translate together.
        warns_of_shortfalls: warn of the first translation that is far too short for its line.
        stops_loops: end a translation that repeats the same few pieces, see `decoding.loops`.
        check: called before each step of a search; what it raises ends the search.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizers: TokenizerPair,
        *,
        search: SearchConfig,
        sampling: bool = False,
        on_long: str = "split",
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        others: Sequence[Transformer] = (),
        scores: bool = True,
        word_scores: bool = False,
        alignment: bool = False,
        shortlist: Shortlist | None = None,
        prepare: str | None = None,
        fixed_steps: bool = False,
        workers: int = 1,
        worker_threads: int = 1,
        name: str = "the model",
        warns_of_shortfalls: bool = False,
        stops_loops: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        if search.n_best > search.beam_size and not sampling:
            found = f"{search.n_best} and {search.beam_size}"
            raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {found}")
        transformers = [transformer, *others]
        models: list[Restrictable] = [*transformers]
        if prepare is not None:
            greedy = is_plainly_greedy(search, sampling=sampling, scores=scores)
            models = [PreparedTransformer(one, prepare, greedy=greedy) for one in transformers]
        target = tokenizers.target
        utf8 = Utf8.of(
            target.byte_values, target.vocab_size, banned_ids=target.banned_ids, device=device
        )
        fixed = None
        if fixed_steps and not (others or sampling or word_scores):
            fixed = fixed_search(
                transformer, target, search, utf8=utf8, scores=scores, device=device, dtype=dtype
            )
        most_pieces = min(map(_most_positions, transformers))
        self._search_batch = BatchSearch(
            models=models,
            tokenizers=tokenizers,
            settings=search,
            sampling=sampling,
            device=device,
            dtype=dtype,
            most_pieces=most_pieces,
            scores=scores,
            word_scores=word_scores,
            shortlist=shortlist,
            utf8=utf8,
            fixed=fixed,
            stops_loops=stops_loops,
            check=check,
        )
        self._name = name
        self._window_lines = search.buffer_size
        self._num_workers = workers
        self._worker_threads = worker_threads
        self._segmenter = Segmenter(
            tokenizers,
            search,
            beam_size=search.n_best if sampling else search.beam_size,
            on_long=on_long,
            longest=min(search.max_length, most_pieces),
        )
        aligner = None
        if alignment:
            aligner = Aligner(transformers, tokenizers, device, search.max_tokens)
        self._joined = partial(
            joined,
            target=tokenizers.target,
            n_best=search.n_best,
            word_scores=word_scores,
            are_samples=sampling,
            aligner=aligner,
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
        cpu_threads: int = 0,
        others: Sequence[Path] = (),
        scores: bool = True,
        word_scores: bool = False,
        alignment: bool = False,
        shortlist: Path | None = None,
        workers: int = 1,
    ) -> "Translator":
        """The translator of a model directory; without `search`, as the model's settings say.

        Of `workers` 0 means as many as suit the machine, and of `cpu_threads`, which each has, one.
        They are forked off after all is loaded; nothing may have started threads of its own then,
        which they would miss.

        Raises:
            ConfigError: there is no such device or precision, or workers are no use there.
            ModelError: a directory is wrong, or one of `others` has other tokenizers, or the file
                `shortlist` is missing or of another model.
            ResourceError: the machine lacks the device, or the means to start workers.
        """
        place = resolve_device(device)
        chosen = decoding_precision(precision, place)
        count = num_workers(workers, device=place.type, cpu_threads=cpu_threads)
        threads = cpu_threads or 1
        set_cpu_threads(1 if count > 1 else threads)
        where = torch.device(str(place))
        if chosen == "bf16":
            warn_of_slow_bf16(where)
        model = load_model(model_dir, where)
        fellows = [load_model(directory, where) for directory in others]
        for directory, fellow in zip(others, fellows, strict=True):
            if fellow.tokenizers.sha256 != model.tokenizers.sha256:
                told = f"{directory}: has other tokenizers than {model_dir}"
                raise ModelError(told, hint="train them with the same one: `tfm train --tokenizer`")
        is_prepared = place.type == "cpu"
        return Translator(
            model.transformer,
            model.tokenizers,
            search=search or model.config.search,
            sampling=sampling,
            on_long=on_long,
            device=where,
            dtype=torch.float32 if is_prepared else _DTYPES[chosen],
            others=[fellow.transformer for fellow in fellows],
            scores=scores,
            word_scores=word_scores,
            alignment=alignment,
            shortlist=None if shortlist is None else load_shortlist(shortlist, model.tokenizers),
            prepare=chosen if is_prepared else None,
            fixed_steps=place.type == "cuda",
            workers=count,
            worker_threads=threads,
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
        search = Workers(self._search_batch, most=self._num_workers, threads=self._worker_threads)

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


def _most_positions(transformer: Transformer) -> int:
    """Most pieces of a segment that a model can place, on either side."""
    if isinstance(transformer.target_positions, LearnedPositions):
        # </s> of the source and the start of the target need a position as well.
        return transformer.target_positions.embedding.num_embeddings - 1
    return sys.maxsize
