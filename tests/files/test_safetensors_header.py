import json
from typing import Any

import pytest
from safetensors import SafetensorError, deserialize

from tfm_cli.files.safetensors_file import Header, TensorInfo, parse_header

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def parsed(table: object, size: int = 4) -> Header:
    return parse_header(json.dumps(table).encode(), start=100, end=100 + size)


def test_tensors_are_returned_with_their_positions() -> None:
    table = {"__metadata__": {"tfm": "{}"}, "b": {**F32, "data_offsets": [4, 8]}, "a": F32}

    found = parsed(table, 8)

    assert found.metadata == {"tfm": "{}"}
    assert found.tensors["a"] == TensorInfo("F32", (1,), 100, 104)
    assert found.tensors["b"] == TensorInfo("F32", (1,), 104, 108)


def test_empty_tensors_take_up_no_bytes() -> None:
    empty = {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]}

    assert parsed({"a": F32, "b": empty, "c": empty}).tensors["c"].end == 104


HOSTILE: dict[str, tuple[Any, str]] = {
    "list": ([], "is not that of a safetensors file"),
    "number for a tensor": ({"a": 1}, "`a` must have dtype, shape and data_offsets"),
    "no place": ({"a": {"dtype": "F32", "shape": [1]}}, "`a` must have dtype, shape and"),
    "more than it has": ({"a": {**F32, "load": "os.system"}}, "`a` must have dtype, shape and"),
    "unknown type": ({"a": {**F32, "dtype": "PICKLE"}}, "has an unknown dtype"),
    "table for a type": ({"a": {**F32, "dtype": {}}}, "has an unknown dtype"),
    "number for a shape": ({"a": {**F32, "shape": 1}}, "`a` has an invalid shape"),
    "float for a size": ({"a": {**F32, "shape": [1.0]}}, "`a` has an invalid shape"),
    "bool for a size": ({"a": {**F32, "shape": [True]}}, "`a` has an invalid shape"),
    "negative size": ({"a": {**F32, "shape": [-1, -1]}}, "`a` has an invalid shape"),
    "many dimensions": ({"a": {**F32, "shape": [1] * 9}}, "`a` has an invalid shape"),
    "huge shape": ({"a": {**F32, "shape": [10**18] * 8}}, "which do not fit its shape and dtype"),
    "wrapping shape": (
        {"a": {**F32, "shape": [2**62 + 1]}}, "`a` has 4 bytes, which do not fit its shape"
    ),
    "half a place": ({"a": {**F32, "data_offsets": [0]}}, "has invalid data_offsets"),
    "float for a place": ({"a": {**F32, "data_offsets": [0, 4.0]}}, "has invalid data_offsets"),
    "text for a place": ({"a": {**F32, "data_offsets": ["0", "4"]}}, "has invalid data_offsets"),
    "in the header": ({"a": {**F32, "data_offsets": [-4, 0]}}, "has invalid data_offsets"),
    "the wrong way round": ({"a": {**F32, "data_offsets": [4, 0]}}, "`a` has -4 bytes"),
    "much too far": ({"a": {**F32, "data_offsets": [10**30, 10**30 + 4]}}, "after a gap from 100"),
    "beyond the file": ({"a": {**F32, "shape": [2], "data_offsets": [0, 8]}}, "the file at 104"),
    "short of the file": ({}, "its tensors end at 100, the file at 104"),
    "overlap": ({"a": F32, "b": F32}, "`b` begins at 100, inside the header or another tensor"),
    "hole": ({"a": {**F32, "data_offsets": [4, 8]}}, "`a` begins at 104, after a gap from 100"),
    "numbers in metadata": ({"__metadata__": {"a": 1}, "a": F32}, "is not a table of strings"),
    "list for metadata": ({"__metadata__": [], "a": F32}, "is not a table of strings"),
    "deep metadata": ({"__metadata__": {"a": {"b": {}}}, "a": F32}, "nested deeper|not a table"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_inconsistent_header_is_refused(name: str) -> None:
    table, told = HOSTILE[name]

    with pytest.raises(ValueError, match=told):
        parsed(table)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "is not that of a safetensors file"),
        (b' {"a": 1}', "is not that of a safetensors file"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": {"shape": [1e400]}}', "is not a finite number"),
        (b'{"a": 1, "a": 2}', "the name `a` occurs twice"),
        (b'{"a": \xff}', "codec can't decode"),
        (b"{" + b'"a":{' * 100_000, "nested deeper|Expecting"),
    ],
)
def test_header_that_is_not_valid_json_is_refused(header: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_header(header, start=0, end=0)


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_safetensors_refuses_are_refused(name: str) -> None:
    """Ours may be stricter, never laxer; safetensors accepts some headers of the table."""
    text = json.dumps(HOSTILE[name][0]).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(4)
    try:
        # Safetensors ships no types.
        deserialize(content)  # type: ignore[no-untyped-call]
    except (SafetensorError, OverflowError):
        with pytest.raises(ValueError, match=r"^(it|`)"):
            parse_header(text, start=0, end=4)
