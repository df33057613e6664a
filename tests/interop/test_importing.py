import hashlib
import html
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.interop.marian_directories import (
    changed_json,
    write_json,
)
from tests.interop.random_models import random_model
from tests.model_directory.damage import copied
from tests.tiers import representative
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError, TfmError
from tfm_cli.interop import importing, source_files
from tfm_cli.interop.ctranslate2 import write_ctranslate2
from tfm_cli.interop.exporting import export_model
from tfm_cli.interop.hugging_face.reading import read_hugging_face
from tfm_cli.interop.hugging_face.writing import write_hugging_face
from tfm_cli.interop.importing import import_model, kind_of
from tfm_cli.interop.tensors import ImportedModel
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import TrainedModel, WeightsFacts, load_model, save_weights

transformers = pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us

CPU = torch.device("cpu")


def saved(directory: Path, model: TrainedModel) -> Path:
    directory.mkdir()
    weights, shape = model.transformer.state_dict(), model.config.model
    save_config(directory, model.config, model.tokenizers)
    save_weights(directory, weights, model.tokenizers, shape, WeightsFacts(7, {}))
    return directory


def test_kind_is_detected_from_the_content(
    hugging_face: Path, marian: Path, tmp_path: Path
) -> None:
    assert kind_of(hugging_face) == "Hugging Face Marian"
    assert kind_of(marian) == "Marian"
    with pytest.raises(DataError, match="holds no model that can be imported"):
        kind_of(tmp_path)


def test_hugging_face_model_is_verified_and_has_a_card(
    hugging_face: Path, tmp_path: Path, log_messages: list[str], probe: Path
) -> None:
    import_model(str(hugging_face), tmp_path / "model", probe=probe)

    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    sha256 = hashlib.sha256((hugging_face / "model.safetensors").read_bytes()).hexdigest()
    assert "opus-mt-en-de (Hugging Face Marian)" in card
    assert str(tmp_path) not in card
    assert sha256 in card
    assert "with transformers" in card
    assert "`>>deu<<`" in card
    assert any(message.startswith("verified with transformers") for message in log_messages)
    assert load_model(tmp_path / "model", CPU).config.model.activation == "swish"


@pytest.mark.slow
@representative("kind", ["joint", "separate", "shared"])
@representative("positions", ["sinusoidal", "sinusoidal_halves", "sinusoidal_marian"])
def test_own_export_is_imported_bit_exactly(tmp_path: Path, kind: str, positions: str) -> None:
    model = random_model(
        tokenizers=kind, positions=positions, tied_embeddings=2 if kind == "separate" else 3,
        output_bias=True, activation="gelu", max_positions=1024,
    )  # fmt: skip
    write_hugging_face(tmp_path, model)

    back = read_hugging_face(tmp_path, allow_pickle=False)

    assert_close(back.weights, dict(model.transformer.state_dict()), rtol=0, atol=0)
    assert back.config.model == model.config.model
    assert back.config.search.beam_size == model.config.search.beam_size
    assert back.tokenizers.is_joint is model.tokenizers.is_joint
    before, after = model.tokenizers.target, back.tokenizers.target
    assert (after.vocabulary is None) is (before.vocabulary is None)
    assert (after.pieces, after.model_bytes) == (before.pieces, before.model_bytes)
    assert (after.start_id, after.banned_ids) == (before.start_id, before.banned_ids)


@pytest.mark.slow
def test_import_of_an_own_export_is_verified(tmp_path: Path, probe: Path) -> None:
    model = random_model(max_positions=1024)
    export_model(saved(tmp_path / "ours", model), tmp_path / "theirs", to="hf", probe=probe)

    import_model(str(tmp_path / "theirs"), tmp_path / "back", probe=probe)

    back = load_model(tmp_path / "back", CPU)
    assert back.config.model == model.config.model
    assert back.tokenizers.files() == model.tokenizers.files()


@pytest.mark.slow
def test_notes_are_warnings(
    hugging_face: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, probe: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in hugging_face.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    changed_json(source / "config.json", encoder_layerdrop=0.1)
    logger = logging.getLogger("tfm_cli")
    monkey, logger.propagate = logger.propagate, True
    try:
        import_model(str(source), tmp_path / "model", probe=probe)
    finally:
        logger.propagate = monkey

    assert "`encoder_layerdrop` of `0.1` is for training only and left out" in caplog.text


@pytest.mark.slow
def test_model_is_replaced_only_with_overwrite(
    hugging_face: Path, tmp_path: Path, probe: Path
) -> None:
    output = tmp_path / "model"
    import_model(str(hugging_face), output, probe=probe)
    before = (output / "config.json").stat().st_mtime_ns

    with pytest.raises(ConfigError, match="holds a model") as caught:
        import_model(str(hugging_face), output, probe=probe)
    import_model(str(hugging_face), output, overwrite=True, probe=probe)

    assert "--overwrite" in str(caught.value.hint)
    assert (output / "config.json").stat().st_mtime_ns > before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_other_files_are_never_replaced(hugging_face: Path, tmp_path: Path, probe: Path) -> None:
    output = tmp_path / "model"
    import_model(str(hugging_face), output, probe=probe)
    (output / "thesis.tex").write_text("years of work")

    with pytest.raises(ConfigError, match=r"holds more than a model: `thesis.tex`"):
        import_model(str(hugging_face), output, overwrite=True, probe=probe)


def test_foreign_model_is_never_replaced(hugging_face: Path, tmp_path: Path, probe: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "config.json").write_text(json.dumps({"model_type": "marian"}))

    with pytest.raises(ConfigError, match=r"holds more than a model: `config.json`"):
        import_model(str(hugging_face), output, overwrite=True, probe=probe)


@pytest.mark.parametrize(
    "name", ["checkpoints/other/best.pt", "corpus/en-fr/s.en", "README.md/x", "README.md"]
)
def test_foreign_directories_are_never_replaced(
    name: str, hugging_face: Path, tmp_path: Path, probe: Path
) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "config.json").write_text('{"tfm_version": "0.1.0"}')
    (output / "model.safetensors").touch()
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("years of work")

    with pytest.raises(ConfigError, match=f"holds more than a model: `{name.split('/')[0]}`"):
        import_model(str(hugging_face), output, overwrite=True, probe=probe)

    assert (output / name).read_text() == "years of work"


def test_model_that_holds_an_input_is_never_replaced(hugging_face: Path, tmp_path: Path) -> None:
    output, source = tmp_path / "model", tmp_path / "source"
    output.mkdir()
    (output / "config.json").write_text('{"tfm_version": "0.1.0"}')
    shutil.copytree(hugging_face, source)
    (source / "model.safetensors").rename(output / "model.safetensors")
    (source / "model.safetensors").symlink_to(output / "model.safetensors")
    before = (output / "model.safetensors").read_bytes()

    with pytest.raises(ConfigError, match=r"would replace or remove `.*model\.safetensors`, which"):
        import_model(str(source), output, overwrite=True)

    assert (output / "model.safetensors").read_bytes() == before


def test_empty_directory_is_filled(hugging_face: Path, tmp_path: Path, probe: Path) -> None:
    (tmp_path / "model").mkdir()

    import_model(str(hugging_face), tmp_path / "model", probe=probe)

    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_model_of_tfm_is_refused_as_a_source(tmp_path: Path) -> None:
    source = saved(tmp_path / "ours", random_model())

    with pytest.raises(DataError, match="is a model of tfm already"):
        import_model(str(source), tmp_path / "model")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/directory", "there is no such directory, and it is not a name on the Hub"),
        ("gone", "there is no such directory, and it is not a name on the Hub"),
        ("../name", "there is no such directory, and it is not a name on the Hub"),
    ],
)
def test_missing_source_is_refused(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_model(source, tmp_path / "model")


def test_file_is_refused_as_a_source(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="is not a directory, expected one with a model"):
        import_model(str(tmp_path / "file"), tmp_path / "model")


def test_name_on_the_hub_is_downloaded(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Path
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(hugging_face)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    import_model("Helsinki-NLP/opus-mt-en-de", tmp_path / "model", probe=probe)
    source_files.download("a/b", allow_pickle=True)

    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "Helsinki-NLP/opus-mt-en-de" in card
    assert asked[0][0] == "Helsinki-NLP/opus-mt-en-de"
    assert "model.safetensors" in asked[0][1]
    assert "pytorch_model.bin" not in asked[0][1]
    assert "pytorch_model.bin" in asked[1][1]


def test_snapshot_of_links_is_read(hugging_face: Path, tmp_path: Path, probe: Path) -> None:
    """The Hub's cache stores files under their hashes, with links to them."""
    cache = tmp_path / "models--Helsinki-NLP--opus-mt-en-de"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, path in enumerate(sorted(hugging_face.iterdir())):
        (blobs / str(index)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{index}")

    import_model(str(snapshot), tmp_path / "model", probe=probe)

    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_without_yaml_marian_cannot_be_read(
    marian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)

    with pytest.raises(ResourceError, match="PyYAML is needed") as caught:
        import_model(str(marian), tmp_path / "model")

    assert "pip install 'pyyaml>=6'" in str(caught.value.hint)


def test_card_escapes_markdown_and_html_in_a_name() -> None:
    model = random_model()
    notes = ("notes <b>of</b> `others`|",)
    imported = ImportedModel(model.config, model.tokenizers, {}, notes, "a`b")
    origin = "<img src=x>|\\|[a](http://b)`*x*` (Hugging Face)"

    card = importing._card(model, imported, origin, "0" * 64, "verified *so*")

    begins = ("| from |", "| weights |", "| verified |", "- notes")
    lines = [line for line in card.split("\n") if line.startswith(begins)]
    assert len(lines) == len(begins)
    hash_code = "`" + "0" * 64 + "`"
    shown = "".join(line.strip("|- ").replace(hash_code, "") for line in lines)
    assert not set(shown) & set("\\<>`*[]")


def card_of(output: Path) -> str:
    return (output / "README.md").read_text(encoding="utf-8")


def test_current_directory_has_its_own_name(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Path
) -> None:
    monkeypatch.chdir(hugging_face)

    import_model(".", tmp_path / "model", probe=probe)

    assert "| opus-mt-en-de (Hugging Face Marian) |" in card_of(tmp_path / "model")


def test_empty_source_is_refused(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hugging_face)

    with pytest.raises(ConfigError, match="the source is empty, expected a directory or a name on"):
        import_model("", tmp_path / "model")


def test_control_characters_in_a_name_are_escaped(
    hugging_face: Path, tmp_path: Path, probe: Path
) -> None:
    source = copied(hugging_face, tmp_path / "a\x1b[2J\nb")

    import_model(str(source), tmp_path / "model", probe=probe)

    card = card_of(tmp_path / "model")
    assert "\x1b" not in card
    shown = html.unescape(card)  # as rendered Markdown shows it
    assert "| a\\u001b[2J\\u000ab (Hugging Face Marian) |" in shown


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("models/nothere: cannot be downloaded: 404 Client Error", hint="a"), "404"),
        (ResourceError("models/nothere: cannot be downloaded: no network", hint="b"), "no network"),
    ],
)
def test_error_covers_both_a_directory_and_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: TfmError, reason: str
) -> None:
    def download(name: str, *, allow_pickle: bool) -> Path:
        raise error

    monkeypatch.setattr(importing, "download", download)
    message = "models/nothere: there is no such directory, and as a name on the Hub it cannot be"

    with pytest.raises(type(error), match=f"{message} downloaded: {reason}") as caught:
        import_model("models/nothere", tmp_path / "model")

    assert caught.value.hint == error.hint


def test_positions_cannot_be_set_for_hugging_face(hugging_face: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not an `.npz`, so `--positions` does not apply"):
        import_model(str(hugging_face), tmp_path / "model", positions="marian")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bart"}, "is a model of the type `bart`, expected a Hugging Face model of"),
        ({"model_type": ["marian"]}, r"is a model of the type `\['marian'\]`, expected"),
        (
            {},
            "has a `config.json` without `model_type`, expected a Hugging Face model of",
        ),
    ],
)
def test_model_of_another_type_is_named(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    write_json(tmp_path / "config.json", config)

    with pytest.raises(DataError, match=message):
        kind_of(tmp_path)


def test_export_for_ctranslate2_is_recognized(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    write_ctranslate2(tmp_path, random_model(), quantization=None)

    with pytest.raises(DataError, match="is a model for CTranslate2, which lacks information"):
        kind_of(tmp_path)


def test_missing_files_are_listed_with_other_problems(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", {"model_type": "marian", "normalize_embedding": True,
               "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
               "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
               "decoder_ffn_dim": 24, "activation_function": "swish", "vocab_size": 9,
               "eos_token_id": 0, "decoder_start_token_id": 8})  # fmt: skip

    with pytest.raises(ModelError) as caught:
        import_model(str(source), tmp_path / "model")

    assert str(caught.value).split("\n  ")[1:] == [
        "config.json: `normalize_embedding` is true, expected false",
        "vocab.json: is missing",
        "source.spm: is missing",
        "target.spm: is missing",
        "has no weights, expected `model.safetensors`",
    ]


def test_missing_files_of_marian_are_listed_with_other_problems(
    marian: Path, tmp_path: Path
) -> None:
    source = copied(marian, tmp_path / "source")
    for name in ("model.npz", "opus.vocab.yml", "target.spm"):
        (source / name).unlink()
    with (source / "decoder.yml").open("a") as stream:
        stream.write("output-sampling: true\n")

    with pytest.raises(ModelError) as caught:
        import_model(str(source), tmp_path / "model")

    assert str(caught.value).split("\n  ")[1:] == [
        "decoder.yml: `output-sampling` is `true`, expected it to be off",
        "model.npz: is missing",
        "opus.vocab.yml: is missing",
        "target.spm: is missing",
    ]


def test_failure_to_write_names_the_output(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Path
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    output = tmp_path / "model"
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ResourceError, match=f"^{output}/[a-z.]+: cannot be written: No space"):
        import_model(str(hugging_face), output, probe=probe)
