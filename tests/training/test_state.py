import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.training.state import TrainState

_COUNTS = st.integers(0, 2**53)
_SCORES = st.floats(-1e300, 1e300)
_SUMS = st.floats(0, 1e300)
_SECONDS = st.floats(0, 1e12)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        TrainState,
        update=_COUNTS,
        epoch=_COUNTS,
        position=_COUNTS,
        target_tokens=_COUNTS,
        train_seconds=_SECONDS,
        best_score=st.none() | _SCORES,
        best_others=st.lists(_SCORES, max_size=3),
        best_update=_COUNTS,
        stalled=_COUNTS,
        validated_update=_COUNTS,
        window_nll=_SUMS,
        window_tokens=_COUNTS,
        window_seconds=_SECONDS,
    )
)
def test_state_comes_back_from_json_to_the_bit(state: TrainState) -> None:
    text = json.dumps(state.to_json())

    assert TrainState.from_json(json.loads(text)) == state


def test_fresh_state_has_done_nothing() -> None:
    state = TrainState()

    assert state.best_score is None
    assert not any(value for value in state.to_json().values())


def test_counter_under_its_former_name_is_read() -> None:
    state = TrainState.from_json({"update": 7, "refused": 2, "most_places": 4096})

    assert state == TrainState(update=7, nonfinite_attempts=2, max_positions_per_pass=4096)


def test_counter_under_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match="the counter `window_tokens` is also there as `window_p"):
        TrainState.from_json({"window_pieces": 1, "window_tokens": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_seconds", 10**400),
        ("train_seconds", 1e308),
        ("train_seconds", -1e300),
        ("train_seconds", -0.5),
        ("window_seconds", 1e13),
        ("window_nll", -1.0),
        ("window_nll", 1e301),
        ("best_score", 10**400),
        ("best_score", -1e301),
        ("update", 2**53 + 1),
        ("update", 10**400),
        ("update", -1),
        ("update", True),
        ("epoch", 1.0),
        ("max_positions_per_pass", 2**40),
        ("rate_halvings", 10**5000),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else f"{float(min(value, 1e99)):g}",
)
def test_number_that_no_run_reaches_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"the counter `{name}` is "):
        TrainState.from_json({name: value})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainState)])
def test_every_counter_is_bounded(field: str) -> None:
    with pytest.raises(ValueError, match=f"the counter `{field}` is "):
        TrainState.from_json({field: 10**400})
    with pytest.raises(ValueError, match=f"the counter `{field}` is "):
        TrainState.from_json({field: -(10**400)})


@pytest.mark.parametrize("value", [1.0, "1", None, {}, [[1.0]], [None], [True], [0.0] * 101])
def test_other_scores_that_were_never_written_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="the counter `best_others`"):
        TrainState.from_json({"best_others": value})
