import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch, make_batch
from tfm_cli.model.transformer import Transformer
from tfm_cli.training.batches import MicroBatch, UpdateBatches
from tfm_cli.training.memory import MemoryLimit
from tfm_cli.training.optimizer import make_optimizer
from tfm_cli.training.parallel_model import ParallelModel, batch_loss
from tfm_cli.training.update import UpdateOptions, UpdateStats, update

VOCAB = 20
SETTINGS: dict[str, Any] = {
    "number": 1,
    "learn_rate": 1.0,
    "clip_norm": 0.0,
    "seed": 1,
}


def small_model(dropout: float = 0.0) -> Transformer:
    """A model with the same rate of each kind of dropout."""
    torch.manual_seed(1)
    return transformer_of(
        VOCAB, encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=16,
        dropout=dropout, attention_dropout=dropout, activation_dropout=dropout,
        word_dropout=dropout,
    ).train()  # fmt: skip


def batch(*lengths: tuple[int, int], seed: int = 1) -> Batch:
    """Return pairs of so many source and target tokens, without counting </s>."""
    random = np.random.default_rng(seed)
    sources = [random.integers(3, VOCAB, source) for source, _ in lengths]
    targets = [random.integers(3, VOCAB, target) for _, target in lengths]
    return make_batch(sources, targets, start_id=1, eos_id=2)


def uneven_batches() -> list[Batch]:
    return [batch((3, 1), (1, 1), seed=1), batch((5, 19), (2, 30), (8, 25), seed=2)]


def kept(found: Batch) -> Tensor:
    """Return a mask of the target without padding, (B, T)."""
    keep = torch.zeros(found.target_out.numel(), dtype=torch.bool)
    keep[found.target_positions] = True
    return keep.view_as(found.target_out)


def merged_batch() -> Batch:
    """The pairs of `uneven_batches` in one."""
    sources, targets = [], []
    for part in uneven_batches():
        for row in range(len(part.source)):
            keep = slice(None) if part.source_keep is None else part.source_keep[row, 0, 0]
            sources.append(part.source[row][keep][:-1].numpy())
            targets.append(part.target_out[row][kept(part)[row]][:-1].numpy())
    return make_batch(sources, targets, start_id=1, eos_id=2)


def plan(batches: Sequence[Batch]) -> UpdateBatches:
    """An update with each batch as a micro-batch."""
    return UpdateBatches(
        epoch=0,
        pool=0,
        position=0,
        num_batches=len(batches),
        target_tokens=sum(batch.target_tokens for batch in batches),
        micro_batches=tuple(MicroBatch(number, batch) for number, batch in enumerate(batches)),
    )


def gradient(
    batches: Sequence[Batch], *, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Tensor, UpdateStats]:
    """Return the gradient of an update: the difference that plain descent at rate 1 makes."""
    model = small_model()
    if dtype is not torch.bfloat16:
        model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    stats = update(
        ParallelModel(model, label_smoothing=0.1, dtype=dtype),
        plan(batches),
        optimizer,
        UpdateOptions(**{**SETTINGS, **options}),
    )
    return before - torch.cat([p.detach().flatten() for p in model.parameters()]), stats


class Run:
    """A model with all that an update changes, one healthy update old."""

    def __init__(self, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self.model = small_model(dropout).to(dtype)
        self.optimizer = make_optimizer(self.model, TrainingConfig())
        self.update(number=1)

    def update(
        self,
        batches: Sequence[Batch] | None = None,
        *,
        memory_limit: MemoryLimit | None = None,
        **options: Any,
    ) -> UpdateStats:
        return update(
            ParallelModel(self.model, label_smoothing=0.1),
            plan(batches or uneven_batches()),
            self.optimizer,
            UpdateOptions(**{**SETTINGS, "learn_rate": 0.01, **options}),
            memory_limit,
        )

    def bits(self) -> list[Tensor]:
        """Weights, moments and step counts, as they lie in memory."""
        moments = [
            value
            for parameter in self.model.parameters()
            for value in self.optimizer.state[parameter].values()
        ]
        tensors = [*self.model.parameters(), *moments]
        return [tensor.detach().clone().view(torch.int32) for tensor in tensors]


def all_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_batch_loss_ignores_padding() -> None:
    model, both = small_model().eval(), batch((3, 4), (6, 2))

    loss, nll = batch_loss(model, both, label_smoothing=0.1)

    logits = model(both.source, both.source_keep, both.target_in)
    real, targets = logits[kept(both)], both.target_out[kept(both)]
    expected = F.cross_entropy(real, targets, label_smoothing=0.1, reduction="sum")
    assert len(targets) == both.target_tokens == 5 + 3
    # Single precision, sums in another order.
    assert_close(loss, expected, rtol=1e-6, atol=0)
    assert_close(nll, F.cross_entropy(real, targets, reduction="sum"), rtol=1e-6, atol=0)


def test_gradient_of_many_batches_is_that_of_one_with_all_their_pairs() -> None:
    actual, stats = gradient(uneven_batches())

    expected, merged = gradient([merged_batch()])

    assert stats.target_tokens == merged.target_tokens == 2 + 2 + 20 + 31 + 26
    # The losses' softmax is in single precision.
    assert_close(actual, expected, rtol=0, atol=1e-7)
    assert_close(stats.nll, merged.nll, rtol=1e-6, atol=0)
    assert_close(stats.gradient_norm, merged.gradient_norm, rtol=1e-6, atol=0)


def test_a_mean_of_the_batches_means_would_be_another_gradient() -> None:
    short, long = uneven_batches()
    true, _ = gradient([short, long])

    mean_of_means = (gradient([short])[0] + gradient([long])[0]) / 2

    token_mean = (4 * gradient([short])[0] + 77 * gradient([long])[0]) / 81
    assert float((mean_of_means - true).norm() / true.norm()) > 0.2
    assert float((token_mean - true).norm() / true.norm()) < 1e-6  # single precision


def test_gradient_is_that_of_the_loss_per_token() -> None:
    model, whole = small_model().double(), merged_batch()

    actual, _ = gradient([whole])

    logits = model(whole.source, whole.source_keep, whole.target_in)
    loss = F.cross_entropy(logits[kept(whole)], whole.target_out[kept(whole)], label_smoothing=0.1)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    # The softmax of our loss is in single precision.
    assert_close(actual, torch.cat([g.flatten() for g in expected]), rtol=0, atol=1e-7)


def test_bf16_arithmetic_gives_about_the_same_gradient() -> None:
    precise, stats = gradient(uneven_batches())

    result, rough = gradient(uneven_batches(), dtype=torch.bfloat16)

    # bf16 has 8 bits, so a product is off by up to 0.4 %; some of them follow each other.
    assert float((result - precise).norm() / precise.norm()) < 0.03
    assert_close(rough.nll, stats.nll, rtol=0.01, atol=0, check_dtype=False)
    assert rough.gradient_norm.dtype == rough.nll.dtype == torch.float32


def test_a_gradient_above_the_limit_is_clipped_to_it() -> None:
    whole, free = gradient(uneven_batches())
    norm = float(free.gradient_norm)

    clipped, stats = gradient(uneven_batches(), clip_norm=norm / 4)

    # PyTorch adds 1e-6 to the norm before it divides.
    assert_close(clipped, whole / 4, rtol=1e-5, atol=1e-9)
    assert float(clipped.norm()) <= norm / 4
    assert float(stats.gradient_norm) == norm  # before clipping
    assert norm == pytest.approx(float(whole.norm()), rel=1e-6)


def test_a_gradient_below_the_limit_is_left_alone() -> None:
    whole, free = gradient(uneven_batches())

    result, _ = gradient(uneven_batches(), clip_norm=1.01 * float(free.gradient_norm))

    assert torch.equal(result, whole)


def test_rate_is_that_of_the_options() -> None:
    run = Run()

    stats = run.update(number=5, learn_rate=0.02)

    assert stats.learn_rate == 0.02
    assert [group["lr"] for group in run.optimizer.param_groups] == [stats.learn_rate] * 2


def diverge_by_weight(run: Run) -> None:
    run.model.target_embedding.weight.data[4] = math.inf


def diverge_by_gradient(run: Run) -> None:
    weight: Any = run.model.target_embedding.weight
    weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("diverge", [diverge_by_weight, diverge_by_gradient])
def test_a_diverged_update_is_skipped_and_changes_nothing(diverge: Any, clip_norm: float) -> None:
    run = Run()
    diverge(run)
    before = run.bits()

    stats = run.update(number=2, clip_norm=clip_norm)

    assert not stats.is_finite()
    assert all_equal(run.bits(), before)


def test_a_skipped_update_leaves_nothing_for_the_next() -> None:
    run, untroubled = Run(), Run()
    weight: Any = run.model.target_embedding.weight
    hook = weight.register_hook(lambda gradient: gradient * math.nan)
    assert not run.update(number=2).is_finite()
    hook.remove()

    run.update(number=2)
    untroubled.update(number=2)

    assert all_equal(run.bits(), untroubled.bits())


def test_the_same_key_gives_the_same_update_to_the_bit() -> None:
    one, other = Run(dropout=0.3), Run(dropout=0.3)
    torch.manual_seed(99)
    other.model.noise.seed(99)

    stats = [run.update(number=2, seed=5) for run in (one, other)]

    assert all_equal(one.bits(), other.bits())
    assert torch.equal(stats[0].nll, stats[1].nll)


@pytest.mark.parametrize("other", [{"seed": 6, "number": 2}, {"seed": 5, "number": 3}])
def test_another_seed_or_number_gives_other_dropout(other: dict[str, Any]) -> None:
    one, two = Run(dropout=0.3), Run(dropout=0.3)

    first, second = one.update(seed=5, number=2), two.update(**other)

    assert not torch.equal(first.nll, second.nll)


def test_each_batch_of_an_update_has_its_own_dropout() -> None:
    once = Run(dropout=0.3).update([merged_batch()])

    twice = Run(dropout=0.3).update([merged_batch(), merged_batch()])

    assert abs(float(twice.nll) - 2 * float(once.nll)) > 1e-2


def test_gradients_do_not_outlive_the_update() -> None:
    run = Run()

    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_recomputed_activations_give_the_same_gradients_with_dropout() -> None:
    result = []
    for recomputes in (False, True):
        run = Run(dropout=0.3)
        run.model.recomputes_activations = recomputes
        stats = run.update(number=2)
        result.append([stats.nll, stats.gradient_norm, *run.bits()])

    assert all(torch.equal(one, other) for one, other in zip(*result, strict=True))


def test_an_update_skipped_on_the_device_changes_no_weights_or_moments() -> None:
    run, untroubled = Run(), Run()
    spoilt = run.model.target_embedding.weight.data[5].clone()
    run.model.target_embedding.weight.data[5] = float("nan")
    before = run.bits()

    bad = run.update([batch((3, 30)), batch((9, 60))], number=2, wait_for_gradient=False)

    assert not bad.is_finite()
    assert all_equal(run.bits(), before)
    run.model.target_embedding.weight.data[5] = spoilt
    for one in (run, untroubled):
        assert one.update(number=3, wait_for_gradient=False).is_finite()
    assert all_equal(run.bits(), untroubled.bits())


def test_waiting_changes_nothing_about_a_healthy_update() -> None:
    one, other = Run(dropout=0.3), Run(dropout=0.3)

    one.update(number=2, wait_for_gradient=True)
    other.update(number=2, wait_for_gradient=False)

    assert all_equal(one.bits(), other.bits())


def test_another_attempt_has_other_dropout() -> None:
    one, other = Run(dropout=0.3), Run(dropout=0.3)

    first, second = one.update(number=2), other.update(number=2, attempt=1)

    assert not torch.equal(first.nll, second.nll)
