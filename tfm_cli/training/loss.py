"""Label-smoothed cross-entropy, summed over target tokens, without a tensor of shape (N, V)."""

# N target tokens, D model width, V vocabulary, C tokens of a chunk, P the same with padding

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tfm_cli.model.linear import compiles_sizes, padded_rows, round_down_rows

# Logits of a chunk on a CPU: 2**22 of them are 16 MB in fp32. Products of too few rows are slow, as
# each reads and writes the whole gradient of the output matrix: with 65 rows of 32,000 logits the
# loss took twice as long as with 262.
_CHUNK_LOGITS = 1 << 22
_MIN_ROWS = 256
_CHUNK_LOGITS_GPU = 1 << 27


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss to minimize, and the summed plain negative log-likelihood.

    The target distribution is 1 - e on the correct token plus e / V on every token. Logits and
    gradients are computed chunk by chunk, so a tensor of shape (N, V) never exists.

    Args:
        hidden: decoder output at the target tokens, (N, D), without padding.
        weight: output matrix, (V, D).
        targets: ids, (N,).
        label_smoothing: e; 0 makes both results equal.
        bias: bias of the logits, (V,); None for none.

    Source: Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4.
    """
    # `ctx.needs_input_grad` is True even under `no_grad`; with it, validation would compute
    # gradients that are not used.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    # PyTorch has type annotations for neither `apply` nor `backward`.
    result: tuple[Tensor, Tensor] = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, label_smoothing, needs_gradient
    )
    return result


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        vocab_size = weight.shape[0]
        pads = compiles_sizes(hidden)
        rows = chunk_rows(hidden, vocab_size)
        exact = torch.promote_types(weight.dtype, torch.float32)  # for sums and exponentials
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        bias_gradient = torch.zeros_like(bias) if needs_gradient and bias is not None else None
        # The mean logit of a row is the hidden state times the mean of the rows of `weight`.
        mean_weight = weight.to(exact).mean(dim=0)  # (D,)
        mean_bias = 0.0 if bias is None else bias.to(exact).mean()
        loss = hidden.new_zeros((), dtype=exact)
        nll = hidden.new_zeros((), dtype=exact)
        for start in range(0, len(targets), rows):
            h, y = hidden[start : start + rows], targets[start : start + rows]  # (C, D), (C,)
            count = len(y)
            padded = padded_rows(h) if pads else h  # (P, D)
            logits = F.linear(padded, weight, bias).to(exact)  # (P, V)
            max_logit = logits.amax(dim=1, keepdim=True)  # (P, 1)
            target_logits = logits[:count].gather(1, y[:, None])  # (C, 1)
            exponentials = logits.sub_(max_logit).exp_()  # (P, V), in place
            total = exponentials.sum(dim=1, keepdim=True)  # (P, 1)
            exponentials[count:] = 0.0  # padding adds nothing to the gradients
            log_total = (total.log() + max_logit)[:count]  # (C, 1)
            chunk_nll = (log_total - target_logits).sum()
            with torch.autocast(hidden.device.type, enabled=False):
                mean_logits = h.to(exact) @ mean_weight + mean_bias  # (C,)
            smooth = (log_total[:, 0] - mean_logits).sum()  # mean over V of -log p
            nll += chunk_nll
            loss += (1 - smoothing) * chunk_nll + smoothing * smooth
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = exponentials / total - target distribution. For the first
                # term, tensors of D columns are divided by `total`: `exponentials` has V.
                part = hidden_gradient[start : start + rows]
                part.copy_(((exponentials @ weight) / total)[:count])  # (C, D)
                part -= (1 - smoothing) * weight[y] + smoothing * mean_weight
                add_product(weight_gradient, exponentials.t(), padded / total)
                if bias_gradient is not None:
                    bias_gradient += exponentials.t() @ total[:, 0].reciprocal()  # (V,)
        if weight_gradient is not None:
            weight_gradient.index_add_(0, targets, hidden.to(weight.dtype), alpha=smoothing - 1)
            weight_gradient -= hidden.to(exact).sum(dim=0) * (smoothing / vocab_size)
        if bias_gradient is not None:
            ones = torch.ones_like(targets, dtype=bias_gradient.dtype)
            bias_gradient.index_add_(0, targets, ones, alpha=smoothing - 1)
            bias_gradient -= smoothing * len(targets) / vocab_size
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        scaled: list[Tensor | None] = [
            None if gradient is None else gradient * scale for gradient in ctx.saved_tensors
        ]
        return *scaled, None, None, None


def chunk_rows(hidden: Tensor, vocab_size: int) -> int:
    """Return the number of rows of logits that are computed at once from hidden states."""
    budget = _CHUNK_LOGITS_GPU if hidden.is_cuda else _CHUNK_LOGITS
    rows = max(_MIN_ROWS, budget // vocab_size)
    return round_down_rows(rows) if compiles_sizes(hidden) else rows


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`; under autocast, the product has lower precision."""
    if torch.is_autocast_enabled(total.device.type):
        total += left @ right
    else:
        total.addmm_(left, right)
