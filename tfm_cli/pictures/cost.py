"""Self-attention against recurrence, measured on this machine: time, path length, gradients."""

# R rows, N tokens of each row, D model width, H heads, F inner width of the feed-forward layer

import dataclasses
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfm_cli.console import counted
from tfm_cli.model.dropout import Noise
from tfm_cli.model.layers import EncoderLayer, LayerShape
from tfm_cli.model.positions import RotaryPositions
from tfm_cli.pictures import charts
from tfm_cli.pictures.charts import Columns
from tfm_cli.pictures.page import Block, Chart, Page, Prose, Table

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
REPETITIONS = 3
TOKENS_PER_UPDATE = 512
_SAMPLE_SECONDS = 0.1  # the most that one point takes in one repetition, if one call is shorter
_MIN_LENGTHS = 2  # measured even if the time does not suffice
_GRADIENT_LENGTH = 64
_DIRECTIONS = 16  # random directions in which a gradient is measured
_SEED = 1

SELF_ATTENTION, ENCODER_LAYER, LSTM = "self-attention", "encoder layer", "LSTM"
LSTM_OPEN = "LSTM, forget bias 1"
NAMES = (SELF_ATTENTION, ENCODER_LAYER, LSTM)

# Vaswani et al. 2017, table 1: n is the length, d the width, k the kernel, r the neighborhood.
COMPLEXITY_HEADER = (
    "layer", "complexity per layer", "sequential operations", "maximum path length",
)  # fmt: skip
COMPLEXITY = (
    ("self-attention", "O(n² · d)", "O(1)", "O(1)"),
    ("recurrent", "O(n · d²)", "O(n)", "O(n)"),
    ("convolutional", "O(k · n · d²)", "O(1)", "O(log_k(n))"),
    ("self-attention (restricted)", "O(r · n · d)", "O(1)", "O(n / r)"),
)
COMPLEXITY_SOURCE = "Vaswani et al. 2017, arXiv:1706.03762, table 1"
NO_EXPLANATION = (
    "Attention weights are no explanation of a decision: they show where a layer reads, and other "
    "weights may give the same output (Jain and Wallace 2019, arXiv:1902.10186; for the other "
    "view Wiegreffe and Pinter 2019, arXiv:1908.04626)."
)


@dataclass(frozen=True, slots=True)
class Repetitions:
    """One quantity, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """Return the least value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Return the greatest value."""
        return max(self.values)

    def ratio(self, other: "Repetitions") -> float | None:
        """Return this median divided by that of another; None if the ranges overlap."""
        if self.low <= other.high and other.low <= self.high:
            return None
        return self.median / other.median


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """The cost of one kind of layer, for each length.

    Attributes:
        name: of `NAMES`.
        parameters: number of weights.
        multiply_adds: of the matrix products for one sentence.
        sequential_operations: matrix products that wait for one another.
        path_length: the layers or time steps between the first word and the last.
        update: seconds of a forward and a backward pass and an Adam step.
        sentence: seconds of the forward pass of one sentence.
    """

    name: str
    parameters: int
    multiply_adds: tuple[int, ...]
    sequential_operations: tuple[int, ...]
    path_length: tuple[int, ...]
    update: tuple[Repetitions, ...]
    sentence: tuple[Repetitions, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine of a measurement."""

    processor: str
    cores: int
    threads: int
    device: str
    system: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Self-attention against recurrence.

    Attributes:
        shape: of the encoder layer; the LSTM has its width.
        machine: the machine of the measurement.
        command: the command that measures again.
        lengths: tokens of a sentence.
        omitted_lengths: those for which there was no time.
        tokens_per_update: tokens of an update; a longer sentence is an update of its own.
        seconds: time that the measurement took.
        layers: the costs.
        gradient: the norm of the gradient of the last position's output with respect to the input
            at each distance before it, 0 … 63, by the name of the layer.
    """

    shape: LayerShape
    machine: Machine
    command: str
    lengths: tuple[int, ...]
    omitted_lengths: tuple[int, ...]
    tokens_per_update: int
    seconds: float
    layers: tuple[LayerCost, ...]
    gradient: dict[str, tuple[Repetitions, ...]]

    def layer(self, name: str) -> LayerCost:
        """Return the cost of a kind of layer."""
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        content = dataclasses.asdict(self)
        for layer in content["layers"]:
            for name in ("update", "sentence"):
                layer[f"{name}_seconds"] = [each["values"] for each in layer.pop(name)]
        content["gradient"] = {
            name: [each["values"] for each in norms] for name, norms in content["gradient"].items()
        }
        return content


# Measuring.


@dataclass(frozen=True, slots=True)
class _Subject:
    """A layer that is measured."""

    name: str
    module: nn.Module
    forward: Callable[[Tensor], Tensor]  # (R, N, D) to (R, N, D)


def measure_cost(
    shape: LayerShape,
    *,
    is_rotary: bool = False,
    command: str = "tfm explain --cost",
    seconds: float,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Measure an encoder layer and an LSTM of the same width, both with random weights.

    Each point is measured once in each repetition, layers by turns. Lengths for which the time
    does not suffice are left out.

    Args:
        shape: of the encoder layer; without dropout, which `nn.LSTM` has only between layers.
        is_rotary: True if positions are rotary.
        command: the command that measures again.
        seconds: the time to take, about.
        device: the device; None for the CPU.
        clock: the current time in seconds.
    """
    device = device or torch.device("cpu")
    start = clock()
    generator = torch.Generator().manual_seed(_SEED)
    gradient = _gradients(shape, is_rotary, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        subjects = [
            _Subject(each.name, each.module.to(device), each.forward)
            for each in _subjects(shape, is_rotary)
        ]
    stopwatch = _Stopwatch(device, clock, generator, shape.width)
    estimates = _estimates(subjects, stopwatch, deadline=start + seconds)
    lengths = tuple(dict.fromkeys(length for _, length, _ in estimates))
    samples: dict[tuple[str, int, bool], list[float]] = {point: [] for point in estimates}
    for number, (subject, length, is_update) in enumerate(_schedule(subjects, lengths)):
        point = (subject.name, length, is_update)
        share = (start + seconds - clock()) / (REPETITIONS * len(estimates) - number)
        calls = max(1, int(min(share, _SAMPLE_SECONDS) / max(estimates[point], 1e-9)))
        samples[point].append(stopwatch.seconds(subject, length, is_update, calls=calls))
    measured = {point: Repetitions(tuple(values)) for point, values in samples.items()}
    return Cost(
        shape=shape,
        machine=_machine(device),
        command=command,
        lengths=lengths,
        omitted_lengths=tuple(length for length in LENGTHS if length not in lengths),
        tokens_per_update=TOKENS_PER_UPDATE,
        seconds=clock() - start,
        layers=tuple(_layer_cost(each, shape, lengths, measured) for each in subjects),
        gradient=gradient,
    )


def _schedule(
    subjects: Sequence[_Subject], lengths: Sequence[int]
) -> Iterator[tuple[_Subject, int, bool]]:
    """Yield what is measured, one after the other; each repetition begins with another layer."""
    for repetition in range(REPETITIONS):
        first = repetition % len(subjects)
        for length in lengths:
            for is_update in (True, False):
                for subject in (*subjects[first:], *subjects[:first]):
                    yield subject, length, is_update


def _subjects(shape: LayerShape, is_rotary: bool) -> list[_Subject]:
    """Return the three layers with random weights."""
    shape = dataclasses.replace(shape, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    layer = EncoderLayer(shape, RotaryPositions() if is_rotary else None, Noise())
    for module in reversed(list(layer.modules())):
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    attention = layer.self_attention

    def attend(x: Tensor) -> Tensor:
        query, key, value = attention.project(x)  # (R, H, N, E) each
        if layer.rotary is not None:
            query, key = layer.rotary(query), layer.rotary(key)
        return attention.attend(query, key, value, None)

    lstm = nn.LSTM(shape.width, shape.width, batch_first=True)
    return [
        _Subject(SELF_ATTENTION, attention, attend),
        _Subject(ENCODER_LAYER, layer, lambda x: layer(x, None)),
        _Subject(LSTM, lstm, lambda x: lstm(x)[0]),
    ]


class _Stopwatch:
    """A stopwatch for updates and encoded sentences.

    Args:
        device: device of the subjects.
        clock: the current time in seconds.
        generator: draws the input.
        width: D.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float],
        generator: torch.Generator,
        width: int,
    ) -> None:
        self._device = device
        self.clock = clock
        self._generator = generator
        self._width = width
        self._inputs: dict[tuple[int, int], Tensor] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}

    def seconds(self, subject: _Subject, length: int, is_update: bool, *, calls: int) -> float:
        """Return the median time of some calls."""
        rows = max(1, TOKENS_PER_UPDATE // length) if is_update else 1
        if (rows, length) not in self._inputs:
            drawn = torch.randn(rows, length, self._width, generator=self._generator)
            self._inputs[rows, length] = drawn.to(self._device)  # (R, N, D)
        x = self._inputs[rows, length]
        call = self._update if is_update else self._encode
        times = []
        for _ in range(calls):
            self._wait()
            start = self.clock()
            call(subject, x)
            self._wait()
            times.append(self.clock() - start)
        return statistics.median(times)

    def _update(self, subject: _Subject, x: Tensor) -> None:
        if subject.name not in self._optimizers:
            # A rate of zero keeps the weights random, at the same cost.
            self._optimizers[subject.name] = torch.optim.Adam(subject.module.parameters(), lr=0.0)
        torch.autograd.backward(subject.forward(x).square().mean())
        self._optimizers[subject.name].step()
        self._optimizers[subject.name].zero_grad(set_to_none=True)

    @torch.inference_mode()
    def _encode(self, subject: _Subject, x: Tensor) -> None:
        subject.forward(x)

    def _wait(self) -> None:
        """Wait until the device has computed everything."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


def _estimates(
    subjects: Sequence[_Subject], stopwatch: _Stopwatch, *, deadline: float
) -> dict[tuple[str, int, bool], float]:
    """Return the time of one call at each point that can be measured before the deadline.

    This also warms everything up: the first calls are slower.
    """
    estimates: dict[tuple[str, int, bool], float] = {}
    for number, length in enumerate(LENGTHS):
        own = {}
        for subject in subjects:
            for is_update in (True, False):
                stopwatch.seconds(subject, length, is_update, calls=1)
                taken = stopwatch.seconds(subject, length, is_update, calls=1)
                own[subject.name, length, is_update] = taken
        needed = REPETITIONS * sum((*estimates.values(), *own.values()))
        if number >= _MIN_LENGTHS and stopwatch.clock() + needed > deadline:
            break
        estimates |= own
        # The next length takes at least as long, both here and in each repetition.
        following = (REPETITIONS + 2) * sum(own.values())
        if number + 1 >= _MIN_LENGTHS and stopwatch.clock() + needed + following > deadline:
            break
    return estimates


def _layer_cost(
    subject: _Subject,
    shape: LayerShape,
    lengths: Sequence[int],
    measured: dict[tuple[str, int, bool], Repetitions],
) -> LayerCost:
    name, width = subject.name, shape.width
    inner = shape.feed_forward_width * (3 if shape.activation == "swiglu" else 2)  # rows, columns
    per_token = {
        SELF_ATTENTION: 4 * width**2,  # query, key, value, output
        ENCODER_LAYER: 4 * width**2 + inner * width,
        LSTM: 8 * width**2,  # four gates, each of the input and of the state
    }[name]
    is_recurrent = name == LSTM
    # The projections, Q K^T, the weighted sum and the output; then two of the feed-forward layer.
    products = {SELF_ATTENTION: 4, ENCODER_LAYER: 6}.get(name, 0)
    return LayerCost(
        name=name,
        parameters=sum(parameter.numel() for parameter in subject.module.parameters()),
        multiply_adds=tuple(
            n * per_token + (0 if is_recurrent else 2 * n * n * width) for n in lengths
        ),
        # The products of an LSTM with its input are one, those with its state wait for each other.
        sequential_operations=tuple(n + 1 if is_recurrent else products for n in lengths),
        path_length=tuple(n - 1 if is_recurrent else 1 for n in lengths),
        update=tuple(measured[name, n, True] for n in lengths),
        sentence=tuple(measured[name, n, False] for n in lengths),
    )


def _gradients(
    shape: LayerShape, is_rotary: bool, generator: torch.Generator
) -> dict[str, tuple[Repetitions, ...]]:
    """Return the norm of the gradient by distance, for new weights and input in each repetition."""
    norms: dict[str, list[Tensor]] = {}
    for repetition in range(REPETITIONS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED + repetition)
            subjects = [each for each in _subjects(shape, is_rotary) if each.name != SELF_ATTENTION]
        lstm = subjects[-1]
        for subject in subjects:
            norms.setdefault(subject.name, []).append(_gradient(subject, shape.width, generator))
        _open_forget_gate(lstm.module)
        norms.setdefault(LSTM_OPEN, []).append(_gradient(lstm, shape.width, generator))
    return {
        name: tuple(Repetitions(tuple(map(float, values))) for values in zip(*each, strict=True))
        for name, each in norms.items()
    }


def _gradient(subject: _Subject, width: int, generator: torch.Generator) -> Tensor:
    """Return the Frobenius norm of d output at the last position / d input by distance, (N,).

    ||J||² is the expectation of ||Jᵀ r||² for a standard normal r; the mean of some r is taken. In
    double precision, since the norms of an LSTM fall below what single precision has.
    """
    subject.module.double()
    shape = (1, _GRADIENT_LENGTH, width)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x.repeat(_DIRECTIONS, 1, 1).requires_grad_()  # (R, N, D)
    direction = torch.randn(_DIRECTIONS, width, generator=generator, dtype=torch.float64)
    last = subject.forward(x)[:, -1]  # (R, D)
    (gradient,) = torch.autograd.grad(last, x, direction)  # (R, N, D)
    return gradient.square().sum(dim=2).mean(dim=0).sqrt().flip(0)  # (N,)


def _open_forget_gate(lstm: nn.Module) -> None:
    """Set the bias of the forget gate to 1, as is often done (Jozefowicz et al. 2015)."""
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if name.startswith("bias"):
                quarter = len(bias) // 4  # input, forget, cell, output
                bias[quarter : 2 * quarter] = 1.0 if name.startswith("bias_ih") else 0.0


def _machine(device: torch.device) -> Machine:
    is_gpu = device.type == "cuda"
    return Machine(
        processor=torch.cuda.get_device_name(device) if is_gpu else _processor_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=str(device),
        system=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
    )


def _processor_name() -> str:
    """Return the name of the processor, as far as the system has one."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# Showing.


def cost_command(model: str) -> str:
    """Return the command that measures, for a model directory."""
    return shlex.join(["tfm", "explain", "--cost", "--model", model])


_QUANTITIES = (
    ("One encoded sentence", "sentence", "the forward pass of one sentence"),
    ("One training update", "update", "a forward and a backward pass and an Adam step"),
)
_SHOWN_DISTANCES = (0, 1, 2, 4, 8, 16, 32, _GRADIENT_LENGTH - 1)
_NO_CLAIM = "–"  # where ranges overlap


def cost_text(cost: Cost) -> str:
    """Return the measurement as lines of text."""
    parts = ["Self-attention against recurrence", *_facts(cost), ""]
    for title, kind, meaning in _QUANTITIES:
        parts += [f"{title}: {meaning}, in ms ({_RANGE})", *_aligned(_times(cost, kind))]
        parts += [*_claims(cost, kind), ""]
    parts += ["Sequential operations, path length and multiply-adds of one sentence"]
    parts += [*_aligned(_counts(cost)), ""]
    parts += [f"Norm of the gradient by distance ({_RANGE})", *_aligned(_norms(cost))]
    parts += [*_gradient_claims(cost), ""]
    parts += [f"{COMPLEXITY_SOURCE}; {_SYMBOLS}", *_aligned((COMPLEXITY_HEADER, *COMPLEXITY)), ""]
    parts += [NO_EXPLANATION]
    return "".join(f"{line}\n" for line in parts)


_RANGE = f"median and range of {REPETITIONS} repetitions"
_SYMBOLS = "n words, width d, kernel k, neighborhood r"


def _facts(cost: Cost) -> list[str]:
    machine, shape = cost.machine, cost.shape
    layers = ", ".join(f"{layer.name} {layer.parameters:,} weights" for layer in cost.layers)
    facts = [
        f"machine: {machine.processor}, {counted(machine.cores, 'core')}, "
        f"{counted(machine.threads, 'thread')}, "
        f"device {machine.device}, {machine.system}, PyTorch {machine.torch}, fp32",
        f"layers: d_model {shape.width}, {shape.heads} heads, d_ff {shape.feed_forward_width}; "
        f"{layers}; the LSTM is torch.nn.LSTM, one layer, one direction; all weights are random",
        f"command: {cost.command} ({cost.seconds:.0f} s)",
    ]
    if cost.omitted_lengths:
        omitted = ", ".join(map(str, cost.omitted_lengths))
        facts.append(f"left out for lack of time: {omitted} words; see --cost-seconds")
    return facts


def _times(cost: Cost, kind: str) -> list[list[str]]:
    """Return the rows of a table of times, the head first."""
    ratios = [f"{LSTM} / {name}" for name in (SELF_ATTENTION, ENCODER_LAYER)]
    rows = [["words", *NAMES, *ratios]]
    for index, length in enumerate(cost.lengths):
        times = {layer.name: getattr(layer, kind)[index] for layer in cost.layers}
        rows.append(
            [
                str(length),
                *(_spread(times[name], 1e3) for name in NAMES),
                *(_ratio(times[LSTM], times[name]) for name in (SELF_ATTENTION, ENCODER_LAYER)),
            ]
        )
    return rows


def _spread(measured: Repetitions, factor: float = 1.0) -> str:
    median, low, high = (
        _digits(value * factor) for value in (measured.median, measured.low, measured.high)
    )
    return f"{median} ({low} to {high})"


def _digits(value: float) -> str:
    """Return a number with three significant digits."""
    if value and (value < 1e-3 or value >= 1e6):
        return f"{value:.1e}"
    return f"{value:#.3g}".removesuffix(".") if value < 1000 else f"{value:.0f}"


def _ratio(numerator: Repetitions, denominator: Repetitions) -> str:
    ratio = numerator.ratio(denominator)
    return _NO_CLAIM if ratio is None else _digits(ratio)


def _claims(cost: Cost, kind: str) -> list[str]:
    """Return at which lengths a layer is faster than the LSTM, slower, or neither."""
    lstm = cost.layer(LSTM)
    claims = []
    for name in (SELF_ATTENTION, ENCODER_LAYER):
        by_verdict: dict[str, list[str]] = {"faster": [], "slower": [], "undecided": []}
        own = getattr(cost.layer(name), kind)
        for length, mine, other in zip(cost.lengths, own, getattr(lstm, kind), strict=True):
            ratio = other.ratio(mine)
            verdict = "undecided" if ratio is None else "faster" if ratio > 1 else "slower"
            by_verdict[verdict].append(str(length))
        said = []
        for verdict, meaning in (
            ("faster", "faster than the LSTM at"),
            ("slower", "slower at"),
            ("undecided", "no claim, since the ranges overlap, at"),
        ):
            if by_verdict[verdict]:
                said.append(f"{meaning} {', '.join(by_verdict[verdict])} words")
        claims.append(f"{name}: {'; '.join(said)}")
    return claims


def _counts(cost: Cost) -> list[list[str]]:
    head = ["words", *(f"{name} {what}" for what in ("sequential", "path") for name in NAMES[::2])]
    rows = [[*head, *(f"{name} multiply-adds" for name in NAMES)]]
    for index, length in enumerate(cost.lengths):
        rows.append(
            [
                str(length),
                *(str(cost.layer(name).sequential_operations[index]) for name in NAMES[::2]),
                *(str(cost.layer(name).path_length[index]) for name in NAMES[::2]),
                *(f"{cost.layer(name).multiply_adds[index]:,}" for name in NAMES),
            ]
        )
    return rows


def _norms(cost: Cost) -> list[list[str]]:
    names = list(cost.gradient)
    rows = [["distance", *names]]
    for distance in _SHOWN_DISTANCES:
        spreads = (_spread(cost.gradient[name][distance]) for name in names)
        rows.append([str(distance), *spreads])
    return rows


def _gradient_claims(cost: Cost) -> list[str]:
    """Return how much of the gradient of the neighbor is left at the greatest distance."""
    claims = []
    for name, norms in cost.gradient.items():
        ratio = norms[-1].ratio(norms[1])
        left = "cannot be distinguished from" if ratio is None else f"is {_digits(ratio)} times"
        claims.append(
            f"{name}: the gradient from {len(norms) - 1} words away {left} that from the neighbor"
        )
    return claims


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def add_cost_section(page: Page, cost: Cost | None, command: str) -> None:
    """Add the section on recurrence; without a measurement it has the paper's table.

    Args:
        page: the page.
        cost: the measurement; None if there is none.
        command: the command that would measure.
    """
    heading = "Against recurrence"
    table = Table(COMPLEXITY_HEADER, COMPLEXITY, f"{COMPLEXITY_SOURCE}: {_SYMBOLS}")
    if cost is None:
        note = f"Times, paths and gradients on this machine are measured by {command}."
        page.add_section(heading, table, Prose(note), Prose(NO_EXPLANATION))
        return
    page.add_data("cost-times", _time_data(cost))
    page.add_data("cost-gradient", _gradient_data(cost))
    page.add_section(heading, *_blocks(cost), table, Prose(NO_EXPLANATION))


def cost_page(cost: Cost) -> Page:
    """Return a page of the measurement alone."""
    page = Page("Self-attention against recurrence")
    add_cost_section(page, cost, cost.command)
    return page


def _blocks(cost: Cost) -> Iterator[Block]:
    for fact in _facts(cost):
        yield Prose(fact[:1].upper() + fact[1:] + ".")
    for title, kind, meaning in _QUANTITIES:
        yield Prose(title, heading=True)
        claims = [f"{claim[:1].upper()}{claim[1:]}." for claim in _claims(cost, kind)]
        yield Chart(
            _time_chart(kind, cost.lengths),
            alternative=f"{title} by its length: {' '.join(claims)}",
            caption=f"{title}: {meaning}. Lines are medians, areas the range of {REPETITIONS} "
            "repetitions. Look at where the lines cross, and at how steep they are.",
            lists_numbers=False,
        )
        yield Table(*_split(_times(cost, kind)), f"Milliseconds: {_RANGE}; {_NO_CLAIM} is no claim")
        yield Prose(" ".join(claims))
    yield Prose("Operations in sequence, and the path between two words", heading=True)
    yield Table(*_split(_counts(cost)), "Matrix products that wait for one another; the path")
    yield Prose("The gradient by distance", heading=True)
    claims = [f"{claim[:1].upper()}{claim[1:]}." for claim in _gradient_claims(cost)]
    yield Chart(
        _gradient_chart(),
        alternative=f"Norm of the gradient by distance: {' '.join(claims)}",
        caption="The Frobenius norm of the derivative of the output at the last position with "
        "respect to the input at each distance before it. Look at how fast a line falls: training "
        "has little to learn from where it is low. A trained LSTM may keep more than a random one.",
        lists_numbers=False,
    )
    yield Table(*_split(_norms(cost)), f"Norms: {_RANGE}")
    yield Prose(" ".join(claims))


def _split(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the head of a table, and the rows below, whose cells are not broken into lines."""
    return rows[0], [[cell.replace(" ", "\u00a0") for cell in row] for row in rows[1:]]


def _time_data(cost: Cost) -> Columns:
    rows = [
        (kind, layer.name, length, each.median * 1e3, each.low * 1e3, each.high * 1e3)
        for _, kind, _ in _QUANTITIES
        for layer in cost.layers
        for length, each in zip(cost.lengths, getattr(layer, kind), strict=True)
    ]
    names = ("kind", "layer", "words", "median", "low", "high")
    return Columns(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _gradient_data(cost: Cost) -> Columns:
    rows = [
        (name, distance, each.median, each.low, each.high)
        for name, norms in cost.gradient.items()
        for distance, each in enumerate(norms)
    ]
    names = ("layer", "distance", "median", "low", "high")
    return Columns(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _time_chart(kind: str, lengths: Sequence[int]) -> Any:
    alt = charts.load().altair
    axis = alt.Axis(values=list(lengths))
    x = alt.X("words:Q", scale=alt.Scale(type="log", base=2), title="words (n)", axis=axis)
    base = _base("cost-times", x, list(NAMES), "milliseconds")
    return base.transform_filter(alt.datum.kind == kind)


def _gradient_chart() -> Any:
    alt = charts.load().altair
    x = alt.X("distance:Q", title="distance in words")
    return _base("cost-gradient", x, [ENCODER_LAYER, LSTM, LSTM_OPEN], "norm of the gradient")


def _base(data: str, x: Any, names: list[str], title: str) -> Any:
    """Return lines of medians with the areas of their ranges, on a logarithmic scale."""
    alt = charts.load().altair
    legend = alt.Legend(
        orient="top", direction="vertical", symbolType="stroke", symbolOpacity=1, title=None
    )
    layer = alt.Color("layer:N", scale=alt.Scale(domain=names), legend=legend)
    dash = alt.StrokeDash("layer:N", scale=alt.Scale(domain=names), legend=legend)
    scale = alt.Scale(type="log")
    tooltip = [alt.Tooltip(field) for field in ("layer:N", str(x.shorthand), "median:Q")]
    tooltip += [alt.Tooltip("low:Q"), alt.Tooltip("high:Q")]
    chart = alt.Chart(alt.NamedData(data))
    area = chart.mark_area(opacity=0.2).encode(
        x=x, y=alt.Y("low:Q", scale=scale, title=title), y2="high:Q", color=layer
    )
    lines = chart.mark_line(point=True).encode(
        x=x, y=alt.Y("median:Q", scale=scale, title=title), color=layer, strokeDash=dash,
        tooltip=tooltip,
    )  # fmt: skip
    return alt.layer(area, lines).properties(width="container", height=260)
