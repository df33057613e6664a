import pytest
import torch

from tfm_cli.errors import ConfigError
from tfm_cli.model import precision as module
from tfm_cli.model.precision import (
    autocast,
    ran_out_of_memory,
    resolve_precision,
    set_cpu_threads,
    validation_precision,
    warn_of_slow_bf16,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_is_what_the_device_is_fastest_with(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fast_bf16", lambda device: fast)
    cpu = torch.device("cpu")

    assert resolve_precision("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert resolve_precision("fp32", cpu) == torch.float32
    assert resolve_precision("bf16", cpu) == torch.bfloat16


@pytest.mark.parametrize("name", ["int3", "", "FP32"])
def test_name_of_no_precision_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown precision `{name}`, expected one of auto,"):
        resolve_precision(name, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
        ("fp32", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", torch.float32),
    ],
)
def test_validation_on_a_cpu_is_in_fp32_unless_bf16_was_asked_for(
    name: str, device: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fast_bf16", lambda device: True)

    assert validation_precision(name, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ],
)
def test_cpu_takes_bf16_where_it_has_instructions_for_it(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        ("AVX2", torch.float32),
        ("avx512_core_vnni", torch.float32),
        ("AVX512_CORE_BF16", torch.bfloat16),
        ("AVX10_1_512_AMX", torch.bfloat16),
        ("DEFAULT", torch.bfloat16),
        ("", torch.bfloat16),
    ],
)
def test_bf16_that_onednn_was_told_to_leave_out_is_not_taken(
    name: str, isa: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, isa)

    assert resolve_precision("auto", torch.device("cpu")) == expected


def test_cpu_of_an_older_torch_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)

    assert resolve_precision("auto", torch.device("cpu")) == torch.float32


def test_products_are_in_the_precision_and_weights_as_they_are() -> None:
    weight = torch.ones(2, 2)

    with autocast(torch.device("cpu"), torch.bfloat16):
        low = weight @ weight
    with autocast(torch.device("cpu"), torch.float32):
        high = weight @ weight

    assert (low.dtype, high.dtype, weight.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_number_of_threads_is_set_or_left() -> None:
    set_cpu_threads(1)
    set_cpu_threads(0)

    assert torch.get_num_threads() == 1


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    with pytest.raises(ConfigError) as caught:
        resolve_precision("bf16", GPU)

    expected = "`--precision bf16` is for GPUs of compute capability 8.0 or more"
    assert str(caught.value) == f"{expected}, `cuda:0` has 7.5"
    assert caught.value.hint == "use fp32 there"


def test_bf16_on_a_processor_without_it_is_told(
    monkeypatch: pytest.MonkeyPatch, log_messages: list[str]
) -> None:
    monkeypatch.setattr(module, "_fast_bf16", lambda device: False)

    warn_of_slow_bf16(CPU)

    assert log_messages == [
        "this processor has no bf16 instructions: PyTorch emulates them, far slower than fp32"
    ]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 64 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=str,
)
def test_want_of_memory_is_told_by_kind_or_words(error: Exception, is_memory: bool) -> None:
    assert ran_out_of_memory(error) == is_memory
