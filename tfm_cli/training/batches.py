"""What each update learns from: its batches, made ready in a thread while the one before runs."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tfm_cli.corpus.batch import Batch, flat_batch
from tfm_cli.corpus.batching import BatchOrder, token_batches
from tfm_cli.corpus.store import CorpusStore, FlatSegments
from tfm_cli.training.state import TrainState

# How many updates are made ready ahead: one that waits while the next one is built.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of an update that is computed at once."""

    number: int  # within the update, over all processes; with the update's it decides on dropout
    batch: Batch
    counts: bool = True  # False where it is computed to keep step with other processes alone


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """The batches of one update.

    `epoch`, `pool` and `position` say where the first of them stands, as in `TrainState`.
    """

    epoch: int
    pool: int
    position: int
    num_batches: int  # of all processes together
    target_pieces: int  # of all processes together
    micro_batches: tuple[MicroBatch, ...]  # of this process; as many as of any other
    pairs: tuple[np.ndarray, ...] = ()  # of all processes, batch by batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Cuts batches into what is computed at once, and shares them out among processes.

    Args:
        store: the corpus.
        order: which pairs make which batch.
        batches_per_update: of all processes together.
        micro_batch: most target pieces that are computed at once, padding included.
        start_id: what target sides start from.
        eos_id: what they end in.
        source_eos_id: what source sides end in.
        rank, world: this process among how many.
        pins: whether batches lie in memory that a GPU can read by itself.
    """

    store: CorpusStore
    order: BatchOrder
    batches_per_update: int
    micro_batch: int
    start_id: int
    eos_id: int
    source_eos_id: int
    rank: int = 0
    world: int = 1
    pins: bool = False

    def updates(self, state: TrainState) -> Iterator[UpdatePlan]:
        """The updates from where a run stands, for ever; `state` is only read, and at once."""
        epoch, pool, position = state.epoch, state.pool, state.position
        while True:
            batches = self.order.batches(epoch, pool)
            while position < len(batches):
                chosen = batches[position : position + self.batches_per_update]
                yield self._plan(epoch, pool, position, chosen)
                position += len(chosen)
            self.store.release()
            pool, position = pool + 1, 0
            if pool == self.order.num_pools:
                epoch, pool = epoch + 1, 0

    def parts(self, pairs: np.ndarray) -> list[np.ndarray]:
        """The pairs of a batch, cut where more than `micro_batch` pieces would be computed."""
        sides = self.store.source, self.store.target
        source, target = (side.lengths[pairs].tolist() for side in sides)
        return [pairs[part] for part in token_batches(source, target, max_tokens=self.micro_batch)]

    def batch(self, pairs: np.ndarray) -> Batch:
        """What the model reads of some pairs."""
        return self._made(self.store.source.gather(pairs), self.store.target.gather(pairs))

    def _idle_batch(self) -> Batch:
        """The smallest batch there is."""
        nothing = FlatSegments(np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
        return self._made(nothing, nothing)

    def _made(self, sources: FlatSegments, targets: FlatSegments) -> Batch:
        batch = flat_batch(
            sources,
            targets,
            start_id=self.start_id,
            eos_id=self.eos_id,
            source_eos_id=self.source_eos_id,
        )
        return batch.pinned() if self.pins else batch

    def _plan(self, epoch: int, pool: int, position: int, chosen: list[np.ndarray]) -> UpdatePlan:
        micro_batches, number, per_rank = [], 0, [0] * self.world
        for index, pairs in enumerate(chosen):
            for part in self.parts(pairs):
                if index % self.world == self.rank:
                    micro_batches.append(MicroBatch(number, self.batch(part)))
                number += 1
                per_rank[index % self.world] += 1
        # Weights in shards come together only if all processes want them equally often.
        while len(micro_batches) < max(per_rank):
            micro_batches.append(MicroBatch(number, self._idle_batch(), counts=False))
        pieces = sum(int(self.store.target.lengths[pairs].sum()) for pairs in chosen)
        parts = tuple(micro_batches)
        return UpdatePlan(epoch, pool, position, len(chosen), pieces, parts, tuple(chosen))


@contextlib.contextmanager
def prefetched(plans: Callable[[], Iterator[UpdatePlan]]) -> Iterator[Iterator[UpdatePlan]]:
    """Inside, plans come from a thread that is a little ahead; an error in it is raised here."""
    ready: queue.Queue[UpdatePlan | BaseException] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def work() -> None:
        try:
            for plan in plans():
                ready.put(plan)
                if ended.is_set():
                    return
        except BaseException as error:
            ready.put(error)

    def taken() -> Iterator[UpdatePlan]:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="plan", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        ended.set()
        # MemoryLimit for what the thread may wait to put there; it then sees that this is the end.
        with contextlib.suppress(queue.Empty):
            while True:
                ready.get_nowait()
        thread.join()
