from pathlib import Path

import pytest

from tests.golden.regenerate import LOSS_RUNS, LOSS_UPDATES, losses, read_losses


@pytest.mark.parametrize("name", LOSS_RUNS)
def test_learning_goes_as_it_always_went(name: str, tmp_path: Path) -> None:
    expected = read_losses(name)

    actual = losses(name, tmp_path)

    assert len(expected) == LOSS_UPDATES
    for (update, loss, norm), golden in zip(actual, expected, strict=True):
        assert update == golden[0]
        # CPUs of another kind add up in another order.
        assert loss == pytest.approx(golden[1], rel=1e-4), f"update {update}"
        assert norm == pytest.approx(golden[2], rel=2e-3), f"update {update}"
