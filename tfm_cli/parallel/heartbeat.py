"""What each process tells the next one of itself, so that one that is late is named.

A process that was stopped, or whose machine is gone without a word, closes no connection, so those
that wait for it would never know.
"""

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

_BEAT_SECONDS = 0.5
_AHEAD_SECONDS = 1.5  # of the silence of one over the want of progress of another
_DONE = -2  # the last beat of a process that has done its part


@dataclass(slots=True)
class Whereabouts:
    """Where the main thread of this process is; it writes, and the heart reads."""

    where: str = ""  # such as `in update 7`
    steps: int = 0  # that it made; what counts is whether there are more
    is_bounded: bool = False  # whether it has only so long for each of them
    waits: bool = False  # whether it waits for the others

    def at(self, where: str, *, is_bounded: bool) -> None:
        """Say what comes now."""
        self.where, self.is_bounded = where, is_bounded
        self.steps += 1


@dataclass(slots=True)
class _Heard:
    """The newest that was heard of a process."""

    beat: int = -1
    steps: int = -1
    is_bounded: bool = False
    waits: bool = False


@dataclass(slots=True)
class Heart:
    """Tells where this process is, and listens to the next one; a class because it remembers that.

    Args:
        store: of `torch.distributed`.
        rank, world: this process among all.
        here: where its main thread is.
        patience: seconds.
    """

    store: Any
    rank: int
    world: int
    here: Whereabouts
    patience: float
    _beats: int = 0
    _beat_at: float = 0.0
    _heard: _Heard = field(default_factory=_Heard)
    _heard_at: float = field(default_factory=time.monotonic)
    _moved_at: float = field(default_factory=time.monotonic)

    @property
    def next_rank(self) -> int:
        """Whom it listens to: each process has one that does."""
        return (self.rank + 1) % self.world

    def beat(self) -> str:
        """Tell and listen, if it is time to; gives what is wrong with the next process, if so.

        Raises:
            RuntimeError: the store is gone.
        """
        now = time.monotonic()
        since = now - self._beat_at
        if since < min(_BEAT_SECONDS, self.patience / 4):
            return ""
        if since > self.patience / 2:  # this process was stopped itself, perhaps with the others
            self._heard_at = self._moved_at = now
        self._beats, self._beat_at = self._beats + 1, now
        here = self.here
        told = [self._beats, here.steps, here.is_bounded, here.waits]
        self.store.set(_key(self.rank), json.dumps(told))
        return self._late(self._read(self.next_rank), now)

    def _late(self, found: _Heard, now: float) -> str:
        if found.beat != self._heard.beat or found.beat == _DONE:
            self._heard_at = now
        # It has all the time it wants for what no one else does at the same time.
        if found.steps != self._heard.steps or found.waits or not found.is_bounded:
            self._moved_at = now
        self._heard = found
        is_silent = now - self._heard_at > self.patience
        # It may itself wait for one that is silent, whose own listener shall be first to say so.
        if not is_silent and now - self._moved_at <= self.patience + _AHEAD_SECONDS:
            return ""
        what = "was not heard of" if is_silent else "got no further"
        return f"rank {self.next_rank} {what} for {self.patience:g} s"

    def rest(self) -> None:
        """Tell that all is done here, so that nobody minds the silence."""
        self.store.set(_key(self.rank), json.dumps([_DONE]))

    def silent(self) -> str:
        """Words for the processes that have ceased to tell of themselves; nothing if none has.

        Raises:
            RuntimeError: the store is gone.
        """
        others = [rank for rank in range(self.world) if rank != self.rank]
        before = {rank: self._read(rank) for rank in others}
        if len(others) > 1:  # a single one it must be
            time.sleep(3 * _BEAT_SECONDS)
            others = [rank for rank in others if 0 < self._read(rank).beat == before[rank].beat]
        return " and ".join(f"rank {rank}" for rank in others)

    def _read(self, rank: int) -> _Heard:
        with contextlib.suppress(ValueError):
            if self.store.check([_key(rank)]):
                return _Heard(*json.loads(self.store.get(_key(rank))))
        return _Heard()


def _key(rank: int) -> str:
    return f"tfm/beat/{rank}"
