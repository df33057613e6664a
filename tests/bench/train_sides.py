"""One side of one work, in a process of its own, which is asked for round after round.

Its standard input has a job in JSON and then a line for each round; its standard output has a line
of JSON for each of them, and one more after the last. A job says which `side` it is, the `shape` of
its model, `precision`, `dropout`, `batching`, how many `pairs` the corpus has, `max_tokens` of a
batch, `updates` of a round, `threads`, and which trick tfm goes `without`, if any.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

import numpy as np
import torch

from tests.bench.train_loop import PlainLoop, RefusedError
from tests.bench.train_pairs import (
    EOS_ID,
    PLANS,
    START_ID,
    Plan,
    draw_store,
    representative,
    tfm_plan,
)
from tests.bench.train_peers import PEER_MODELS
from tests.bench.train_tricks import left_out
from tests.bench.train_works import MICRO_BATCH, Shape
from tests.model.small_transformers import transformer as transformer_of
from tfm_cli.config.settings import TrainingConfig
from tfm_cli.corpus.batching import BatchOrder, padding_share
from tfm_cli.corpus.store import CorpusStore
from tfm_cli.model.precision import resolve_precision
from tfm_cli.training.batches import BatchSampler, UpdateBatches, prefetched
from tfm_cli.training.memory import MemoryLimit
from tfm_cli.training.optimizer import make_optimizer
from tfm_cli.training.parallel_model import ParallelModel, batch_loss, compile_layers
from tfm_cli.training.schedule import schedule_of
from tfm_cli.training.state import TrainState
from tfm_cli.training.update import UpdateOptions, UpdateStats, update

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A short warm-up: the loss is to move within the few updates that are made.
SETTINGS = TrainingConfig(learn_rate=5e-4, lr_warmup=20)
CHECKED_PAIRS = 16  # few, so that their logits are no peak of memory
GEMM_WIDTH = 2048
GEMM_SECONDS = 2.0


class Side(Protocol):
    """What learns."""

    def learn(self) -> None:
        """Make the next update, from the next of the chosen batches in turn."""

    def parts(self, plan: Plan) -> Plan:
        """What is computed at once."""

    def nll(self, parts: Plan) -> float:
        """Negative log-likelihood of a target piece of these pairs, without dropout."""

    def close(self) -> None:
        """Stop what runs beside it."""


class ChosenOrder(BatchOrder):
    """A few batches again and again."""

    def __init__(self, store: CorpusStore, chosen: Plan) -> None:
        super().__init__(store.source.lengths, store.target.lengths, max_tokens=1, seed=1)
        self._chosen = chosen

    def batches(self, epoch: int, pool: int) -> Plan:
        return self._chosen


class Tfm:
    """The update loop of `tfm train`, without its moving average: peers keep none.

    A job may also have a `device`, the `micro_batch` to begin with, and `compiled` layers.
    """

    def __init__(self, job: dict[str, Any], store: CorpusStore, chosen: Plan) -> None:
        shape = Shape(**job["shape"])
        self.device = torch.device(job.get("device", "cpu"))
        self.model = transformer_of(
            shape.vocab_size,
            encoder_layers=shape.layers,
            decoder_layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            feed_forward_width=shape.feed_forward_width,
            dropout=job["dropout"],
        ).train()
        if job.get("compiled"):
            compile_layers(self.model)
        self._parallel_model = ParallelModel(
            self.model,
            label_smoothing=SETTINGS.label_smoothing,
            device=self.device,
            dtype=DTYPES[job["precision"]],
        )
        self._optimizer = make_optimizer(self.model, SETTINGS)
        self.sampler = BatchSampler(
            store=store,
            order=ChosenOrder(store, chosen),
            batches_per_update=1,
            micro_batch=job.get("micro_batch", MICRO_BATCH),
            start_id=START_ID,
            eos_id=EOS_ID,
            source_eos_id=EOS_ID,
            pins=self.device.type == "cuda",
        )
        self.memory_limit = MemoryLimit()
        self._number = 0
        self._open = contextlib.ExitStack()
        self._plans: Iterator[UpdateBatches] = self._open.enter_context(
            prefetched(lambda: self.sampler.updates(TrainState()))
        )

    def learn(self) -> None:
        self.update()

    def update(self) -> UpdateStats:
        """Make the next update, and return its results, which may still be computed."""
        plan = next(self._plans)
        self._number += 1
        options = UpdateOptions(
            number=self._number,
            learn_rate=schedule_of(SETTINGS, TrainState()).rate(self._number),
            clip_norm=SETTINGS.clip_norm,
            seed=SETTINGS.seed,
            wait_for_gradient=self.device.type == "cpu",
        )
        return update(self._parallel_model, plan, self._optimizer, options, self.memory_limit)

    def parts(self, plan: Plan) -> Plan:
        return [part for pairs in plan for part in self.sampler.split(pairs)]

    @torch.no_grad()
    def nll(self, parts: Plan) -> float:
        self.model.eval()
        batches = [self.sampler.batch(pairs).to(self.device) for pairs in parts]
        total = sum(float(batch_loss(self.model, one, label_smoothing=0)[1]) for one in batches)
        self.model.train()
        return total / sum(one.target_tokens for one in batches)

    def close(self) -> None:
        self._open.close()


class Learning:
    """A side while it is measured: made, warmed up by an update, then round by round."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._updates = job["updates"]
        self._open = contextlib.ExitStack()
        self._open.enter_context(left_out(job["without"]))
        store = draw_store(job["pairs"], job["shape"]["vocab_size"])
        lengths = store.source.lengths, store.target.lengths
        cut = PLANS[job["side"]] if job["batching"] == "own" else tfm_plan
        plan = cut(*lengths, job["max_tokens"])
        chosen = representative(plan, *lengths, self._updates)
        self._updates = len(chosen)
        torch.manual_seed(SETTINGS.seed)
        self.side: Side
        if job["side"] == "tfm":
            self.side = Tfm(job, store, chosen)
        else:
            peer = PEER_MODELS[job["side"]](job, store, SETTINGS)
            self.side = PlainLoop(peer, chosen, SETTINGS, dtype=DTYPES[job["precision"]])
        self._open.callback(self.side.close)
        self.checked = [chosen[0][:CHECKED_PAIRS]]
        source, target = (side[np.concatenate(chosen)] for side in lengths)
        shape = Shape(**job["shape"])
        multiply_adds = sum(map(shape.multiply_adds, source.tolist(), target.tolist()))
        self._facts = {
            "pieces": int(source.sum() + target.sum()),
            # A product is 2 operations for each multiply-add; backward there are 2 of its size.
            "operations": 3 * 2 * multiply_adds,
            "padding": padding_share(self.side.parts(chosen), *lengths),
            "plan_padding": padding_share(self.side.parts(plan), *lengths),
        }

    def begin(self) -> dict[str, float]:
        """Warm up; what is known before the first round."""
        first_loss, start_mib = self.side.nll(self.checked), peak_mib()
        self.side.learn()
        return {**self._facts, "first_loss": first_loss, "start_mib": start_mib, "made_updates": 1}

    def round(self) -> dict[str, float]:
        """The seconds that the updates of one round took."""
        began = time.perf_counter()
        for _ in range(self._updates):
            self.side.learn()
        return {"seconds": time.perf_counter() - began}

    def end(self) -> dict[str, float]:
        """What is known when all rounds are over."""
        peak = peak_mib()
        loss = self.side.nll(self.checked)
        self._open.close()
        return {"peak_mib": peak, "last_loss": loss}


class Gemm:
    """The fastest of many products of square matrices: what the machine can do, round by round."""

    def __init__(self, job: dict[str, Any]) -> None:
        shape = (GEMM_WIDTH, GEMM_WIDTH)
        self._left, self._right = (torch.randn(shape).to(DTYPES[job["precision"]]) for _ in "12")

    def begin(self) -> dict[str, float]:
        """Warm up."""
        self._left @ self._right
        return {"operations": 2 * GEMM_WIDTH**3}

    def round(self) -> dict[str, float]:
        """The fewest seconds that a product took."""
        seconds: list[float] = []
        ends = time.perf_counter() + GEMM_SECONDS
        while not seconds or time.perf_counter() < ends:
            began = time.perf_counter()
            self._left @ self._right
            seconds.append(time.perf_counter() - began)
        return {"seconds": min(seconds)}

    def end(self) -> dict[str, float]:
        """Nothing more."""
        return {}


def measuring(job: dict[str, Any]) -> Learning | Gemm:
    """What does the job.

    Raises:
        RefusedError: it is not installed, or the processor is not made for it.
    """
    torch.set_num_threads(job["threads"])
    is_fast = job["precision"] == "fp32" or resolve_precision("auto", CPU) == torch.bfloat16
    if not is_fast and not job["slow_bf16"]:
        raise RefusedError("no bf16 on this processor")
    return Gemm(job) if job["side"] == "gemm" else Learning(job)


def peak_mib() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _answers() -> TextIO:
    """Standard output; what libraries print goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def main() -> None:
    """Do the job."""
    answers = _answers()

    def answer(table: dict[str, Any]) -> None:
        answers.write(json.dumps(table) + "\n")
        answers.flush()

    try:
        measured = measuring(json.loads(sys.stdin.readline()))
    except RefusedError as refusal:
        answer({"refused": str(refusal)})
        return
    answer(measured.begin())
    for _ in sys.stdin:
        answer(measured.round())
    answer(measured.end())


if __name__ == "__main__":
    main()
