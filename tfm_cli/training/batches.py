"""The batches of each update, prefetched by a thread while the previous update runs."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tfm_cli.corpus.batch import Batch, flat_batch
from tfm_cli.corpus.batching import BatchOrder, PairText
from tfm_cli.corpus.store import CorpusStore, FlatSegments
from tfm_cli.corpus.token_budget import token_batches
from tfm_cli.training.state import TrainState

# The number of prefetched updates: one is ready while the next is built.
_PREFETCHED = 2


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of an update that is computed in one pass."""

    number: int  # within the update, across all ranks; it seeds dropout
    batch: Batch
    counts: bool = True  # False for a filler that keeps this rank in step with the others


@dataclass(frozen=True, slots=True)
class UpdateBatches:
    """The batches of one update.

    `epoch`, `pool` and `position` are those of its first batch, as in `TrainState`.
    """

    epoch: int
    pool: int
    position: int
    num_batches: int  # on all ranks
    target_tokens: int  # on all ranks
    micro_batches: tuple[MicroBatch, ...]  # of this rank; as many as on any other
    pairs: tuple[np.ndarray, ...] = ()  # on all ranks, batch by batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSampler:
    """The division of batches into micro-batches, and of both among ranks.

    Args:
        store: the corpus.
        order: the pairs of each batch.
        batches_per_update: the number of batches per update on all ranks.
        micro_batch: the maximum number of target tokens in a micro-batch, padding included.
        start_id: the first id of the decoder's input.
        eos_id: the last id of target segments.
        source_eos_id: the last id of source segments.
        rank, world_size: rank of this process, and number of processes.
        pins: allocate batches in pinned memory, for copies to a GPU.
    """

    store: CorpusStore
    order: BatchOrder
    batches_per_update: int
    micro_batch: int
    start_id: int
    eos_id: int
    source_eos_id: int
    rank: int = 0
    world_size: int = 1
    pins: bool = False

    def updates(self, state: TrainState) -> Iterator[UpdateBatches]:
        """Yield updates endlessly from the position in `state`, which is read only once."""
        epoch, pool, position = state.epoch, state.pool, state.position
        while True:
            batches = self.order.batches(epoch, pool)
            text = self.text(epoch, pool)
            while position < len(batches):
                chosen = batches[position : position + self.batches_per_update]
                yield self._update_batches(epoch, pool, position, chosen, text)
                position += len(chosen)
            self.store.release()
            pool, position = pool + 1, 0
            if pool == self.order.num_pools:
                epoch, pool = epoch + 1, 0

    def epochs(self, state: TrainState) -> float:
        """Return the number of passes over the corpus so far, with the part of the current one."""
        share = 0.0
        if state.position:
            share = state.position / max(1, len(self.order.batches(state.epoch, state.pool)))
        return state.epoch + (state.pool + min(1.0, share)) / self.order.num_pools

    def text(self, epoch: int, pool: int) -> PairText:
        """Return the text of the pairs of a pool: the corpus, unless words are sampled."""
        sampled = self.order.text(epoch, pool)
        return self.store if sampled is None else sampled

    def split(self, pairs: np.ndarray, text: PairText | None = None) -> list[np.ndarray]:
        """Split the pairs of a batch into micro-batches; by default their text is the corpus."""
        text = self.store if text is None else text
        source, target = (side.lengths[pairs].tolist() for side in (text.source, text.target))
        return [pairs[part] for part in token_batches(source, target, max_tokens=self.micro_batch)]

    def batch(self, pairs: np.ndarray, text: PairText | None = None) -> Batch:
        """Return the tensors of some pairs; by default their text is the corpus."""
        text = self.store if text is None else text
        return self._build(text.source.gather(pairs), text.target.gather(pairs))

    def _filler(self) -> Batch:
        """Return the smallest possible batch."""
        nothing = FlatSegments(np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
        return self._build(nothing, nothing)

    def _build(self, sources: FlatSegments, targets: FlatSegments) -> Batch:
        batch = flat_batch(
            sources,
            targets,
            start_id=self.start_id,
            eos_id=self.eos_id,
            source_eos_id=self.source_eos_id,
        )
        return batch.pinned() if self.pins else batch

    def _update_batches(
        self, epoch: int, pool: int, position: int, chosen: list[np.ndarray], text: PairText
    ) -> UpdateBatches:
        micro_batches, number, per_rank = [], 0, [0] * self.world_size
        for index, pairs in enumerate(chosen):
            for part in self.split(pairs, text):
                if index % self.world_size == self.rank:
                    micro_batches.append(MicroBatch(number, self.batch(part, text)))
                number += 1
                per_rank[index % self.world_size] += 1
        # Gathering sharded weights is a collective operation: all ranks must do it equally often.
        while len(micro_batches) < max(per_rank):
            micro_batches.append(MicroBatch(number, self._filler(), counts=False))
        return UpdateBatches(
            epoch=epoch,
            pool=pool,
            position=position,
            num_batches=len(chosen),
            target_tokens=sum(int(text.target.lengths[pairs].sum()) for pairs in chosen),
            micro_batches=tuple(micro_batches),
            pairs=tuple(chosen),
        )


@contextlib.contextmanager
def prefetched(updates: Callable[[], Iterator[UpdateBatches]]) -> Iterator[Iterator[UpdateBatches]]:
    """Prefetch updates in a thread; the yielded iterator raises the errors of that thread."""
    ready: queue.Queue[UpdateBatches | BaseException] = queue.Queue(_PREFETCHED)
    ended = threading.Event()

    def work() -> None:
        try:
            for batches in updates():
                ready.put(batches)
                if ended.is_set():
                    return
        except BaseException as error:
            ready.put(error)

    def results() -> Iterator[UpdateBatches]:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        ended.set()
        # The thread may be blocked on a full queue; it ends once there is room.
        with contextlib.suppress(queue.Empty):
            while True:
                ready.get_nowait()
        thread.join()
