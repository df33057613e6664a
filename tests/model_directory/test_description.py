"""The facts about a model, against the model that PyTorch loads and the files themselves."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tests.model_directory.saved_models import rewrite, save_random_model
from tfm_cli.config.settings import ModelConfig, TokenizerConfig
from tfm_cli.errors import ModelError
from tfm_cli.model_directory.config_file import load_config
from tfm_cli.model_directory.description import describe, num_parameters, to_json
from tfm_cli.model_directory.weights import WeightsFacts, load_model, weights_facts

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = [
    ModelConfig(encoder_layers=1, decoder_layers=2, width=16, heads=4, feed_forward_width=8),
    ModelConfig(
        encoder_layers=2, decoder_layers=1, width=8, heads=2, feed_forward_width=4,
        decoder_heads=1, decoder_feed_forward_width=6, norm="pre", positions="learned",
        tied_embeddings=0, activation="swiglu", output_bias=True,
    ),
]  # fmt: skip


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("shape", SHAPES, ids=["post", "pre"])
def test_parameters_are_those_of_the_transformer(shape: ModelConfig, tmp_path: Path) -> None:
    settings = TokenizerConfig(vocab_size=30, model_type="word", byte_fallback=False)
    facts = WeightsFacts(7, {"bleu": 12.5})
    save_random_model(tmp_path, shape, settings, lines=["a b c"], facts=facts)
    transformer = load_model(tmp_path, torch.device("cpu")).transformer

    described = describe(tmp_path)

    counts = dict.fromkeys(("encoder", "decoder", "embeddings"), 0)
    for name, weight in transformer.named_parameters():
        part = next((p for p in ("encoder", "decoder") if name.startswith(p)), "embeddings")
        counts[part] += weight.numel()
    assert described.parameters == {"total": sum(counts.values()), **counts}
    assert num_parameters(described.saved) == described.parameters
    assert (described.training.weights_update, described.training.scores) == (7, {"bleu": 12.5})


def test_run_is_described_by_its_own_files(tiny_model: Path, tiny_corpus: TinyCorpus) -> None:
    described = to_json(describe(tiny_model))

    training, facts = described["training"], weights_facts(tiny_model)
    lines = [json.loads(line) for line in (tiny_model / "metrics.jsonl").read_text().splitlines()]
    (best,) = [
        line for line in lines if line.get("best") and line["update"] == training["weights_update"]
    ]
    assert facts is not None
    assert (training["weights_update"], training["scores"]) == (facts.update, facts.scores)
    assert sorted(training["signatures"].values()) == sorted(best["signatures"].values())
    assert set(training["signatures"]) == {name for name in facts.scores if name != "loss"}
    assert (training["updates"], training["epoch"]) == (300, lines[-1]["epoch"])
    assert training["seconds"] == lines[-1]["seconds"]
    assert training["pairs"] == len(tiny_corpus.lines("train.en"))
    # The corpus may be that of another process of the tests, which trained the model.
    assert training["source"] == list(load_config(tiny_model).settings.data.source)
    assert [Path(name).name for name in training["source"]] == ["train.en"]
    assert described["resumes_from"] == 300


def test_hashes_are_those_of_the_files(tiny_model: Path) -> None:
    files = {each.name: each for each in describe(tiny_model).files}

    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.model"}
    for name, facts in files.items():
        content = (tiny_model / name).read_bytes()
        assert facts.num_bytes == len(content)
        assert facts.sha256 == hashlib.sha256(content).hexdigest()
        assert facts.check == ("no hash saved" if name == "README.md" else "verified")


def test_card_replaces_the_files_of_a_run(model: Path) -> None:
    of_run = describe(model).training
    for name in ("checkpoints", "corpus"):
        shutil.rmtree(model / name)
    (model / "metrics.jsonl").unlink()

    described = describe(model)

    of_card = described.training
    assert described.resumes_from is None
    assert of_card.updates == of_card.weights_update == of_run.weights_update
    assert (of_card.pairs, of_card.signatures) == (of_run.pairs, of_run.signatures)
    assert of_card.target_tokens is not None
    assert of_card.seconds is not None


def test_changed_weights_are_found_unless_they_are_not_read(model: Path) -> None:
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ModelError, match="the weights are not those that were saved"):
        describe(model)
    files = {each.name: each for each in describe(model, verify=False).files}

    assert (files["model.safetensors"].check, files["model.safetensors"].sha256) == (
        "not verified",
        "",
    )
    assert files["tokenizer.model"].check == "verified"


def test_weights_of_another_shape_are_refused(model: Path) -> None:
    rewrite(model, lambda table: table.pop("encoder_layers.0.feed_forward.inner.bias"))

    with pytest.raises(ModelError, match=r"does not fit config.json"):
        describe(model)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff\n", b"[" * 5000, b'{"event": "valid", "update": 1e999}\n', b'{"update": true}\n'],
)
def test_damaged_metrics_are_left_out(damage: bytes, model: Path) -> None:
    (model / "metrics.jsonl").write_bytes(damage)

    described = describe(model)

    assert described.training.updates == 300  # of the checkpoint
    assert described.training.signatures  # of the card


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors", "manifest.json"])
def test_damaged_checkpoint_is_not_resumed_from(name: str, model: Path) -> None:
    newest = model / "checkpoints" / "update-00000300" / name
    newest.write_bytes(newest.read_bytes()[:-2])

    assert describe(model).resumes_from == 200


def test_older_formats_are_described() -> None:
    described = {version: describe(GOLDEN / f"model_v{version}") for version in (1, 2)}

    assert [each.saved.format_version for each in described.values()] == [1, 2]
    assert [len(each.tokenizers) for each in described.values()] == [1, 2]
    assert described[2].language_tags == (">>deu<<",)
    assert {file.check for file in described[1].files if file.name == "config.json"} == {
        "no hash saved"
    }


def test_int8_is_described_like_its_original(
    tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    command = ["export", str(tiny_model), "--to", "tfm", "--quantization", "int8"]
    result = run_tfm([*command, "--output", str(tmp_path / "int8")])
    assert result.code == 0, result.err

    original, described = describe(tiny_model), describe(tmp_path / "int8")

    assert (original.precision, described.precision) == ("fp32", "int8")
    assert described.parameters == original.parameters
    assert described.training.scores == original.training.scores


def test_run_without_weights_is_described(model: Path) -> None:
    (model / "model.safetensors").unlink()

    described = describe(model)

    assert (described.precision, described.training.scores) == ("", {})
    assert "model.safetensors" not in {file.name for file in described.files}
    assert described.resumes_from == 300
