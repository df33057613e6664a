"""Lines in, translations out, in order, whatever their number, length and content."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfm_cli.config import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.corpus.batching import random_key, token_batches
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
from tfm_cli.translation.language_tags import TagCheck
from tfm_cli.translation.splitting import split
from tfm_cli.translation.translation import Candidate, Translation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A line, or a part of an over-long one."""

    line: int  # index within the window
    part: int  # index within the line
    ids: list[int]
    seed: int
    prefix: list[int]  # what the translation begins with


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
        self._on_long = on_long
        self._device = device
        self._dtype = dtype
        self._word_scores = word_scores
        self._lines_before = 0
        self._tag_check = TagCheck(tokenizers.source)
        self._most_pieces = sys.maxsize  # in a segment, on either side
        for one in (transformer, *others):
            if isinstance(one.target_positions, LearnedPositions):
                # </s> of the source and the start of the target need a position as well.
                most = one.target_positions.embedding.num_embeddings - 1
                self._most_pieces = min(most, self._most_pieces)
        self._longest = min(search.max_length, self._most_pieces)

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
    ) -> "Translator":
        """The translator of a model directory; without `search`, as the model's settings say.

        Raises:
            ModelError: a directory is wrong, or one of `others` has other tokenizers.
        """
        place = resolve_device(device)
        set_cpu_threads(cpu_threads)
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
        )

    def translate(self, lines: Iterable[str]) -> Iterator[Translation]:
        """One translation for each line, in order, read and translated a window at a time."""
        iterator = iter(lines)
        while window := list(islice(iterator, self._search.buffer_size)):
            yield from self.translate_window(window)

    @torch.inference_mode()
    def translate_window(
        self,
        lines: Sequence[str],
        prefixes: Sequence[str] = (),
        *,
        lines_before: int | None = None,
    ) -> list[Translation]:
        """One translation for each line; all are sorted by length and translated together.

        Args:
            lines: the window.
            prefixes: what the translation of each line begins with; empty for none. A blank
                line's translation is blank all the same.
            lines_before: of the input; those that were translated so far, unless it is told.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
        """
        if lines_before is not None:
            self._lines_before = lines_before
        self._tag_check.check(lines, self._lines_before + 1)
        prefix_ids = self._encoded_prefixes(prefixes) if any(prefixes) else [[]] * len(lines)
        encoded = self._tokenizers.source.encode(lines)
        segments = [
            _Segment(line, part, part_ids, seed, [] if part else prefix_ids[line])
            for line, ids in enumerate(encoded)
            for number in [self._lines_before + line + 1]
            for part, part_ids in enumerate(self._parts(ids, lines[line], number))
            for seed in [random_key("sample", self._search.seed, number, part)]
        ]
        found: list[dict[int, list[Hypothesis]]] = [{} for _ in lines]  # by line, then by part
        for batch in self._batches(segments):
            for segment, hypotheses in zip(batch, self._search_batch(batch), strict=True):
                found[segment.line][segment.part] = hypotheses
        self._lines_before += len(lines)
        return [
            self._joined(line, [parts[i] for i in range(len(parts))])
            for line, parts in zip(lines, found, strict=True)
        ]

    def _encoded_prefixes(self, prefixes: Sequence[str]) -> list[list[int]]:
        target = self._tokenizers.target
        encoded = target.encode(prefixes)
        for number, ids in enumerate(encoded, self._lines_before + 1):
            if len(ids) > self._longest:
                found = f"{len(ids)} pieces, more than {self._longest}"
                raise DataError(f"line {number}: the target prefix has {found}")
            if target.unk_id in ids:
                logger.warning("line %d: the target prefix has unknown characters", number)
        return encoded

    def _parts(self, ids: list[int], line: str, line_number: int) -> list[list[int]]:
        """The segments of a line: none for a blank one, several for an over-long one."""
        longest = self._longest
        if not ids or not line.strip():
            return []
        if len(ids) <= longest:
            return [ids]
        what = "split" if self._on_long == "split" else "cut"
        found = f"line {line_number} has {len(ids)} pieces, more than {longest}"
        logger.warning("%s: %s", found, what)
        if self._on_long == "cut":
            return [ids[:longest]]
        tokenizer = self._tokenizers.source
        pieces = tokenizer.encode_pieces([line])[0]
        return split(ids, pieces, longest, tag=1 if tokenizer.language_tag(line) else 0)

    def _batches(self, segments: list[_Segment]) -> Iterator[list[_Segment]]:
        """Segments of about the same length together, longest first."""
        ordered = sorted(segments, key=lambda segment: -len(segment.ids))
        lengths = np.array([len(segment.ids) + 1 for segment in ordered], dtype=np.int64)
        budget = max(
            1, self._search.max_tokens // (1 if self._sampling else self._search.beam_size)
        )
        for batch in token_batches(lengths, lengths, max_tokens=budget):
            yield ordered[batch]

    def _search_batch(self, batch: list[_Segment]) -> list[list[Hypothesis]]:
        """Hypotheses of each segment; a batch that memory cannot hold is halved."""
        with contextlib.suppress(torch.OutOfMemoryError):
            return self._search_whole(batch)
        # Only out here is the memory of the failed search free again.
        if len(batch) == 1:
            place = f"line {self._lines_before + batch[0].line + 1}"
            size = f"{len(batch[0].ids)} pieces with a beam of {self._search.beam_size}"
            raise ResourceError(
                f"{place}: {self._device} has no memory for a segment of {size}",
                hint="lower `--beam-size` or `--max-length`, or use `--device cpu`",
            )
        half = len(batch) // 2
        return self._search_batch(batch[:half]) + self._search_batch(batch[half:])

    def _search_whole(self, batch: list[_Segment]) -> list[list[Hypothesis]]:
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

    def _joined(self, line: str, parts: list[list[Hypothesis]]) -> Translation:
        """The translation of a line from its parts' hypotheses, the i-th best of each together."""
        if not parts:
            return Translation(line, (Candidate("", 0.0, 0.0),) * self._search.n_best, 0)
        target, candidates = self._tokenizers.target, []
        for rank in range(self._search.n_best):
            chosen = [hypotheses[min(rank, len(hypotheses) - 1)] for hypotheses in parts]
            texts = target.decode([list(h.ids) for h in chosen])
            score = sum(h.score for h in chosen) / len(chosen)
            total = sum(h.log_probability for h in chosen)
            pieces: list[str] = []
            if self._word_scores:
                ids = [i for h in chosen for i in (*h.ids, target.eos_id)]
                pieces = [target.pieces[i] for i in ids]
            scores = tuple(score for h in chosen for score in h.piece_scores)
            text = " ".join(filter(None, texts))
            candidates.append(Candidate(text, score, total, tuple(pieces), scores))
        num_pieces = sum(len(hypotheses[0].ids) + 1 for hypotheses in parts)
        return Translation(line, tuple(candidates), num_pieces)
