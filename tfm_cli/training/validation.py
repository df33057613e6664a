"""How good the model is right now: loss and scores on the validation text."""

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
from typing import Any

import torch

from tfm_cli.config.settings import RunConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.errors import OutOfTime
from tfm_cli.evaluation.bleu_tokenizer import DEFAULT_TOKENIZER
from tfm_cli.evaluation.scores import MetricOptions, Score, corpus_scores
from tfm_cli.model.arithmetic import arithmetic, precision_name
from tfm_cli.model.transformer import Transformer
from tfm_cli.native import library
from tfm_cli.parallel import Parallel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.training.parallel_model import batch_loss
from tfm_cli.translation.search_engine import Found, SearchOptions
from tfm_cli.translation.segments import Segment
from tfm_cli.translation.translator import Translator

logger = logging.getLogger(__name__)


# The translator of the weights that a model has now, which validation asks for again and again.

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
    """Return what gives a translator of the weights that a model has just then.

    On a CPU the native engine gets a copy of them, packed, for as long as they are asked for.

    Args:
        model: on `device`.
        tokenizers: of the model.
        config: of the run.
        options: how translations are looked for.
        device: where the model is.
        dtype: arithmetic of the matrix products.
    """
    if not uses_native_engine(device):
        from tfm_cli.translation.torch_engine import TorchEngine

        engine = TorchEngine([model], tokenizers, options, device=device, dtype=dtype)
        return lambda: contextlib.nullcontext(Translator(engine, tokenizers, options))

    from tfm_cli.native.model import NativeModel
    from tfm_cli.translation.native_engine import NativeEngine

    tells = iter([True])

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
            if next(tells, False):
                logger.info(
                    "validation: weights packed in %.1f s, translated in %.1f s, with %d MiB more",
                    seconds, time.monotonic() - began - seconds, engine.num_bytes >> 20,
                )  # fmt: skip
        finally:
            copy.close()

    return packed


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found."""

    values: dict[str, float]  # by metric, in the order that was asked for
    scores: tuple[Score, ...]  # of sacreBLEU, with their signatures


def validator(
    model: Transformer,
    batches: Sequence[Batch],
    source_lines: Sequence[str],
    references: Sequence[str],
    translators: TranslatorFactory,
    *,
    metrics: Sequence[str],
    tokenize: str = DEFAULT_TOKENIZER,
    device: torch.device,
    dtype: torch.dtype,
    parallel: Parallel | None = None,
    check: Callable[[], None] = lambda: None,
    threads: int = 1,
) -> Callable[[], Validation]:
    """A function that judges the model's present weights by each of `metrics`.

    Processes share the work, batch by batch, and all find what one alone would, to the last digit.

    Args:
        model: which is judged.
        batches: validation pairs as pieces, for `loss`.
        source_lines: validation text, raw, for the scores.
        references: its translation, raw.
        translators: give the translator of the same model, the one that users run.
        metrics: of `loss` (negative log-likelihood of a target piece), `bleu` and `chrf`.
        tokenize: the tokenizer of BLEU.
        device: where the model is.
        dtype: arithmetic of the matrix products.
        parallel: the processes, all of which have the same weights.
        check: called between the steps of the work; what it raises cuts the validation off, on all
            processes if it is OutOfTime.
        threads: of a process that translate side by side.

    The function raises a NonFiniteScoresError, on all processes, if the model computes no finite
    numbers.
    """
    processes = parallel or Parallel()
    options = MetricOptions(tokenize=tokenize)

    def validate() -> Validation:
        model.eval()
        try:
            return judged()
        finally:
            model.train()

    def judged() -> Validation:
        values: dict[str, float] = {}
        scores: list[Score] = []
        if "loss" in metrics:
            values["loss"] = mean_nll(
                model, batches, device=device, dtype=dtype, parallel=processes, check=check
            )
            if not math.isfinite(values["loss"]):
                raise NonFiniteScoresError(f"the loss is {values['loss']}")
        scored = [metric for metric in metrics if metric != "loss"]
        if scored:
            search_all = partial(_searched, parallel=processes, threads=threads)
            with translators() as translator:
                translations = translator.translate_window(source_lines, search_all=search_all)
            hypotheses = [translation.text for translation in translations]
            check()
            scores = corpus_scores(hypotheses, [references], metrics=scored, options=options)
            values.update(zip(scored, (score.value for score in scores), strict=True))
        return Validation({metric: values[metric] for metric in metrics}, tuple(scores))

    return validate


@torch.inference_mode()
def mean_nll(
    model: Transformer,
    batches: Sequence[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype,
    parallel: Parallel | None = None,
    check: Callable[[], None] = lambda: None,
) -> float:
    """Negative log-likelihood of a target piece, </s> included; perplexity is its exponential."""

    def nll_of(batch: Batch) -> float:
        check()
        with arithmetic(device, dtype):
            _, nll = batch_loss(model, batch.to(device), label_smoothing=0.0)
        return float(nll)

    found: list[float] = distribute_jobs(batches, nll_of, parallel or Parallel())
    return sum(found) / sum(batch.target_tokens for batch in batches)


def distribute_jobs(
    jobs: Sequence[Any], work: Callable[[Any], Any], parallel: Parallel, *, threads: int = 1
) -> list[Any]:
    """What becomes of each job, in order, on all processes, each of which does its share.

    Args:
        jobs: the same on all of them.
        work: does a job; gives numbers, strings or lists of them.
        parallel: the processes.
        threads: of each process, which work side by side.

    Raises:
        OutOfTime: one of them has no more time.
    """
    own: list[Any] | None = None
    stop = OutOfTime("another process has no more time")
    try:
        own = _done(jobs[parallel.rank :: parallel.world], work, threads=threads)
    except OutOfTime as own_stop:
        stop = own_stop
    shares = [json.loads(share) for share in parallel.all_gather_bytes(json.dumps(own).encode())]
    if None in shares:
        raise stop
    return [shares[i % parallel.world][i // parallel.world] for i in range(len(jobs))]


def _done(jobs: Sequence[Any], work: Callable[[Any], Any], *, threads: int) -> list[Any]:
    if threads == 1 or len(jobs) < 2:
        return [work(job) for job in jobs]
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(work, jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _searched(
    search: Callable[[list[Segment]], Found],
    batches: Sequence[list[Segment]],
    *,
    parallel: Parallel,
    threads: int,
) -> list[Found]:
    """What is found for each batch, whichever process looked for it."""

    def ids(batch: list[Segment]) -> list[list[list[int]]] | None:
        try:
            return [[list(each.ids) for each in some] for some in search(batch)]
        except NonFiniteScoresError:  # for all processes to raise: some have other batches
            return None

    shares = distribute_jobs(batches, ids, parallel, threads=threads)
    if None in shares:
        raise NonFiniteScoresError
    # Nobody asks how good validation's translations are.
    return [
        [[Hypothesis(tuple(ids), math.nan, math.nan) for ids in some] for some in found]
        for found in shares
    ]


def is_better(
    values: Mapping[str, float], best: float | None, best_others: Sequence[float] = ()
) -> bool:
    """Return True if a validation beats the best one so far; a loss should fall, a score rise.

    The first metric decides, and where it is equal, the next one.

    Args:
        values: by metric, in order.
        best: of the first metric; None before the first validation.
        best_others: of the other metrics; none where they were not kept.
    """
    for metric, value, other in zip(values, values.values(), (best, *best_others), strict=False):
        if not math.isfinite(value):
            return False
        if other is None:
            return True
        if value != other:
            return value < other if metric == "loss" else value > other
    return False
