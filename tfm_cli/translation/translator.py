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
from tfm_cli.decoding.hypothesis import Hypothesis, StepModel
from tfm_cli.decoding.sampling import sample
from tfm_cli.decoding.scoring import output_limit
from tfm_cli.device import arithmetic, resolve_device, resolve_precision, set_cpu_threads
from tfm_cli.engine.prepared import PreparedTransformer
from tfm_cli.errors import ConfigError, ResourceError
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_dir import load_model
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.splitting import best_cut

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One translation of a line."""

    text: str
    score: float  # length-normalised log-probability; 0 for a blank line
    log_probability: float


@dataclass(frozen=True, slots=True)
class Translation:
    """What became of one line."""

    source: str
    candidates: tuple[Candidate, ...]  # best first, at least one
    num_pieces: int  # pieces written for the best one, </s> included

    @property
    def text(self) -> str:
        """The best translation; empty for a blank line."""
        return self.candidates[0].text


@dataclass(frozen=True, slots=True)
class _Segment:
    """A line, or a part of an over-long one."""

    line: int  # index within the window
    part: int  # index within the line
    ids: list[int]
    seed: int


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
        prepared: what searches instead of `transformer`, whose weights it has.
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
        prepared: PreparedTransformer | None = None,
    ) -> None:
        if search.n_best > search.beam_size:
            found = f"{search.n_best} and {search.beam_size}"
            raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {found}")
        self._model: StepModel[Any] = prepared or transformer
        self._tokenizers = tokenizers
        self._search = search
        self._sampling = sampling
        self._on_long = on_long
        self._device = device
        self._dtype = dtype
        self._lines_before = 0
        self._tags_told: set[str] = set()  # "" for a line without one
        self._most_pieces = sys.maxsize  # in a segment, on either side
        if isinstance(transformer.target_positions, LearnedPositions):
            # </s> of the source and the start of the target need a position as well.
            self._most_pieces = transformer.target_positions.embedding.num_embeddings - 1

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
    ) -> "Translator":
        """The translator of a model directory; without `search`, as the model's settings say."""
        place = resolve_device(device)
        set_cpu_threads(cpu_threads)
        model = load_model(model_dir, place)
        dtype = resolve_precision(precision, place)
        is_plain = place.type == "cpu" and dtype == torch.float32
        return Translator(
            model.transformer,
            model.tokenizers,
            search=search or model.config.search,
            sampling=sampling,
            on_long=on_long,
            device=place,
            dtype=dtype,
            prepared=PreparedTransformer(model.transformer) if is_plain else None,
        )

    def translate(self, lines: Iterable[str]) -> Iterator[Translation]:
        """One translation for each line, in order, read and translated a window at a time."""
        iterator = iter(lines)
        while window := list(islice(iterator, self._search.buffer_size)):
            yield from self.translate_window(window)

    @torch.inference_mode()
    def translate_window(self, lines: Sequence[str]) -> list[Translation]:
        """One translation for each line; all are sorted by length and translated together."""
        self._check_language_tags(lines)
        encoded = self._tokenizers.source.encode(lines)
        segments = [
            _Segment(line, part, part_ids, random_key("sample", self._search.seed, number, part))
            for line, ids in enumerate(encoded)
            for number in [self._lines_before + line + 1]
            for part, part_ids in enumerate(self._parts(ids, lines[line], number))
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

    def _check_language_tags(self, lines: Sequence[str]) -> None:
        """Warn, once for each, of tags that a multilingual model does not know or does not find."""
        tokenizer = self._tokenizers.source
        known = tokenizer.language_tags
        listed = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
        for number, line in enumerate(lines, self._lines_before + 1):
            tag = tokenizer.language_tag(line)
            if tag in known or tag in self._tags_told or not line.strip():
                continue
            if tag:
                told = f"the model knows {listed}" if known else "the model has one target language"
                logger.warning("line %d: `%s` is no target language: %s", number, tag, told)
            elif known:
                told = "line %d: does not say its target language, such as %s at its start"
                logger.warning(told, number, known[0])
            self._tags_told.add(tag)

    def _parts(self, ids: list[int], line: str, line_number: int) -> list[list[int]]:
        """The segments of a line: none for a blank one, several for an over-long one."""
        longest = min(self._search.max_length, self._most_pieces)
        if not ids or not line.strip():
            return []
        if len(ids) <= longest:
            return [ids]
        what = "split" if self._on_long == "split" else "cut"
        found = f"line {line_number} has {len(ids)} pieces, more than {longest}"
        logger.warning("%s: %s", found, what)
        if self._on_long == "cut":
            return [ids[:longest]]
        pieces = self._tokenizers.source.encode_pieces([line])[0]
        # Each part must say its target language, as the line does.
        tag = ids[:1] if self._tokenizers.source.language_tag(line) else []
        room, start, parts = longest - len(tag), len(tag), []
        while len(ids) - start > room:
            end = start + best_cut(pieces[start : start + room + 1])
            parts.append(tag + ids[start:end])
            start = end
        return [*parts, tag + ids[start:]]

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
            min(output_limit(len(s.ids), search.max_length_factor), self._most_pieces)
            for s in batch
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
            )

    def _joined(self, line: str, parts: list[list[Hypothesis]]) -> Translation:
        """The translation of a line from its parts' hypotheses, the i-th best of each together."""
        if not parts:
            return Translation(line, (Candidate("", 0.0, 0.0),) * self._search.n_best, 0)
        candidates = []
        for rank in range(self._search.n_best):
            chosen = [hypotheses[min(rank, len(hypotheses) - 1)] for hypotheses in parts]
            texts = self._tokenizers.target.decode([list(h.ids) for h in chosen])
            score = sum(h.score for h in chosen) / len(chosen)
            total = sum(h.log_probability for h in chosen)
            candidates.append(Candidate(" ".join(filter(None, texts)), score, total))
        num_pieces = sum(len(hypotheses[0].ids) + 1 for hypotheses in parts)
        return Translation(line, tuple(candidates), num_pieces)
