"""Consistency training: two views of each pair, whose predictions should agree.

R-Drop computes each pair twice with different dropout. SimCut computes it a second time with some
embeddings set to zero. Both minimize the divergence of the two predictions of each target token
besides the cross-entropy.

Sources: Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv:2106.14448; Gao
et al. 2022, Bi-SimCut: A Simple Strategy for Boosting Neural Machine Translation, arXiv:2206.02368.
"""

# B segments, S source tokens, T target tokens, N target tokens without padding, D model width,
# V vocabulary, C tokens of a chunk, P rows of a chunk: 2 C, and padding

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.model.dropout import token_mask
from tfm_cli.model.linear import compiles_sizes, padded_rows
from tfm_cli.model.transformer import Transformer
from tfm_cli.training.loss import add_product, chunk_rows

NUM_VIEWS = 2
# Logits of either view that are replaced at once: on a CPU they stay in its cache, and on a GPU the
# temporary tensors need little memory, of 64 MB each.
_BLOCK_LOGITS = 1 << 16
_BLOCK_LOGITS_GPU = 1 << 24
# The weights in the papers' experiments with IWSLT14, 160,000 pairs.
_DEFAULT_ALPHA = {"r-drop": 5.0, "simcut": 3.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """The method of consistency training.

    Attributes:
        method: `r-drop` or `simcut`.
        alpha: the weight of the divergence, as in the papers.
        token_cutoff: the share of tokens whose embeddings SimCut sets to zero.
    """

    method: str
    alpha: float
    token_cutoff: float = 0.0

    @property
    def terms(self) -> "Terms":
        """Return the terms of the loss.

        R-Drop minimizes CE1 + CE2 + alpha (KL(p1 || p2) + KL(p2 || p1)) / 2 in the paper (eq. 4).
        Here it is half of that, so that the learning rate means what it means without R-Drop.
        SimCut minimizes CE1 + alpha KL(p1 || p2), where only the second view has tokens cut off.
        """
        if self.method == "r-drop":
            return Terms((0.5, 0.5), (0.5, 0.5), self.alpha / 2)
        return Terms((1.0, 0.0), (1.0, 0.0), self.alpha)


class Terms(NamedTuple):
    """Weights of the terms of the loss for two views with the predictions p1 and p2."""

    cross_entropy: tuple[float, float]  # of either view; their sum is 1
    divergence: tuple[float, float]  # of KL(p1 || p2) and KL(p2 || p1); their sum is 1
    scale: float  # of the divergence in the loss


def consistency_of(settings: TrainingConfig) -> Consistency | None:
    """Return the consistency training of a run; None for none."""
    method = settings.consistency
    if method == "none":
        return None
    alpha = settings.consistency_alpha or _DEFAULT_ALPHA[method]
    cutoff = settings.token_cutoff if method == "simcut" else 0.0
    return Consistency(method=method, alpha=alpha, token_cutoff=cutoff)


def consistency_loss(
    model: Transformer, batch: Batch, consistency: Consistency, *, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, negative log-likelihood and divergence of a batch, all scalars.

    The two views of a pair are neighboring rows of one batch, so neighboring pairs are neighboring
    rows (see `Noise.part`). Keyed noise selects the tokens that are cut off, as in word dropout.
    Unlike there, the embeddings of the other tokens are not scaled.
    """
    source, target, keep = _both(batch.source), _both(batch.target_in), batch.source_keep
    keep = None if keep is None else _both(keep)
    source_visible, target_visible = (
        _second_view_mask(model, ids, consistency.token_cutoff) for ids in (source, target)
    )
    memory = model.encode(source, keep, visible=source_visible)  # (2 B, S, D)
    hidden = model.decode(target, memory, keep, visible=target_visible)  # (2 B, T, D)
    pairs = hidden.reshape(-1, NUM_VIEWS, *hidden.shape[1:])  # (B, 2, T, D)
    views = pairs.transpose(0, 1).flatten(1, 2)  # (2, B T, D)
    return consistent_cross_entropy(
        views[:, batch.target_positions],  # (2, N, D)
        model.output_weight,
        batch.target_out.flatten()[batch.target_positions],  # (N,)
        consistency.terms,
        label_smoothing=label_smoothing,
        bias=model.output_bias,
    )


def _both(rows: Tensor) -> Tensor:
    """Return each row twice in succession, (2 B, …) from (B, …)."""
    return rows.repeat_interleave(NUM_VIEWS, dim=0)


def _second_view_mask(model: Transformer, ids: Tensor, cutoff: float) -> Tensor | None:
    """Return False for the tokens that are cut off from the second view of each pair, (2 B, T, 1).

    The result is None if none is cut off.
    """
    if not cutoff:
        return None
    mask = token_mask(ids, cutoff, model.noise)
    mask[::NUM_VIEWS] = True
    return mask


def consistent_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    terms: Terms,
    *,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss to minimize, negative log-likelihood, and divergence of two views.

    The loss is the label-smoothed cross-entropy plus `terms.scale` times the divergence, each with
    the weights of `terms`; the negative log-likelihood has those of the cross-entropy. Gradients
    flow into both views. SimCut needs that too: Gao et al. attribute much of its gain to it. As in
    `cross_entropy`, a tensor of shape (N, V) never exists.

    Args:
        hidden: decoder output of both views at the target tokens, (2, N, D), without padding.
        weight: output matrix, (V, D).
        targets: ids, (N,).
        terms: the weights of the terms.
        label_smoothing: see `cross_entropy`.
        bias: bias of the logits, (V,); None for none.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    # PyTorch has type annotations for neither `apply` nor `backward`.
    result: tuple[Tensor, Tensor, Tensor] = _ChunkedConsistency.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, terms, label_smoothing, needs_gradient
    )
    return result


class _ChunkedConsistency(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        terms: Terms,
        smoothing: float,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pads = compiles_sizes(hidden)
        rows = max(1, chunk_rows(hidden, weight.shape[0]) // NUM_VIEWS)
        exact = torch.promote_types(weight.dtype, torch.float32)  # for sums and exponentials
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        bias_gradient = torch.zeros_like(bias) if needs_gradient and bias is not None else None
        nll, smooth, divergence = (hidden.new_zeros((), dtype=exact) for _ in range(3))
        for start in range(0, len(targets), rows):
            y = targets[start : start + rows]  # (C,)
            chunk = hidden[:, start : start + rows].flatten(0, 1)  # (2 C, D)
            padded = padded_rows(chunk) if pads else chunk  # (P, D)
            logits = F.linear(padded, weight, bias).to(exact)  # (P, V)
            with torch.autocast(hidden.device.type, enabled=False):
                sums = _replace_by_gradient(logits, y, terms, smoothing)
            gradient = logits  # (P, V)
            nll, smooth, divergence = nll + sums[0], smooth + sums[1], divergence + sums[2]
            if hidden_gradient is not None and weight_gradient is not None:
                part = (gradient @ weight)[: len(chunk)]  # (2 C, D)
                hidden_gradient[:, start : start + rows] = part.view(NUM_VIEWS, len(y), -1)
                add_product(weight_gradient, gradient.t(), padded)
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(dim=0)
        # A divergence of almost 0 may be rounded to less.
        divergence = divergence.clamp(min=0)
        loss = (1 - smoothing) * nll + smoothing * smooth + terms.scale * divergence
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.mark_non_differentiable(nll, divergence)
        return loss, nll, divergence

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        scaled: list[Tensor | None] = [
            None if gradient is None else gradient * scale for gradient in ctx.saved_tensors
        ]
        return *scaled, None, None, None, None


def _replace_by_gradient(
    logits: Tensor, targets: Tensor, terms: Terms, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace logits by the gradient of the loss with respect to them, and return three sums.

    They are the negative log-likelihood, the cross-entropy with a uniform distribution, and the
    divergence.

    With z1 and z2 for the logits of the views:
        d CE1 / d z1 = p1 - target distribution
        d KL(p1 || p2) / d z1 = p1 (log p1 - log p2 - KL(p1 || p2))
        d KL(p1 || p2) / d z2 = p2 - p1

    Args:
        logits: (P, V), C rows of either view and padding, whose gradient is 0.
        targets: ids, (C,).
        terms: the weights of the terms.
        smoothing: see `cross_entropy`.
    """
    count, vocab_size = len(targets), logits.shape[1]
    first, second, padding = logits.tensor_split((count, NUM_VIEWS * count))  # (C, V) twice
    y = targets[:, None]  # (C, 1)
    (w1, w2), (w12, w21) = terms.cross_entropy, terms.divergence
    a12, a21 = terms.scale * w12, terms.scale * w21
    target_log_probs, mean_log_probs, kls = (logits.new_empty(2, count, 1) for _ in range(3))
    block = _BLOCK_LOGITS if logits.device.type == "cpu" else _BLOCK_LOGITS_GPU
    rows = max(1, block // vocab_size)
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        z1, z2 = first[part], second[part]
        kl12, kl21 = kls[:, part].unbind()  # (C, 1) each
        log_p1, log_p2 = z1.log_softmax(dim=1), z2.log_softmax(dim=1)
        for view, log_p in enumerate((log_p1, log_p2)):
            torch.gather(log_p, 1, y[part], out=target_log_probs[view, part])
            torch.mean(log_p, dim=1, keepdim=True, out=mean_log_probs[view, part])
        p1, p2, ratio = log_p1.exp(), log_p2.exp(), log_p1.sub_(log_p2)
        torch.sum(p1 * ratio, dim=1, keepdim=True, out=kl12)
        torch.sum(p2 * ratio, dim=1, keepdim=True, out=kl21).neg_()
        torch.mul(p1, w1 + a21 - a12 * kl12, out=z1).addcmul_(p1, ratio, value=a12)
        z1.sub_(p2, alpha=a21).sub_(w1 * smoothing / vocab_size)
        torch.mul(p2, w2 + a12 - a21 * kl21, out=z2).addcmul_(p2, ratio, value=-a21)
        z2.sub_(p1, alpha=a12).sub_(w2 * smoothing / vocab_size)
    index = torch.arange(count, device=logits.device)
    first[index, targets] -= w1 * (1 - smoothing)
    second[index, targets] -= w2 * (1 - smoothing)
    padding.zero_()

    def weighted(values: Tensor, weights: tuple[float, float]) -> Tensor:
        return weights[0] * values[0].sum() + weights[1] * values[1].sum()

    nll, smooth = (-weighted(x, terms.cross_entropy) for x in (target_log_probs, mean_log_probs))
    return nll, smooth, weighted(kls, terms.divergence)
