"""The number of pairs of a corpus, estimated without reading all of it."""

import contextlib
from pathlib import Path
from typing import Any, BinaryIO

from tfm_cli.config.settings import DataConfig
from tfm_cli.errors import TfmError
from tfm_cli.text.byte_streams import DamagedError, compression_of, decompressed

# Files up to this size are counted, compressed or not; the beginning of larger ones is.
_MAX_BYTES = 64 << 20
_MAX_COMPRESSED_BYTES = 16 << 20
_CHUNK = 1 << 20


def estimated_pairs(data: DataConfig) -> int | None:
    """Return the number of pairs in the training text; None if a file cannot be read, or not twice.

    It is exact for files up to 64 MiB, or 16 MiB compressed. Of larger ones, the mean length of the
    lines is that of their beginning. Repeated passes (`data.weights`) do not count.
    """
    paths = [*data.source, *data.pairs]
    counts = [_estimated_lines(Path(path)) for path in paths if path != "-"]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(paths) else None


def _estimated_lines(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, DamagedError, TfmError):
        if not path.is_file():  # a pipe can be read only once
            return None
        size = path.stat().st_size
        with path.open("rb") as file:
            kind = compression_of(file.read(8))
            file.seek(0)
            stream = decompressed(kind, b"", file, name=str(path)) if kind else file
            return _extrapolated(stream, file, size, _MAX_COMPRESSED_BYTES if kind else _MAX_BYTES)
    return None


def _extrapolated(stream: Any, file: BinaryIO, size: int, limit: int) -> int:
    """Return the lines of a stream, of which at most `limit` bytes of the file are read.

    Args:
        stream: the text.
        file: the file that it comes from, perhaps compressed.
        size: the size of the file in bytes.
        limit: the number of its bytes after which the rest is estimated.
    """
    lines: int = 0
    last: bytes = b"\n"
    while chunk := stream.read1(_CHUNK):
        lines, last = lines + chunk.count(b"\n"), chunk[-1:]
        if limit < file.tell() < size:
            return round(lines * size / file.tell())
    return lines + int(last != b"\n")  # the last line may lack its line feed
