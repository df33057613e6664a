import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.training.state import TrainState

_COUNTS = st.integers(0, 2**53)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        TrainState,
        update=_COUNTS,
        epoch=_COUNTS,
        position=_COUNTS,
        target_pieces=_COUNTS,
        train_seconds=_NUMBERS,
        best_score=st.none() | _NUMBERS,
        best_update=_COUNTS,
        stalled=_COUNTS,
        validated_update=_COUNTS,
        window_nll=_NUMBERS,
        window_pieces=_COUNTS,
        window_seconds=_NUMBERS,
    )
)
def test_state_comes_back_from_json_to_the_bit(state: TrainState) -> None:
    text = json.dumps(state.to_json())

    assert TrainState.from_json(json.loads(text)) == state


def test_fresh_state_has_done_nothing() -> None:
    state = TrainState()

    assert state.best_score is None
    assert not any(value for value in state.to_json().values())
