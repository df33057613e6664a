"""The model in the engine's memory: what it is made of, and which directories are refused."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.model_directory.saved_models import rewrite, save_random_model
from tests.native.stubs import stub
from tfm_cli.config.settings import ModelConfig, TokenizerConfig
from tfm_cli.decoding.interface import NonFiniteScoresError
from tfm_cli.errors import ModelError, ResourceError
from tfm_cli.files import safetensors_file
from tfm_cli.files.safetensors_file import SafetensorsFile, prefetch_hash
from tfm_cli.model_directory.config_file import load_config, load_tokenizers
from tfm_cli.model_directory.weights import (
    WeightsFacts,
    load_model,
)
from tfm_cli.native.library import Library
from tfm_cli.native.model import NativeModel

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = ModelConfig(
    encoder_layers=1, decoder_layers=2, width=16, heads=4, feed_forward_width=8, norm="pre",
    positions="rotary", activation="gelu", tied_embeddings=2, output_bias=True,
    scale_embeddings=False, decoder_heads=2, decoder_feed_forward_width=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Library:
    return stub()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    settings = TokenizerConfig(vocab_size=300, model_type="bpe")
    lines = ["a b c d e"] * 9
    save_random_model(directory, SHAPE, settings, lines=lines, facts=WeightsFacts(7, {}))
    return directory


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def sums(model: NativeModel, names: list[str]) -> list[float]:
    """Of each tensor that the stub was given; what it was not given is NaN."""
    stub_sum = model.library.functions.stub_sum
    return [stub_sum(model.handle, name.encode()) for name in names]


def wanted_sums(weights: dict[str, Tensor]) -> list[float]:
    return [float(tensor.double().sum()) for tensor in weights.values()]


def test_all_weights_arrive_at_the_engine(directory: Path, library: Library) -> None:
    weights = load_file(directory / "model.safetensors")

    model = NativeModel.load(directory, library=library)

    assert sums(model, list(weights)) == pytest.approx(wanted_sums(weights), abs=1e-4)
    assert model.num_bytes == len(weights)
    assert library.functions.stub_finished(model.handle)


@pytest.mark.parametrize("golden", ["model_v1", "model_v2"])
def test_models_of_older_versions_arrive(golden: str, library: Library) -> None:
    weights = load_file(GOLDEN / golden / "model.safetensors")

    model = NativeModel.load(GOLDEN / golden, library=library)

    assert sums(model, list(weights)) == pytest.approx(wanted_sums(weights), abs=1e-3)


def test_engine_is_told_of_the_shape_and_the_vocabulary(directory: Path, library: Library) -> None:
    model = NativeModel.load(directory, precision="int8", library=library)

    target = model.tokenizers.target
    options = library.functions.stub_options(model.handle).contents
    assert {name: getattr(options, name) for name, _ in options._fields_} == {
        "encoder_layers": 1, "decoder_layers": 2, "width": 16, "encoder_heads": 4,
        "decoder_heads": 2, "encoder_feed_forward_width": 8, "decoder_feed_forward_width": 12,
        "source_vocab_size": target.vocab_size, "target_vocab_size": target.vocab_size,
        "norm": 1, "activation": 1, "positions": 4, "max_positions": 1024, "tied_embeddings": 2,
        "scale_embeddings": 0, "output_bias": 1, "start_id": target.start_id,
        "eos_id": target.eos_id, "precision": 2,
    }  # fmt: skip
    assert library.functions.stub_banned(model.handle) == len(target.banned_ids)
    result = [library.functions.stub_byte_value(model.handle, i) for i in range(target.vocab_size)]
    assert result == [target.byte_values.get(i, -1) for i in range(target.vocab_size)]
    assert max(result) == 255


def test_weights_in_memory_arrive_whatever_they_are(directory: Path, library: Library) -> None:
    weights = load_file(directory / "model.safetensors")
    saved = load_config(directory)
    tokenizers = load_tokenizers(directory, saved)
    given = {name: tensor.double() for name, tensor in weights.items()} | {"more": torch.ones(2)}
    given["output_bias"] = given["output_bias"].repeat_interleave(2)[::2]
    given["encoder_norm.weight"].requires_grad_()

    model = NativeModel.from_weights(given, saved.settings, tokenizers, library=library)

    assert sums(model, list(weights)) == pytest.approx(wanted_sums(weights), abs=1e-4)


def test_weights_in_memory_that_are_no_numbers_are_refused(
    directory: Path, library: Library
) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["output_bias"][2] = float("inf")
    saved = load_config(directory)

    with pytest.raises(NonFiniteScoresError, match="output_bias has values that are no finite"):
        NativeModel.from_weights(
            weights, saved.settings, load_tokenizers(directory, saved), library=library
        )


def test_models_are_freed(directory: Path, library: Library) -> None:
    gc.collect()
    before = library.functions.stub_models()
    model, other = (NativeModel.load(directory, library=library) for _ in range(2))

    model.close()
    model.close()

    assert library.functions.stub_models() == before + 1
    with pytest.raises(ValueError, match="was closed"):
        _ = model.handle
    del other
    gc.collect()
    assert library.functions.stub_models() == before


def refusal(directory: Path, library: Library) -> str:
    """Of the engine, which is to be that of PyTorch."""
    with pytest.raises(ModelError) as expected:
        load_model(directory, torch.device("cpu"))
    with pytest.raises(ModelError) as actual:
        NativeModel.load(directory, library=library)
    assert str(actual.value) == str(expected.value)
    assert actual.value.hint == expected.value.hint
    return str(actual.value).removeprefix(f"{directory}/")


@pytest.mark.parametrize("keep", [0, 7, 100, 2000, -1])
def test_cut_weights_are_refused_as_by_pytorch(
    keep: int, directory: Path, library: Library
) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])

    assert refusal(directory, library).startswith("model.safetensors: is damaged")


def test_changed_weights_are_refused_as_by_pytorch(directory: Path, library: Library) -> None:
    path = directory / "model.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-3] ^= 1
    path.write_bytes(flipped)

    message = "model.safetensors: the weights are not those that were saved"
    assert refusal(directory, library) == message


def test_weights_that_are_no_numbers_are_refused_by_all_their_names(
    directory: Path, library: Library
) -> None:
    def spoil(table: dict[str, Tensor]) -> None:
        table["target_embedding.weight"][3] = float("nan")
        table["encoder_layers.0.self_attention.output.bias"][0] = float("inf")

    rewrite(directory, spoil)

    message = (
        "model.safetensors: has values that are not finite numbers: target_embedding.weight, "
        "encoder_layers.0.self_attention.output.bias"
    )
    assert refusal(directory, library) == message


def test_weights_that_do_not_fit_are_refused_as_by_pytorch(
    directory: Path, library: Library
) -> None:
    def spoil(table: dict[str, Tensor]) -> None:
        table["extra"] = torch.zeros(2)
        del table["target_embedding.weight"]
        table["output_bias"] = torch.zeros(1, 2, dtype=torch.float16)

    rewrite(directory, spoil)

    assert len(refusal(directory, library).split("\n")) == 5


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_missing_files_are_refused_as_by_pytorch(
    name: str, directory: Path, library: Library
) -> None:
    (directory / name).unlink()

    refusal(directory, library)


def test_file_that_is_shortened_while_it_is_read_is_refused(
    directory: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "model.safetensors"
    os.utime(path, (1, 1))
    read = SafetensorsFile.read_tensor

    def cutting(file: SafetensorsFile, name: str, into: memoryview) -> None:
        read(file, name, into)
        os.truncate(path, 3000)

    monkeypatch.setattr(SafetensorsFile, "read_tensor", cutting)

    with pytest.raises(ModelError, match="is damaged or not a safetensors file: it ends after"):
        NativeModel.load(directory, library=library)


def test_file_that_is_written_to_while_it_is_read_is_refused(
    directory: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "model.safetensors"
    os.utime(path, (1, 1))
    read = SafetensorsFile.read_tensor

    def touching(file: SafetensorsFile, name: str, into: memoryview) -> None:
        read(file, name, into)
        os.utime(path, (2, 2))

    monkeypatch.setattr(SafetensorsFile, "read_tensor", touching)

    with pytest.raises(ModelError, match="it was written to while it was read"):
        NativeModel.load(directory, library=library)


def test_hash_that_was_begun_ahead_is_used(
    directory: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    values_sha256 = safetensors_file.values_sha256

    def counting(values: Any) -> str:
        hashed.append(1)
        return values_sha256(values)

    monkeypatch.setattr(safetensors_file, "values_sha256", counting)
    prefetch_hash(directory / "model.safetensors")

    NativeModel.load(directory, library=library)

    assert len(hashed) == 1


def test_want_of_memory_is_told(
    directory: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", none)

    with pytest.raises(ResourceError, match="there is no memory for its weights"):
        NativeModel.load(directory, library=library)


def test_model_is_loaded_without_pytorch_and_numpy(directory: Path, library: Library) -> None:
    library.functions.stub_reset()
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from pathlib import Path\n"
        "import tfm_cli.native.search\n"
        "from tfm_cli.native.model import NativeModel\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
