import io
import os
from pathlib import Path

from tfm_cli.byte_stream import Prepended, pausing_descriptor, share_read


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
        assert share_read(pipe) is None
    os.close(writing)


def test_share_is_that_of_the_size_now(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345678")

    with (tmp_path / "file").open("rb") as file:
        shares = [share_read(file)]
        for _ in range(2):
            file.read(4)
            shares.append(share_read(file))
        (tmp_path / "file").write_bytes(b"1234")  # cut meanwhile
        shares.append(share_read(file))

    assert shares == [0.0, 0.5, 1.0, 1.0]
    assert share_read(io.BytesIO(b"1")) is None
