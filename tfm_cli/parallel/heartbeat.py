"""Heartbeats: every rank publishes its progress, and the previous rank checks it.

A process that is suspended, or whose machine is down, leaves its connections open, so the processes
that wait for it would wait forever.
"""

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

DEFAULT_TIMEOUT_SECONDS = 600.0
_BEAT_SECONDS = 0.5
_STALL_MARGIN_SECONDS = 1.5  # so that a silent rank is reported before a stalled one
_FINISHED = -2  # the last beat of a process that has finished its part


@dataclass(slots=True)
class ProgressState:
    """The progress of the main thread of this process, which the heartbeat publishes."""

    activity: str = ""  # such as `in update 7`
    num_steps: int = 0  # only an increase of it matters
    has_deadline: bool = False  # each step must end within the timeout
    is_waiting: bool = False  # for the other ranks

    def set_activity(self, activity: str, *, has_deadline: bool) -> None:
        """Record the current activity, and a step."""
        self.activity, self.has_deadline = activity, has_deadline
        self.num_steps += 1


@dataclass(slots=True)
class _Beat:
    """The newest heartbeat of another rank."""

    number: int = -1
    num_steps: int = -1
    has_deadline: bool = False
    is_waiting: bool = False


@dataclass(slots=True)
class Heartbeat:
    """The heartbeat of this rank, and the check of the next one's.

    Args:
        store: a store of `torch.distributed`.
        rank, world_size: rank of this process, and number of processes.
        state: the progress of its main thread.
        timeout_seconds: time after which a rank without a heartbeat or a step is late.
    """

    store: Any
    rank: int
    world_size: int
    state: ProgressState
    timeout_seconds: float
    _num_beats: int = 0
    _beat_at: float = 0.0
    _last: _Beat = field(default_factory=_Beat)  # the newest beat of the next rank
    _last_beat_at: float = field(default_factory=time.monotonic)
    _last_step_at: float = field(default_factory=time.monotonic)

    @property
    def next_rank(self) -> int:
        """Return the rank that this one checks."""
        return (self.rank + 1) % self.world_size

    def beat(self) -> str:
        """Publish and check heartbeats if due; return the reason why the next rank is late, or "".

        Raises:
            RuntimeError: the store is gone.
        """
        now = time.monotonic()
        since = now - self._beat_at
        if since < min(_BEAT_SECONDS, self.timeout_seconds / 4):
            return ""
        if since > self.timeout_seconds / 2:  # this process was suspended itself
            self._last_beat_at = self._last_step_at = now
        self._num_beats, self._beat_at = self._num_beats + 1, now
        state = self.state
        beat = [self._num_beats, state.num_steps, state.has_deadline, state.is_waiting]
        self.store.set(_key(self.rank), json.dumps(beat))
        return self._lateness(self._read(self.next_rank), now)

    def _lateness(self, beat: _Beat, now: float) -> str:
        if beat.number != self._last.number or beat.number == _FINISHED:
            self._last_beat_at = now
        if beat.num_steps != self._last.num_steps or beat.is_waiting or not beat.has_deadline:
            self._last_step_at = now
        self._last = beat
        is_silent = now - self._last_beat_at > self.timeout_seconds
        # A stalled rank may itself wait for a silent one, which should be reported first.
        stall_seconds = self.timeout_seconds + _STALL_MARGIN_SECONDS
        if not is_silent and now - self._last_step_at <= stall_seconds:
            return ""
        fault = "has sent no heartbeat" if is_silent else "has made no progress"
        return f"rank {self.next_rank} {fault} for {self.timeout_seconds:g} s"

    def finish(self) -> None:
        """Announce a normal exit, so that the silence after it is not reported."""
        self.store.set(_key(self.rank), json.dumps([_FINISHED]))

    def silent_ranks(self) -> str:
        """Return a description of the ranks whose heartbeat has stopped; empty if there are none.

        Raises:
            RuntimeError: the store is gone.
        """
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        before = {rank: self._read(rank) for rank in others}
        if len(others) > 1:  # with two ranks, it can only be the other one
            time.sleep(3 * _BEAT_SECONDS)
            others = [rank for rank in others if 0 < self._read(rank).number == before[rank].number]
        return " and ".join(f"rank {rank}" for rank in others)

    def _read(self, rank: int) -> _Beat:
        with contextlib.suppress(ValueError):
            if self.store.check([_key(rank)]):
                return _Beat(*json.loads(self.store.get(_key(rank))))
        return _Beat()


def _key(rank: int) -> str:
    return f"tfm/beat/{rank}"
