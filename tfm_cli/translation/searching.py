"""How a batch of segments is searched: greedily, with a beam or by chance, in all its pieces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tfm_cli.arithmetic import arithmetic, ran_out_of_memory
from tfm_cli.config import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.corpus.random_key import random_key
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.fixed_beams import BeamRules, FixedBeams
from tfm_cli.decoding.fixed_greedy import FixedGreedy, GreedyRules
from tfm_cli.decoding.fixed_search import FixedSearch
from tfm_cli.decoding.greedy import greedy_search
from tfm_cli.decoding.hypothesis import Hypothesis, StepModel
from tfm_cli.decoding.n_best import different_texts
from tfm_cli.decoding.sampling import sample
from tfm_cli.decoding.scoring import output_limit
from tfm_cli.decoding.utf8 import Utf8
from tfm_cli.engine.fixed_transformer import FixedTransformer
from tfm_cli.errors import ResourceError
from tfm_cli.failpoint import reach
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer import Tokenizer
from tfm_cli.tokenizer_pair import TokenizerPair
from tfm_cli.translation.scope import Restrictable, Scope
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.shortlist import Shortlist

Found = list[list[Hypothesis]]  # of each segment of a batch


@dataclass(frozen=True, slots=True)
class BatchSearch:
    """What makes hypotheses of segments.

    Args:
        models: over the same vocabulary, which translate together, on `device`.
        tokenizers: of the models.
        settings: how translations are looked for.
        sampling: draw translations by chance instead of looking for the best.
        device: where the models are.
        dtype: arithmetic of the matrix products.
        most_pieces: of a segment, on either side.
        scores: whether somebody asks how good hypotheses are.
        word_scores: … and each piece of them.
        shortlist: the pieces that translations are searched among; else the whole vocabulary.
        utf8: the constraint on the byte pieces of the target vocabulary; None where it has none.
        fixed: searches by the same settings wherever nothing but them is asked for; None to do
            without.
        stops_loops: end a hypothesis that repeats the same few pieces; by greedy and beam search.
        check: called before each step; what it raises ends the search.
    """

    models: Sequence[Restrictable]
    tokenizers: TokenizerPair
    settings: SearchConfig
    sampling: bool
    device: torch.device
    dtype: torch.dtype
    most_pieces: int
    scores: bool
    word_scores: bool
    shortlist: Shortlist | None
    utf8: Utf8 | None = None
    fixed: FixedSearch[Any, Any] | None = None
    stops_loops: bool = False
    check: Callable[[], None] | None = None

    @torch.inference_mode()
    def __call__(self, batch: list[Segment]) -> Found:
        """Hypotheses of each segment, best first; a batch that memory cannot hold is halved.

        Of an n-best list they have different texts. Sampling draws them independently of each
        other, and they stand in the order in which they were drawn.

        Raises:
            ResourceError: memory cannot hold a single segment.
        """
        count = self.settings.n_best
        if not self.sampling or count == 1:
            return self._halved(batch)
        found = self._halved(
            [_of_draw(segment, draw) for segment in batch for draw in range(count)]
        )
        return [
            [hypothesis for (hypothesis,) in found[start : start + count]]
            for start in range(0, len(found), count)
        ]

    def _halved(self, batch: list[Segment]) -> Found:
        try:
            reach("translate_batch")
            return self._best(batch)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        # Only out here is the memory of the failed search free again.
        if len(batch) == 1:
            size = f"{len(batch[0].ids)} pieces with a beam of {self.settings.beam_size}"
            raise ResourceError(
                f"line {batch[0].number}: {self.device} has no memory for a segment of {size}",
                hint="lower `--beam-size` or `--max-length`, or use `--device cpu`",
            )
        half = len(batch) // 2
        return self._halved(batch[:half]) + self._halved(batch[half:])

    def _best(self, batch: list[Segment]) -> Found:
        """Hypotheses of each segment; of different texts where a list of them is wanted."""
        beam_size, count = self.settings.beam_size, self.settings.n_best
        if self.sampling or count == 1:
            return self._whole(batch, beam_size)

        def search(which: Sequence[int], width: int) -> Found:
            if width == beam_size:
                return self._whole(batch, beam_size)
            # As many rows at a time as before.
            together = max(1, len(batch) * beam_size // width)
            found: Found = []
            for start in range(0, len(which), together):
                some = [batch[segment] for segment in which[start : start + together]]
                try:
                    found += self._whole(some, width)
                except (RuntimeError, MemoryError) as error:
                    if not ran_out_of_memory(error):
                        raise
                    found += [[] for _ in some]
            return found

        return different_texts(
            search,
            lambda hypotheses: self.tokenizers.target.decode([list(h.ids) for h in hypotheses]),
            segments=len(batch), count=count, beam_size=beam_size,
        )  # fmt: skip

    def _whole(self, batch: list[Segment], beam_size: int) -> Found:
        scope = self._scope(batch)
        found = self._found(batch, scope, beam_size)
        return [[scope.restored(i, each) for each in some] for i, some in enumerate(found)]

    def _scope(self, batch: list[Segment]) -> Scope:
        if self.shortlist is None:
            return Scope()
        target = self.tokenizers.target
        allowed = self.shortlist.allowed(
            [segment.ids for segment in batch],
            [segment.prefix for segment in batch],
            self.tokenizers,
        )  # (B, V)
        special = [target.eos_id, target.start_id, *target.banned_ids]
        return Scope.of(allowed.to(self.device), special)

    def _found(self, batch: list[Segment], scope: Scope, beam_size: int) -> Found:
        source, source_keep = pad_source([s.ids for s in batch], self.tokenizers.source.eos_id)
        source = source.to(self.device)
        source_keep = None if source_keep is None else source_keep.to(self.device)
        prefixes = [scope.prefix(i, segment.prefix) for i, segment in enumerate(batch)]
        limits = [
            max(len(segment.prefix), min(longest, self.most_pieces))
            for segment in batch
            for longest in [output_limit(len(segment.ids), self.settings.max_length_factor)]
        ]
        has_usual_shape = beam_size == self.settings.beam_size and scope.lists is None
        if self.fixed is not None and has_usual_shape and not any(prefixes):
            return self.fixed(source, source_keep, limits=limits)
        with arithmetic(self.device, self.dtype):
            return self._stepwise(
                batch, scope, source, source_keep, prefixes, limits, beam_size=beam_size
            )

    def _stepwise(
        self,
        batch: list[Segment],
        scope: Scope,
        source: Tensor,
        source_keep: Tensor | None,
        prefixes: list[list[int]],
        limits: list[int],
        *,
        beam_size: int,
    ) -> Found:
        """What is found a step at a time, each of which may be of any shape."""
        settings, target = self.settings, self.tokenizers.target
        model = scope.model(self.models)
        if self.check is not None:
            model = _Checked(model, self.check)
        start_id, eos_id = scope.specials([target.start_id, target.eos_id])
        banned_ids = scope.specials(target.banned_ids)
        utf8 = scope.utf8(self.utf8)
        is_greedy = is_plainly_greedy(settings, sampling=self.sampling, scores=self.scores)
        if is_greedy and not any(prefixes):
            greedy = greedy_search(
                model, source, source_keep, limits=limits, start_id=start_id, eos_id=eos_id,
                banned_ids=banned_ids, utf8=utf8,
                stops_loops=self.stops_loops,
            )  # fmt: skip
            return [[hypothesis] for hypothesis in greedy]
        if self.sampling:
            drawn = sample(
                model,
                source,
                source_keep,
                limits=limits,
                seeds=[segment.seed for segment in batch],
                start_id=start_id,
                eos_id=eos_id,
                banned_ids=banned_ids,
                length_penalty=settings.length_penalty,
                norm_kind=settings.length_norm,
                renormalize=settings.renormalize,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                no_repeat_ngram_size=settings.no_repeat_ngram_size,
                repetition_penalty=settings.repetition_penalty,
                prefixes=prefixes,
                utf8=utf8,
                piece_scores=self.word_scores,
            )
            return [[hypothesis] for hypothesis in drawn]
        return beam_search(
            model,
            source,
            source_keep,
            limits=limits,
            start_id=start_id,
            eos_id=eos_id,
            banned_ids=banned_ids,
            beam_size=beam_size,
            length_penalty=settings.length_penalty,
            norm_kind=settings.length_norm,
            early_stopping=settings.early_stopping,
            renormalize=settings.renormalize,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            repetition_penalty=settings.repetition_penalty,
            prefixes=prefixes,
            utf8=utf8,
            piece_scores=self.word_scores,
            stops_loops=self.stops_loops,
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """A model that calls `check` before each step."""

    model: StepModel[Any]
    check: Callable[[], None]

    def start(self, source: Tensor, source_keep: Tensor | None) -> Any:
        """Read the source, as the model does."""
        self.check()
        return self.model.start(source, source_keep)

    def step(self, pieces: Tensor, state: Any) -> Tensor:
        """Return the model's logits of what follows the newest piece of each row."""
        self.check()
        return self.model.step(pieces, state)


def _of_draw(segment: Segment, draw: int) -> Segment:
    """The segment with the seed of one of its samples, the first of which has its own."""
    return replace(segment, seed=random_key("draw", segment.seed, draw)) if draw else segment


def fixed_search(
    transformer: Transformer,
    target: Tokenizer,
    settings: SearchConfig,
    *,
    utf8: Utf8 | None = None,
    scores: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> FixedSearch[Any, Any] | None:
    """A search in steps of fixed shapes; None where the settings ask for what it does not do.

    The other arguments are those of `BatchSearch`.
    """
    if _weighs_what_was_written(settings):
        return None
    model = FixedTransformer(transformer, dtype)
    if is_plainly_greedy(settings, sampling=False, scores=scores):
        greedy = GreedyRules(target.start_id, target.eos_id, target.banned_ids, utf8)
        return FixedSearch(
            model, partial(FixedGreedy, rules=greedy, device=device), beams=1, device=device
        )
    rules = BeamRules(
        target.start_id,
        target.eos_id,
        target.banned_ids,
        beam_size=settings.beam_size,
        length_penalty=settings.length_penalty,
        norm_kind=settings.length_norm,
        early_stopping=settings.early_stopping,
        renormalize=settings.renormalize,
        utf8=utf8,
    )
    rows_of = partial(FixedBeams, rules=rules, device=device)
    return FixedSearch(model, rows_of, beams=settings.beam_size, device=device)


def is_plainly_greedy(settings: SearchConfig, *, sampling: bool, scores: bool) -> bool:
    """Whether the likeliest pieces are all that is wanted."""
    others = sampling or scores or _weighs_what_was_written(settings)
    return settings.beam_size == 1 and not others


def _weighs_what_was_written(settings: SearchConfig) -> bool:
    return bool(settings.no_repeat_ngram_size) or settings.repetition_penalty != 1
