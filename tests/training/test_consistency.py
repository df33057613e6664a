"""Consistency training, against autograd in double precision and against equalities."""

# N target tokens, D model width, V vocabulary

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.conftest import Result, TinyCorpus, invoke
from tests.model.small_transformers import transformer as transformer_of
from tests.runs import SMALL_RUN, left_behind, metrics, write_part
from tests.training.test_update import SETTINGS, VOCAB, Run, batch, kept, plan
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.errors import ResourceError
from tfm_cli.files import faults as failpoint
from tfm_cli.model.transformer import Transformer
from tfm_cli.training import loss as loss_module
from tfm_cli.training.consistency import (
    Consistency,
    consistency_loss,
    consistency_of,
    consistent_cross_entropy,
)
from tfm_cli.training.loss import cross_entropy
from tfm_cli.training.memory import MemoryLimit, initial_micro_batch
from tfm_cli.training.parallel_model import ParallelModel, batch_loss
from tfm_cli.training.update import UpdateOptions, UpdateStats, update

R_DROP = Consistency(method="r-drop", alpha=5.0)
SIMCUT = Consistency(method="simcut", alpha=3.0, token_cutoff=0.25)
TOKENS, WIDTH, SMOOTHING = 10, 6, 0.1
every_method = pytest.mark.parametrize("method", [R_DROP, SIMCUT], ids=["r-drop", "simcut"])


def draw(*shape: int, seed: int) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


def random_targets() -> Tensor:
    return torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(3))


def by_the_papers(one: Tensor, other: Tensor, targets: Tensor, method: Consistency) -> list[Tensor]:
    """Return the loss, the plain NLL and the divergence of logits (N, V), by PyTorch's losses."""

    def divergence(first: Tensor, second: Tensor) -> Tensor:
        """KL(first || second)"""
        first, second = first.log_softmax(dim=1), second.log_softmax(dim=1)
        return F.kl_div(second, first, log_target=True, reduction="sum")

    def both(smoothing: float) -> list[Tensor]:
        return [
            F.cross_entropy(each, targets, label_smoothing=smoothing, reduction="sum")
            for each in (one, other)
        ]

    if method.method == "simcut":
        gap = divergence(one, other)
        return [both(SMOOTHING)[0] + method.alpha * gap, both(0.0)[0], gap]
    gap = (divergence(one, other) + divergence(other, one)) / 2
    loss = sum(both(SMOOTHING), torch.zeros(())) + method.alpha * gap  # equation 4
    return [loss / 2, sum(both(0.0), torch.zeros(())) / 2, gap]


# --- the loss of hidden states ------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("has_bias", [False, True])
# Tokens of a chunk: all; 3, 3, 3 and 1; one by one, though not one fits.
@pytest.mark.parametrize("chunk_logits", [1 << 21, 6 * VOCAB, 4])
def test_losses_and_gradients_equal_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, method: Consistency, has_bias: bool, chunk_logits: int
) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_LOGITS", chunk_logits)
    monkeypatch.setattr(loss_module, "_MIN_ROWS", 1)
    hidden, weight = draw(2, TOKENS, WIDTH, seed=1), draw(VOCAB, WIDTH, seed=2)
    bias = draw(VOCAB, seed=4) if has_bias else None
    parameters = [hidden, weight, *([] if bias is None else [bias])]

    actual = consistent_cross_entropy(
        hidden, weight, random_targets(), method.terms, label_smoothing=SMOOTHING, bias=bias
    )

    logits = [F.linear(each, weight, bias) for each in hidden]
    expected = by_the_papers(logits[0], logits[1], random_targets(), method)
    assert_close(list(actual), expected, rtol=1e-12, atol=0)
    assert [each.requires_grad for each in actual] == [True, False, False]
    gradients = [torch.autograd.grad(each[0] / 8, parameters) for each in (actual, expected)]
    assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


@every_method
def test_single_precision_is_that_of_sums_of_single_losses(method: Consistency) -> None:
    hidden, weight = (
        draw(*shape, seed=1).detach().float().requires_grad_()
        for shape in ((2, TOKENS, WIDTH), (VOCAB, WIDTH))
    )

    actual = consistent_cross_entropy(
        hidden, weight, random_targets(), method.terms, label_smoothing=SMOOTHING
    )

    first, second = (F.linear(each.double(), weight.double()) for each in hidden)
    expected = by_the_papers(first, second, random_targets(), method)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(each[0], (hidden, weight)) for each in (actual, expected)]
    assert_close(gradients[0], gradients[1], rtol=1e-5, atol=2e-5)


@every_method
def test_bf16_arithmetic_gives_single_gradients_that_point_the_same_way(
    method: Consistency,
) -> None:
    hidden, weight = (
        draw(*shape, seed=1).detach().float().requires_grad_()
        for shape in ((2, TOKENS, WIDTH), (VOCAB, WIDTH))
    )

    def losses() -> tuple[Tensor, ...]:
        return consistent_cross_entropy(
            hidden, weight, random_targets(), method.terms, label_smoothing=SMOOTHING
        )

    with torch.autocast("cpu", torch.bfloat16):
        rough = losses()
    gradients = [torch.autograd.grad(each[0], (hidden, weight)) for each in (rough, losses())]

    assert {each.dtype for each in (*rough, *gradients[0])} == {torch.float32}
    assert_close(rough[0], losses()[0], rtol=0.02, atol=0)  # bf16 has 8 bits: 2**-8 is 0.4 %
    for ours, theirs in zip(*gradients, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_r_drop_without_weight_is_the_mean_of_two_plain_losses() -> None:
    hidden, weight = draw(2, TOKENS, WIDTH, seed=1), draw(VOCAB, WIDTH, seed=2)
    method = Consistency(method="r-drop", alpha=0.0)

    loss, nll, _ = consistent_cross_entropy(
        hidden, weight, random_targets(), method.terms, label_smoothing=SMOOTHING
    )

    plain = [
        cross_entropy(each, weight, random_targets(), label_smoothing=SMOOTHING) for each in hidden
    ]
    mean = (plain[0][0] + plain[1][0]) / 2
    assert_close([loss, nll], [mean, (plain[0][1] + plain[1][1]) / 2], rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(each, (hidden, weight)) for each in (loss, mean)]
    assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


@every_method
def test_large_logits_do_not_overflow(method: Consistency) -> None:
    hidden = (1e4 * draw(2, TOKENS, WIDTH, seed=1)).detach().float().requires_grad_()
    weight = draw(VOCAB, WIDTH, seed=2).detach().float().requires_grad_()

    loss, _, divergence = consistent_cross_entropy(
        hidden, weight, random_targets(), method.terms, label_smoothing=SMOOTHING
    )
    gradients = torch.autograd.grad(loss, (hidden, weight))

    assert all(bool(each.isfinite().all()) for each in (loss, divergence, *gradients))


@every_method
def test_divergence_of_equal_views_is_never_below_zero(method: Consistency) -> None:
    hidden = draw(1, TOKENS, WIDTH, seed=1).detach().float().repeat(2, 1, 1)
    nearly = hidden * torch.tensor([1.0, 1 + 1e-7])[:, None, None]

    for each in (hidden, nearly):
        *_, divergence = consistent_cross_entropy(
            each, draw(VOCAB, WIDTH, seed=2).detach().float(), random_targets(), method.terms,
            label_smoothing=SMOOTHING,
        )  # fmt: skip

        assert 0 <= float(divergence) < 1e-6
        assert not divergence.requires_grad


# --- the loss of a batch ------------------------------------------------------------------------


def small_model(dropout: float = 0.0, **options: Any) -> Transformer:
    torch.manual_seed(1)
    return transformer_of(
        VOCAB, encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=16,
        **{"dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout,
           "word_dropout": dropout, **options},
    ).double().train()  # fmt: skip


def uneven_batch() -> Batch:
    return batch((3, 4), (6, 2), (1, 7))


def written_out(model: Transformer, method: Consistency, found: Batch, key: int) -> list[Tensor]:
    """Return what `by_the_papers` does of a model without dropout, with masks drawn here."""
    generator = torch.Generator().manual_seed(key)

    def visible(ids: Tensor) -> Tensor:
        """Return one decision for each token: the stream has a byte for each, of both views."""
        count = 2 * ids.numel()
        words = torch.empty(-(-count // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator)
        drawn = words.view(torch.uint8)[:count].view(len(ids), 2, -1)
        return (drawn[:, 1] >= 256 * method.token_cutoff)[..., None].double()

    logits = [model(found.source, found.source_keep, found.target_in)[kept(found)]]
    if not method.token_cutoff:
        logits.append(logits[0])
    else:
        seen = [visible(found.source), visible(found.target_in)]
        assert sum(float((1 - each).sum()) for each in seen) > 0
        embedding = model.target_embedding  # its weight is the output matrix as well
        calls = iter(seen)
        hook = embedding.register_forward_hook(lambda module, ids, out: out * next(calls))
        logits.append(model(found.source, found.source_keep, found.target_in)[kept(found)])
        hook.remove()
    return by_the_papers(logits[0], logits[1], found.target_out[kept(found)], method)


@every_method
@pytest.mark.parametrize("options", [{}, {"positions": "rotary"}, {"output_bias": True}])
def test_losses_and_gradients_of_a_batch_equal_those_written_out(
    method: Consistency, options: dict[str, Any]
) -> None:
    model, found = small_model(**options), uneven_batch()
    model.noise.seed(7)

    actual = consistency_loss(model, found, method, label_smoothing=SMOOTHING)

    expected = written_out(model, method, found, key=7)
    assert_close(list(actual), expected, rtol=1e-10, atol=1e-12)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(each[0], parameters) for each in (actual, expected)]
    assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [R_DROP, Consistency(method="simcut", alpha=3.0)])
def test_equal_views_have_the_plain_loss_and_gradient(method: Consistency) -> None:
    model, found = small_model(), uneven_batch()

    loss, nll, divergence = consistency_loss(model, found, method, label_smoothing=SMOOTHING)

    plain, plain_nll = batch_loss(model, found, label_smoothing=SMOOTHING)
    assert abs(float(divergence)) < 1e-12
    assert_close([loss, nll], [plain, plain_nll], rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(each, parameters) for each in (loss, plain)]
    assert_close(gradients[0], gradients[1], rtol=0, atol=1e-11)


def test_views_of_a_pair_have_dropout_of_their_own() -> None:
    model, found = small_model(0.25), batch((3, 4), (3, 4))
    model.noise.seed(7)

    _, _, divergence = consistency_loss(model, found, R_DROP, label_smoothing=SMOOTHING)

    rows = {name: getattr(found, name).repeat_interleave(2, dim=0) for name in ("source",
            "target_in")}  # fmt: skip
    model.noise.seed(7)
    logits = model(rows["source"], None, rows["target_in"]).unflatten(0, (-1, 2))
    pairs = [logits[:, view].flatten(0, 1) for view in range(2)]
    assert_close(
        divergence, by_the_papers(pairs[0], pairs[1], found.target_out.flatten(), R_DROP)[2]
    )
    assert float(divergence) > 0.01


def test_first_view_of_simcut_sees_all_tokens() -> None:
    """Its negative log-likelihood, which is logged, is the plain one."""
    model, found = small_model(), uneven_batch()
    model.noise.seed(7)

    _, nll, divergence = consistency_loss(model, found, SIMCUT, label_smoothing=SMOOTHING)

    _, plain = batch_loss(model, found, label_smoothing=0.0)
    assert_close(nll, plain, rtol=1e-12, atol=0)
    assert float(divergence) > 0.001


# --- updates ------------------------------------------------------------------------------------


def make_update(
    run: Run, batches: list[Batch], method: Consistency, limit: MemoryLimit | None = None,
    **options: Any,
) -> UpdateStats:  # fmt: skip
    return update(
        ParallelModel(run.model, label_smoothing=SMOOTHING, consistency=method),
        plan(batches),
        run.optimizer,
        UpdateOptions(**{**SETTINGS, "number": 2, "learn_rate": 0.01, **options}),
        limit,
    )


def weights(run: Run) -> list[Tensor]:
    return [parameter.detach() for parameter in run.model.parameters()]


def three_batches() -> list[Batch]:
    some = [(3, 1), (1, 4), (7, 2), (2, 9), (5, 5), (8, 1), (4, 4)]
    return [batch(*some, seed=1), batch((9, 2), (6, 3), seed=2), batch(*some[1:4], seed=3)]


@every_method
def test_micro_batches_weight_every_target_token_alike(method: Consistency) -> None:
    """Without dropout, and with all tokens seen, the pairs of an update may be in any batches."""
    method = Consistency(method=method.method, alpha=method.alpha)
    pairs = [batch((3, 1), seed=1), batch((5, 19), seed=2)]
    whole, parts = (Run(dtype=torch.float64) for _ in range(2))
    for run in (whole, parts):
        run.model.noise.seed(1)

    stats = make_update(parts, pairs, method)

    plain = update(
        ParallelModel(whole.model, label_smoothing=SMOOTHING),
        plan(pairs),
        whole.optimizer,
        UpdateOptions(**{**SETTINGS, "number": 2, "learn_rate": 0.01}),
    )
    assert plain.divergence is None
    assert stats.divergence is not None
    assert abs(float(stats.divergence)) < 1e-10
    assert_close(stats.nll, plain.nll, rtol=1e-12, atol=0)
    assert_close(stats.gradient_norm, plain.gradient_norm, rtol=1e-9, atol=0)
    assert_close(weights(parts), weights(whole), rtol=0, atol=1e-8)


@every_method
def test_gradient_is_that_of_the_losses_per_token(
    method: Consistency, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(dropout=0.3, dtype=torch.float64)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0)  # type: ignore[assignment]
    before = [each.clone() for each in weights(run)]
    seeds: list[int] = []
    real = run.model.noise.seed

    def watched(key: int, device: torch.device) -> None:
        seeds.append(key)
        real(key, device)

    with monkeypatch.context() as patch:
        patch.setattr(run.model.noise, "seed", watched)
        stats = make_update(run, three_batches(), method, learn_rate=1.0)

    actual = [old - new for old, new in zip(before, weights(run), strict=True)]
    for parameter, old in zip(run.model.parameters(), before, strict=True):
        parameter.data.copy_(old)
    losses = []
    for key, found in zip(seeds, three_batches(), strict=True):
        run.model.noise.seed(key)
        losses.append(consistency_loss(run.model, found, method, label_smoothing=SMOOTHING))
    tokens = sum(found.target_tokens for found in three_batches())
    mean = sum((each[0] for each in losses), torch.zeros(())) / tokens
    expected = torch.autograd.grad(mean, list(run.model.parameters()))
    assert len(set(seeds)) == 3
    rate = stats.learn_rate
    assert_close(actual, [rate * each for each in expected], rtol=0, atol=1e-12)
    assert stats.divergence is not None
    assert_close(float(stats.divergence), float(sum(each[2] for each in losses)), rtol=1e-6, atol=0)


@every_method
def test_the_same_key_gives_the_same_update_to_the_bit(method: Consistency) -> None:
    one, other = Run(dropout=0.3), Run(dropout=0.3)
    torch.manual_seed(99)
    other.model.noise.seed(99)

    stats = [make_update(run, three_batches(), method) for run in (one, other)]

    assert all(torch.equal(a, b) for a, b in zip(one.bits(), other.bits(), strict=True))
    assert torch.equal(stats[0].nll, stats[1].nll)
    assert stats[0].divergence is not None
    assert stats[1].divergence is not None
    assert torch.equal(stats[0].divergence, stats[1].divergence)


@pytest.mark.parametrize("other", [{"seed": 6}, {"number": 3}, {"attempt": 1}])
def test_another_seed_number_or_attempt_cuts_off_other_tokens(other: dict[str, Any]) -> None:
    stats = [make_update(Run(), three_batches(), SIMCUT, **each) for each in ({}, other)]

    assert stats[0].divergence != stats[1].divergence


@every_method
def test_recomputed_activations_give_the_same_gradients(method: Consistency) -> None:
    result = []
    for recomputes in (False, True):
        run = Run(dropout=0.3)
        run.model.recomputes_activations = recomputes
        stats = make_update(run, three_batches(), method)
        assert stats.divergence is not None
        result.append([stats.nll, stats.divergence, stats.gradient_norm, *run.bits()])

    assert all(torch.equal(one, other) for one, other in zip(*result, strict=True))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def set_off(text: str) -> None:
        monkeypatch.setenv(failpoint.VARIABLE, text)
        failpoint.reset_faults()

    yield set_off
    monkeypatch.delenv(failpoint.VARIABLE, raising=False)
    failpoint.reset_faults()


@every_method
def test_update_is_the_same_wherever_memory_does_not_suffice(
    method: Consistency, faults: Callable[[str], None]
) -> None:
    def updated(text: str) -> tuple[list[Tensor], UpdateStats, int]:
        faults("")
        run, limit = Run(dropout=0.3, dtype=torch.float64), MemoryLimit()
        faults(text)
        stats = make_update(run, three_batches(), method, limit)
        return [*weights(run)], stats, limit.num_splits

    whole, expected, _ = updated("")
    tried = 0
    for first, then in itertools.product(range(1, 4), (None, 1, 2)):
        more = "" if then is None else f",micro_batch:{first + then}=memory"
        try:
            actual, stats, splits = updated(f"micro_batch:{first}=memory{more}")
        except ResourceError:  # a single pair
            continue
        tried += splits
        # The sums run in another order, and Adam divides by the root of their squares.
        assert_close(actual, whole, rtol=0, atol=1e-9)
        assert_close(stats.nll, expected.nll, rtol=1e-6, atol=0)
        assert_close(stats.divergence, expected.divergence, rtol=1e-6, atol=0)
    assert tried >= 6


# --- a run --------------------------------------------------------------------------------------

MORE = {"r-drop": ["--consistency", "r-drop"],
        "simcut": ["--consistency", "simcut", "--token-cutoff", "0.2"]}  # fmt: skip
OFTEN = ["--valid-freq", "4", "--save-freq", "3", "--disp-freq", "2"]


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55, valid=2)


def learn(text: list[str], output: Path, *flags: str) -> Result:
    result = invoke(["train", *text, *SMALL_RUN, *OFTEN, "-o", str(output), *flags])
    assert result.code == 0, result.err
    return result


@pytest.mark.parametrize("method", MORE)
def test_resumed_run_equals_an_uninterrupted_one(
    method: str, text: list[str], tmp_path: Path
) -> None:
    """Stopped between two progress lines, so that the sum of the divergence is resumed too."""
    learn(text, tmp_path / "whole", *MORE[method], "--max-updates", "8")
    learn(text, tmp_path / "parts", *MORE[method], "--max-updates", "3")

    learn(text, tmp_path / "parts", "--max-updates", "8")

    assert left_behind(tmp_path / "parts") == left_behind(tmp_path / "whole")


def test_divergence_is_logged_only_where_it_is_computed(text: list[str], tmp_path: Path) -> None:
    plain, one, other = tmp_path / "plain", tmp_path / "one", tmp_path / "other"
    learn(text, plain, "--max-updates", "4")
    learn(text, one, *MORE["r-drop"], "--max-updates", "4")
    learn(text, other, *MORE["r-drop"], "--consistency-alpha", "50", "--max-updates", "4")

    logged = [
        [line for line in metrics(output) if line["event"] == "train"]
        for output in (plain, one, other)
    ]
    assert all("consistency" not in line for line in logged[0])
    assert all(line["consistency"] > 0 for line in logged[1])
    # The loss is that of the predictions alone: before the first update, that of the text.
    assert logged[1][0]["loss"] == pytest.approx(logged[0][0]["loss"], rel=0.02)
    assert logged[2][0]["loss"] == pytest.approx(logged[0][0]["loss"], rel=0.02)
    assert logged[2][0]["gradient_norm"] != logged[1][0]["gradient_norm"]


def test_consistency_training_begins_and_ends_on_request(text: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    learn(text, output, "--max-updates", "3")
    refused = invoke(["train", "-o", str(output), "--max-updates", "6", *MORE["simcut"]])
    assert refused.code == 2
    assert "training.consistency: `none` → `simcut`" in refused.err

    learn(text, output, "--max-updates", "6", *MORE["simcut"], "--allow-change")
    learn(text, output, "--max-updates", "9", "--consistency", "none", "--allow-change")

    lines = {line["update"]: line for line in metrics(output) if line["event"] == "train"}
    assert [update for update in lines if "consistency" in lines[update]] == [4, 6]


# --- settings -----------------------------------------------------------------------------------


def test_default_weights_are_those_of_the_papers() -> None:
    assert consistency_of(TrainingConfig()) is None
    assert consistency_of(TrainingConfig(consistency="r-drop")) == R_DROP
    simcut = TrainingConfig(consistency="simcut")
    assert consistency_of(simcut) == Consistency(method="simcut", alpha=3.0, token_cutoff=0.05)
    given = TrainingConfig(consistency="simcut", consistency_alpha=0.5, token_cutoff=0.25)
    assert consistency_of(given) == Consistency(method="simcut", alpha=0.5, token_cutoff=0.25)


def test_two_views_take_the_memory_of_one_on_a_cpu() -> None:
    plain, twice = (TrainingConfig(consistency=each) for each in ("none", "simcut"))
    asked = TrainingConfig(consistency="simcut", micro_batch=300)

    sizes = [initial_micro_batch(each, torch.device("cpu")) for each in (plain, twice, asked)]

    assert sizes == [2048, 1024, 300]
