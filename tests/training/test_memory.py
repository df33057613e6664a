import dataclasses
from typing import Any

import pytest
import torch

from tests.model.small_transformers import transformer as transformer_of
from tests.training.test_batches import sampler, store
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batch import Batch
from tfm_cli.errors import ResourceError
from tfm_cli.model.transformer import Transformer
from tfm_cli.training import memory
from tfm_cli.training.consistency import Consistency
from tfm_cli.training.memory import (
    fit_micro_batch,
    initial_micro_batch,
    largest_micro_batches,
    resolve_batch_size,
)
from tfm_cli.training.parallel_model import batch_loss

CPU = torch.device("cpu")


def model() -> Transformer:
    return transformer_of(
        99, encoder_layers=1, decoder_layers=1, width=8, heads=2, feed_forward_width=8
    ).train()


def limited(limit: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Limit a device to so many target tokens; return the sizes that were tried."""
    real, tried = batch_loss, []

    def watched(model: Any, batch: Batch, **named: Any) -> Any:
        tried.append(batch.target_out.numel())
        if batch.target_out.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, **named)

    patch.setattr(memory, "batch_loss", watched)
    return tried


def test_largest_batches_of_all_are_tried() -> None:
    which = sampler(store())
    sizes = [
        (which.batch(part).source.shape, which.batch(part).target_out.shape)
        for pairs in which.order.batches(0, 0)
        for part in which.split(pairs)
    ]

    tried = [(batch.source.shape, batch.target_out.shape) for batch in largest_micro_batches(which)]

    most = max(source.numel() + target.numel() for source, target in sizes)
    assert most in [source.numel() + target.numel() for source, target in tried]
    squares = [s[0] * (s[1] ** 2 + t[1] ** 2 + s[1] * t[1]) for s, t in sizes]
    assert max(squares) in [s[0] * (s[1] ** 2 + t[1] ** 2 + s[1] * t[1]) for s, t in tried]


def test_trial_changes_no_weights() -> None:
    which, transformer = sampler(store()), model()
    before = [p.detach().clone() for p in transformer.parameters()]

    assert (
        fit_micro_batch(which, transformer, may_shrink=True, device=CPU, dtype=torch.float32)
        is which
    )

    for old, parameter in zip(before, transformer.parameters(), strict=True):
        assert torch.equal(old, parameter)
        assert parameter.grad is None


def test_room_for_the_moments_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, reserved = torch.empty_like, []

    def watched(tensor: torch.Tensor, **named: Any) -> torch.Tensor:
        if isinstance(tensor, torch.nn.Parameter) and not named:
            reserved.append(tensor)
        return real(tensor, **named)

    monkeypatch.setattr(torch, "empty_like", watched)
    which, transformer = sampler(store()), model()
    tried = len(largest_micro_batches(which))

    for has_moments, expected in ((True, 0), (False, 2)):
        reserved.clear()
        fit_micro_batch(
            which, transformer, may_shrink=True, has_moments=has_moments, device=CPU,
            dtype=torch.float32,
        )  # fmt: skip
        assert len(reserved) == tried * expected * len(list(transformer.parameters()))


def test_micro_batch_is_halved_until_it_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tfm_cli")
    which = sampler(store())
    limited(99, monkeypatch)

    result = fit_micro_batch(which, model(), may_shrink=True, device=CPU, dtype=torch.float32)

    assert result.micro_batch == 50
    assert result == dataclasses.replace(which, micro_batch=50)
    assert "cpu: out of memory; using micro-batches of 50 target tokens" in caplog.text


def test_micro_batches_of_consistency_training_are_tried_with_both_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def embedded(module: Any, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        rows.append(len(out))

    rows: list[int] = []
    which, transformer = sampler(store()), model()
    transformer.target_embedding.register_forward_hook(embedded)
    tried = limited(0, monkeypatch)  # the plain loss is not computed

    fit_micro_batch(
        which, transformer, may_shrink=True, device=CPU, dtype=torch.float32,
        consistency=Consistency(method="r-drop", alpha=5.0),
    )  # fmt: skip

    assert tried == []
    largest = [len(batch.source) for batch in largest_micro_batches(which)]
    assert rows == [2 * count for count in largest for _ in ("source", "target")]


def test_explicit_micro_batch_is_not_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(99, monkeypatch)

    with pytest.raises(ResourceError, match="cpu: out of memory") as raised:
        fit_micro_batch(
            sampler(store()), model(), may_shrink=False, device=CPU, dtype=torch.float32
        )

    assert "training.micro_batch" in (raised.value.hint or "")


def test_single_pair_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = limited(5, monkeypatch)

    with pytest.raises(ResourceError, match="cpu: out of memory"):
        fit_micro_batch(sampler(store()), model(), may_shrink=True, device=CPU, dtype=torch.float32)

    assert len(tried) < 9


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("index out of range")

    monkeypatch.setattr(memory, "batch_loss", broken)

    with pytest.raises(RuntimeError, match="index out of range"):
        fit_micro_batch(sampler(store()), model(), may_shrink=True, device=CPU, dtype=torch.float32)


def test_preset_decides_the_tokens_of_an_update() -> None:
    settings = TrainingConfig(max_tokens=0, update_freq=3)

    assert resolve_batch_size(settings, "tiny").max_tokens == 3 * 2048
    assert resolve_batch_size(settings, "small").max_tokens == 3 * 4096
    assert resolve_batch_size(settings, "base").update_freq == 1
    given = TrainingConfig(max_tokens=77, update_freq=3)
    assert resolve_batch_size(given, "tiny") is given


def test_first_guess_follows_device_and_settings() -> None:
    settings = TrainingConfig(max_tokens=25_000)

    assert initial_micro_batch(settings, CPU) == 2048
    assert initial_micro_batch(settings, torch.device("meta")) == 25_000
    # What fitted before, where only the device's memory says how much does.
    assert initial_micro_batch(settings, torch.device("meta"), before=6250) == 6250
    assert initial_micro_batch(settings, CPU, before=6250) == 2048
    asked = dataclasses.replace(settings, micro_batch=300)
    assert initial_micro_batch(asked, CPU) == 300
