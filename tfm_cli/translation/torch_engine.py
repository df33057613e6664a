"""PyTorch as the search engine: on GPUs, and on CPUs without the native engine."""

# B segments, T target tokens, S source tokens, V vocabulary, D model width, M models,
# N target tokens of a batch without padding, n some of them

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import Batch, make_batch, pad_source
from tfm_cli.cuda.static_transformer import StaticTransformer
from tfm_cli.decoding.beam import beam_search
from tfm_cli.decoding.constraints import single_precision
from tfm_cli.decoding.greedy import greedy_search
from tfm_cli.decoding.interface import (
    DecodingOptions,
    StepModel,
    TargetVocabulary,
    refuse_non_finite,
)
from tfm_cli.decoding.restricted import RestrictedVocabulary
from tfm_cli.decoding.sampling import sample
from tfm_cli.decoding.static.search import StaticSearch
from tfm_cli.decoding.static.steps import StaticBeams, StaticGreedy
from tfm_cli.decoding.utf8 import Utf8
from tfm_cli.model.positions import LearnedPositions
from tfm_cli.model.precision import autocast, ran_out_of_memory, set_cpu_threads
from tfm_cli.model.transformer import Transformer
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.translation.search import (
    BatchHypotheses,
    Matrix,
    SearchOptions,
    alignment_layer,
    output_limits,
)
from tfm_cli.translation.segments import Segment

_LOGIT_ROWS = 1024  # of logits that are in memory at a time when pairs are scored


class TorchEngine:
    """One PyTorch model or an ensemble.

    Args:
        models: over the same vocabulary, in evaluation mode, on `device`.
        tokenizers: of the models.
        options: of the searches.
        device: the device of the models.
        dtype: precision of the matrix products.
        static_steps: search in steps of fixed shapes, which a GPU replays, with a single model and
            options that allow it.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        tokenizers: TokenizerPair,
        options: SearchOptions,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        static_steps: bool = False,
    ) -> None:
        self._models = models
        self._tokenizers = tokenizers
        self._options = options
        self._device = device
        self._dtype = dtype
        self.max_segment_tokens = min(map(_max_segment_tokens, models))
        self._vocabulary = target_vocabulary(tokenizers.target, device)
        self._static: StaticSearch[Any, Any] | None = None
        if static_steps and len(models) == 1 and not (options.sampling or options.word_scores):
            self._static = static_search(
                models[0], self._vocabulary, options.settings, scores=options.scores,
                device=device, dtype=dtype,
            )  # fmt: skip

    @property
    def device_name(self) -> str:
        """Return the name of the device."""
        return str(self._device)

    def begin_process(self) -> None:
        """Use one thread in each operation, as the parent process does."""
        set_cpu_threads(1)

    @torch.inference_mode()
    def search(self, batch: Sequence[Segment], beam_size: int) -> BatchHypotheses:
        """Return hypotheses of each segment, best first."""
        with _memory_error():
            restricted = self._restricted(batch)
            found = self._found(batch, restricted, beam_size)
            return [[restricted.restored(i, each) for each in some] for i, some in enumerate(found)]

    @torch.inference_mode()
    def attention(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[Matrix]:
        """Return the attention of each target token to each source token, (T, S) of each pair."""
        with _memory_error():
            batch = self._pairs(sources, targets)
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

    @torch.inference_mode()
    def score(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return the log-probabilities of each target's tokens and of the </s> after them."""
        with _memory_error(), autocast(self._device, self._dtype):
            batch = self._pairs(sources, targets)
            of_models = torch.stack([_forced(model, batch) for model in self._models])  # (M, N)
            log_probs = of_models.logsumexp(dim=0) - math.log(len(of_models))  # (N,)
        refuse_non_finite(log_probs)
        rows = iter(log_probs.tolist())
        return [[next(rows) for _ in range(len(target) + 1)] for target in targets]

    def _pairs(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Batch:
        """Return a batch of pairs of token ids, given without </s>, on the device."""
        return make_batch(
            sources,
            targets,
            start_id=self._tokenizers.target.start_id,
            eos_id=self._tokenizers.target.eos_id,
            source_eos_id=self._tokenizers.source.eos_id,
        ).to(self._device)

    def _restricted(self, batch: Sequence[Segment]) -> RestrictedVocabulary:
        """Return the vocabulary of a batch: the shortlists of its segments, or all tokens."""
        shortlist = self._options.shortlist
        if shortlist is None:
            return RestrictedVocabulary()
        target = self._tokenizers.target
        allowed = torch.zeros(len(batch), target.vocab_size, dtype=torch.bool)  # (B, V)
        for row, segment in enumerate(batch):
            ids = shortlist.allowed(segment.ids, segment.prefix, self._tokenizers)
            if ids is None:
                allowed[row] = True
            else:
                allowed[row, ids] = True
        special = [target.eos_id, target.start_id, *target.banned_ids]
        return RestrictedVocabulary.of(allowed.to(self._device), special)

    def _found(
        self, batch: Sequence[Segment], restricted: RestrictedVocabulary, beam_size: int
    ) -> BatchHypotheses:
        source, source_keep = pad_source([s.ids for s in batch], self._tokenizers.source.eos_id)
        source = source.to(self._device)
        source_keep = None if source_keep is None else source_keep.to(self._device)
        prefixes = [restricted.prefix(i, segment.prefix) for i, segment in enumerate(batch)]
        limits = output_limits(batch, self._options.settings, self.max_segment_tokens)
        has_usual_shape = (
            beam_size == self._options.settings.beam_size and restricted.shortlists is None
        )
        if self._static is not None and has_usual_shape and not any(prefixes):
            return self._static(source, source_keep, limits=limits)
        with autocast(self._device, self._dtype):
            return self._dynamic_search(
                batch, restricted, source, source_keep, prefixes, limits, beam_size=beam_size
            )

    def _dynamic_search(
        self,
        batch: Sequence[Segment],
        restricted: RestrictedVocabulary,
        source: Tensor,
        source_keep: Tensor | None,
        prefixes: list[list[int]],
        limits: list[int],
        *,
        beam_size: int,
    ) -> BatchHypotheses:
        """Return the hypotheses of a search whose steps may have any shape."""
        options = self._options
        model = restricted.model(self._models)
        if options.check is not None:
            model = _CheckedModel(model, options.check)
        vocabulary = restricted.vocabulary(self._vocabulary)
        is_greedy = needs_no_scores(
            options.settings, sampling=options.sampling, scores=options.scores
        )
        if is_greedy and not any(prefixes):
            greedy = greedy_search(
                model, source, source_keep, limits=limits, vocabulary=vocabulary,
                stops_loops=options.stops_loops,
            )  # fmt: skip
            return [[hypothesis] for hypothesis in greedy]
        decoding = DecodingOptions(
            settings=dataclasses.replace(options.settings, beam_size=beam_size),
            stops_loops=options.stops_loops,
            token_log_probs=options.word_scores,
        )
        if options.sampling:
            seeds = [segment.seed for segment in batch]
            drawn = sample(
                model, source, source_keep, limits=limits, seeds=seeds, vocabulary=vocabulary,
                options=decoding, prefixes=prefixes,
            )  # fmt: skip
            return [[hypothesis] for hypothesis in drawn]
        return beam_search(
            model, source, source_keep, limits=limits, vocabulary=vocabulary, options=decoding,
            prefixes=prefixes,
        )  # fmt: skip


def _forced(model: Transformer, batch: Batch) -> Tensor:
    """Return the log-probability (N,) of each real target token of a batch, </s> included."""
    memory = model.encode(batch.source, batch.source_keep)  # (B, S, D)
    hidden = model.decode(batch.target_in, memory, batch.source_keep)  # (B, T, D)
    hidden = hidden.flatten(0, 1)[batch.target_positions]  # (N, D)
    ids = batch.target_out.flatten()[batch.target_positions]  # (N,)
    found = []
    # The logits of all tokens would need far more memory than the rest of the pass.
    for start in range(0, len(ids), _LOGIT_ROWS):
        some = slice(start, start + _LOGIT_ROWS)
        logits = single_precision(model.logits(hidden[some]))  # (n, V)
        chosen = logits.gather(1, ids[some, None])[:, 0]  # (n,)
        found.append(chosen - logits.logsumexp(dim=1))
    return torch.cat(found)


def target_vocabulary(target: Tokenizer, device: torch.device) -> TargetVocabulary:
    """Return the special tokens of a target tokenizer, and its UTF-8 constraint on a device."""
    utf8 = Utf8.of(
        target.byte_values, target.vocab_size, banned_ids=target.banned_ids, device=device
    )
    return TargetVocabulary(target.start_id, target.eos_id, target.banned_ids, utf8)


def _max_segment_tokens(transformer: Transformer) -> int:
    """Return the maximum number of tokens of a source or a target that the positions allow."""
    if isinstance(transformer.target_positions, LearnedPositions):
        # </s> of the source and the start of the target need a position as well.
        return transformer.target_positions.embedding.num_embeddings - 1
    return sys.maxsize


@contextlib.contextmanager
def _memory_error() -> Iterator[None]:
    """Convert PyTorch's out-of-memory errors to MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        # Without the cause, whose frames hold the tensors of the failed search.
        raise MemoryError(str(error)) from None


@dataclass(frozen=True, slots=True)
class _CheckedModel:
    """A model that calls `check` before each step."""

    model: StepModel[Any]
    check: Callable[[], None]

    def start(self, source: Tensor, source_keep: Tensor | None) -> Any:
        """Encode the source with the model."""
        self.check()
        return self.model.start(source, source_keep)

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Return the model's logits of the next token of each row."""
        self.check()
        return self.model.step(tokens, state)


def static_search(
    transformer: Transformer,
    vocabulary: TargetVocabulary,
    settings: SearchConfig,
    *,
    scores: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> StaticSearch[Any, Any] | None:
    """Return a search in steps of fixed shapes; None for settings that it does not support.

    `scores` is as in `SearchOptions`; the other arguments are as for `TorchEngine`.
    """
    if _penalizes_repetition(settings):
        return None
    model = StaticTransformer(transformer, dtype)
    if needs_no_scores(settings, sampling=False, scores=scores):
        return StaticSearch(
            model,
            partial(StaticGreedy, vocabulary=vocabulary, device=device),
            beams=1,
            device=device,
        )
    beams = partial(StaticBeams, vocabulary=vocabulary, settings=settings, device=device)
    return StaticSearch(model, beams, beams=settings.beam_size, device=device)


def needs_no_scores(settings: SearchConfig, *, sampling: bool, scores: bool) -> bool:
    """Return True if search needs only the likeliest token at each step, without its score."""
    others = sampling or scores or _penalizes_repetition(settings)
    return settings.beam_size == 1 and not others


def _penalizes_repetition(settings: SearchConfig) -> bool:
    return bool(settings.no_repeat_ngram_size) or settings.repetition_penalty != 1
