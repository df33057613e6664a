"""Call the engine with what it must refuse: `python -m tests.native.abi_fuzz COUNT SEED`.

Each call returns a status, and after each one the engine finds what it found at first. PyTorch is
not needed, so a library with sanitizers can be preloaded at little cost.
"""

import ctypes
import math
import random
import sys
from array import array
from collections.abc import Callable
from typing import Any

from tfm_cli.config.settings import ModelConfig
from tfm_cli.model_directory.weight_shapes import weight_shapes
from tfm_cli.native.library import (
    ACTIVATIONS,
    BAD_ARGUMENT,
    DEFECT,
    NO_MEMORY,
    NON_FINITE,
    NORMS,
    OK,
    POSITIONS,
    PRECISIONS,
    STOPPED,
    Batch,
    ModelOptions,
    Result,
    SearchOptions,
    ShouldStop,
    load,
)

LAST = 2**31 - 1
ABSURD = [-(2**31), -(2**31) + 1, -1000, -1, 0, 1, 2, 255, 256, 257, 1 << 20, (1 << 24) + 1, LAST]
ABSURD_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 1e300, -1e9, 0.5]
ABSURD_SIZES = [-(2**63), -1, 0, 999, 2**31, 2**62, 2**63 - 1]
STATUSES = range(6)

SHAPES: list[dict[str, Any]] = [
    {"width": 12, "heads": 3, "feed_forward_width": 10},
    {"width": 20, "heads": 2, "feed_forward_width": 33, "norm": "pre", "positions": "rotary",
     "activation": "swiglu", "tied_embeddings": 0},
    {"width": 34, "heads": 1, "feed_forward_width": 7, "positions": "learned", "max_positions": 20,
     "activation": "gelu", "tied_embeddings": 2, "output_bias": True},
    {"width": 8, "heads": 4, "feed_forward_width": 64, "activation": "swish",
     "positions": "sinusoidal_marian", "tied_embeddings": 1},
]  # fmt: skip
VOCAB, START, EOS = 37, 1, 2
BYTES = range(30, 36)  # pieces that stand for bytes
FUNCTIONS = load().functions


def options_of(shape: dict[str, Any], precision: str) -> ModelOptions:
    config = ModelConfig(encoder_layers=1, decoder_layers=2, **shape)
    return ModelOptions(
        encoder_layers=1, decoder_layers=2, width=config.width, encoder_heads=config.heads,
        decoder_heads=config.heads, encoder_feed_forward_width=config.feed_forward_width,
        decoder_feed_forward_width=config.feed_forward_width, source_vocab_size=VOCAB,
        target_vocab_size=VOCAB, norm=NORMS[config.norm],
        activation=ACTIVATIONS[config.activation],
        positions=POSITIONS[config.positions], max_positions=config.max_positions,
        tied_embeddings=config.tied_embeddings, scale_embeddings=config.scale_embeddings,
        output_bias=config.output_bias, start_id=START, eos_id=EOS,
        precision=PRECISIONS[precision],
    )  # fmt: skip


def weights_of(
    shape: dict[str, Any], seed: int
) -> dict[str, tuple[tuple[int, ...], "array[float]"]]:
    """Shape and values of each weight."""
    chance = random.Random(seed)
    config = ModelConfig(encoder_layers=1, decoder_layers=2, **shape)
    return {
        name: (size, array("f", (chance.gauss(0, 0.5) for _ in range(math.prod(size)))))
        for name, size in weight_shapes(config, (VOCAB, VOCAB)).items()
    }


def pointer(values: "array[Any]", kind: Any) -> Any:
    return ctypes.cast(values.buffer_info()[0], ctypes.POINTER(kind))


def ints(values: list[int]) -> tuple["array[int]", Any]:
    kept = array("i", values)
    return kept, pointer(kept, ctypes.c_int32)


def status_of(status: int, expected: range | tuple[int, ...] = STATUSES) -> int:
    """A status that is among those that may be; one that is not OK comes with a text."""
    message = FUNCTIONS.tfm_error().decode()
    assert status in expected, f"status {status}: {message}"
    assert status != DEFECT, message
    assert status == OK or message
    return status


class Model:
    """A model that can be used, unless `damage` makes something of it."""

    def __init__(self, shape: dict[str, Any], precision: str, seed: int = 1) -> None:
        self.shape, self.handle = shape, ctypes.c_void_p()
        self.positions = shape.get("max_positions", 10**6)
        options = options_of(shape, precision)
        assert FUNCTIONS.tfm_model_new(options, self.handle) == OK
        self.weights = weights_of(shape, seed)

    def give(self, name: str) -> int:
        size, values = self.weights[name]
        rows, columns = size if len(size) == 2 else (size[0], 0)
        address = values.buffer_info()[0]
        return int(FUNCTIONS.tfm_model_tensor(self.handle, name.encode(), address, rows, columns))

    def finish(self) -> "Model":
        for name in self.weights:
            assert self.give(name) == OK
        ids, at = ints([0, START])
        values = (ctypes.c_int16 * VOCAB)(*[-1] * VOCAB)
        values[BYTES.start : BYTES.stop] = [0x41, 0xC3, 0xA4, 0xE2, 0x82, 0xAC]
        status_of(FUNCTIONS.tfm_model_vocabulary(self.handle, at, len(ids), values), (0,))
        status_of(FUNCTIONS.tfm_model_finish(self.handle), (0,))
        return self

    def free(self) -> None:
        FUNCTIONS.tfm_model_free(self.handle)


class Request:
    """A batch and options that are right, and can be made wrong."""

    def __init__(self, chance: random.Random, most: int) -> None:
        count = chance.randint(1, 4)
        self.kept: list[Any] = []
        self.lengths = [chance.randint(1, 7) for _ in range(count)]
        self.prefix_lengths = [chance.randint(0, 2) for _ in range(count)]
        self.limits = [chance.randint(length, 8) for length in self.prefix_lengths]
        # With the byte pieces, or a character that a prefix begins could not be ended.
        lists = [
            sorted({EOS, *BYTES, *chance.sample(range(VOCAB), 5)}) if chance.random() < 0.5 else []
            for _ in range(count)
        ]
        self.allowed_lengths = [len(each) for each in lists]
        self.allowed_ids = [piece for each in lists for piece in each]

        def ids(total: int) -> list[int]:
            return [chance.randrange(3, VOCAB) for _ in range(total)]

        self.source_ids, self.prefix_ids = ids(sum(self.lengths)), ids(sum(self.prefix_lengths))
        self.target_lengths = [chance.randint(0, 6) for _ in range(count)]
        self.target_ids = ids(sum(self.target_lengths))
        self.seeds = array("Q", (chance.getrandbits(64) for _ in range(count)))
        self.num_segments = count
        self.options = SearchOptions(
            beam_size=chance.choice([1, 1, 2, 4, 256]), sampling=chance.random() < 0.3,
            early_stopping=chance.randint(0, 1), renormalize=chance.randint(0, 1),
            no_repeat_ngram_size=chance.choice([0, 0, 1, 2]), stops_loops=chance.randint(0, 1),
            scores=chance.randint(0, 1), token_log_probs=chance.randint(0, 1),
            wu_norm=chance.randint(0, 1), top_k=chance.choice([0, 1, 5, LAST]),
            length_penalty=1.0, repetition_penalty=chance.choice([1.0, 1.0, 1.5]),
            temperature=1.0, top_p=chance.choice([1.0, 0.5]),
        )  # fmt: skip

    def _at(self, values: list[int]) -> Any:
        kept, at = ints(values)
        self.kept.append(kept)
        return at

    def batch(self) -> Batch:
        return Batch(
            num_segments=self.num_segments, source_ids=self._at(self.source_ids),
            source_lengths=self._at(self.lengths), limits=self._at(self.limits),
            prefix_ids=self._at(self.prefix_ids), prefix_lengths=self._at(self.prefix_lengths),
            seeds=pointer(self.seeds, ctypes.c_uint64), allowed_ids=self._at(self.allowed_ids),
            allowed_lengths=self._at(self.allowed_lengths),
        )  # fmt: skip


def search(
    model: Any, workspace: Any, request: Request, batch: Batch | None = None
) -> tuple[int, str]:
    """The status and all of the result."""
    batch, result = batch or request.batch(), Result()
    handles = (ctypes.c_void_p * 1)(model)
    status = FUNCTIONS.tfm_search(handles, 1, workspace, request.options, batch, result)
    if status != OK:
        return status, ""
    counts = result.num_hypotheses[: result.num_segments]
    total = sum(counts)
    lengths = result.lengths[:total]
    ids = result.ids[: sum(lengths)]
    assert all(0 <= each < VOCAB for each in ids)
    each_score = (
        result.token_log_probs[: sum(lengths) + total] if request.options.token_log_probs else []
    )
    return 0, repr([counts, lengths, ids, result.scores[:total], each_score])


def wrong_model_options(chance: random.Random) -> None:
    options = options_of(chance.choice(SHAPES), chance.choice(["fp32", "bf16", "int8"]))
    for _ in range(chance.randint(1, 3)):
        field = chance.choice(ModelOptions._fields_)[0]
        setattr(options, field, chance.choice(ABSURD))
    if max(options.encoder_layers, options.decoder_layers) > 10**6:
        expected: tuple[int, ...] = (BAD_ARGUMENT,)
    else:
        expected = (OK, BAD_ARGUMENT, NO_MEMORY)
    handle = ctypes.c_void_p()
    status = status_of(FUNCTIONS.tfm_model_new(options, handle), expected)
    assert bool(handle) == (status == OK)
    status_of(FUNCTIONS.tfm_model_finish(handle), (BAD_ARGUMENT,))
    FUNCTIONS.tfm_model_free(handle)


def wrong_tensors(chance: random.Random) -> None:
    model = Model(chance.choice(SHAPES), chance.choice(["fp32", "bf16", "int8"]))
    refused = (BAD_ARGUMENT,)
    for name, (size, values) in model.weights.items():
        rows, columns = size if len(size) == 2 else (size[0], 0)
        address = values.buffer_info()[0]
        call, handle = FUNCTIONS.tfm_model_tensor, model.handle
        kind = chance.randrange(9)
        if kind == 0:
            status_of(call(handle, name.encode(), address, rows, columns + 1), refused)
            status_of(
                call(handle, name.encode(), address, chance.choice(ABSURD_SIZES), columns), refused
            )
        elif kind == 1:
            status_of(
                call(handle, name.encode(), address, rows, chance.choice(ABSURD_SIZES[:2])), refused
            )
        elif kind == 2:
            status_of(
                call(handle, b"x" * chance.choice([0, 3, 999]), address, rows, columns), refused
            )
        elif kind == 3:
            status_of(call(handle, name.encode(), None, rows, columns), refused)
            status_of(call(handle, None, address, rows, columns), refused)
            status_of(call(None, name.encode(), address, rows, columns), refused)
        elif kind == 4:
            place, before = chance.randrange(len(values)), array("f", values)
            values[place] = chance.choice([math.nan, math.inf, -math.inf])
            status_of(model.give(name), (NON_FINITE,))
            values[:] = before
        if chance.random() < 0.02:
            status_of(FUNCTIONS.tfm_model_finish(handle), refused)
            break
        status_of(model.give(name), (OK,))
        status_of(model.give(name), refused)
    model.free()


def wrong_vocabulary(chance: random.Random) -> None:
    model = Model(SHAPES[0], "fp32")
    ids, at = ints([chance.choice([*ABSURD, 3, 4]) for _ in range(3)])
    values = (ctypes.c_int16 * VOCAB)(
        *(chance.choice([-1, -1, -1, 65, -2, 256, 32767]) for _ in range(VOCAB))
    )
    count = chance.choice([3, 3, -1, -(2**31), LAST, (1 << 24) + 1, 0])
    if count in (LAST, (1 << 24) + 1):
        ids[0] = -1  # so that no more of them are looked at
    status_of(
        FUNCTIONS.tfm_model_vocabulary(model.handle, at, count, chance.choice([None, values]))
    )
    status_of(FUNCTIONS.tfm_model_vocabulary(model.handle, None, 5, None), (BAD_ARGUMENT,))
    model.free()


def extreme_weights(chance: random.Random, workspace: Any) -> None:
    """Finite weights whose products need not be; scores that are not finite are told of."""
    model = Model(chance.choice(SHAPES), chance.choice(["fp32", "bf16", "int8"]))
    for _, values in model.weights.values():
        if chance.random() < 0.4:
            value = chance.choice([0.0, 3.4e38, -3.4e38, 1e-45, 1e20, -1e-38])
            for i in range(len(values)):
                if chance.random() < 0.7:
                    values[i] = value
    model.finish()
    for _ in range(3):
        request = Request(chance, model.positions)
        request.options.beam_size = chance.choice([1, 3])
        status_of(search(model.handle, workspace, request)[0], (OK, NON_FINITE))
        score_pairs(model, workspace, request, request.batch(), 0, (OK, NON_FINITE))
    model.free()


def score_pairs(
    model: Model, workspace: Any, request: Request, batch: Batch, layer: int,
    expected: range | tuple[int, ...] = STATUSES,
) -> None:  # fmt: skip
    size = sum(length + 1 for length in request.target_lengths)
    actual = (ctypes.c_float * size)()
    weights = (ctypes.c_float * sum(
        (target + 1) * source
        for target, source in zip(request.target_lengths, request.lengths, strict=True)
    ))()  # fmt: skip
    _kept, ids = ints(request.target_ids)
    _other, lengths = ints(request.target_lengths)
    status = FUNCTIONS.tfm_score(
        model.handle, workspace, batch, ids, lengths, actual, layer, weights
    )
    status_of(status, expected)


def wrong_search(chance: random.Random, model: Model, workspace: Any) -> None:
    request = Request(chance, model.positions)
    batch = request.batch()
    kind = chance.randrange(8)
    if kind == 0:
        names = ["beam_size", "no_repeat_ngram_size", "top_k"]
        setattr(request.options, chance.choice(names), chance.choice(ABSURD))
    elif kind == 1:
        names = ["length_penalty", "repetition_penalty", "temperature", "top_p"]
        setattr(request.options, chance.choice(names), chance.choice(ABSURD_NUMBERS))
    elif kind == 2:
        batch.num_segments = chance.choice([-1, -(2**31), LAST, (1 << 20) + 1, 0])
    elif kind == 3:
        column = chance.choice([request.lengths, request.prefix_lengths, request.allowed_lengths])
        # Lengths that are refused: nothing tells how many ids there are.
        column[chance.randrange(len(column))] = chance.choice([-1, -(2**31), (1 << 24) + 1, LAST])
        batch = request.batch()
    elif kind == 4:
        rows = [request.source_ids, request.prefix_ids, request.allowed_ids]
        some = chance.choice([row for row in rows if row])
        some[chance.randrange(len(some))] = chance.choice([-1, VOCAB, LAST, -(2**31)])
        batch = request.batch()
    elif kind == 5:
        request.limits[chance.randrange(len(request.limits))] = chance.choice(
            [-1, -(2**31), (1 << 24) + 1, LAST]
        )
        batch = request.batch()
    elif kind == 6:
        name = chance.choice([
            "source_ids", "source_lengths", "limits", "prefix_ids", "seeds", "allowed_ids",
        ])  # fmt: skip
        setattr(batch, name, None)
    elif kind == 7 and any(request.allowed_lengths):
        request.allowed_ids[0], request.allowed_ids[1] = (
            request.allowed_ids[1],
            request.allowed_ids[0],
        )
        batch = request.batch()
    status, _ = search(model.handle, workspace, request, batch)
    is_surely_wrong = kind in (3, 4, 5)
    others = (OK, BAD_ARGUMENT, NO_MEMORY)
    status_of(status, (BAD_ARGUMENT,) if is_surely_wrong else others)


def wrong_force(chance: random.Random, model: Model, workspace: Any) -> None:
    request = Request(chance, model.positions)
    layer = chance.choice([0, 1, *ABSURD])
    if chance.random() < 0.5:
        batch = request.batch()
        score_pairs(model, workspace, request, batch, layer, (OK, BAD_ARGUMENT))
        return
    _kept, ids = ints([*request.target_ids[:-1], chance.choice([-1, VOCAB, LAST])])
    lengths = list(request.target_lengths)
    if not request.target_ids or chance.random() < 0.5:
        lengths[0] = chance.choice([-1, (1 << 24) + 1, LAST, -(2**31)])
    _other, at = ints(lengths)
    status = FUNCTIONS.tfm_score(model.handle, workspace, request.batch(), ids, at, None, 0, None)
    status_of(status, (BAD_ARGUMENT,))
    nothing = FUNCTIONS.tfm_score(
        model.handle, workspace, request.batch(), None, None, None, 0, None
    )
    status_of(nothing, (BAD_ARGUMENT,))


def calls_in_wrong_order(chance: random.Random, model: Model, workspace: Any) -> None:
    request, result = Request(chance, model.positions), Result()
    unfinished = Model(SHAPES[0], "fp32")
    refused = (BAD_ARGUMENT,)
    batch = request.batch()
    both = (ctypes.c_void_p * 2)(model.handle, unfinished.handle)
    none = (ctypes.c_void_p * 2)(model.handle, None)
    call = FUNCTIONS.tfm_search
    status_of(call(both, 2, workspace, request.options, batch, result), refused)
    status_of(call(none, 2, workspace, request.options, batch, result), refused)
    status_of(call(None, 1, workspace, request.options, batch, result), refused)
    for count in (0, -1, LAST):
        status_of(call(both, count, workspace, request.options, batch, result), refused)
    status_of(call(both, 1, None, request.options, batch, result), refused)
    status_of(call(both, 1, workspace, None, batch, result), refused)
    status_of(call(both, 1, workspace, request.options, None, result), refused)
    status_of(call(both, 1, workspace, request.options, batch, None), refused)
    status_of(FUNCTIONS.tfm_model_finish(unfinished.handle), refused)
    status_of(FUNCTIONS.tfm_model_finish(model.handle), refused)
    status_of(FUNCTIONS.tfm_model_finish(None), refused)
    status_of(model.give("target_embedding.weight"), refused)
    status_of(FUNCTIONS.tfm_model_vocabulary(model.handle, None, 0, None), refused)
    status_of(FUNCTIONS.tfm_model_new(None, ctypes.c_void_p()), refused)
    status_of(FUNCTIONS.tfm_model_new(options_of(SHAPES[0], "fp32"), None), refused)
    status_of(FUNCTIONS.tfm_workspace_new(None), refused)
    FUNCTIONS.tfm_model_free(None)
    FUNCTIONS.tfm_workspace_free(None)
    FUNCTIONS.tfm_workspace_trim(None)
    assert FUNCTIONS.tfm_workspace_bytes(None) == FUNCTIONS.tfm_model_bytes(None) == 0
    for size in ABSURD:
        FUNCTIONS.tfm_segment_bytes(
            model.handle, size, chance.choice(ABSURD), chance.choice(ABSURD)
        )
    unfinished.free()


def stopped(chance: random.Random, model: Model, workspace: Any) -> None:
    request = Request(chance, model.positions)
    request.options.should_stop = ShouldStop(lambda: 1)
    status, _ = search(model.handle, workspace, request)
    status_of(status, (OK, STOPPED))


def learned_positions_end(chance: random.Random, model: Model, workspace: Any) -> None:
    request = Request(chance, model.positions)
    if model.positions > 100:
        return
    request.lengths[0] += model.positions
    request.source_ids = [3] * sum(request.lengths)
    assert search(model.handle, workspace, request)[0] == BAD_ARGUMENT


def main(count: int, seed: int) -> None:
    chance = random.Random(seed)
    workspace = ctypes.c_void_p()
    assert FUNCTIONS.tfm_workspace_new(workspace) == OK
    models = [
        Model(shape, precision).finish()
        for shape in SHAPES
        for precision in ("fp32", "bf16", "int8")
    ]
    known = [Request(random.Random(5), model.positions) for model in models]
    found = [
        search(model.handle, workspace, each) for model, each in zip(models, known, strict=True)
    ]
    assert all(status == OK for status, _ in found), found
    alone: list[Callable[[random.Random], None]] = [
        wrong_model_options, wrong_tensors, wrong_vocabulary,
        lambda chance: extreme_weights(chance, workspace),
    ]  # fmt: skip
    usual = [
        wrong_search,
        wrong_search,
        wrong_force,
        calls_in_wrong_order,
        stopped,
        learned_positions_end,
    ]
    for number in range(count):
        place = chance.randrange(len(models))
        if number % 3:
            chance.choice(usual)(chance, models[place], workspace)
        else:
            chance.choice(alone)(chance)
        again = search(models[place].handle, workspace, known[place])
        assert again == found[place], f"another result after call {number} of seed {seed}"
        if chance.random() < 0.05:
            FUNCTIONS.tfm_workspace_trim(workspace)
    for model in models:
        model.free()
    FUNCTIONS.tfm_workspace_free(workspace)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
