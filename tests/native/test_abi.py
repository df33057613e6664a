"""What is wrong is refused with a status: no crash, whatever the engine is called with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.engine import (
    EOS,
    EngineError,
    EngineModel,
    Search,
    engine_score,
    engine_search,
    library,
)
from tests.native.small_models import small
from tfm_cli.native.library import NON_FINITE

ROOT = Path(__file__).parents[2]
every_precision = pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])


@pytest.fixture(autouse=True)
def _engine() -> None:
    library()


def fuzz(count: int, seed: int, **environment: str) -> None:
    """Let a process of its own do it, which may crash."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.native.abi_fuzz", str(count), str(seed)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_wrong_is_refused(seed: int) -> None:
    fuzz(600, seed)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 20))
def test_very_many_wrong_calls_are_refused(seed: int) -> None:
    fuzz(20_000, seed)


@every_precision
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(precision: str, value: float) -> None:
    model = small()
    transformer = model.transformer()
    for name, parameter in transformer.named_parameters():
        before = parameter.data.clone()
        parameter.data.flatten()[len(parameter.flatten()) // 2] = value
        with pytest.raises(EngineError, match=name.replace(".", r"\.")) as error:
            EngineModel(transformer, model.shape, precision)
        assert error.value.status == NON_FINITE
        parameter.data = before


@every_precision
@pytest.mark.parametrize("how", [
    Search(scores=False), Search(), Search(beam_size=4), Search(sampling=True),
    Search(beam_size=2, renormalize=True), Search(beam_size=2, repetition_penalty=2),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", [
    "target_embedding.weight", "encoder_layers.0.self_attention.projection.weight",
    "decoder_layers.1.feed_forward.outer.weight", "decoder_norm.weight",
])  # fmt: skip
def test_scores_that_overflow_are_told_of(name: str, how: Search, precision: str) -> None:
    model = small(norm="pre")
    transformer = model.transformer()
    dict(transformer.named_parameters())[name].data.fill_(3e38)
    engine, lines = EngineModel(transformer, model.shape, precision), model.lines(4, 2)

    with pytest.raises(EngineError, match="not finite") as error:
        engine_search(engine, lines, how)

    assert error.value.status == NON_FINITE


@every_precision
def test_useless_model_leaves_a_workspace_usable(precision: str) -> None:
    model, lines = small(), small().lines(4, 2)
    from tests.native.engine import Workspace

    workspace, good = Workspace(), model.engine(precision)
    expected = engine_search(good, lines, Search(beam_size=3), workspace)
    transformer = model.transformer()
    transformer.target_embedding.weight.data.fill_(3e38)
    bad = EngineModel(transformer, model.shape, precision)

    with pytest.raises(EngineError):
        engine_search(bad, lines, Search(beam_size=3), workspace)

    assert engine_search(good, lines, Search(beam_size=3), workspace) == expected


def test_a_batch_of_nothing_finds_nothing() -> None:
    model = small()
    lines = model.lines()

    for how in (Search(), Search(beam_size=4), Search(scores=False)):
        assert engine_search(model.engine(), lines, how) == []
    assert engine_score(model.engine(), lines, []) == []


def test_segments_longer_than_learned_positions_are_refused() -> None:
    model = small(positions="learned", max_positions=9)
    engine = model.engine()

    engine_search(engine, model.lines(8, limit=8), Search())
    engine_score(engine, model.lines(8), [[5] * 8])
    for lines in (model.lines(9, limit=3), model.lines(3, 12, 1, limit=3)):
        with pytest.raises(EngineError, match="has 9 learned positions"):
            engine_search(engine, lines, Search())
    with pytest.raises(EngineError, match="has 9 learned positions"):
        engine_score(engine, model.lines(3), [[5] * 9])


def test_target_that_is_longer_than_learned_positions_is_refused_when_it_comes_to_that() -> None:
    model = small(positions="learned", max_positions=9, output_bias=True)
    transformer = model.transformer()
    assert transformer.output_bias is not None
    transformer.output_bias.data[EOS] = -1e4  # never the best choice
    engine = EngineModel(transformer, model.shape)

    with pytest.raises(EngineError, match="has 9 learned positions"):
        engine_search(engine, model.lines(3, limit=30), Search())


def test_vocabulary_that_bans_its_end_is_refused() -> None:
    model = small()

    with pytest.raises(EngineError, match=r"bans </s>, id 2, without which no translation ends"):
        model.engine(banned=(0, 1, EOS))
