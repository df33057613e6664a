from collections.abc import Callable

import pytest
import torch

from tfm_cli import device as module
from tfm_cli.device import (
    arithmetic,
    decoding_precision,
    resolve_device,
    resolve_precision,
    set_cpu_threads,
    validation_precision,
)
from tfm_cli.errors import ConfigError, ResourceError


def pretend(patch: pytest.MonkeyPatch, *, gpus: int = 0, mps: bool = False) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    patch.setattr(torch.cuda, "device_count", lambda: gpus)
    patch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "wanted"), [(0, False, "cpu"), (2, True, "cuda"), (0, True, "mps")]
)
def test_auto_takes_the_best_there_is(
    gpus: int, mps: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=gpus, mps=mps)

    assert resolve_device("auto") == torch.device(wanted)


def test_device_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=2, mps=True)

    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("mps") == torch.device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:-1", "meta", "xpu", "cpu,cuda"])
def test_name_of_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device `{name}`, wanted auto, cpu, cuda"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "gpus", "seen"),
    [("cuda", 0, "cpu"), ("cuda:1", 1, "cpu, cuda:0"), ("mps", 1, "cpu, cuda:0")],
)
def test_device_that_the_machine_lacks_is_refused_with_what_it_has(
    name: str, gpus: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=gpus)

    with pytest.raises(ResourceError) as caught:
        resolve_device(name)

    assert str(caught.value) == f"there is no device `{name}`; this machine has {seen}"
    assert "--device auto" in str(caught.value.hint)


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
    with pytest.raises(ConfigError, match=f"unknown precision `{name}`, wanted auto, fp32 or bf16"):
        resolve_precision(name, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "device", "wanted"),
    [
        ("auto", "cpu", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
        ("fp32", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", torch.float32),
    ],
)
def test_validation_on_a_cpu_is_in_fp32_unless_bf16_was_asked_for(
    name: str, device: str, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fast_bf16", lambda device: True)

    assert validation_precision(name, torch.device(device)) == wanted


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ],
)
def test_cpu_takes_bf16_where_it_has_instructions_for_it(
    capabilities: dict[str, bool], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    assert resolve_precision("auto", torch.device("cpu")) == wanted


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("isa", "wanted"),
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
    name: str, isa: str, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, isa)

    assert resolve_precision("auto", torch.device("cpu")) == wanted


def test_cpu_of_an_older_torch_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)

    assert resolve_precision("auto", torch.device("cpu")) == torch.float32


def test_products_are_in_the_precision_and_weights_as_they_are() -> None:
    weight = torch.ones(2, 2)

    with arithmetic(torch.device("cpu"), torch.bfloat16):
        low = weight @ weight
    with arithmetic(torch.device("cpu"), torch.float32):
        high = weight @ weight

    assert (low.dtype, high.dtype, weight.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_number_of_threads_is_set_or_left() -> None:
    set_cpu_threads(1)
    set_cpu_threads(0)

    assert torch.get_num_threads() == 1


# --- precision of translating --------------------------------------------------------------------

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "device", "fast", "wanted"),
    [
        ("auto", CPU, True, "fp32"),
        ("auto", CPU, False, "fp32"),
        ("auto", GPU, True, "bf16"),
        ("auto", GPU, False, "fp32"),
        ("fp32", CPU, True, "fp32"),
        ("fp32", GPU, True, "fp32"),
        ("bf16", CPU, True, "bf16"),
        ("bf16", GPU, True, "bf16"),
        ("fp16", GPU, True, "fp16"),
        ("fp16", GPU, False, "fp16"),
        ("int8", CPU, True, "int8"),
        ("int8", CPU, False, "int8"),
    ],
)
def test_precision_of_translating(
    name: str, device: torch.device, fast: bool, wanted: str,
    monkeypatch: pytest.MonkeyPatch, told: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_fast_bf16", lambda device: fast)

    assert decoding_precision(name, device) == wanted
    assert told == []


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_gpu_takes_bf16_where_it_has_units_for_it(
    capability: tuple[int, int], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    assert decoding_precision("auto", GPU) == wanted


@pytest.mark.parametrize("resolve", [decoding_precision, resolve_precision])
def test_bf16_is_refused_on_a_gpu_without_it(
    resolve: Callable[[str, torch.device], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    with pytest.raises(ConfigError) as caught:
        resolve("bf16", GPU)

    wanted = "`--precision bf16` is for GPUs of compute capability 8.0 or more"
    assert str(caught.value) == f"{wanted}, `cuda:0` has 7.5"
    assert "fp32 there" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["int4", "", "FP32", "int8 "])
def test_name_of_no_precision_of_translating_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decoding_precision(name, CPU)

    wanted = "wanted one of auto, fp32, bf16, fp16, int8"
    assert str(caught.value) == f"unknown precision `{name}`, {wanted}"


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_int8_is_refused_where_there_is_no_such_arithmetic(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decoding_precision("int8", torch.device(device))

    assert str(caught.value) == f"`--precision int8` is for CPUs, not for `{device}`"
    assert caught.value.hint == "use bf16 or fp16 there, or `--device cpu`"


def test_fp16_is_refused_on_cpus() -> None:
    with pytest.raises(ConfigError) as caught:
        decoding_precision("fp16", CPU)

    assert str(caught.value) == "`--precision fp16` is for GPUs; CPUs compute it far slower"
    assert caught.value.hint == "use int8, or bf16 on a processor that has it"


def test_bf16_on_a_processor_without_it_is_told(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr(module, "_fast_bf16", lambda device: False)

    assert decoding_precision("bf16", CPU) == "bf16"
    assert told == ["this processor has no bf16 and computes it far slower than fp32"]
