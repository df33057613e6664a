"""Messages between processes: a JSON object and some bytes, each with its size before it."""

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

_SIZE = struct.Struct("<Q")

Frame = tuple[dict[str, Any], list[bytes]]


def write_frame(stream: IO[bytes], header: dict[str, Any], blobs: Sequence[bytes]) -> None:
    """Send a message."""
    facts = json.dumps({**header, "sizes": [len(blob) for blob in blobs]}).encode()
    stream.write(_SIZE.pack(len(facts)) + facts)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """Receive a message; None where nobody sends any more.

    Raises:
        EOFError: the other side ended in the middle of one.
    """
    head = stream.read(_SIZE.size)
    if not head:
        return None
    (size,) = _SIZE.unpack(_whole(head, _SIZE.size))
    header = json.loads(_whole(stream.read(size), size))
    blobs = [_whole(stream.read(size), size) for size in header.pop("sizes")]
    return header, blobs


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise EOFError
    return data
