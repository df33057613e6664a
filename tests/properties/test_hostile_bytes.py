"""Files that others made, of any content: taken or refused, and never anything else."""

import copy
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, place_of
from tests.sentencepiece_bytes import MODEL, charsmap, delimited, number, piece

GOLDEN = Path(__file__).parents[1] / "golden" / "model_v2" / "config.json"
in_its_own_time = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
at_length = settings(in_its_own_time, max_examples=150)

odd_numbers = st.sampled_from(
    [0, -1, 1 << 31, 1 << 63, 10**40, 0.5, -0.0, 1e308, True, False, None]
)
values = st.recursive(
    odd_numbers | st.text(max_size=8) | st.integers() | st.floats(allow_nan=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(place_of(os.getpid()), ignore_errors=True)


def places(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in tables and lists something stands."""
    found = [path] if path else []
    items = list(table.items() if isinstance(table, dict) else enumerate(table))
    for name, value in items:
        inner = isinstance(value, dict | list)
        found += places(value, (*path, name)) if inner else [(*path, name)]
    return found


@st.composite
def changed(draw: st.DrawFn, table: Any) -> bytes:
    """JSON in which some values are others, are gone, or are more."""
    table = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(table)))
        inner = table
        for name in way:
            inner = inner[name]
        if draw(st.booleans()):
            inner[last] = draw(values)
        elif isinstance(inner, dict):
            inner[draw(st.text(max_size=8))] = inner.pop(last)
        if not places(table):
            break
    return json.dumps(table).encode()


CONFIG = json.loads(GOLDEN.read_bytes())
MANIFEST = {
    "format_version": 1,
    "torch_version": "2.13.0",
    "sha256": dict.fromkeys(
        ["model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"], "0"
    ),
    "state": {"update": 3, "best_score": 1.5, "position": 2},
    "text_sha256": {"training text": "a"},
}
STATE = {name: MANIFEST[name] for name in ("state", "text_sha256")}
configs = changed(CONFIG)
manifests = changed(MANIFEST) | changed(STATE)


@st.composite
def headers(draw: st.DrawFn, *, odd: bool) -> bytes:
    """Safetensors files of a few tensors, perhaps with something odd about one of them."""
    table: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.text(max_size=4), max_size=3, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        begin, size = end, 4
        for count in shape:
            size *= count
        end += size
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    if draw(st.booleans()):
        table["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
    text = json.dumps(table).encode()
    if table and odd:
        text = draw(changed(table))
    return len(text).to_bytes(8, "little") + text + bytes(end)


@st.composite
def models(draw: st.DrawFn) -> bytes:
    """SentencePiece models, often with a piece, a setting or a normalizer that is odd."""
    texts = st.binary(max_size=6) | st.just(b"a" * 1025) | st.text(max_size=3).map(str.encode)
    scores = st.floats(width=32)
    pieces = draw(
        st.lists(st.builds(piece, texts, score=scores, kind=st.integers(0, 7)), max_size=4)
    )
    units = draw(st.lists(st.integers(0, (1 << 32) - 1), min_size=256, max_size=256))
    units[0] &= 0x7FFFFC00
    ends = st.sampled_from([b"", b"\0", b"a\0", b"a\0bc\0"])
    rest = [
        delimited(2, number(3, draw(st.integers(0, 6))) + number(40, draw(st.integers(0, 9)))),
        delimited(3, delimited(2, charsmap(units, texts=draw(ends)))),
        delimited(4, delimited(1, delimited(1, b"a") + delimited(2, b"a"))),
        struct.pack("<I", draw(st.integers(0, (1 << 32) - 1))),
    ]
    return MODEL + b"".join(pieces) + b"".join(draw(st.lists(st.sampled_from(rest), max_size=2)))


INPUTS = {
    "config": configs,
    "header": headers(odd=True),
    "manifest": manifests,
    "tokenizer": models(),
}
INPUTS["json"] = changed(CONFIG) | values.map(lambda value: json.dumps(value).encode())
INPUTS["lines"] = st.binary(max_size=200)
every_target = pytest.mark.parametrize("name", INPUTS)


@every_target
@in_its_own_time
@given(st.data())
def test_any_content_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(INPUTS[name] | st.binary(max_size=100)))


@pytest.mark.torture
@every_target
@at_length
@given(st.data())
def test_very_much_content_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(INPUTS[name] | st.binary(max_size=100)))


@in_its_own_time
@given(headers(odd=False))
def test_tensors_side_by_side_are_taken(content: bytes) -> None:
    assert TARGETS["header"](content).endswith(" tensors")
