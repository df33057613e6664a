from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.decoding.replay import Recording, ReplayedStep
from tfm_cli.decoding.static.cuda_graph import ReadBack, Recorder, StepGraph, to_device

CPU = torch.device("cpu")


class FakeGraph:
    """Does at a replay what was recorded."""

    def __init__(self, function: Callable[[], None], log: list[str]) -> None:
        self._function, self._log = function, log

    def replay(self) -> None:
        self._log.append("replay")
        self._function()


class FakeRecorder(Recorder):
    """Stands for that of a GPU, and notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 1))
        self.log: list[str] = []

    def warm_up(self, function: Callable[[], None]) -> None:
        self.log.append("warm up")
        function()

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        self.log.append("record")
        return FakeGraph(function, self.log)  # type: ignore[return-value] # has what is used


def counter() -> tuple[Tensor, Callable[[], None]]:
    """A number, and what adds 1 to it where it is."""
    number = torch.zeros(1)
    return number, lambda: (number.add_(1), None)[1]


def test_first_steps_warm_up_and_each_step_is_done_once() -> None:
    number, function = counter()
    recorder = FakeRecorder()
    step = StepGraph(function, recorder)

    for calls in range(1, 6):
        step()
        assert float(number) == calls

    assert recorder.log == ["warm up", "warm up", "record", "replay", "replay", "replay"]


def test_step_that_cannot_be_recorded_is_called_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unable(FakeRecorder):
        def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
            super().record(function)
            raise RuntimeError("operation not permitted\nwhen capturing")

    number, function = counter()
    recorder = Unable()
    steps = [StepGraph(function, recorder), StepGraph(function, recorder)]

    for calls in range(1, 5):
        for step in steps:
            step()
        assert float(number) == 2 * calls

    assert recorder.log.count("record") == 1
    assert [record.message for record in caplog.records] == [
        "cuda:1 cannot record decoding steps, which makes decoding slower: operation not permitted"
    ]


def test_on_a_cpu_a_step_is_only_called() -> None:
    number, function = counter()
    step = StepGraph(function, Recorder(CPU))

    for _ in range(5):
        step()

    assert float(number) == 5


def test_what_is_read_back_is_as_it_was_then() -> None:
    tensor = torch.tensor([1, 2])

    answer = ReadBack(tensor)
    tensor.zero_()

    assert answer.wait().tolist() == [1, 2]


def test_numbers_that_are_sent_are_integers() -> None:
    assert to_device([3, 1], CPU).tolist() == [3, 1]
    assert to_device([], CPU).dtype == torch.long


def test_replay_on_a_cpu_repeats_what_python_decided_when_it_was_recorded() -> None:
    """The tests' own tool: it shows what a replayed graph would get wrong."""
    right, wrong = torch.zeros(1), torch.zeros(1)
    steps_taken = 0

    def function() -> None:
        nonlocal steps_taken
        steps_taken += 1
        right.add_(1)
        wrong.copy_(torch.full((1,), float(steps_taken)))

    step = ReplayedStep(function, None)
    for _ in range(6):
        step()

    assert (float(right), float(wrong), steps_taken) == (6, 3, 3)


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: [float(each) for each in x],
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "set by mask": lambda x: x.__setitem__(x > 0, 1.0),
    "equal": lambda x: torch.equal(x, x),
    "repeats": lambda x: x.repeat_interleave(torch.tensor([1, 2])),
    "constant": lambda x: x + torch.tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("what", WAITING)
def test_steps_that_wait_for_a_tensor_are_refused(what: str) -> None:
    """The tests' own tool again."""
    with torch.inference_mode(), Recording(), pytest.raises(AssertionError):
        WAITING[what](torch.tensor([0.5, 1.0]))


def increment(number: Tensor) -> None:
    """Add 1, by way of tensors that are there only meanwhile."""
    number.add_((number * 0 + 1).sqrt())


@pytest.mark.gpu
def test_recorded_steps_share_memory_and_are_replayed() -> None:
    device = torch.device("cuda")
    recorder = Recorder(device)
    numbers = [torch.zeros(1000, device=device) for _ in range(3)]
    steps = [StepGraph(partial(increment, number), recorder) for number in numbers]

    for _ in range(7):
        for step in steps:
            step()
    answers = [ReadBack(number) for number in numbers]

    assert all(answer.wait().tolist() == [7.0] * 1000 for answer in answers)
    assert len({graph.pool() for graph in recorder._graphs}) == 1
