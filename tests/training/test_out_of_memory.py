"""R15: a batch that memory does not hold is computed in parts, to the same end."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Result, TinyCorpus, invoke
from tests.runs import SMALL_RUN, checkpoints, left_behind, write_part
from tests.training.test_update import Run, batch
from tfm_cli.errors import ResourceError
from tfm_cli.files import faults as failpoint
from tfm_cli.training.memory import MemoryLimit

LACK = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
UPDATES = 8
RUN = [*SMALL_RUN, "--max-updates", str(UPDATES), "--valid-freq", "5", "--save-freq", "4"]
Faults = Callable[[str], None]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """`faults(text)`: from now on these happen."""

    def set_off(text: str) -> None:
        monkeypatch.setenv(failpoint.VARIABLE, text)
        failpoint.reset_faults()

    yield set_off
    monkeypatch.delenv(failpoint.VARIABLE, raising=False)
    failpoint.reset_faults()


# --- one update ---------------------------------------------------------------------------------


def batches() -> list[Any]:
    """Of uneven lengths and odd numbers of pairs, so that padding and places matter."""
    some = [(3, 1), (1, 4), (7, 2), (2, 9), (5, 5), (8, 1), (4, 4)]
    return [batch(*some, seed=1), batch((9, 2), (6, 3), seed=2), batch(*some[1:4], seed=3)]


def updated(text: str, faults: Faults, *, double: bool = True) -> tuple[list[torch.Tensor], int]:
    """The weights after an update with dropout; and how often memory did not suffice."""
    faults("")
    run = Run(dropout=0.3, dtype=torch.float64 if double else torch.float32)
    if not double:
        # Adam makes steps of the usual size of gradients that are nothing but rounding.
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0)  # type: ignore[assignment]
    faults(text)
    limit = MemoryLimit()
    rate = 0.01 if double else 1.0
    stats = run.update(batches(), number=2, learn_rate=rate, memory_limit=limit)
    assert stats.is_finite()
    return [p.detach() for p in run.model.parameters()], limit.num_splits


def test_r15_update_is_the_same_wherever_memory_does_not_suffice(faults: Faults) -> None:
    """At each part in turn, and at each pair of parts, until there is none left."""
    whole, _ = updated("", faults)
    tried = 0
    for first, then in itertools.product(range(1, 99), (None, 1, 2, 4)):
        more = "" if then is None else f",micro_batch:{first + then}=memory"
        try:
            actual, splits = updated(f"micro_batch:{first}=memory{more}", faults)
        except ResourceError as error:  # the second one met a single pair
            assert "a single pair" in str(error)  # noqa: PT017 - that is one of two right ends
            continue
        if not splits:
            break
        tried += splits
        for mine, expected in zip(actual, whole, strict=True):
            # The sums run in another order, and Adam divides by the root of their squares.
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
    assert first == 4  # there are three batches
    assert tried >= 9


def test_r15_update_in_single_precision_is_the_same_but_for_rounding(faults: Faults) -> None:
    whole, _ = updated("", faults, double=False)

    actual, splits = updated("micro_batch:1=memory", faults, double=False)

    assert splits == 1
    for mine, expected in zip(actual, whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)


def test_r15_what_a_broken_off_backward_pass_left_does_not_count(faults: Faults) -> None:
    whole, _ = updated("", faults)
    run = Run(dropout=0.3, dtype=torch.float64)
    calls = iter(range(99))

    def lack(gradient: torch.Tensor) -> torch.Tensor:
        if next(calls) == 1:  # in the second batch, when half of the layers have gradients
            raise RuntimeError(LACK)
        return gradient

    weight: Any = run.model.encoder_layers[0].feed_forward.outer.weight  # type: ignore[union-attr]
    weight.register_hook(lack)
    limit = MemoryLimit()

    run.update(batches(), number=2, memory_limit=limit)

    assert limit.num_splits == 1
    for mine, expected in zip(run.model.parameters(), whole, strict=True):
        torch.testing.assert_close(mine.detach(), expected, rtol=0, atol=1e-10)


def test_r15_single_pair_without_memory_is_told(faults: Faults) -> None:
    run = Run()
    before = run.bits()
    faults("micro_batch:1+=memory")

    message = "cpu: out of memory for a single pair, of 9 source and 10 target tokens with padding"
    with pytest.raises(ResourceError, match=message) as raised:
        run.update(batches(), number=2)

    assert raised.value.hint == "drop longer pairs by `--max-length`, or train a smaller model"
    assert all(torch.equal(a, b) for a, b in zip(before, run.bits(), strict=True))


# --- a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55)


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfm_cli.training import initialization, run

    exact = initialization.initialize_model
    monkeypatch.setattr(run, "initialize_model", lambda *arguments: exact(*arguments).double())


def learn(text: list[str], output: Path, *flags: str) -> Result:
    result = invoke(["train", *text, *RUN, "-o", str(output), *flags])
    assert result.code == 0, result.err
    return result


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(output)[-1] / "model.safetensors")


def assert_same_weights(ours: Path, theirs: Path, *, atol: float) -> None:
    expected = weights(theirs)
    for name, tensor in weights(ours).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=atol)


def splits(output: Path) -> int:
    counters = json.loads((checkpoints(output)[-1] / "state.json").read_bytes())["state"]
    return int(counters["memory_splits"])


@pytest.mark.torture
@pytest.mark.usefixtures("in_double")
def test_r15_run_ends_with_the_same_weights_wherever_memory_does_not_suffice(
    text: list[str], faults: Faults, tmp_path: Path
) -> None:
    learn(text, tmp_path / "whole")
    for number in range(1, 99):
        faults(f"micro_batch:{number}=memory")
        output = tmp_path / str(number)

        result = learn(text, output)

        if not splits(output):
            break
        assert splits(output) == 1
        once = "warning: cpu: out of memory; splitting batches, with the same results\n"
        assert result.err.count(once) == 1
        # Adam divides by moments, of which the smallest have few equal digits.
        assert_same_weights(output, tmp_path / "whole", atol=1e-8)
    assert number > 14  # two batches an update, but the last of an epoch


@pytest.mark.slow
def test_r15_run_that_goes_on_computes_in_the_same_parts(
    text: list[str], faults: Faults, tmp_path: Path
) -> None:
    lack = "micro_batch:2=memory,micro_batch:5=memory"
    faults(lack)
    learn(text, tmp_path / "whole")
    faults(lack)
    learn(text, tmp_path / "parts", "--max-updates", "5")

    faults("")
    learn(text, tmp_path / "parts")

    assert splits(tmp_path / "whole") == 2
    assert left_behind(tmp_path / "parts") == left_behind(tmp_path / "whole")


@pytest.mark.parametrize(
    "lack",
    [
        RuntimeError(LACK),
        RuntimeError("unable to mmap 6338392 bytes from file <m>: Cannot allocate memory (12)"),
        MemoryError(),
    ],
)
def test_r15_want_of_memory_is_never_taken_for_a_bug(
    lack: Exception, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object, **named: object) -> None:
        raise lack

    monkeypatch.setattr("tfm_cli.translation.translator.Translator.load", load)

    result = invoke(["translate", "-m", str(tiny_model)], "one\n")

    assert result.code == 5
    assert result.err.startswith("error: out of memory")
