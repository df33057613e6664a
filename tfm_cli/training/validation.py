"""Validation: loss and scores of the current weights on the validation text."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from tfm_cli.config.settings import RunConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.errors import OutOfTime, SignalReceived
from tfm_cli.evaluation.bleu_tokenizer import DEFAULT_TOKENIZER
from tfm_cli.evaluation.scores import MetricOptions, Score, corpus_scores
from tfm_cli.model.precision import autocast, precision_name
from tfm_cli.model.transformer import Transformer
from tfm_cli.native import library
from tfm_cli.parallel import Parallel
from tfm_cli.text.characters import is_blank
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training.parallel_model import batch_loss
from tfm_cli.translation.search import BatchHypotheses, SearchOptions
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)

# A function that returns a translator with the weights that the model has at that moment.
TranslatorFactory = Callable[[], AbstractContextManager[Translator]]


def uses_native_engine(device: torch.device) -> bool:
    """Return True if a model on this device is validated by the native engine."""
    return device.type == "cpu" and library.available()


def translator_factory(
    model: Transformer,
    tokenizers: TokenizerPair,
    config: RunConfig,
    options: SearchOptions,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> TranslatorFactory:
    """Return a function that makes a translator of the weights at the time of its call.

    On a CPU the native engine holds a packed copy of them until the translator is closed.

    Args:
        model: the model, on `device`.
        tokenizers: the tokenizers of the model.
        config: the settings of the run.
        options: the options of the search.
        device: the device of the model.
        dtype: precision of the matrix products.
    """
    if not uses_native_engine(device):
        from tfm_cli.translation.torch_engine import TorchEngine

        engine = TorchEngine([model], tokenizers, options, device=device, dtype=dtype)
        return lambda: contextlib.nullcontext(Translator(engine, tokenizers, options))

    from tfm_cli.native.model import NativeModel
    from tfm_cli.translation.native_engine import NativeEngine

    is_first = iter([True])

    @contextlib.contextmanager
    def packed() -> Iterator[Translator]:
        began = time.monotonic()
        copy = NativeModel.from_weights(
            model.state_dict(), config, tokenizers, precision=precision_name(dtype)
        )
        seconds = time.monotonic() - began
        engine = NativeEngine([copy], options)
        try:
            yield Translator(engine, tokenizers, options)
            if next(is_first, False):
                logger.info(
                    "validation: weights packed in %.1f s, translated in %.1f s, with %d MiB more",
                    seconds, time.monotonic() - began - seconds, engine.num_bytes >> 20,
                )  # fmt: skip
        finally:
            copy.close()

    return packed


class Sample(NamedTuple):
    """A line of the validation text with its translation by the current weights."""

    source: str
    reference: str
    translation: str


@dataclass(frozen=True, slots=True)
class Validation:
    """The results of a validation."""

    values: dict[str, float]  # by metric, in the order of the settings
    scores: tuple[Score, ...]  # of sacreBLEU, with their signatures
    samples: tuple[Sample, ...] = ()  # of the same lines at each validation


@dataclass(frozen=True, slots=True)
class ValidationText:
    """The validation text, as tensors for the loss and as lines for the scores."""

    batches: Sequence[Batch]
    source_lines: Sequence[str]
    references: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """The settings of a validation.

    Args:
        metrics: some of `loss` (negative log-likelihood per target token), `bleu` and `chrf`.
        tokenize: the tokenizer of BLEU.
        device: the device of the model.
        dtype: precision of the matrix products.
        check: called between steps; raises OutOfTime to stop the validation on all ranks.
        threads: translation threads of each rank.
        num_samples: the number of lines that are returned with their translation.
    """

    metrics: Sequence[str]
    tokenize: str = DEFAULT_TOKENIZER
    device: torch.device
    dtype: torch.dtype
    check: Callable[[], None] = lambda: None
    threads: int = 1
    num_samples: int = 0


def validate(
    model: Transformer,
    text: ValidationText,
    translators: TranslatorFactory,
    options: ValidationOptions,
    parallel: Parallel | None = None,
) -> Validation:
    """Return the metrics of the model's current weights.

    The ranks share the batches, and each returns exactly what a single process would. The model is
    in training mode afterwards.

    Args:
        model: the model to validate.
        text: the validation text.
        translators: makes translators of the same model, as `tfm translate` does.
        options: see ValidationOptions.
        parallel: the processes, all with the same weights.

    Raises:
        NonFiniteScoresError: the model computes non-finite numbers; on all ranks.
        OutOfTime: a rank has no more time; on all ranks.
    """
    parallel = parallel or Parallel()
    values: dict[str, float] = {}
    scores: list[Score] = []
    samples: tuple[Sample, ...] = ()
    model.eval()
    try:
        if "loss" in options.metrics:
            values["loss"] = mean_nll(model, text.batches, options, parallel)
            if not math.isfinite(values["loss"]):
                raise NonFiniteScoresError(f"the loss is {values['loss']}")
        scored = [metric for metric in options.metrics if metric != "loss"]
        if scored:
            search_all = partial(_search_on_all_ranks, parallel=parallel, threads=options.threads)
            with translators() as translator:
                results = translator.translate_window(text.source_lines, search_all=search_all)
            hypotheses = [result.text for result in results]
            # All ranks must make the same decision, even where only one is late.
            distribute_jobs([None] * parallel.world_size, lambda _: options.check(), parallel)
            samples = tuple(
                Sample(text.source_lines[line], text.references[line], hypotheses[line])
                for line in sample_indices(text, options.num_samples)
            )
            scores = corpus_scores(
                hypotheses,
                [text.references],
                metrics=scored,
                options=MetricOptions(tokenize=options.tokenize),
            )
            values.update(zip(scored, (score.value for score in scores), strict=True))
    finally:
        model.train()
    ordered = {metric: values[metric] for metric in options.metrics}
    return Validation(ordered, tuple(scores), samples)


def sample_indices(text: ValidationText, count: int) -> list[int]:
    """Return the indices of up to `count` lines, spread evenly, the same at each call."""
    lines = [
        line
        for line, texts in enumerate(zip(text.source_lines, text.references, strict=True))
        if not any(map(is_blank, texts))
    ]
    count = min(count, len(lines))
    return [lines[(2 * index + 1) * len(lines) // (2 * count)] for index in range(count)]


@torch.inference_mode()
def mean_nll(
    model: Transformer,
    batches: Sequence[Batch],
    options: ValidationOptions,
    parallel: Parallel | None = None,
) -> float:
    """Return the negative log-likelihood per target token, </s> included: log perplexity."""

    def batch_nll(batch: Batch) -> float:
        options.check()
        with autocast(options.device, options.dtype):
            _, nll = batch_loss(model, batch.to(options.device), label_smoothing=0.0)
        return float(nll)

    sums: list[float] = distribute_jobs(batches, batch_nll, parallel or Parallel())
    return sum(sums) / sum(batch.target_tokens for batch in batches)


def distribute_jobs(
    jobs: Sequence[Any], work: Callable[[Any], Any], parallel: Parallel, *, threads: int = 1
) -> list[Any]:
    """Distribute jobs over the ranks, and return all results, in order, on every rank.

    Args:
        jobs: the same on all ranks.
        work: runs a job; returns a JSON value.
        parallel: the processes.
        threads: threads of each rank.

    Raises:
        OutOfTime, SignalReceived: a rank has no more time, or received a signal; the same on all
            ranks, and a signal rather than a lack of time.
    """
    own: list[Any] | dict[str, Any]
    try:
        own = _run_jobs(jobs[parallel.rank :: parallel.world_size], work, threads=threads)
    except OutOfTime as stop:
        own = {"reason": str(stop), "is_signal": isinstance(stop, SignalReceived)}
    shares = [json.loads(share) for share in parallel.all_gather_bytes(json.dumps(own).encode())]
    if stops := [share for share in shares if isinstance(share, dict)]:
        first = max(stops, key=lambda stop: stop["is_signal"])
        raise (SignalReceived if first["is_signal"] else OutOfTime)(first["reason"])
    return [shares[i % parallel.world_size][i // parallel.world_size] for i in range(len(jobs))]


def _run_jobs(jobs: Sequence[Any], work: Callable[[Any], Any], *, threads: int) -> list[Any]:
    if threads == 1 or len(jobs) < 2:
        return [work(job) for job in jobs]
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(work, jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _search_on_all_ranks(
    search: Callable[[list[Segment]], BatchHypotheses],
    batches: Sequence[list[Segment]],
    *,
    parallel: Parallel,
    threads: int,
) -> list[BatchHypotheses]:
    """Search the batches on all ranks, and return the hypotheses of each on every rank."""

    def search_ids(batch: list[Segment]) -> list[list[list[int]]] | None:
        try:
            return [[list(each.ids) for each in hypotheses] for hypotheses in search(batch)]
        except NonFiniteScoresError:  # None makes all ranks raise, not only this one
            return None

    shares = distribute_jobs(batches, search_ids, parallel, threads=threads)
    if None in shares:
        raise NonFiniteScoresError
    # Validation does not use the scores of hypotheses.
    return [
        [[Hypothesis(tuple(ids), math.nan, math.nan) for ids in segment] for segment in batch]
        for batch in shares
    ]


def is_better(
    values: Mapping[str, float], best: float | None, best_others: Sequence[float] = ()
) -> bool:
    """Return True if a validation beats the best one: a lower loss, or a higher score.

    The first metric decides; if it is equal, the next one does.

    Args:
        values: values by metric, in order.
        best: the best value of the first metric; None before the first validation.
        best_others: the values of the other metrics; empty if they were not saved.
    """
    for metric, value, other in zip(values, values.values(), (best, *best_others), strict=False):
        if not math.isfinite(value):
            return False
        if other is None:
            return True
        if value != other:
            return value < other if metric == "loss" else value > other
    return False
