"""Devices and precisions that a machine does not have: said at once, with what it has."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tfm_cli import device
from tfm_cli.model import precision
from tfm_cli.training import run, validation
from tfm_cli.training.validation import ValidationOptions


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "num_gpus", lambda: 0)
    monkeypatch.setattr(device, "driver_gpus", lambda: 0)
    monkeypatch.setattr(device, "has_mps", lambda: False)


@pytest.fixture
def commands(tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path) -> dict[str, list[str]]:
    """Every command that computes, writing to `out`."""
    model, output = str(tiny_model), ["-o", str(tmp_path / "out")]
    source, target = tiny_corpus.path("test.en"), tiny_corpus.path("test.de")
    return {
        "translate": ["translate", "-m", model, "-i", source, *output],
        "evaluate": ["evaluate", target, "--model", model, "--source", source, *output],
        "score": ["score", "-m", model, "-s", source, "-t", target, *output],
        "shortlist": ["shortlist", "-m", model, "-s", source, "-t", target, *output],
        "train": ["train", "-s", source, "-t", target, *output],
    }


COMMANDS = ["translate", "evaluate", "score", "shortlist", "train"]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:9", "mps"])
@pytest.mark.parametrize("command", COMMANDS)
def test_r47_device_that_is_not_there_is_told_with_those_that_are(
    command: str, device: str, commands: dict[str, list[str]], tmp_path: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm([*commands[command], "--device", device])

    assert result.code == 5
    assert result.err.endswith(
        f"error: there is no device `{device}`; this machine has cpu\n"
        "hint: use `--device auto` for the best available device\n"
    )
    assert result.out == ""
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu0", ""])
@pytest.mark.parametrize("command", COMMANDS)
def test_r47_name_of_no_device_is_a_mistake_of_the_call(
    command: str, device: str, commands: dict[str, list[str]], tmp_path: Path, run_tfm: RunTfm
) -> None:
    result = run_tfm([*commands[command], "--device", device])

    assert result.code == 2
    assert "auto, cpu, cuda, cuda:N or mps" in result.err
    assert "Traceback" not in result.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "precision", "message"),
    [
        ("translate", "fp16", "`--precision fp16` is for GPUs; CPUs compute it far slower"),
        ("evaluate", "fp16", "`--precision fp16` is for GPUs; CPUs compute it far slower"),
        ("translate", "fp8", "`--precision` must be one of `auto`, `fp32`, `bf16`, `fp16`, `int8`"),
        ("evaluate", "int4", "`--precision` must be one of `auto`, `fp32`, `bf16`, `fp16`, `int8`"),
        ("train", "int8", "`--precision` must be one of `auto`, `fp32`, `bf16`, got `int8`"),
        ("train", "fp16", "`--precision` must be one of `auto`, `fp32`, `bf16`, got `fp16`"),
    ],
)
def test_r47_precision_that_a_device_does_not_have_is_told(
    command: str, precision: str, message: str, commands: dict[str, list[str]], tmp_path: Path,
    run_tfm: RunTfm,
) -> None:  # fmt: skip
    device = ["--device", "cpu"]

    result = run_tfm([*commands[command], *device, "--precision", precision])

    assert result.code == 2
    assert message in result.err
    assert not any(tmp_path.iterdir())


def test_r47_auto_takes_the_processor_and_says_so(
    commands: dict[str, list[str]], tmp_path: Path, run_tfm: RunTfm
) -> None:
    small = ["--vocab-size", "40", "--set", "tokenizer.model_type=word", "--set", "model.width=16"]
    small += ["--set", "tokenizer.byte_fallback=false", "--set", "model.heads=2"]

    trained = run_tfm([*commands["train"], *small, "--max-updates", "1", "--precision", "fp32"])
    translated = run_tfm([*commands["translate"][:-1], str(tmp_path / "text")])

    assert trained.code == translated.code == 0
    assert "fp32 on cpu; " in trained.err
    assert (tmp_path / "text").is_file()


@pytest.mark.parametrize(
    ("fast", "flags", "trained", "validated"),
    [
        (True, [], "bf16", torch.float32),
        (False, [], "fp32", torch.float32),
        (True, ["--precision", "bf16"], "bf16", torch.bfloat16),
        (True, ["--precision", "fp32"], "fp32", torch.float32),
    ],
)
def test_r47_training_says_its_precision_and_validates_in_fp32(
    fast: bool, flags: list[str], trained: str, validated: torch.dtype,
    commands: dict[str, list[str]], tmp_path: Path, run_tfm: RunTfm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[torch.dtype] = []

    def validate(
        model: Any, text: Any, translators: Any, options: ValidationOptions, parallel: Any
    ) -> Any:
        seen.append(options.dtype)
        return validation.validate(model, text, translators, options, parallel)

    monkeypatch.setattr(run, "validate", validate)
    monkeypatch.setattr(precision, "_fast_bf16", lambda place: fast)
    small = ["--vocab-size", "40", "--set", "tokenizer.model_type=word", "--set", "model.width=16"]
    small += ["--set", "tokenizer.byte_fallback=false", "--set", "model.heads=2"]
    _, _, source, _, target, _, output = commands["train"]
    valid = ["--valid-source", source, "--valid-target", target]

    result = run_tfm([*commands["train"], *small, *valid, *flags, "--max-updates", "1"])

    assert result.code == 0, result.err
    assert f"parameters, {trained} on cpu; " in result.err
    card = Path(output, "README.md").read_text(encoding="utf-8")
    assert f"| precision | {trained} on cpu |" in card
    assert seen == [validated]
