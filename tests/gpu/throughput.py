"""The section `training`: target tokens per second, and the share of the device's peak."""

# N real tokens, D model width

import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch

from tests.bench.train_sides import DTYPES, Tfm
from tests.bench.train_works import Shape
from tests.gpu.section import Job
from tests.gpu.updates import Batches, free_memory, training
from tfm_cli.config.presets import preset_values
from tfm_cli.config.settings import ModelConfig, TrainingConfig
from tfm_cli.corpus.batching import padding_share

UPDATES = 8  # different batches, each computed once to warm up
ROUND_SECONDS, TINY_ROUND_SECONDS = 4.0, 0.2
# Time that a row needs; compilation takes a minute or more.
EAGER_SECONDS, COMPILED_SECONDS = 8.0, 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """A model and its batches."""

    name: str
    shape: Shape
    dropout: float
    max_tokens: int
    pairs: int

    @staticmethod
    def of_preset(name: str) -> "Work":
        """Return the work of a preset, with its batches."""
        values: dict[str, Any] = dict(preset_values(name, "model"))
        model = ModelConfig(**values)
        vocab_size = preset_values(name, "tokenizer")["vocab_size"]
        max_tokens = preset_values(name, "training").get("max_tokens", TrainingConfig.max_tokens)
        assert isinstance(vocab_size, int)
        assert isinstance(max_tokens, int)
        shape = Shape(
            model.width, model.encoder_layers, model.heads, model.feed_forward_width, vocab_size,
            updates=UPDATES,
        )  # fmt: skip
        return Work(name, shape, model.dropout, max_tokens, pairs=29_000)


# Without dropout: PyTorch 2.13 cannot compile that of CPUs, which reads 64-bit words as bytes.
TINY = Work("tiny", Shape(32, 1, 2, 64, 500, updates=2), 0.0, 256, pairs=500)


def report(job: Job) -> None:
    """Measure the peak, then each model, then each with compiled layers.

    Nothing is compiled before: files that a killed process left could not be loaded.
    """
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        _report(job)


def _report(job: Job) -> None:
    precision = "bf16" if job.is_gpu else "fp32"
    dtype = DTYPES[precision]
    peak = product_rate(job.device, dtype, 256 if job.is_tiny else 8192)
    job.add(model="a product of matrices", precision=precision, TFLOP_per_second=peak / 1e12)
    works = [TINY] if job.is_tiny else [Work.of_preset(name) for name in ("base", "big")]
    drawn = {}
    for compiled in (False, True):
        for work in works:
            facts = {"model": work.name, "precision": precision, "compiled": compiled}
            if not job.has_time(COMPILED_SECONDS if compiled else EAGER_SECONDS, **facts):
                continue
            with job.attempt(**facts):
                if work.name not in drawn:
                    drawn[work.name] = Batches.draw(
                        pairs=work.pairs, vocab_size=work.shape.vocab_size,
                        max_tokens=work.max_tokens, number=work.shape.updates,
                    )  # fmt: skip
                measured = _measured(job, work, drawn[work.name], precision, compiled=compiled)
                share = measured["TFLOP_per_second"] * 1e12 / peak
                job.add(**facts, **measured, share_of_peak=share)
            torch.compiler.reset()
            free_memory(job.device)


def product_rate(device: str, dtype: torch.dtype, width: int) -> float:
    """Return the FLOPs per second of the fastest of many products of two square matrices."""
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in "12")
    many = 10
    seconds = []
    for _ in range(6):  # the first one warms up
        began = now(device)
        for _ in range(many):
            left @ right
        seconds.append((now(device) - began) / many)
    return 2 * width**3 / min(seconds)


def now(device: str) -> float:
    """Return the time at which the device has done all that was launched."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _measured(
    job: Job, work: Work, batches: Batches, precision: str, *, compiled: bool
) -> dict[str, Any]:
    """Return what updates of a model took."""
    if job.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    with training(
        work.shape, batches, device=job.device, precision=precision,
        micro_batch=work.max_tokens, dropout=work.dropout, compiled=compiled,
    ) as side:  # fmt: skip
        began = now(job.device)
        for _ in batches.chosen:
            side.update()
        warm_up = now(job.device) - began
        seconds = _seconds_of_updates(job, side, len(batches.chosen))
        peak = torch.cuda.max_memory_allocated() / (1 << 20) if job.is_gpu else None
        parts, splits = side.parts(batches.chosen), side.memory_limit.num_splits
        parameters = sum(p.numel() for p in side.model.parameters())
    target_tokens = sum(target for _, target in batches.lengths)
    multiply_adds = sum(work.shape.multiply_adds(*pair) for pair in batches.lengths)
    lengths = batches.store.source.lengths, batches.store.target.lengths
    return {
        "parameters": parameters,
        "target_tokens_of_an_update": target_tokens // len(batches.chosen),
        "padding": padding_share(parts, *lengths),
        "warm_up_seconds": warm_up,
        "seconds_of_an_update": seconds,
        "target_tokens_per_second": target_tokens / len(batches.chosen) / seconds,
        # A product is 2 operations for each multiply-add; backward there are 2 of its size.
        "TFLOP_per_second": 3 * 2 * multiply_adds / len(batches.chosen) / seconds / 1e12,
        "peak_MiB": peak,
        "splits_for_memory": splits,
    }


def _seconds_of_updates(job: Job, side: Tfm, number: int) -> float:
    """Return the seconds of an update, on average over rounds of all `number` batches."""
    ends = now(job.device) + (TINY_ROUND_SECONDS if job.is_tiny else ROUND_SECONDS)
    began, made = now(job.device), 0
    while made == 0 or now(job.device) < ends:
        for _ in range(number):
            side.update()
        made += number
    return (now(job.device) - began) / made
