"""Lines in, translations out, in order, whatever their number, length and content."""

import contextlib
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tfm_cli.config import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.ensemble import Ensemble
from tfm_cli.decoding.hypothesis import Hypothesis, StepModel
from tfm_cli.decoding.sampling import sample
from tfm_cli.decoding.scoring import output_limit
from tfm_cli.device import arithmetic, resolve_device, resolve_precision, set_cpu_threads
from tfm_cli.engine.prepared import PreparedTransformer
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_dir import load_model
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.joining import joined
from tfm_cli.translation.segments import Segment, Segmenter
from tfm_cli.translation.translation import Translation
from tfm_cli.translation.window import Lines
from tfm_cli.translation.workers import Group, Workers, num_workers

_Found = list[list[Hypothesis]]  # of each segment of a batch


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
        dtype: arithmetic of the matrix products.
        others: models over the same vocabulary, which translate together with `transformer`.
        word_scores: note the pieces of translations and the log-probability of each.
        prepare: let the same weights in a faster arrangement search, where there is one.
        workers: processes that translate side by side, once there is work for several; on a CPU.
        worker_threads: of each of several, inside an operation.
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
        word_scores: bool = False,
        prepare: bool = False,
        workers: int = 1,
        worker_threads: int = 1,
    ) -> None:
        if search.n_best > search.beam_size:
            found = f"{search.n_best} and {search.beam_size}"
            raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {found}")
        # A state is a model's own business, and each gets back what it gave.
        models: list[StepModel[Any]] = [transformer, *others]
        if prepare and device.type == "cpu" and dtype == torch.float32:
            models = [PreparedTransformer(one) for one in (transformer, *others)]
        self._model = Ensemble(models) if others else models[0]
        self._tokenizers = tokenizers
        self._search = search
        self._sampling = sampling
        self._device = device
        self._dtype = dtype
        self._word_scores = word_scores
        self._num_workers = workers
        self._worker_threads = worker_threads
        self._most_pieces = sys.maxsize  # in a segment, on either side
        for one in (transformer, *others):
            if isinstance(one.target_positions, LearnedPositions):
                # </s> of the source and the start of the target need a position as well.
                most = one.target_positions.embedding.num_embeddings - 1
                self._most_pieces = min(most, self._most_pieces)
        self._segmenter = Segmenter(
            tokenizers,
            search,
            beam_size=1 if sampling else search.beam_size,
            on_long=on_long,
            longest=min(search.max_length, self._most_pieces),
        )

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
        word_scores: bool = False,
        workers: int = 1,
    ) -> "Translator":
        """The translator of a model directory; without `search`, as the model's settings say.

        Of `workers` 0 means as many as suit the machine, and of `cpu_threads`, which each has, one.
        They are forked off after all is loaded; nothing may have started threads of its own then,
        which they would miss.

        Raises:
            ConfigError: there is no such device or precision, or workers are no use there.
            ModelError: a directory is wrong, or one of `others` has other tokenizers.
            ResourceError: the machine lacks the device, or the means to start workers.
        """
        place = resolve_device(device)
        count = num_workers(workers, device=place.type, cpu_threads=cpu_threads)
        threads = cpu_threads or 1
        set_cpu_threads(1 if count > 1 else threads)
        model = load_model(model_dir, place)
        fellows = []
        for directory in others:
            fellow = load_model(directory, place)
            if fellow.tokenizers.sha256 != model.tokenizers.sha256:
                told = f"{directory}: has other tokenizers than {model_dir}"
                raise ModelError(told, hint="train them with the same one: `tfm train --tokenizer`")
            fellows.append(fellow.transformer)
        return Translator(
            model.transformer,
            model.tokenizers,
            search=search or model.config.search,
            sampling=sampling,
            on_long=on_long,
            device=place,
            dtype=resolve_precision(precision, place),
            others=fellows,
            word_scores=word_scores,
            prepare=True,
            workers=count,
            worker_threads=threads,
        )

    def translate(self, lines: Iterable[str]) -> Iterator[Translation]:
        """One translation for each line, in order, read and translated a window at a time."""
        iterator, size = iter(lines), self._search.buffer_size
        windows = iter(lambda: list(islice(iterator, size)), [])
        for translations in self.translate_windows(map(Lines, windows)):
            yield from translations

    def translate_window(
        self, lines: Sequence[str], prefixes: Sequence[str] = ()
    ) -> list[Translation]:
        """One translation for each line; all are sorted by length and translated together, here.

        Args:
            lines: the window.
            prefixes: what the translation of each line begins with; empty for none. A blank
                line's translation is blank all the same.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
        """
        batches = self._segmenter.batches(Lines(lines, prefixes))
        return self._joined(lines, batches, [self._search_batch(one) for one in batches])

    def translate_windows(
        self, windows: Iterable[Lines]
    ) -> Generator[list[Translation], None, None]:
        """What `translate_window` says of each window; batches are shared out among the workers.

        Several workers translate the next window before the last one's translations are given
        out, and end with this generator. A window without lines has no translations; they are all
        given out before the window behind it is asked for.

        Raises:
            DataError: as `windows` does, or a prefix is too long; what was before is given out.
        """
        under_way: deque[tuple[Sequence[str], list[list[Segment]], Group[_Found]]] = deque()
        search = Workers(self._search_batch, most=self._num_workers, threads=self._worker_threads)

        def oldest(most_left: int) -> Iterator[list[Translation]]:
            while under_way and (len(under_way) > most_left or not under_way[0][2].missing):
                lines, batches, group = under_way.popleft()
                yield self._joined(lines, batches, search.finish(group))

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

    @torch.inference_mode()
    def _search_batch(self, batch: list[Segment]) -> _Found:
        """Hypotheses of each segment; a batch that memory cannot hold is halved."""
        with contextlib.suppress(torch.OutOfMemoryError):
            return self._search_whole(batch)
        # Only out here is the memory of the failed search free again.
        if len(batch) == 1:
            place = f"line {batch[0].number}"
            size = f"{len(batch[0].ids)} pieces with a beam of {self._search.beam_size}"
            raise ResourceError(
                f"{place}: {self._device} has no memory for a segment of {size}",
                hint="lower `--beam-size` or `--max-length`, or use `--device cpu`",
            )
        half = len(batch) // 2
        return self._search_batch(batch[:half]) + self._search_batch(batch[half:])

    def _search_whole(self, batch: list[Segment]) -> _Found:
        search, target = self._search, self._tokenizers.target
        source, source_keep = pad_source([s.ids for s in batch], self._tokenizers.source.eos_id)
        source = source.to(self._device)
        source_keep = None if source_keep is None else source_keep.to(self._device)
        limits = [
            max(len(s.prefix), min(longest, self._most_pieces))
            for s in batch
            for longest in [output_limit(len(s.ids), search.max_length_factor)]
        ]
        with arithmetic(self._device, self._dtype):
            if self._sampling:
                drawn = sample(
                    self._model,
                    source,
                    source_keep,
                    limits=limits,
                    seeds=[s.seed for s in batch],
                    start_id=target.start_id,
                    eos_id=target.eos_id,
                    banned_ids=target.banned_ids,
                    length_penalty=search.length_penalty,
                    norm_kind=search.length_norm,
                    renormalize=search.renormalize,
                    temperature=search.temperature,
                    top_k=search.top_k,
                    top_p=search.top_p,
                    no_repeat_ngram_size=search.no_repeat_ngram_size,
                    repetition_penalty=search.repetition_penalty,
                    prefixes=[s.prefix for s in batch],
                    piece_scores=self._word_scores,
                )
                return [[hypothesis] for hypothesis in drawn]
            return beam_search(
                self._model,
                source,
                source_keep,
                limits=limits,
                start_id=target.start_id,
                eos_id=target.eos_id,
                banned_ids=target.banned_ids,
                beam_size=search.beam_size,
                length_penalty=search.length_penalty,
                norm_kind=search.length_norm,
                early_stopping=search.early_stopping,
                renormalize=search.renormalize,
                no_repeat_ngram_size=search.no_repeat_ngram_size,
                repetition_penalty=search.repetition_penalty,
                prefixes=[s.prefix for s in batch],
                piece_scores=self._word_scores,
            )

    def _joined(
        self, lines: Sequence[str], batches: list[list[Segment]], found: Iterable[_Found]
    ) -> list[Translation]:
        return joined(
            lines, batches, found, self._tokenizers.target,
            n_best=self._search.n_best, word_scores=self._word_scores,
        )  # fmt: skip
