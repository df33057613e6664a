"""What a GPU does with a recorded step, done on a CPU: the same operators on the same memory.

Python's part of the step runs once. What it decided then, numbers and shapes and where tensors
are, holds for all replays; so whatever should have been a tensor and is not gives wrong results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that wait for what a tensor holds, give shapes that depend on it, or read the host.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_static", "argwhere",
    "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "lift_fresh",
    "_assert_async", "to_dense", "allclose",
}  # fmt: skip


# It ships no type information.
class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run inside, with what they were given and gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITING, f"the step waits for a tensor: {name}"
        if name in ("index", "index_put", "index_put_", "repeat_interleave"):
            indices = [each for each in tree_leaves(args[1:2]) if isinstance(each, Tensor)]
            assert all(each.dtype != torch.bool for each in indices), f"a mask in {name}"
            assert name != "repeat_interleave", "its shape depends on a tensor"
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Run them again, where they wrote the last time."""
        for func, args, kwargs, result in self.calls:
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif not _is_view(result, (args, kwargs)):
                again = func(*args, **kwargs)
                for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(place, Tensor):
                        assert place.shape == value.shape
                        place.copy_(value)


def _is_view(result: Any, arguments: Any) -> bool:
    given = {each.untyped_storage().data_ptr() for each in _tensors(arguments)}
    return all(each.untyped_storage().data_ptr() in given for each in _tensors(result))


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


class ReplayedStep:
    """Stands for `StepGraph`: the third call is recorded, later ones are replayed."""

    recorded = 0  # steps, of all that were made
    replays = 0

    def __init__(self, function: Callable[[], None], recorder: object) -> None:
        self._function = function
        self._calls = 0
        self._recording: Recording | None = None

    def __call__(self) -> None:
        self._calls += 1
        if self._recording is not None:
            type(self).replays += 1
            self._recording.replay()
        elif self._calls <= 2:
            self._function()
        else:
            type(self).recorded += 1
            with Recording() as recording:
                self._function()
            self._recording = recording
