"""Arrays of a page: exact numbers in base64, once, and the parts of them that charts show."""

import base64
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tfm_cli.pictures.charts import Json, Value, plain


@dataclass(frozen=True)
class Floats:
    """An array with named axes in single precision, which takes 5.3 bytes a number.

    A row of the table that charts see has the index of each axis, the text of it if the axis has
    texts, as `<axis>_text`, and the number as `value`, null if it is not finite.

    Attributes:
        values: the array.
        axes: the name of each axis, in order, with the number of its first element.
        texts: for some axes a text of each element, such as the pieces of tokens.
    """

    values: NDArray[np.float32]
    axes: Mapping[str, int]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != len(self.axes):
            raise ValueError(f"the array has {self.values.ndim} axes, named are {len(self.axes)}")
        for name, texts in self.texts.items():
            length = self.values.shape[list(self.axes).index(name)]
            if len(texts) != length:
                raise ValueError(f"`{name}` has {length} elements and {len(texts)} texts")

    def to_json(self) -> Json:
        """Return the form that a page contains."""
        return {
            "axes": dict(self.axes),
            "shape": list(self.values.shape),
            "texts": plain(dict(self.texts)),
            "float32": base64.b64encode(self.values.astype("<f4").tobytes()).decode(),
        }

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield the rows, as charts take them."""
        yield from self.part(())

    def part(self, place: Sequence[int]) -> Iterator[dict[str, Value]]:
        """Yield the rows of a part of the array, by the indices of its first axes."""
        values = self.values[tuple(place)]
        axes = list(self.axes.items())[len(place) :]
        indices = itertools.product(*map(range, values.shape))
        for index, number in zip(indices, values.ravel().tolist(), strict=True):
            row: dict[str, Value] = {}
            for (name, first), i in zip(axes, index, strict=True):
                row[name] = i + first
                if name in self.texts:
                    row[f"{name}_text"] = plain(self.texts[name][i])
            row["value"] = number if math.isfinite(number) else None
            yield row


@dataclass(frozen=True)
class Part:
    """A part of an array of the page, such as one head, which the reader may pick.

    Attributes:
        name: of the array's data in the page.
        array: the array.
        place: indices of its first axes.
        group: the parts that a picker changes together; "" if none does.
    """

    name: str
    array: Floats
    place: tuple[int, ...]
    group: str = ""

    def to_json(self) -> Json:
        """Return the form that a page contains: the numbers are where the array is."""
        return {"of": self.name, "place": list(self.place), "group": self.group}

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield the rows, as charts take them."""
        yield from self.array.part(self.place)
