"""The optimizer, and the moving average of the weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tfm_cli.config.settings import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return Adam with decoupled weight decay on matrices, and none on norms and biases.

    Source: Kingma and Ba 2015; Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learn_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


class MovingAverage:
    """An exponential moving average of a model's weights, which improves translations.

    Early in training the decay is smaller, min(decay, (1 + update) / (10 + update)), so that the
    random initial weights are soon forgotten.

    Args:
        model: the average starts as a copy of its weights.
        decay: the weight of the old average in each update; 0 keeps no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self.weights: dict[str, Tensor] = {}
        if decay:
            self.weights = {n: p.detach().clone() for n, p in model.named_parameters()}

    def current(self) -> dict[str, Tensor]:
        """Return the average by name; the model's own weights if no average is kept."""
        if self._decay:
            return dict(self.weights)
        return {name: p.detach() for name, p in self._model.named_parameters()}

    @torch.no_grad()
    def include(self, update: int) -> None:
        """Include the weights after an update, counted from 1."""
        if self._decay:
            decay = min(self._decay, (1 + update) / (10 + update))
            current = [p.detach() for _, p in self._model.named_parameters()]
            torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the average into the model inside the block, and swap it back at the end."""
        if not self._decay:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            average = self.weights[name]
            self.weights[name], parameter.data = parameter.data, average
