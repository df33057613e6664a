"""The sources of an import, and the errors for invalid ones."""

import html
import os
from pathlib import Path

import pytest

from tests.interop.damage import copied
from tests.interop.marian_directories import write_json
from tests.interop.random_models import random_model
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError, TfmError
from tfm_cli.interop import importing
from tfm_cli.interop.ctranslate2 import write_ctranslate2
from tfm_cli.interop.importing import import_model, kind_of

pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


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
    ("config", "told"),
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
    tmp_path: Path, config: dict[str, object], told: str
) -> None:
    write_json(tmp_path / "config.json", config)

    with pytest.raises(DataError, match=told):
        kind_of(tmp_path)


def test_export_for_ctranslate2_is_recognised(tmp_path: Path) -> None:
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
