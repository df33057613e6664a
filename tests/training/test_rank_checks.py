import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfm_cli.config.settings import (
    DataConfig,
    RunConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from tfm_cli.errors import ConfigError
from tfm_cli.parallel import Parallel
from tfm_cli.training.rank_checks import (
    broadcast_state,
    check_ranks_agree,
    checksums,
    log_batches_per_update,
    setting_facts,
    with_settings_of_rank_0,
)
from tfm_cli.training.state import TrainState


class Together(Parallel):
    """Rank 0 with given messages of the others."""

    def __init__(self, *others: bytes) -> None:
        super().__init__(0, 1 + len(others))
        self._others = list(others)

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        return [message, *self._others]


def test_equal_facts_are_accepted() -> None:
    check_ranks_agree({"the precision": "fp32"}, Together(b'{"the precision": "fp32"}'))


def test_every_rank_that_differs_is_named_with_what_it_has() -> None:
    others = (b'{"a": "1", "b": "2"}', b'{"a": "5", "b": "2"}', b'{"a": "1"}')

    with pytest.raises(ConfigError) as refused:
        check_ranks_agree({"a": "1", "b": "2"}, Together(*others))

    assert str(refused.value).split("\n") == [
        "the processes differ in settings, code or text",
        "  rank 2: a is 5, on rank 0 1",
        "  rank 3: b is None, on rank 0 2",
    ]
    assert refused.value.hint == "give all of them the same settings and the same text"


def test_settings_of_a_machine_may_differ_and_all_others_not() -> None:
    config = RunConfig()
    facts = setting_facts(config)

    elsewhere = dataclasses.replace(
        config,
        data=DataConfig(source=("/disk/x.en",), target=("/disk/x.de",)),
        training=TrainingConfig(device="cpu", cpu_threads=3),
    )

    assert setting_facts(elsewhere) == facts
    assert facts["training.max_updates"] == "100000"  # ranks must stop alike
    assert facts["model.norm"] == "`post`"
    assert facts["data.max_length"] == "256"


def test_state_of_one_process_alone_stays() -> None:
    state = TrainState(update=7, best_score=0.1 + 0.2)

    assert broadcast_state(state, Parallel()) == state


@pytest.mark.parametrize(
    ("before", "update_freq", "world_size", "line"),
    [
        (0, 2, 2, None),  # of a run that did not note it
        (4, 2, 2, None),
        (4, 1, 2, "an update has 2 batches now (`--update-freq 1`, 2 processes) and had 4 before; "
                  "`--update-freq 2` would keep that"),
        (3, 1, 1, "an update has 1 batch now (`--update-freq 1`, 1 process) and had 3 before; "
                  "`--update-freq 3` would keep that"),
        (3, 2, 2, "an update has 4 batches now (`--update-freq 2`, 2 processes) and had 3 before; "
                  "no `--update-freq` would keep that"),
    ],
)  # fmt: skip
def test_other_number_of_batches_is_logged_with_the_flag_that_would_keep_it(
    before: int, update_freq: int, world_size: int, line: str | None, log_messages: list[str]
) -> None:
    log_batches_per_update(TrainState(batches_per_update=before), update_freq, world_size)

    assert log_messages == ([] if line is None else [line])


class Second(Parallel):
    """Rank 1 of two, which receives the message of rank 0."""

    def __init__(self, of_rank_0: RunConfig) -> None:
        super().__init__(1, 2)
        self._of_rank_0 = of_rank_0

    def broadcast_bytes(self, message: bytes) -> bytes:
        said: list[bytes] = []

        class First(Parallel):
            def broadcast_bytes(self, message: bytes) -> bytes:
                said.append(message)
                return message

        with_settings_of_rank_0(self._of_rank_0, First())
        return said[0]


def test_settings_that_a_resumed_run_keeps_are_those_of_rank_0_on_all() -> None:
    resumed = RunConfig(
        tokenizer=TokenizerConfig(normalization_rule_name="nmt_nfkc"),
        validation=ValidationConfig(tokenize="13a"),
    )
    elsewhere = RunConfig()
    assert setting_facts(elsewhere) != setting_facts(resumed)

    assert setting_facts(with_settings_of_rank_0(elsewhere, Second(resumed))) == setting_facts(
        resumed
    )


def test_explicit_setting_of_a_rank_stays() -> None:
    resumed = RunConfig(validation=ValidationConfig(tokenize="13a"))
    given = RunConfig(validation=ValidationConfig(tokenize="char"))

    assert with_settings_of_rank_0(given, Second(resumed)).validation.tokenize == "char"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@settings(deadline=None)  # other processes may have the core meanwhile
@given(position=st.integers(0, 11), bit=st.integers(0, 63))
def test_any_single_bit_changes_the_checksum(dtype: torch.dtype, position: int, bit: int) -> None:
    tensor = torch.arange(12).to(dtype).reshape(3, 4)
    bits = 8 * tensor.element_size()
    whole = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    other = tensor.clone()
    mask = torch.tensor(1, dtype=torch.int64).bitwise_left_shift(bit % bits).to(whole)
    other.view(whole).flatten()[position] ^= mask

    result = checksums({"a": tensor, "b": other, "c": tensor.clone()})

    assert result["a"] == result["c"] != result["b"]


def test_not_a_number_and_zeros_of_both_signs_have_checksums() -> None:
    zero, minus, nan = (torch.tensor([x]) for x in (0.0, -0.0, float("nan")))

    result = checksums({"zero": zero, "minus": minus, "nan": nan})

    assert len(set(result.values())) == 3
    assert checksums({}) == {}


def test_tensor_that_is_a_view_counts_by_its_values() -> None:
    tensor = torch.randn(4, 6)

    assert checksums({"x": tensor.T}) == checksums({"x": tensor.T.contiguous()})
