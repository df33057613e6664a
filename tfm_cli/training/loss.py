"""Label-smoothed cross-entropy, summed over target pieces, in memory that V does not rule."""

# N target pieces, D model width, V vocabulary, C pieces of a chunk

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits of a chunk: 2**21 of them are 8 MB in fp32 and stay in the cache of a CPU.
_CHUNK_LOGITS = 1 << 21
_CHUNK_LOGITS_GPU = 1 << 27


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The summed loss that is minimised, and the plain negative log-likelihood beside it.

    The target distribution is 1 - e on the right piece plus e / V on every piece. Logits are made,
    used and forgotten chunk by chunk, gradients included, so that (N, V) of them never exist.

    Args:
        hidden: decoder output at the target pieces, (N, D); no padding among them.
        weight: output matrix, (V, D).
        targets: ids, (N,).
        label_smoothing: e; 0 makes both results equal.
        bias: of the logits, (V,); None for none.

    Source: Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4.
    """
    # Asked here: the function's own `needs_input_grad` is True under `no_grad` as well, and
    # validation would compute gradients for nobody.
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    # PyTorch declares neither `apply` nor `backward` with types.
    result: tuple[Tensor, Tensor] = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, label_smoothing, wants_gradient
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
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        vocab_size = weight.shape[0]
        budget = _CHUNK_LOGITS_GPU if hidden.is_cuda else _CHUNK_LOGITS
        rows = max(1, budget // vocab_size)
        hidden_gradient = torch.empty_like(hidden) if wants_gradient else None
        weight_gradient = torch.zeros_like(weight) if wants_gradient else None
        bias_gradient = None
        if wants_gradient and bias is not None:
            bias_gradient = torch.zeros_like(bias)
        # The mean logit of a row is the hidden state times the mean of the rows of `weight`.
        mean_weight = weight.float().mean(dim=0)  # (D,)
        mean_bias = 0.0 if bias is None else bias.float().mean()
        loss = hidden.new_zeros((), dtype=torch.float32)
        nll = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), rows):
            h, y = hidden[start : start + rows], targets[start : start + rows, None]  # (C, D)
            logits = F.linear(h, weight, bias).float()  # (C, V)
            log_total = logits.logsumexp(dim=1, keepdim=True)  # (C, 1)
            chunk_nll = (log_total - logits.gather(1, y)).sum()
            mean_logits = h.float() @ mean_weight + mean_bias  # (C,)
            smooth = (log_total[:, 0] - mean_logits).sum()  # mean over V of -log p
            nll += chunk_nll
            loss += (1 - smoothing) * chunk_nll + smoothing * smooth
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = softmax - target distribution
                wrong = logits.sub_(log_total).exp_().sub_(smoothing / vocab_size)  # (C, V)
                wrong.scatter_add_(1, y, torch.full_like(y, smoothing - 1, dtype=wrong.dtype))
                if bias_gradient is not None:
                    bias_gradient += wrong.sum(dim=0)  # (V,)
                wrong = wrong.to(weight.dtype)
                hidden_gradient[start : start + rows] = (wrong @ weight).to(hidden.dtype)
                weight_gradient += wrong.t() @ h.to(weight.dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        found: list[Tensor | None] = [
            None if gradient is None else gradient * scale for gradient in ctx.saved_tensors
        ]
        return *found, None, None, None
