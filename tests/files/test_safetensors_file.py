"""Reading and hashing of safetensors files."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import RunTfm
from tfm_cli.files import safetensors_file as module
from tfm_cli.files.safetensors_file import (
    HashInput,
    Header,
    SafetensorsFile,
    TensorInfo,
    parse_header,
    prefetch_hash,
    values_sha256,
)


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"b": torch.randn(3, 50_000), "a": torch.randn(7), "c.d": torch.randn(2, 1)}


@pytest.fixture(autouse=True)
def _nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget hashes that other tests prefetched and did not use."""
    monkeypatch.setattr(module, "_prefetched", {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "file", {"who": "somebody"})
    os.utime(tmp_path / "file", (1, 1))  # any later change has another time
    return tmp_path / "file"


def sha256_of(path: Path) -> str:
    """Return the hash by its definition, with safetensors' own reader."""
    text = b""
    for name, tensor in sorted(load_file(path).items()):
        text += f"{name} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes()
    return hashlib.sha256(text).hexdigest()


def hash_of(path: Path) -> str:
    with SafetensorsFile(path) as file:
        return file.sha256(file.read())


@pytest.fixture
def num_hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one whenever a file is hashed."""
    calls: list[int] = []

    def counting(values: Iterable[HashInput]) -> str:
        calls.append(1)
        return values_sha256(values)

    monkeypatch.setattr(module, "values_sha256", counting)
    return calls


def test_hash_covers_names_types_shapes_and_values(path: Path) -> None:
    assert hash_of(path) == sha256_of(path)


def test_hash_does_not_depend_on_the_buffer_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART_BYTES", 1000)

    with SafetensorsFile(path) as file:
        assert file.hash_from_disk() == sha256_of(path)
    assert hash_of(path) == sha256_of(path)


def test_prefetched_hash_is_used(path: Path, num_hashed: list[int]) -> None:
    prefetch_hash(path)

    assert hash_of(path) == sha256_of(path)
    assert len(num_hashed) == 1


def test_prefetched_hash_is_used_once(path: Path, num_hashed: list[int]) -> None:
    prefetch_hash(path)
    result = [hash_of(path) for _ in range(2)]

    assert result == [sha256_of(path)] * 2
    assert len(num_hashed) == 2


@pytest.mark.parametrize("in_place", [True, False])
def test_file_that_changed_after_prefetching_is_hashed_again(path: Path, in_place: bool) -> None:
    prefetch_hash(path)
    for thread, _ in module._prefetched.values():
        thread.join()
    changed = path.read_bytes()[:-1] + b"x"
    if in_place:
        path.write_bytes(changed)
    else:
        (path.parent / "new").write_bytes(changed)
        (path.parent / "new").replace(path)

    assert hash_of(path) == sha256_of(path)


def test_prefetching_ignores_errors(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"torn")

    prefetch_hash(tmp_path / "none")
    prefetch_hash(tmp_path / "torn")
    prefetch_hash(tmp_path)

    assert not module._prefetched


def test_values_are_those_that_were_saved(path: Path) -> None:
    with SafetensorsFile(path) as file:
        contents = file.read()

    for name, tensor in tensors().items():
        result = torch.frombuffer(contents[name], dtype=torch.float32)
        assert torch.equal(result.view(tensor.shape), tensor)


def test_truncated_file_is_an_error_and_not_a_crash(path: Path) -> None:
    """Reading a mapped file that was truncated would crash."""
    with SafetensorsFile(path) as file:
        prefetch_hash(path)
        with path.open("r+b") as other:
            other.truncate(500)

        with pytest.raises(ValueError, match="it ends after 500 bytes"):
            file.read()
        with pytest.raises(ValueError, match="it ends after 500 bytes"):
            file.hash_from_disk()


def test_file_that_is_modified_while_it_is_read_is_refused(path: Path) -> None:
    with SafetensorsFile(path) as file:
        with path.open("r+b") as other:
            other.seek(-1, os.SEEK_END)
            other.write(b"x")

        with pytest.raises(ValueError, match="it was written to while it was read"):
            file.read()


def test_translate_hashes_its_model_once(
    tiny_model: Path, run_tfm: RunTfm, num_hashed: list[int]
) -> None:
    result = run_tfm(["translate", "--model", str(tiny_model), "--device", "cpu"], "one two\n")

    assert result.out == "eins zwei\n"
    assert len(num_hashed) == 1
    assert not module._prefetched


def header(table: object) -> bytes:
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"torn", "it has 4 bytes"),
        ((1 << 63).to_bytes(8, "little"), "its header has 9223372036854775808 bytes, the file 8"),
        (header([]), "its header is not that of a safetensors file"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), "the file at"),
        ((100_000).to_bytes(8, "little") + b'{"a":' + b"[" * 99_995, "it is nested deeper than 3"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00.", "its header has"),  # a pickle
    ],
    ids=["empty", "torn", "endless", "list", "no values", "deep", "pickle"],
)
def test_file_of_another_format_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)

    prefetch_hash(tmp_path / "file")

    assert not module._prefetched
    with pytest.raises(ValueError, match=message):
        SafetensorsFile(tmp_path / "file")


def test_oversized_header_is_refused_unread(tmp_path: Path) -> None:
    size = module.MAX_HEADER_BYTES + 1
    with (tmp_path / "file").open("wb") as file:
        file.write(size.to_bytes(8, "little"))
        file.truncate(8 + size)

    with pytest.raises(ValueError, match="its header has 1048577 bytes, expected at most 1048576"):
        SafetensorsFile(tmp_path / "file")


def test_pipe_in_place_of_weights_is_refused_without_blocking(
    tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model" / "model.safetensors")

    result = run_tfm(["translate", "--model", str(tmp_path / "model")], "one\n")

    assert result.code == 4
    assert "model.safetensors: is not a regular file" in result.err


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def parsed(table: object, size: int = 4) -> Header:
    return parse_header(json.dumps(table).encode(), start=100, end=100 + size)


def test_tensors_are_returned_with_their_positions() -> None:
    table = {"__metadata__": {"tfm": "{}"}, "b": {**F32, "data_offsets": [4, 8]}, "a": F32}

    result = parsed(table, 8)

    assert result.metadata == {"tfm": "{}"}
    assert result.tensors["a"] == TensorInfo("F32", (1,), 100, 104)
    assert result.tensors["b"] == TensorInfo("F32", (1,), 104, 108)


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
    table, message = HOSTILE[name]

    with pytest.raises(ValueError, match=message):
        parsed(table)


@pytest.mark.parametrize(
    ("header", "message"),
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
def test_header_that_is_not_valid_json_is_refused(header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
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
