"""Torn, modified and foreign files are refused by name or have no effect; none is used silently."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import RunTfm, TinyCorpus
from tests.model_directory.damage import Harm, copied, cuts, flips, same
from tests.tokenizer.test_tokenizer import serialized
from tfm_cli.errors import ModelError
from tfm_cli.model_directory.config_file import FORMAT_VERSION
from tfm_cli.model_directory.weights import load_model, weights_sha256
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.training import checkpoint
from tfm_cli.training.checkpoint import NewerFormatError

CPU = torch.device("cpu")


@pytest.fixture
def two(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """Return two checkpoints in a folder, the older first."""
    paths = sorted((tiny_model / "checkpoints").iterdir())[-2:]
    return [copied(path, tmp_path / "checkpoints" / path.name) for path in paths]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a model directory with only the files that a translation needs."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        shutil.copy(tiny_model / name, tmp_path / "model")
    return tmp_path / "model"


def test_r05_truncated_checkpoint_is_skipped(two: list[Path], log_messages: list[str]) -> None:
    older, newer = two
    for harm in list(cuts(newer)):
        whole = (newer / harm.file).read_bytes()
        (newer / harm.file).write_bytes(harm.content)

        if (
            harm.file == "manifest.json" and harm.content == whole[:-1]
        ):  # only the final newline is missing
            assert checkpoint.read(newer).path == newer
        else:
            result = checkpoint.newest(newer.parent)
            assert result is not None
            assert result.path == older, harm
            assert log_messages.pop().startswith(f"{newer / harm.file}: "), harm
        (newer / harm.file).write_bytes(whole)


MANY = pytest.mark.parametrize("number", [20, pytest.param(200, marks=pytest.mark.torture)])


@MANY
def test_r05_flipped_bit_of_a_checkpoint_is_refused_or_has_no_effect(
    two: list[Path], number: int
) -> None:
    path = two[1]
    expected = checkpoint.read(path)
    num_refused = 0
    for harm in list(flips(path, number=number, seed=1)):
        whole = (path / harm.file).read_bytes()
        (path / harm.file).write_bytes(harm.content)
        try:
            actual = checkpoint.read(path)
        except NewerFormatError:  # in the digit of the format
            assert harm.file == "manifest.json"
            num_refused += 1
        except ModelError as error:
            named = str(error).startswith(f"{path / harm.file}: ") or harm.file == "manifest.json"
            num_refused += named
        else:
            assert harm.file == "manifest.json", harm  # such as in the recorded version of PyTorch
            assert actual.state == expected.state
            assert same(actual.weights, expected.weights)
            assert same(actual.optimizer, expected.optimizer)
        (path / harm.file).write_bytes(whole)
    assert num_refused >= 0.9 * number


@pytest.mark.slow
def test_r05_run_resumes_from_the_previous_checkpoint_with_a_warning(
    tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, run_tfm: RunTfm
) -> None:
    output = tmp_path / "model"
    shutil.copytree(tiny_model, output)
    older, newer = sorted((output / "checkpoints").iterdir())[-2:]
    content = bytearray((newer / "optimizer.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    (newer / "optimizer.safetensors").write_bytes(content)
    settings = json.loads((output / "config.json").read_bytes())["settings"]
    (tmp_path / "run.json").write_text(json.dumps(settings), encoding="utf-8")
    arguments = ["train", "--output", str(output), *_arguments(tiny_corpus), "--max-updates", "301"]

    result = run_tfm(arguments)

    assert result.code == 0, result.err
    assert f"{newer / 'optimizer.safetensors'}: is not what was saved: its SHA-256" in result.err
    assert f"update {int(older.name.removeprefix('update-'))}" in result.err


def _arguments(corpus: TinyCorpus) -> list[str]:
    """Return the arguments that the shared tiny model was trained with."""
    from tests.conftest import TINY_SHAPE

    return [
        *corpus.train_arguments(), *TINY_SHAPE, "--max-tokens", "512", "--lr", "5e-3",
        "--lr-warmup", "50", "--valid-freq", "100", "--save-freq", "100", "--dropout", "0.0",
        "--device", "cpu", "--precision", "fp32", "--set", "training.ema_decay=0.9",
    ]  # fmt: skip


def outcome(model: Path, harm: Harm, expected: dict[str, Tensor]) -> str:
    """Return the message of the refusal; empty if the model is loaded as it was saved."""
    whole = (model / harm.file).read_bytes()
    (model / harm.file).write_bytes(harm.content)
    try:
        actual = load_model(model, CPU)
    except ModelError as error:
        return str(error)
    finally:
        (model / harm.file).write_bytes(whole)
    assert same(actual.transformer.state_dict(), expected), harm
    return ""


@MANY
def test_r05_damaged_model_directory_is_refused_by_name(model: Path, number: int) -> None:
    loaded = load_model(model, CPU)
    expected = {name: tensor.clone() for name, tensor in loaded.transformer.state_dict().items()}
    harms = [*cuts(model), *flips(model, number=number, seed=2)]

    outcomes = {harm: outcome(model, harm, expected) for harm in harms}

    for harm, message in outcomes.items():
        assert not message or message.startswith(f"{model / harm.file}: "), (harm, message)
    harmless = [harm for harm, message in outcomes.items() if not message]
    # The newline after the settings, and facts of the weights file that translation ignores.
    assert not [harm for harm in harmless if harm.file == "tokenizer.model"]
    assert len(harmless) <= 4


def test_r05_translation_with_a_damaged_model_exits_with_4(model: Path, run_tfm: RunTfm) -> None:
    for name in ("config.json", "tokenizer.model", "model.safetensors"):
        whole = (model / name).read_bytes()
        (model / name).write_bytes(whole[: len(whole) // 2])

        result = run_tfm(["translate", "--model", str(model), "--device", "cpu"], "one\n")

        assert (result.code, result.out) == (4, "")
        assert result.err.startswith(f"error: {model / name}: ")
        (model / name).write_bytes(whole)


def test_r43_other_tokenizer_of_the_same_size_is_refused_with_both_hashes(model: Path) -> None:
    before = Tokenizer.load(model / "tokenizer.model")
    pieces = [(piece.encode(), 1) for piece in before.pieces[4:-1]]
    special = [(b"<pad>", 3), (b"<unk>", 2), (b"<s>", 3), (b"</s>", 3)]
    other = Tokenizer(serialized(*special, *pieces, (b"other", 1)))
    assert other.vocab_size == before.vocab_size
    (model / "tokenizer.model").write_bytes(other.model_bytes)

    with pytest.raises(ModelError, match=f"expected SHA-256 {before.sha256}, got {other.sha256}"):
        load_model(model, CPU)

    config = json.loads((model / "config.json").read_bytes())
    del config["sha256"]
    config.update(tokenizer_sha256=other.sha256, tokenizer_files={"tokenizer.model": other.sha256})
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ModelError,
        match=rf"model\.safetensors: was trained with another tokenizer: expected SHA-256 "
        rf"{other.sha256}, got {before.sha256}",
    ):
        load_model(model, CPU)


def test_r44_newer_model_is_refused_with_its_version(model: Path, run_tfm: RunTfm) -> None:
    config = json.loads((model / "config.json").read_bytes())
    config.update(format_version=FORMAT_VERSION + 1, tfm_version="9.9", more={})
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")

    result = run_tfm(["translate", "--model", str(model)], "one\n")

    assert (result.code, result.out) == (4, "")
    assert f"has format {FORMAT_VERSION + 1}, but tfm" in result.err
    assert "made by tfm 9.9" in result.err
    assert "hint: install a newer tfm" in result.err


def test_r44_newer_checkpoint_is_refused_and_not_skipped(two: list[Path]) -> None:
    manifest = json.loads((two[1] / "manifest.json").read_bytes())
    manifest.update(format_version=2, compressed=True)
    (two[1] / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(ModelError, match="has format 2, expected at most 1") as caught:
        checkpoint.newest(two[1].parent)
    assert caught.value.hint == "install a newer tfm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(compressed=True), "has the unknown name `compressed`"),
        (lambda m: m.update(format_version=1.0), "`format_version` is missing or not a number"),
        (lambda m: m.update(format_version=True), "`format_version` is missing or not a number"),
        (lambda m: m["sha256"].update({"../x": "0"}), r"hashes of other files .*: `\.\./x`"),
        (lambda m: m["sha256"].pop("state.json"), "hashes of other files .*: `state.json`"),
        (lambda m: m.update(sha256=[]), "has no table of hashes"),
    ],
)
def test_r44_unknown_names_in_a_manifest_are_refused(
    two: list[Path], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = two[1] / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(
        ModelError, match=rf"manifest\.json: is damaged or not a checkpoint: .*{message}"
    ):
        checkpoint.read(two[1])


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a checkpoint's file, and update the manifest."""
    import hashlib

    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    manifest["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_r05_checkpoint_with_non_finite_weights_is_skipped(
    two: list[Path], log_messages: list[str]
) -> None:
    name = "target_embedding.weight"
    rewritten(two[1] / "model.safetensors", lambda table: table[name][3].fill_(float("nan")))

    result = checkpoint.newest(two[1].parent)

    assert result is not None
    assert result.path == two[0]
    assert f"model.safetensors: has values that are not finite numbers: {name}" in log_messages[0]


def test_r05_tensors_of_another_model_are_refused_by_name(two: list[Path]) -> None:
    path = two[1] / "average.safetensors"
    rewritten(path, lambda table: table.update(extra=torch.ones(2, dtype=torch.float64)))

    with pytest.raises(ModelError, match=r"average\.safetensors: extra has type F64"):
        checkpoint.read(two[1])


def test_r05_non_finite_weights_are_refused_by_name(model: Path, run_tfm: RunTfm) -> None:
    path = model / "model.safetensors"
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["tfm"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["target_embedding.weight"][0, 0] = float("nan")
    header["weights_sha256"] = weights_sha256(tensors)
    save_file(tensors, path, {"tfm": json.dumps(header)})

    result = run_tfm(["translate", "--model", str(model)], "one\n")

    assert (result.code, result.out) == (4, "")
    assert "has values that are not finite numbers: target_embedding.weight" in result.err
