import io
import os
from pathlib import Path

import pytest

from tfm_cli.text.byte_streams import (
    Prepended,
    binary_reason,
    bom_encoding,
    fraction_read,
    pausing_descriptor,
)


def test_first_bytes_come_first() -> None:
    stream = Prepended(b"abc", io.BytesIO(b"def"))

    assert [stream.read(2), stream.read(2), stream.read(2), stream.read()] == [
        b"ab", b"c", b"de", b"f",
    ]  # fmt: skip
    assert stream.readable()


def test_pipe_pauses_and_a_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reading, writing = os.pipe()

    with (tmp_path / "file").open("rb") as file, os.fdopen(reading, "rb") as pipe:
        assert pausing_descriptor(file) is None
        assert pausing_descriptor(pipe) == reading
        assert pausing_descriptor(io.BytesIO()) is None
        assert fraction_read(pipe) is None
    os.close(writing)


def test_share_uses_the_current_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345678")

    with (tmp_path / "file").open("rb") as file:
        shares = [fraction_read(file)]
        for _ in range(2):
            file.read(4)
            shares.append(fraction_read(file))
        (tmp_path / "file").write_bytes(b"1234")  # truncated in the meantime
        shares.append(fraction_read(file))

    assert shares == [0.0, 0.5, 1.0, 1.0]
    assert fraction_read(io.BytesIO(b"1")) is None


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ("one\n".encode("utf-16"), "UTF-16"),
        ("\ufeffone\n".encode("utf-16-be"), "UTF-16"),
        ("one\n".encode("utf-32"), "UTF-32"),
        (b"\xef\xbb\xbfone\n", ""),
        (b"one\n", ""),
        (b"", ""),
    ],
)
def test_other_encodings_are_recognized_by_their_mark(first: bytes, name: str) -> None:
    assert bom_encoding(first) == name


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"", ""),
        (b"one\n" * 99, ""),
        (b"x" * 99 + b"\0", ""),
        (b"x" * 98 + b"\0", "NUL bytes"),
        ("ü".encode() * 500, ""),
        ("\ufffd".encode() * 500, ""),  # U+FFFD in the text itself
        (b"\xff" * 255, ""),  # too short to be another encoding
        (b"\xff" * 256, "bytes that are not UTF-8"),
        (b"x" * 70 * 9 + b"\xff" * 30 * 9, ""),
        (b"x" * 69 * 9 + b"\xff" * 31 * 9, "bytes that are not UTF-8"),
        ("Straße, Öl, déjà vu.\n".encode("latin-1") * 50, ""),
        ("Привет, мир.\n".encode("koi8-r") * 50, "bytes that are not UTF-8"),
    ],
)
def test_binary_is_recognized_by_its_first_bytes(first: bytes, why: str) -> None:
    assert binary_reason(first) == why
