"""Lines in, translations out, in order, whatever their number, length and content."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from tfm_cli.config import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.corpus.batching import token_batches
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.hypothesis import Hypothesis
from tfm_cli.decoding.sampling import sample
from tfm_cli.decoding.scoring import output_limit
from tfm_cli.device import arithmetic, resolve_device, resolve_precision, set_cpu_threads
from tfm_cli.engine.prepared import PreparedTransformer
from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model.transformer import Transformer
from tfm_cli.model_dir import load_model
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.alignment import Aligner
from tfm_cli.translation.language_tags import TagCheck
from tfm_cli.translation.scope import Restrictable, Scope
from tfm_cli.translation.segments import Segment, Segmenter
from tfm_cli.translation.shortlist import Shortlist, load_shortlist
from tfm_cli.translation.translation import Candidate, Translation

logger = logging.getLogger(__name__)


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
        alignment: note which words of the line each word of its translations came from.
        shortlist: the pieces that translations are searched among; else the whole vocabulary.
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
        alignment: bool = False,
        shortlist: Shortlist | None = None,
        prepare: bool = False,
    ) -> None:
        if search.n_best > search.beam_size:
            found = f"{search.n_best} and {search.beam_size}"
            raise ConfigError(f"`--n-best` must be at most `--beam-size`, got {found}")
        models: list[Restrictable] = [transformer, *others]
        if prepare and device.type == "cpu" and dtype == torch.float32:
            models = [PreparedTransformer(one) for one in (transformer, *others)]
        self._models = models
        self._shortlist = shortlist
        self._aligner: Aligner | None = None
        if alignment:
            budget = search.max_tokens
            self._aligner = Aligner([transformer, *others], tokenizers, device, budget)
        self._tokenizers = tokenizers
        self._search = search
        self._sampling = sampling
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
        longest = min(search.max_length, self._most_pieces)
        self._segmenter = Segmenter(tokenizers, longest, on_long, search.seed)

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
        alignment: bool = False,
        shortlist: Path | None = None,
    ) -> "Translator":
        """The translator of a model directory; without `search`, as the model's settings say.

        Raises:
            ModelError: a directory is wrong, or one of `others` has other tokenizers, or the file
                `shortlist` is missing or of another model.
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
            alignment=alignment,
            shortlist=None if shortlist is None else load_shortlist(shortlist, model.tokenizers),
            prepare=True,
        )

    def translate(self, lines: Iterable[str]) -> Iterator[Translation]:
        """One translation for each line, in order, read and translated a window at a time."""
        iterator = iter(lines)
        while window := list(islice(iterator, self._search.buffer_size)):
            yield from self.translate_window(window)

    @torch.inference_mode()
    def translate_window(
        self, lines: Sequence[str], prefixes: Sequence[str] = ()
    ) -> list[Translation]:
        """One translation for each line; all are sorted by length and translated together.

        Args:
            lines: the window.
            prefixes: what the translation of each line begins with; empty for none. A blank
                line's translation is blank all the same.

        Raises:
            DataError: a prefix has more pieces than a segment may have.
        """
        self._tag_check.check(lines, self._lines_before + 1)
        by_line = self._segmenter.segments(lines, prefixes, self._lines_before + 1)
        segments = [segment for parts in by_line for segment in parts]
        found: list[dict[int, list[Hypothesis]]] = [{} for _ in lines]  # by line, then by part
        for batch in self._batches(segments):
            for segment, hypotheses in zip(batch, self._search_batch(batch), strict=True):
                found[segment.line][segment.part] = hypotheses
        self._lines_before += len(lines)
        chosen = [self._chosen([parts[i] for i in range(len(parts))]) for parts in found]
        joined = [self._joined(line, ranks) for line, ranks in zip(lines, chosen, strict=True)]
        if self._aligner is None:
            return joined
        return self._aligner.aligned(joined, [[s.ids for s in parts] for parts in by_line], chosen)

    def _batches(self, segments: list[Segment]) -> Iterator[list[Segment]]:
        """Segments of about the same length together, longest first."""
        ordered = sorted(segments, key=lambda segment: -len(segment.ids))
        lengths = np.array([len(segment.ids) + 1 for segment in ordered], dtype=np.int64)
        budget = max(
            1, self._search.max_tokens // (1 if self._sampling else self._search.beam_size)
        )
        for batch in token_batches(lengths, lengths, max_tokens=budget):
            yield ordered[batch]

    def _search_batch(self, batch: list[Segment]) -> list[list[Hypothesis]]:
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

    def _search_whole(self, batch: list[Segment]) -> list[list[Hypothesis]]:
        search, target = self._search, self._tokenizers.target
        source, source_keep = pad_source([s.ids for s in batch], self._tokenizers.source.eos_id)
        source = source.to(self._device)
        source_keep = None if source_keep is None else source_keep.to(self._device)
        limits = [
            max(len(s.prefix), min(longest, self._most_pieces))
            for s in batch
            for longest in [output_limit(len(s.ids), search.max_length_factor)]
        ]
        scope, prefixes = Scope(), [s.prefix for s in batch]
        if self._shortlist is not None:
            sources = [s.ids for s in batch]
            allowed = self._shortlist.allowed(sources, prefixes, self._tokenizers)  # (B, V)
            special = [target.eos_id, target.start_id, *target.banned_ids]
            scope = Scope.of(allowed.to(self._device), special)
        model = scope.model(self._models)
        start_id, eos_id = scope.specials([target.start_id, target.eos_id])
        banned_ids = scope.specials(target.banned_ids)
        prefixes = [scope.prefix(i, prefix) for i, prefix in enumerate(prefixes)]
        with arithmetic(self._device, self._dtype):
            if self._sampling:
                drawn = sample(
                    model,
                    source,
                    source_keep,
                    limits=limits,
                    seeds=[s.seed for s in batch],
                    start_id=start_id,
                    eos_id=eos_id,
                    banned_ids=banned_ids,
                    length_penalty=search.length_penalty,
                    norm_kind=search.length_norm,
                    renormalize=search.renormalize,
                    temperature=search.temperature,
                    top_k=search.top_k,
                    top_p=search.top_p,
                    no_repeat_ngram_size=search.no_repeat_ngram_size,
                    repetition_penalty=search.repetition_penalty,
                    prefixes=prefixes,
                    piece_scores=self._word_scores,
                )
                return [[scope.restored(i, hypothesis)] for i, hypothesis in enumerate(drawn)]
            found = beam_search(
                model,
                source,
                source_keep,
                limits=limits,
                start_id=start_id,
                eos_id=eos_id,
                banned_ids=banned_ids,
                beam_size=search.beam_size,
                length_penalty=search.length_penalty,
                norm_kind=search.length_norm,
                early_stopping=search.early_stopping,
                renormalize=search.renormalize,
                no_repeat_ngram_size=search.no_repeat_ngram_size,
                repetition_penalty=search.repetition_penalty,
                prefixes=prefixes,
                piece_scores=self._word_scores,
            )
        return [[scope.restored(i, each) for each in some] for i, some in enumerate(found)]

    def _chosen(self, parts: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """By candidate, a hypothesis of each part of a line: the i-th best of each together."""
        return [
            [hypotheses[min(rank, len(hypotheses) - 1)] for hypotheses in parts]
            for rank in range(self._search.n_best)
        ]

    def _joined(self, line: str, ranks: list[list[Hypothesis]]) -> Translation:
        """The translation of a line from the hypotheses of its parts, by candidate."""
        target, candidates = self._tokenizers.target, []
        for chosen in ranks:
            texts = target.decode([list(h.ids) for h in chosen])
            # A blank line has no parts.
            score = sum((h.score for h in chosen), 0.0) / max(1, len(chosen))
            total = sum((h.log_probability for h in chosen), 0.0)
            pieces: list[str] = []
            if self._word_scores:
                ids = [i for h in chosen for i in (*h.ids, target.eos_id)]
                pieces = [target.pieces[i] for i in ids]
            scores = tuple(score for h in chosen for score in h.piece_scores)
            text = " ".join(filter(None, texts))
            candidates.append(Candidate(text, score, total, tuple(pieces), scores))
        num_pieces = sum(len(hypothesis.ids) + 1 for hypothesis in ranks[0])
        return Translation(line, tuple(candidates), num_pieces)
