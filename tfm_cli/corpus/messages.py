"""What goes to a process that encodes and comes back from it, as frames."""

import dataclasses
import json
import struct
from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from tfm_cli.corpus.blocks import Block
from tfm_cli.corpus.encoding import EncodedBlock
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.line_checks import RoundTrip, SourceTags
from tfm_cli.errors import DataError
from tfm_cli.text.repairs import Mended
from tfm_cli.tokenizer.pair import TokenizerPair

# Messages between processes: a JSON object and some bytes, each with its size before it.

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


def of_work(tokenizers: TokenizerPair, filters: Filters) -> Frame:
    """What all blocks have in common."""
    files = tokenizers.files()
    return {"files": list(files), "filters": dataclasses.asdict(filters)}, list(files.values())


def to_work(frame: Frame) -> tuple[TokenizerPair, Filters]:
    """What `of_work` was made from."""
    header, blobs = frame
    files = dict(zip(header["files"], blobs, strict=True))
    return TokenizerPair.from_files(files, place="tokenizer"), Filters(**header["filters"])


def of_block(block: Block) -> Frame:
    """A block, but for how much of the file was read."""
    names = ("file", "format", "names", "num_lines", "crlf")
    return {name: getattr(block, name) for name in names}, list(block.sides)


def to_block(frame: Frame) -> Block:
    """What `of_block` was made from."""
    facts, sides = frame
    names, crlf = tuple(facts["names"]), tuple(facts["crlf"])
    return Block(facts["file"], facts["format"], names, facts["num_lines"], crlf, tuple(sides))


def of_encoded(found: EncodedBlock) -> Frame:
    """An answer."""
    arrays = (*found.ids, *found.lengths, found.hashes)
    header = {
        "types": [array.dtype.str for array in arrays],
        "dropped": dict(found.dropped),
        "mended": [[dict(mended.counts), mended.first] for mended in found.mended],
        "round_trips": [trip.to_json() for trip in found.round_trips],
        "tags": found.tags.to_json(),
    }
    return header, [array.tobytes() for array in arrays]


def of_error(error: DataError) -> Frame:
    """An answer that there is none."""
    return {"error": str(error), "hint": error.hint}, []


def to_encoded(frame: Frame) -> EncodedBlock:
    """What `of_encoded` was made from.

    Raises:
        DataError: that of `of_error`.
    """
    header, blobs = frame
    if "error" in header:
        raise DataError(header["error"], hint=header["hint"])
    source, target, source_lengths, target_lengths, hashes = (
        np.frombuffer(blob, dtype=kind) for blob, kind in zip(blobs, header["types"], strict=True)
    )
    mended = tuple(Mended(Counter(counts), first) for counts, first in header["mended"])
    trip, other = (RoundTrip.from_json(table) for table in header["round_trips"])
    return EncodedBlock(
        (source, target), (source_lengths, target_lengths), hashes,
        Counter(header["dropped"]), mended, (trip, other),
        SourceTags.from_json(header["tags"]),
    )  # fmt: skip
