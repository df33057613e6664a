import shutil
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.test_batches import sampler, store
from tests.training.test_memory import CPU, model
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.training.memory import fit_micro_batch
from tfm_cli.training.parallel_model import compile_layers, should_compile


def test_long_runs_on_a_gpu_are_compiled_by_default() -> None:
    gpu = torch.device("cuda")
    for updates, expected in ((0, True), (20_000, True), (19_999, False)):
        assert should_compile(TrainingConfig(max_updates=updates), gpu) is expected
        assert not should_compile(TrainingConfig(max_updates=updates), CPU)
    assert should_compile(TrainingConfig(compile="on", max_updates=1), CPU)
    assert not should_compile(TrainingConfig(compile="off"), gpu)


def test_failing_compiler_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("no C++ compiler\nlong story")

    def compile_badly(module: nn.Module, **options: Any) -> None:
        assert options == {"dynamic": True}
        module._compiled_call_impl = broken

    monkeypatch.setattr(nn.Module, "compile", compile_badly)
    transformer, which = model(), sampler(store())
    compile_layers(transformer)

    assert (
        fit_micro_batch(which, transformer, may_shrink=True, device=CPU, dtype=torch.float32)
        is which
    )

    assert "`torch.compile` failed, continuing without it: no C++ compiler" in caplog.text
    source = torch.tensor([[3, 4]])
    transformer(source, None, source)  # the plain layers are back


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")  # what the compiler warns itself of
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_layers_compute_the_same() -> None:
    plain, compiled = model().double().eval(), model().double().eval()
    compiled.load_state_dict(plain.state_dict())
    compile_layers(compiled)

    for rows, length in ((2, 5), (3, 7)):
        source = torch.randint(3, 99, (rows, length))
        torch.testing.assert_close(
            compiled(source, None, source), plain(source, None, source), rtol=1e-10, atol=1e-12
        )
