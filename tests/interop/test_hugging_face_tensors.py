from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.interop.marian_directories import hugging_face_model, write_hugging_face_directory
from tests.interop.random_models import random_tokenizers
from tfm_cli.errors import ModelError
from tfm_cli.interop.hugging_face.reading import read_hugging_face
from tfm_cli.model.positions import marian_sinusoids

transformers = pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a small model that is imported without problems."""
    pair = random_tokenizers("shared")
    return write_hugging_face_directory(tmp_path / "source", hugging_face_model(pair), pair)


def rewritten(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_zero_bias_is_dropped(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors["final_logits_bias"].zero_())

    imported = read_hugging_face(directory, allow_pickle=False)

    assert imported.config.model.output_bias is False


def test_half_precision_is_converted_with_a_note(directory: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    rewritten(directory, halve)
    imported = read_hugging_face(directory, allow_pickle=False)

    assert all(tensor.dtype == torch.float32 for tensor in imported.weights.values())
    assert imported.notes == ("weights stored as float16 are kept as float32",)


def test_equal_copies_of_a_tied_tensor_are_accepted(directory: Path) -> None:
    before = read_hugging_face(directory, allow_pickle=False)

    def copy(tensors: dict[str, Tensor]) -> None:
        shared = tensors.pop("model.shared.weight")
        tensors["lm_head.weight"] = shared.clone()
        tensors["model.encoder.embed_tokens.weight"] = shared.clone()

    rewritten(directory, copy)
    after = read_hugging_face(directory, allow_pickle=False)

    assert_close(after.weights, before.weights, rtol=0, atol=0)


def test_differing_copies_of_a_tied_tensor_are_refused(directory: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.shared.weight"] + 1

    rewritten(directory, add)

    with pytest.raises(ModelError, match=r"lm_head.weight: differs from model.shared.weight"):
        read_hugging_face(directory, allow_pickle=False)


def test_copies_of_other_types_are_refused_by_name(directory: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.shared.weight"].to(torch.float8_e4m3fn)

    rewritten(directory, add)

    with pytest.raises(ModelError, match=r"lm_head.weight: has type float8_e4m3fn, expected"):
        read_hugging_face(directory, allow_pickle=False)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("final_logits_bias", torch.zeros(1, 7), r"has shape \(1, 7\), expected \(1, "),
        ("final_logits_bias", torch.zeros(0), r"has shape \(0,\), expected \(1, "),
        ("final_logits_bias", None, "final_logits_bias: has type float8_e4m3fn, expected float32"),
        ("model.encoder.embed_positions.weight", torch.zeros(64, 15),
         r"has shape \(64, 15\), expected \(1 or more, 16\)"),
        ("model.decoder.embed_positions.weight", torch.zeros(0, 16),
         r"has shape \(0, 16\), expected \(1 or more, 16\)"),
        ("model.decoder.embed_positions.weight", torch.zeros(4, 16, dtype=torch.int32),
         "has type int32, expected float32"),
    ],
)  # fmt: skip
def test_unused_tensors_are_checked_too(
    directory: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn) if tensor is None else tensor

    rewritten(directory, store)

    with pytest.raises(ModelError, match=message) as caught:
        read_hugging_face(directory, allow_pickle=False)

    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["sinusoidal_halves", "sinusoidal_marian"])
def test_stored_positions_are_recognised(directory: Path, kind: str) -> None:
    theirs = transformers.MarianMTModel.from_pretrained(directory)
    table = theirs.model.encoder.embed_positions.weight.detach().clone()
    if kind == "sinusoidal_marian":
        table = marian_sinusoids(torch.arange(64), 16)

    def store(tensors: dict[str, Tensor]) -> None:
        for side in ("encoder", "decoder"):
            tensors[f"model.{side}.embed_positions.weight"] = table.clone()

    rewritten(directory, store)

    assert read_hugging_face(directory, allow_pickle=False).config.model.positions == kind


def test_other_positions_are_refused_by_name(directory: Path) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors["model.encoder.embed_positions.weight"] = torch.ones(64, 16)

    rewritten(directory, store)

    with pytest.raises(ModelError, match=r"encoder.embed_positions.weight holds no sinusoids"):
        read_hugging_face(directory, allow_pickle=False)


def test_two_kinds_of_positions_are_refused(directory: Path) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors["model.encoder.embed_positions.weight"] = marian_sinusoids(torch.arange(64), 16)
        theirs = transformers.MarianMTModel.from_pretrained(directory).model.decoder
        tensors["model.decoder.embed_positions.weight"] = theirs.embed_positions.weight.detach()

    rewritten(directory, store)

    with pytest.raises(ModelError, match="has two kinds of positions, sinusoidal_marian in model"):
        read_hugging_face(directory, allow_pickle=False)
