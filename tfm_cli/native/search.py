"""Search with the engine: a batch of token ids in, hypotheses out."""

from __future__ import annotations

import ctypes
import threading
import weakref
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tfm_cli.config.settings import SearchConfig
from tfm_cli.console import visible_message
from tfm_cli.decoding.interface import Hypothesis, NonFiniteScoresError
from tfm_cli.native.library import (
    NO_MEMORY,
    NON_FINITE,
    OK,
    Batch,
    Library,
    Result,
    SearchOptions,
    ShouldStop,
)
from tfm_cli.native.model import NativeModel, error_of

Ids = Sequence[int]

CACHE_BYTES = 1 << 30  # of KV caches and working memory of a batch

_INT32S, _UINT64S = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_uint64)
_FLOATS = ctypes.POINTER(ctypes.c_float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """A batch of segments that are searched together.

    Attributes:
        sources: tokens of each, without </s>.
        limits: maximum tokens of each translation, without </s>.
        prefixes: first tokens of each translation; None for none.
        seeds: of each, for sampling.
        allowed: the tokens that each translation may contain, ascending; an empty list, or None,
            for all.
    """

    sources: Sequence[Ids]
    limits: Sequence[int]
    prefixes: Sequence[Ids] | None = None
    seeds: Sequence[int] | None = None
    allowed: Sequence[Ids] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def part(self, start: int, stop: int) -> Segments:
        """Return segments `start` to `stop`."""
        which = slice(start, stop)
        return Segments(
            sources=self.sources[which],
            limits=self.limits[which],
            prefixes=None if self.prefixes is None else self.prefixes[which],
            seeds=None if self.seeds is None else self.seeds[which],
            allowed=None if self.allowed is None else self.allowed[which],
        )


class NativeSearch:
    """Search with one model or an ensemble; threads may share it, each with its own caches.

    Args:
        models: over the same vocabulary.
        settings: of the search.
        sampling: sample one translation of each segment instead of searching for the best.
        scores: compute log-probabilities and scores; otherwise greedy search is faster and they
            are NaN.
        token_log_probs: store the log-probability of each token as well.
        stops_loops: end a hypothesis that repeats the same few tokens; ignored in sampling.
        check: called regularly, between steps; an exception that it raises ends the search.
        cache_bytes: maximum memory beyond the weights; a batch that needs more is searched in
            parts.
    """

    def __init__(
        self,
        models: Sequence[NativeModel],
        settings: SearchConfig,
        *,
        sampling: bool = False,
        scores: bool = True,
        token_log_probs: bool = False,
        stops_loops: bool = False,
        check: Callable[[], None] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._models, self._settings, self._check = tuple(models), settings, check
        self._sampling, self._cache_bytes = sampling, cache_bytes
        self._options = {
            "sampling": sampling,
            "early_stopping": settings.early_stopping,
            "renormalize": settings.renormalize,
            "no_repeat_ngram_size": settings.no_repeat_ngram_size,
            "stops_loops": stops_loops,
            "scores": scores or token_log_probs,
            "token_log_probs": token_log_probs,
            "wu_norm": settings.length_norm == "wu",
            "top_k": min(settings.top_k, 2**31 - 1),
            "length_penalty": settings.length_penalty,
            "repetition_penalty": settings.repetition_penalty,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        self._workspaces = _Workspaces(models[0].library)
        self._name = ", ".join(model.name for model in models)

    @property
    def num_bytes(self) -> int:
        """Return the memory of the caches that are not in use."""
        return self._workspaces.num_bytes

    def __call__(self, segments: Segments, *, beam_size: int = 0) -> list[list[Hypothesis]]:
        """Return hypotheses of each segment, best first: the whole beam, or one sample.

        Args:
            segments: the batch, in any order; results do not depend on other segments.
            beam_size: overrides that of the settings; 0 for no change.

        Raises:
            MemoryError: there is no memory for the batch; a smaller one may fit.
            NonFiniteScoresError: a model computes scores that are not finite numbers.
        """
        beam_size = 1 if self._sampling else beam_size or self._settings.beam_size
        found: list[list[Hypothesis]] = []
        for start, stop in self._parts(segments, beam_size):
            found += self._search(segments.part(start, stop), beam_size)
        return found

    def score(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """Return the log-probabilities of each target's tokens and of the </s> after them.

        Args:
            sources: tokens of each segment, without </s>.
            targets: tokens of its translation, without </s>.

        Raises:
            MemoryError, NonFiniteScoresError: as for a search.
        """
        found: list[list[float]] = []
        for segments, some in self._pairs(sources, targets):
            sizes = [limit + 1 for limit in segments.limits]
            values = self._teacher_forced(segments, some, sum(sizes), layer=None)
            found += [list(part) for part in _split(values, sizes)]
        return found

    def attention(
        self, sources: Sequence[Ids], targets: Sequence[Ids], *, layer: int
    ) -> list[list[list[float]]]:
        """Return the attention of target tokens to source tokens, (T + 1, S + 1) of each pair.

        Row t is the cross-attention of the step that writes token t, the last row that of </s>;
        columns are the source tokens and </s>.

        Args:
            sources: as for `score`.
            targets: as for `score`.
            layer: of the decoder, from 0; averaged over its heads.

        Raises:
            MemoryError, NonFiniteScoresError: as for a search.
        """
        found: list[list[list[float]]] = []
        for segments, some in self._pairs(sources, targets):
            shapes = [
                (limit + 1, len(source) + 1)
                for source, limit in zip(segments.sources, segments.limits, strict=True)
            ]
            sizes = [height * width for height, width in shapes]
            values = self._teacher_forced(segments, some, sum(sizes), layer=layer)
            for part, (height, width) in zip(_split(values, sizes), shapes, strict=True):
                found.append([list(row) for row in _split(part, [width] * height)])
        return found

    def _pairs(
        self, sources: Sequence[Ids], targets: Sequence[Ids]
    ) -> Iterator[tuple[Segments, Sequence[Ids]]]:
        """Yield pairs in parts that fit in memory."""
        if len(sources) != len(targets):
            raise ValueError(f"there are {len(sources)} sources and {len(targets)} targets")
        segments = Segments(sources=sources, limits=[len(target) for target in targets])
        for start, stop in self._parts(segments, beam_size=1):
            yield segments.part(start, stop), targets[start:stop]

    def _parts(self, segments: Segments, beam_size: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of parts whose caches fit in memory, or of a single segment."""
        start, total = 0, 0
        for i, (source, limit) in enumerate(zip(segments.sources, segments.limits, strict=True)):
            size = sum(
                model.library.functions.tfm_segment_bytes(
                    model.handle, len(source) + 1, limit, beam_size
                )
                for model in self._models
            )
            if i > start and total + size > self._cache_bytes:
                yield start, i
                start, total = i, 0
            total += size
        if start < len(segments):
            yield start, len(segments)

    def _search(self, segments: Segments, beam_size: int) -> list[list[Hypothesis]]:
        library, result = self._models[0].library, Result()
        handles = (ctypes.c_void_p * len(self._models))(
            *(model.handle.value for model in self._models)
        )
        batch, _kept = _batch(segments, self._eos_id)
        with (
            self._workspaces.one() as workspace,
            self._crash_note(segments.sources, beam_size),
            closing(_StopCallback(self._check)) as stop,
        ):
            options = SearchOptions(beam_size=beam_size, should_stop=stop.function, **self._options)
            status = library.functions.tfm_search(
                handles, len(handles), workspace, options, batch, result
            )
            stop.raise_pending()
            self._check_status(status, workspace)
            return _hypotheses(result, has_token_log_probs=bool(self._options["token_log_probs"]))

    def _teacher_forced(
        self, segments: Segments, targets: Sequence[Ids], count: int, *, layer: int | None
    ) -> array[float]:
        """Return log-probabilities, or the attention of a layer: `count` concatenated numbers."""
        if len(self._models) != 1:
            raise ValueError("one model at a time reads whole pairs")
        model, values = self._models[0], array("f", bytes(4 * count))
        batch, _kept = _batch(segments, self._eos_id)
        target_ids, lengths = _flat(targets)
        address = _pointer(values, _FLOATS)
        with self._workspaces.one() as workspace, self._crash_note(segments.sources, 1):
            status = model.library.functions.tfm_score(
                model.handle, workspace, batch, _pointer(target_ids, _INT32S),
                _pointer(lengths, _INT32S), address if layer is None else None, layer or 0,
                None if layer is None else address,
            )  # fmt: skip
            self._check_status(status, workspace)
        return values

    @property
    def _eos_id(self) -> int:
        return self._models[0].tokenizers.source.eos_id

    @contextmanager
    def _crash_note(self, sources: Sequence[Ids], beam_size: int) -> Iterator[None]:
        """Set a crash note, so that a fault inside the engine is reported with model and batch."""
        library = self._models[0].library
        longest = max(map(len, sources), default=0)
        note = (
            f"error: {library.path.name} crashed: a bug of tfm, or memory that is broken\n"
            f"  model: {visible_message(self._name)}\n"
            f"  batch: {len(sources)} segments of at most {longest} tokens, beam {beam_size}\n"
            "hint: translate with `TFM_NATIVE_LIBRARY=none` to do without it, and report this\n"
        )
        library.functions.tfm_crash_note(note.encode("utf-8", "backslashreplace"))
        try:
            yield
        finally:
            library.functions.tfm_crash_note(None)

    def _check_status(self, status: int, workspace: ctypes.c_void_p) -> None:
        """Raise the exception for a status other than OK."""
        if status == OK:
            return
        library = self._models[0].library
        if status == NON_FINITE:
            raise NonFiniteScoresError
        if status == NO_MEMORY:
            message = error_of(library, status)
            library.functions.tfm_workspace_trim(workspace)
            raise MemoryError(message)
        raise RuntimeError(error_of(library, status))


class _Workspaces:
    """The pool of workspaces that are not in use, shared by threads."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._free: list[ctypes.c_void_p] = []

    @property
    def num_bytes(self) -> int:
        """Return the memory of the workspaces that are not in use."""
        size = self._library.functions.tfm_workspace_bytes
        return sum(size(workspace) for workspace in self._free)

    @contextmanager
    def one(self) -> Iterator[ctypes.c_void_p]:
        """Reserve a workspace for the caller."""
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = self._new()
        try:
            yield workspace
        finally:
            self._free.append(workspace)

    def _new(self) -> ctypes.c_void_p:
        functions, workspace = self._library.functions, ctypes.c_void_p()
        status = functions.tfm_workspace_new(workspace)
        if status == NO_MEMORY:
            raise MemoryError(error_of(self._library, status))
        if status != OK:
            raise RuntimeError(error_of(self._library, status))
        weakref.finalize(self, functions.tfm_workspace_free, workspace).atexit = False
        return workspace


class _StopCallback:
    """The callback that the engine calls to check for a request to stop; closed after the search.

    During the call, Python also runs signal handlers, which may raise. In a plain function, a
    handler would run before the first `try`, and ctypes would discard its exception. The callback
    is a generator, since that resumes inside its `try`.
    """

    def __init__(self, check: Callable[[], None] | None) -> None:
        self._check = check
        self._raised: BaseException | None = None
        # Python runs signal handlers only in the main thread.
        is_needed = check is not None or threading.current_thread() is threading.main_thread()
        self._calls = self._responses()
        next(self._calls)
        self.function = (
            ShouldStop(self._calls.__next__) if is_needed else ShouldStop()  # NULL
        )

    def raise_pending(self) -> None:
        """Raise the exception that ended the search, if any."""
        if self._raised is not None:
            raise self._raised

    def close(self) -> None:
        """Break the reference cycle of the exception and this object."""
        self._calls.close()
        self._raised = None
        self.function = ShouldStop()

    def _responses(self) -> Generator[int, None, None]:
        while True:
            try:
                yield 0
                if self._check is not None:
                    self._check()
            except GeneratorExit:
                return
            except BaseException as error:
                self._raised = error
                yield 1


def _batch(segments: Segments, eos_id: int) -> tuple[Batch, Any]:
    """Return the batch, and the arrays that it points to, which must outlive its use."""
    count = len(segments)
    sources, lengths = _flat([*source, eos_id] for source in segments.sources)
    limits = array("i", segments.limits)
    prefixes = _flat(segments.prefixes) if segments.prefixes is not None else None
    allowed = _flat(segments.allowed) if segments.allowed is not None else None
    seeds = array("Q", segments.seeds) if segments.seeds is not None else None
    for values in (limits, seeds, *(each[1] for each in (prefixes, allowed) if each is not None)):
        if values is not None and len(values) != count:
            raise ValueError(
                f"{count} segments have {len(values)} limits, prefixes, seeds or lists"
            )
    batch = Batch(
        num_segments=count,
        source_ids=_pointer(sources, _INT32S),
        source_lengths=_pointer(lengths, _INT32S),
        limits=_pointer(limits, _INT32S),
    )
    if prefixes is not None:
        batch.prefix_ids, batch.prefix_lengths = (_pointer(each, _INT32S) for each in prefixes)
    if allowed is not None:
        batch.allowed_ids, batch.allowed_lengths = (_pointer(each, _INT32S) for each in allowed)
    if seeds is not None:
        batch.seeds = _pointer(seeds, _UINT64S)
    return batch, (sources, lengths, limits, prefixes, allowed, seeds)


def _flat(rows: Iterable[Ids]) -> tuple[array[int], array[int]]:
    """Return the concatenated ids of all rows, and their lengths."""
    rows = list(rows)
    return array("i", chain.from_iterable(rows)), array("i", map(len, rows))


def _pointer(values: array[Any], kind: Any) -> Any:
    return ctypes.cast(values.buffer_info()[0], kind)


def _hypotheses(result: Result, *, has_token_log_probs: bool) -> list[list[Hypothesis]]:
    counts = result.num_hypotheses[: result.num_segments]
    total = sum(counts)
    lengths = result.lengths[:total]
    ids = result.ids[: sum(lengths)]
    log_probabilities, scores = result.log_probabilities[:total], result.scores[:total]
    token_log_probs: Sequence[float] = ()
    if has_token_log_probs:
        token_log_probs = result.token_log_probs[: sum(lengths) + total]
    rows: list[Hypothesis] = []
    begin = 0
    for row, length in enumerate(lengths):
        end = begin + length
        rows.append(
            Hypothesis(
                tuple(ids[begin:end]),
                log_probabilities[row],
                scores[row],
                tuple(token_log_probs[begin + row : end + row + 1]),
            )
        )
        begin = end
    return list(_split(rows, counts))


def _split(values: Sequence[Any], lengths: Sequence[int]) -> Iterator[Any]:
    """Yield parts of these lengths."""
    begin = 0
    for length in lengths:
        yield values[begin : begin + length]
        begin += length
