"""A stand-in for a store of `torch.distributed` within one process."""

import threading
from typing import Any


class Notes:
    """A dictionary with the methods of a store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.notes: dict[str, Any] = {}

    def add(self, name: str, amount: int) -> int:
        with self._lock:
            self.notes[name] = self.notes.get(name, 0) + amount
            return int(self.notes[name])

    def check(self, names: list[str]) -> bool:
        return all(name in self.notes for name in names)

    def set(self, name: str, value: str) -> None:
        self.notes[name] = value

    def get(self, name: str) -> str:
        return str(self.notes[name])
