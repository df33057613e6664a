import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model_directory.saved_models import rewrite, save_random_model
from tests.sentencepiece_bytes import MODEL
from tfm_cli.config.settings import ModelConfig, TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.model.layers import DecoderLayer, EncoderLayer
from tfm_cli.model_directory.config_file import FORMAT_VERSION
from tfm_cli.model_directory.weights import (
    WeightsFacts,
    build_transformer,
    load_model,
    non_finite_tensors,
    save_weights,
    weights_facts,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
SHAPE = ModelConfig(
    encoder_layers=1, decoder_layers=2, width=16, heads=4, feed_forward_width=8, dropout=0.25
)
FACTS = WeightsFacts(7, {"bleu": 12.5, "loss": 2.25})


def write(directory: Path, shape: ModelConfig = SHAPE, words: str = "a b c d e") -> None:
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    save_random_model(directory, shape, settings, lines=[words], facts=FACTS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write(directory)
    return directory


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(directory, CPU)
    return str(caught.value).removeprefix(f"{directory}/")


def test_saved_weights_are_loaded_bit_exactly(model: Path) -> None:
    loaded = load_model(model, CPU)

    torch.manual_seed(1)
    expected = build_transformer(SHAPE, loaded.tokenizers.vocab_sizes).state_dict()
    actual = loaded.transformer.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert loaded.config.model == SHAPE
    assert not loaded.transformer.training


def test_same_weights_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for copy in range(5):
        write(tmp_path / f"copy{copy}")

    result = {path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}
    assert len(result) == 1


def test_weights_record_their_facts(model: Path) -> None:
    assert weights_facts(model) == FACTS


def test_directory_without_weights_has_no_facts(model: Path) -> None:
    (model / "model.safetensors").unlink()

    assert weights_facts(model) is None
    assert refusal(model) == (
        f"{model}: has no `model.safetensors`: no validation was reached yet, or it is not a model"
    )


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 2000, -1])
def test_truncated_weights_are_refused(keep: int, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(
        ModelError, match=r"model\.safetensors: is damaged or not a safetensors file"
    ):
        weights_facts(model)
    assert refusal(model).startswith("model.safetensors: is damaged or not a safetensors file")


def test_every_flipped_byte_is_refused_or_has_no_effect(model: Path) -> None:
    path = model / "model.safetensors"
    whole = path.read_bytes()
    expected = load_model(model, CPU).transformer.state_dict()
    expected = {name: tensor.clone() for name, tensor in expected.items()}

    for place in range(0, len(whole), len(whole) // 16):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        actual = expected  # the flip may have hit the recorded update
        with contextlib.suppress(ModelError):
            actual = load_model(model, CPU).transformer.state_dict()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_changed_weight_is_refused(model: Path) -> None:
    path = model / "model.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-3] ^= 1
    path.write_bytes(flipped)

    assert refusal(model) == "model.safetensors: the weights are not those that were saved"


def test_nan_weights_are_refused_by_name(model: Path) -> None:
    rewrite(model, lambda table: table["target_embedding.weight"][3].fill_(float("nan")))

    message = "model.safetensors: has values that are not finite numbers: target_embedding.weight"
    assert refusal(model) == message


def test_all_mismatched_tensors_are_listed(model: Path) -> None:
    def spoil(table: dict[str, Tensor]) -> None:
        table["extra"] = torch.zeros(2)
        del table["target_embedding.weight"]
        table["decoder_layers.1.feed_forward.inner.weight"] = torch.zeros(1, 2, dtype=torch.float16)

    rewrite(model, spoil)

    problems = refusal(model).split("\n  ")
    assert problems[0] == "model.safetensors: does not fit config.json"
    assert "target_embedding.weight: missing" in problems
    assert "extra: unknown" in problems
    assert any("has shape (1, 2), expected (" in line for line in problems)
    assert any(line.endswith("has type F16, expected F32") for line in problems)


def test_config_of_a_model_of_another_shape_is_refused(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", ModelConfig(encoder_layers=3, decoder_layers=3, width=8, heads=2))
    shutil.copy(tmp_path / "other" / "config.json", model)

    problems = refusal(model).split("\n  ")

    assert problems[0] == "model.safetensors: does not fit config.json"
    assert problems[-1].startswith("… and ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 2}, "model.heads: was 4 in training, is 2"),
        ({"decoder_heads": 2}, "model.decoder_heads: was 0 in training, is 2"),
        ({"activation": "gelu"}, "model.activation: was relu in training, is gelu"),
        ({"positions": "rotary"}, "model.positions: was sinusoidal in training, is rotary"),
    ],
)
def test_config_that_changes_the_meaning_of_the_weights_is_refused(
    change: dict[str, Any], message: str, model: Path
) -> None:
    path = model / "config.json"
    header = json.loads(path.read_bytes())
    header["settings"]["model"].update(change)
    del header["sha256"]
    path.write_text(json.dumps(header), encoding="utf-8")

    assert refusal(model) == f"model.safetensors: does not fit config.json\n  {message}"


def test_dropout_does_not_matter_to_a_trained_model(model: Path) -> None:
    path = model / "config.json"
    header = json.loads(path.read_bytes())
    header["settings"]["model"]["dropout"] = 0.5
    del header["sha256"]
    path.write_text(json.dumps(header), encoding="utf-8")

    assert load_model(model, CPU).config.model.dropout == 0.5


def test_decoder_of_another_shape_is_saved_and_loaded(tmp_path: Path) -> None:
    shape = dataclasses.replace(SHAPE, decoder_heads=2, decoder_feed_forward_width=12)
    write(tmp_path, shape)

    model = load_model(tmp_path, CPU)

    assert model.config.model == shape
    encoder, decoder = model.transformer.encoder_layers[0], model.transformer.decoder_layers[1]
    assert isinstance(encoder, EncoderLayer)
    assert isinstance(decoder, DecoderLayer)
    assert (encoder.self_attention.heads, encoder.feed_forward.outer.in_features) == (4, 8)
    assert (decoder.self_attention.heads, decoder.cross_attention.heads) == (2, 2)
    assert decoder.feed_forward.outer.in_features == 12
    assert format_of_weights(tmp_path) == 4


def test_weights_of_one_shape_for_both_sides_are_in_an_older_format(
    model: Path,
) -> None:
    assert format_of_weights(model) == 3


def format_of_weights(directory: Path) -> object:
    with safe_open(str(directory / "model.safetensors"), framework="pt") as file:
        return json.loads(file.metadata()["tfm"])["format_version"]


def test_weights_of_another_tokenizer_are_refused(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", words="v w x y z")
    shutil.copy(tmp_path / "other" / "model.safetensors", model)

    assert refusal(model).startswith("model.safetensors: was trained with another tokenizer: ")


def test_weights_of_a_newer_format_are_refused(model: Path) -> None:
    newer = FORMAT_VERSION + 1
    rewrite(model, metadata=lambda header: header.update(format_version=newer))

    message = f"model.safetensors: has format {newer}, expected at most {FORMAT_VERSION}"
    assert refusal(model) == message


def test_weights_of_another_program_are_refused(model: Path) -> None:
    path = model / "model.safetensors"
    table = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(table, path, {"format": "pt", "more": "x"})

    assert refusal(model).startswith("model.safetensors: ")


def test_pickled_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x80\x05\x95\x0b\x00\x00\x00\x00\x00\x00\x00.")

    assert refusal(model).startswith("model.safetensors: is damaged or not a safetensors file")


def test_finite_weights_with_an_infinite_sum_are_loaded(model: Path) -> None:
    rewrite(model, lambda table: table["target_embedding.weight"].fill_(3e38))

    loaded = load_model(model, CPU).transformer.target_embedding.weight

    assert bool((loaded == 3e38).all())


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_weights_with_infinities_are_refused(model: Path, value: float) -> None:
    def change(table: dict[str, Tensor]) -> None:
        table["target_embedding.weight"][0, 0] = value
        table["target_embedding.weight"][0, 1] = -value

    rewrite(model, change)

    assert "has values that are not finite numbers: target_embedding.weight" in refusal(model)


def test_changing_loaded_weights_leaves_the_file(model: Path) -> None:
    path = model / "model.safetensors"
    before = path.read_bytes()

    for parameter in load_model(model, CPU).transformer.parameters():
        parameter.data.add_(1)

    assert path.read_bytes() == before


@pytest.mark.parametrize("missing", range(1, 4))
def test_unaligned_weights_are_loaded(model: Path, missing: int) -> None:
    path = model / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip()
    header += b" " * (-len(header) % 4 + missing)
    expected = load_model(model, CPU).transformer.state_dict()
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    path.unlink()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])

    actual = load_model(model, CPU).transformer.state_dict()

    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_loaded_weights_are_independent_of_the_file(model: Path) -> None:
    loaded = load_model(model, CPU)
    expected = {name: one.clone() for name, one in loaded.transformer.state_dict().items()}

    path = model / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x" * 100)
        file.truncate(200)

    actual = loaded.transformer.state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def facts_of(directory: Path, update: Any, scores: Any) -> WeightsFacts | None:
    pair = TokenizerPair.joint(Tokenizer(MODEL))
    facts = WeightsFacts(update, scores)
    save_weights(directory, {"a": torch.ones(1)}, pair, ModelConfig(), facts)
    return weights_facts(directory)


def test_facts_are_read_back(tmp_path: Path) -> None:
    assert facts_of(tmp_path, 7, {"bleu": 12.5, "loss": 2}) == WeightsFacts(
        7, {"bleu": 12.5, "loss": 2.0}
    )


@pytest.mark.parametrize(
    ("update", "scores"),
    [
        ("7", {}), (None, {}), (True, {}), (7.0, {}), (7, []), (7, {"a": "b"}), (7, {"a": None}),
        (7, {"a": 10**400}),
    ],
)  # fmt: skip
def test_invalid_facts_are_refused(update: object, scores: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"file: it has no valid update and scores"):
        facts_of(tmp_path, update, scores)


def test_exactly_the_non_finite_tensors_are_returned() -> None:
    tensors = {
        "whole": torch.ones(2),
        "large": torch.full((4,), 3e38),  # with an infinite sum
        "nan": torch.tensor([1.0, float("nan")]),
        "both": torch.tensor([float("inf"), -float("inf")]),
        "none": torch.empty(0),
    }

    assert non_finite_tensors(tensors) == ["nan", "both"]
