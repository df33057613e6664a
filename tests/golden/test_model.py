"""The model that was committed once translates for ever as it did then."""

import re

from tests.conftest import RunTfm
from tests.golden.regenerate import MODEL, MODEL_FILES

MAX_BYTES = 300_000


def test_frozen_model_translates_as_ever(run_tfm: RunTfm) -> None:
    source = (MODEL / "source.txt").read_text(encoding="utf-8")
    expected = (MODEL / "expected.txt").read_text(encoding="utf-8")

    result = run_tfm(
        ["translate", "--model", str(MODEL), "--device", "cpu", "--n-best", "2"], source
    )

    assert result.code == 0, result.err
    # Texts and their order to the letter; scores to what CPUs of another kind may differ in.
    score = re.compile(r"-?\d+\.\d{4}")
    assert score.sub("#", result.out) == score.sub("#", expected)
    for found, wanted in zip(score.findall(result.out), score.findall(expected), strict=True):
        assert abs(float(found) - float(wanted)) < 2e-3


def test_frozen_model_is_small() -> None:
    assert sum((MODEL / name).stat().st_size for name in MODEL_FILES) < MAX_BYTES
