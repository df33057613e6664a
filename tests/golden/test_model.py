"""The models that were committed once translate for ever as they did then."""

import re

import pytest

from tests.conftest import RunTfm
from tests.golden.regenerate import HERE, MODELS

MAX_BYTES = 300_000


@pytest.mark.parametrize("name", MODELS)
def test_frozen_model_translates_as_ever(name: str, run_tfm: RunTfm) -> None:
    model = HERE / name
    source = (model / "source.txt").read_text(encoding="utf-8")
    expected = (model / "expected.txt").read_text(encoding="utf-8")

    result = run_tfm(
        ["translate", "--model", str(model), "--device", "cpu", "--n-best", "2"], source
    )

    assert result.code == 0, result.err
    # Texts and their order to the letter; scores to what CPUs of another kind may differ in.
    score = re.compile(r"-?\d+\.\d{4}")
    assert score.sub("#", result.out) == score.sub("#", expected)
    for actual, wanted in zip(score.findall(result.out), score.findall(expected), strict=True):
        assert abs(float(actual) - float(wanted)) < 2e-3


@pytest.mark.parametrize("name", MODELS)
def test_frozen_model_is_small(name: str) -> None:
    assert sum((HERE / name / file).stat().st_size for file in MODELS[name]) < MAX_BYTES
