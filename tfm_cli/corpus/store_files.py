"""A corpus on disk: arrays as raw numbers, mapped and not read; `store.json` says what they are."""

import json
import mmap
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from tfm_cli import durable
from tfm_cli.corpus.batching import CorpusSpan
from tfm_cli.corpus.duplicates import later_duplicates
from tfm_cli.corpus.encoding import EncodedBlock, id_type, length_type
from tfm_cli.corpus.filters import Filters
from tfm_cli.corpus.store import PieceStore, Segments, SideHash, corpus_sha256, damaged

FORMAT = 2
FACTS_FILE = "store.json"
_SIDES = ("source", "target")
_KINDS = ("ids", "lengths", "starts")
_HASHES, _FIRST = "pairs.hashes", "first"
_PAIRS_AT_A_TIME = 1 << 18


class StoreWriter:
    """Writes a corpus into an empty folder; a class because it is given part by part.

    Args:
        directory: an empty folder.
        vocab_sizes: of the two sides.
        filters: which pairs may stay; duplicates are found here, when all pairs are known.
        num_files: how many files the corpus is in.
    """

    def __init__(
        self, directory: Path, *, vocab_sizes: tuple[int, int], filters: Filters, num_files: int
    ) -> None:
        self._directory = directory
        self._vocab_sizes = vocab_sizes
        self._filters = filters
        self._counts = [0] * num_files  # pairs of each file
        self._dropped: Counter[str] = Counter()
        self._open = ExitStack()
        self._hashes: IO[bytes] | None = None
        with ExitStack() as on_failure:
            on_failure.callback(self._open.close)
            # With duplicates among them, all pairs are written first, and then those that stay.
            self._begin(_FIRST if filters.duplicates else "")
            if filters.duplicates:
                self._hashes = self._opened(directory / _HASHES)
            on_failure.pop_all()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def dropped(self) -> Counter[str]:
        """Pairs that were left out so far, by reason."""
        return self._dropped

    def add(self, found: EncodedBlock, *, file: int) -> None:
        """Append the pairs of a block; blocks come file by file."""
        self._append(found.ids, found.lengths)
        self._counts[file] += len(found.lengths[0])
        self._dropped.update(found.dropped)
        if self._hashes is not None:
            self._hashes.write(found.hashes.tobytes())

    def finish(self) -> None:
        """Drop duplicates if they are to be dropped, and say what there is."""
        self._open.close()
        if self._filters.duplicates:
            self._drop_duplicates()
        facts = {
            "format": FORMAT,
            "pairs": len(self),
            "pieces": list(self._totals),
            "id_types": [id_type(size).str for size in self._vocab_sizes],
            "vocab_sizes": list(self._vocab_sizes),
            "length_type": length_type(self._filters.max_length).str,
            "files": self._counts,
            "dropped": dict(self._dropped),
            "sha256": corpus_sha256(*(digest.hexdigest() for digest in self._digests)),
        }
        text = json.dumps(facts, indent=1) + "\n"
        durable.write_file(self._directory / FACTS_FILE, text.encode())

    def _begin(self, prefix: str) -> None:
        self._digests = (SideHash(), SideHash())
        self._totals = [0, 0]
        self._files = [
            {
                kind: self._opened(_path(self._directory, prefix, side, kind))
                for kind in ("ids", "lengths", "starts")
            }
            for side in _SIDES
        ]
        for files in self._files:
            files["starts"].write(np.zeros(1, dtype=np.int64).tobytes())

    def _opened(self, path: Path) -> IO[bytes]:
        return self._open.enter_context(durable.create(path))

    def _append(self, ids: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> None:
        for side, files in enumerate(self._files):
            self._digests[side].add(ids[side], lengths[side])
            ends = self._totals[side] + np.cumsum(lengths[side].astype(np.int64) - 1)
            files["ids"].write(ids[side].tobytes())
            files["lengths"].write(lengths[side].tobytes())
            files["starts"].write(ends.tobytes())
            self._totals[side] += len(ids[side])

    def _drop_duplicates(self) -> None:
        """Write the arrays anew, without pairs that occurred before."""
        hashes = np.memmap(self._directory / _HASHES, np.uint64, "r") if len(self) else np.zeros(0)
        is_later = later_duplicates(hashes)
        total, counts = len(self), self._counts
        kinds = [id_type(size) for size in self._vocab_sizes]
        narrow = length_type(self._filters.max_length)
        self._dropped["duplicate"] += int(is_later.sum())
        bounds = np.cumsum([0, *counts])
        self._counts = [
            int((~is_later[first:end]).sum()) for first, end in pairwise(bounds.tolist())
        ]
        self._begin("")
        with self._open, ExitStack() as old:
            paths = [
                {kind: _path(self._directory, _FIRST, side, kind) for kind in ("ids", "lengths")}
                for side in _SIDES
            ]
            ids = [old.enter_context(path["ids"].open("rb")) for path in paths]
            lengths = [old.enter_context(path["lengths"].open("rb")) for path in paths]
            for first in range(0, total, _PAIRS_AT_A_TIME):
                keep = ~is_later[first : first + _PAIRS_AT_A_TIME]
                some, many = [], []
                for side in (0, 1):
                    raw = lengths[side].read(len(keep) * narrow.itemsize)
                    each = np.frombuffer(raw, dtype=narrow)
                    pieces = each.astype(np.int64) - 1
                    raw = ids[side].read(int(pieces.sum()) * kinds[side].itemsize)
                    flat = np.frombuffer(raw, dtype=kinds[side])
                    some.append(flat[np.repeat(keep, pieces)])
                    many.append(each[keep])
                self._append(some, many)
        del hashes
        for path in self._directory.iterdir():
            if path.name == _HASHES or path.name.startswith(f"{_FIRST}."):
                durable.remove(path)


def open_store(directory: Path, weights: Sequence[float]) -> PieceStore:
    """The corpus that a StoreWriter wrote.

    Args:
        directory: its folder.
        weights: how often an epoch has the pairs of each file; none for all once.

    Raises:
        DataError: it is torn: a file is missing, or is not as large as it should be, or lengths
            are not those that were written. Single ids are looked at when they are gathered.
    """
    try:
        facts: dict[str, Any] = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise damaged(str(directory), f"has format {facts['format']}, wanted {FORMAT}")
        num_pairs = int(facts["pairs"])
        maps: list[mmap.mmap] = []
        sides = []
        columns = (facts[name] for name in ("pieces", "id_types", "vocab_sizes"))
        for side, num_pieces, kind, vocab_size in zip(_SIDES, *columns, strict=True):
            shapes = (
                ("ids", num_pieces, kind),
                ("starts", num_pairs + 1, np.int64),
                ("lengths", num_pairs, facts["length_type"]),
            )
            arrays = [
                _mapped(_path(directory, "", side, name), count, np.dtype(of), maps)
                for name, count, of in shapes
            ]
            own = maps[-len(shapes) :][:2]  # lengths are looked at as a whole
            _, starts, lengths = arrays
            told = starts[0], starts[-1], lengths.sum(dtype=np.int64) - num_pairs
            if told != (0, num_pieces, num_pieces):
                raise damaged(str(directory), f"lengths of the {side} do not sum up to its pieces")
            sides.append(
                Segments(
                    *arrays,
                    release=partial(_let_go, own),
                    vocab_size=int(vocab_size),
                    name=str(directory),
                )
            )
        ends = np.cumsum(facts["files"]).tolist()
        if ends[-1] != num_pairs:
            raise damaged(str(directory), f"`{FACTS_FILE}` contradicts itself")
        each = list(weights) or [1.0] * len(ends)
        firsts = [0, *ends[:-1]]
        spans = [CorpusSpan(*span) for span in zip(firsts, ends, each, strict=True)]
        dropped: Counter[str] = Counter(facts["dropped"])
        sha256 = str(facts["sha256"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise damaged(str(directory), f"{type(error).__name__}: {error}") from error

    return PieceStore(
        sides[0], sides[1], dropped, spans=spans, sha256=sha256, release=partial(_let_go, maps)
    )


def _let_go(maps: Sequence[mmap.mmap]) -> None:
    """Give back the memory in which files were seen, where the system can."""
    for each in maps:
        if hasattr(mmap, "MADV_DONTNEED"):
            each.madvise(mmap.MADV_DONTNEED)


def _mapped(path: Path, count: int, kind: np.dtype[Any], maps: list[mmap.mmap]) -> np.ndarray:
    size = path.stat().st_size
    if size != count * kind.itemsize or not size:
        raise damaged(
            str(path.parent), f"`{path.name}` has {size} bytes of {count * kind.itemsize}"
        )
    with path.open("rb") as stream:
        maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    return np.frombuffer(maps[-1], dtype=kind)


def _path(directory: Path, prefix: str, side: str, kind: str) -> Path:
    return directory / ".".join(filter(None, (prefix, side, kind)))
