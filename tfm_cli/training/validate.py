"""How good the model is right now: loss and scores on the validation text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tfm_cli.corpus.batch import Batch
from tfm_cli.device import arithmetic
from tfm_cli.evaluation.scores import Score, corpus_scores
from tfm_cli.model.transformer import Transformer
from tfm_cli.training.update import batch_loss
from tfm_cli.translation.translator import Translator


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
    translator: Translator,
    *,
    metrics: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], Validation]:
    """A function that judges the model's present weights by each of `metrics`.

    Args:
        model: which is judged.
        batches: validation pairs as pieces, for `loss`.
        source_lines: validation text, raw, for the scores.
        references: its translation, raw.
        translator: of the same model, the one that users run.
        metrics: of `loss` (negative log-likelihood of a target piece), `bleu` and `chrf`.
        device: where the model is.
        dtype: arithmetic of the matrix products.
    """

    def validate() -> Validation:
        model.eval()
        values: dict[str, float] = {}
        scores: list[Score] = []
        if "loss" in metrics:
            values["loss"] = mean_nll(model, batches, device=device, dtype=dtype)
        scored = [metric for metric in metrics if metric != "loss"]
        if scored:
            hypotheses = [t.text for t in translator.translate(source_lines)]
            scores = corpus_scores(hypotheses, [references], metrics=scored)
            values.update(zip(scored, (score.value for score in scores), strict=True))
        model.train()
        return Validation({metric: values[metric] for metric in metrics}, tuple(scores))

    return validate


@torch.inference_mode()
def mean_nll(
    model: Transformer, batches: Sequence[Batch], *, device: torch.device, dtype: torch.dtype
) -> float:
    """Negative log-likelihood of a target piece, </s> included; perplexity is its exponential."""
    total, pieces = 0.0, 0
    for batch in batches:
        with arithmetic(device, dtype):
            _, nll = batch_loss(model, batch.to(device), label_smoothing=0.0)
        total += float(nll)
        pieces += batch.target_pieces
    return total / pieces


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value beats the best so far; a loss should fall, a score should rise."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best if metric == "loss" else value > best
