"""PyTorch as the search engine: on GPUs, and on CPUs where the native engine is not."""

# B segments, T target pieces, S source pieces, V vocabulary

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import make_batch, pad_source
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.greedy import greedy_search
from tfm_cli.decoding.interface import StepModel, refuse_non_finite
from tfm_cli.decoding.restricted import Scope
from tfm_cli.decoding.sampling import sample
from tfm_cli.decoding.static.beam import BeamRules, FixedBeams
from tfm_cli.decoding.static.greedy import FixedGreedy, GreedyRules
from tfm_cli.decoding.static.search import FixedSearch
from tfm_cli.decoding.utf8 import Utf8
from tfm_cli.engine.cuda.transformer import FixedTransformer
from tfm_cli.model.arithmetic import arithmetic, ran_out_of_memory, set_cpu_threads
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.search_engine import (
    Found,
    Matrix,
    SearchOptions,
    alignment_layer,
    output_limits,
)
from tfm_cli.translation.segments import Segment


class TorchEngine:
    """Models in PyTorch that translate together; a class because it holds what searches share.

    Args:
        models: over the same vocabulary, in evaluation mode, on `device`.
        tokenizers: of the models.
        options: how they are searched.
        device: where the models are.
        dtype: arithmetic of the matrix products.
        fixed_steps: let a single model search in steps of fixed shapes, which a GPU replays,
            wherever nothing is asked for that needs others.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        tokenizers: TokenizerPair,
        options: SearchOptions,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        fixed_steps: bool = False,
    ) -> None:
        self._models = models
        self._tokenizers = tokenizers
        self._options = options
        self._device = device
        self._dtype = dtype
        self.most_pieces = min(map(_most_positions, models))
        target = tokenizers.target
        self._utf8 = Utf8.of(
            target.byte_values, target.vocab_size, banned_ids=target.banned_ids, device=device
        )
        self._fixed: FixedSearch[Any, Any] | None = None
        if fixed_steps and len(models) == 1 and not (options.sampling or options.word_scores):
            self._fixed = fixed_search(
                models[0], target, options.settings, utf8=self._utf8, scores=options.scores,
                device=device, dtype=dtype,
            )  # fmt: skip

    @property
    def place(self) -> str:
        """The device."""
        return str(self._device)

    def begin_process(self) -> None:
        """Let operations have one thread, as it is with the process that forked."""
        set_cpu_threads(1)

    @torch.inference_mode()
    def search(self, batch: Sequence[Segment], beam_size: int) -> Found:
        """Return hypotheses of each segment, best first."""
        with _memory_error():
            scope = self._scope(batch)
            found = self._found(batch, scope, beam_size)
            return [[scope.restored(i, each) for each in some] for i, some in enumerate(found)]

    @torch.inference_mode()
    def attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[Matrix]:
        """Return how much each target piece of each pair came from each source piece, (T, S)."""
        with _memory_error():
            batch = make_batch(
                sources,
                targets,
                start_id=self._tokenizers.target.start_id,
                eos_id=self._tokenizers.target.eos_id,
                source_eos_id=self._tokenizers.source.eos_id,
            ).to(self._device)
            found = [
                model.cross_attention_weights(
                    batch.source, batch.source_keep, batch.target_in,
                    layer=alignment_layer(len(model.decoder_layers)),
                )
                for model in self._models
            ]  # fmt: skip
            weights = torch.stack(found).mean(dim=0).float().cpu()[:, :-1, :-1]  # (B, T, S)
        rows = [
            weights[row, : len(target), : len(source)]
            for row, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]
        for row in rows:
            refuse_non_finite(row)
        return [row.tolist() for row in rows]

    def _scope(self, batch: Sequence[Segment]) -> Scope:
        shortlist = self._options.shortlist
        if shortlist is None:
            return Scope()
        target = self._tokenizers.target
        allowed = torch.zeros(len(batch), target.vocab_size, dtype=torch.bool)  # (B, V)
        for row, segment in enumerate(batch):
            ids = shortlist.allowed(segment.ids, segment.prefix, self._tokenizers)
            if ids is None:
                allowed[row] = True
            else:
                allowed[row, ids] = True
        special = [target.eos_id, target.start_id, *target.banned_ids]
        return Scope.of(allowed.to(self._device), special)

    def _found(self, batch: Sequence[Segment], scope: Scope, beam_size: int) -> Found:
        source, source_keep = pad_source([s.ids for s in batch], self._tokenizers.source.eos_id)
        source = source.to(self._device)
        source_keep = None if source_keep is None else source_keep.to(self._device)
        prefixes = [scope.prefix(i, segment.prefix) for i, segment in enumerate(batch)]
        limits = output_limits(batch, self._options.settings, self.most_pieces)
        has_usual_shape = beam_size == self._options.settings.beam_size and scope.lists is None
        if self._fixed is not None and has_usual_shape and not any(prefixes):
            return self._fixed(source, source_keep, limits=limits)
        with arithmetic(self._device, self._dtype):
            return self._stepwise(
                batch, scope, source, source_keep, prefixes, limits, beam_size=beam_size
            )

    def _stepwise(
        self,
        batch: Sequence[Segment],
        scope: Scope,
        source: Tensor,
        source_keep: Tensor | None,
        prefixes: list[list[int]],
        limits: list[int],
        *,
        beam_size: int,
    ) -> Found:
        """What is found a step at a time, each of which may be of any shape."""
        options, target = self._options, self._tokenizers.target
        settings = options.settings
        model = scope.model(self._models)
        if options.check is not None:
            model = _Checked(model, options.check)
        start_id, eos_id = scope.specials([target.start_id, target.eos_id])
        banned_ids = scope.specials(target.banned_ids)
        utf8 = scope.utf8(self._utf8)
        is_greedy = is_plainly_greedy(settings, sampling=options.sampling, scores=options.scores)
        if is_greedy and not any(prefixes):
            greedy = greedy_search(
                model, source, source_keep, limits=limits, start_id=start_id, eos_id=eos_id,
                banned_ids=banned_ids, utf8=utf8,
                stops_loops=options.stops_loops,
            )  # fmt: skip
            return [[hypothesis] for hypothesis in greedy]
        if options.sampling:
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
                piece_scores=options.word_scores,
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
            piece_scores=options.word_scores,
            stops_loops=options.stops_loops,
        )


def _most_positions(transformer: Transformer) -> int:
    """Return the most pieces of a segment that a model can place, on either side."""
    if isinstance(transformer.target_positions, LearnedPositions):
        # </s> of the source and the start of the target need a position as well.
        return transformer.target_positions.embedding.num_embeddings - 1
    return sys.maxsize


@contextlib.contextmanager
def _memory_error() -> Iterator[None]:
    """Raise a MemoryError where PyTorch has another name for it."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        # What the failed search held is free once this one is dealt with.
        raise MemoryError(str(error)) from None


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

    The other arguments are those of `TorchEngine`.
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
