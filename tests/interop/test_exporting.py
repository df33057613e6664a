from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.interop.others import QUIET
from tests.interop.random_models import lines, random_model
from tests.tiers import representative
from tfm_cli.config.settings import SearchConfig
from tfm_cli.errors import ConfigError, DataError, ModelError, ResourceError
from tfm_cli.interop import ctranslate2, exporting
from tfm_cli.interop.exporting import export_model
from tfm_cli.interop.hugging_face import writing
from tfm_cli.interop.verification import Verification
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weights import TrainedModel, WeightsFacts, save_weights

pytestmark = QUIET
Save = Callable[[TrainedModel], Path]


@pytest.fixture(autouse=True)
def _few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep verification fast."""
    monkeypatch.setattr("tfm_cli.interop.verification.NUM_PROBE_LINES", 6)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return `save(model)`, which returns the path of the model directory."""

    def saved(model: TrainedModel) -> Path:
        directory = tmp_path / "model"
        directory.mkdir()
        save_config(directory, model.config, model.tokenizers)
        weights = model.transformer.state_dict()
        facts = WeightsFacts(1, {})
        save_weights(directory, weights, model.tokenizers, model.config.model, facts)
        return directory

    return saved


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip verification, to test what happens before and after it."""
    monkeypatch.setattr(exporting, "verify_hugging_face", lambda *_: Verification())


def test_model_is_exported_to_hugging_face_and_verified(
    save: Save, tmp_path: Path, log_messages: list[str]
) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    model = save(random_model())

    export_model(model, tmp_path / "out", to="hf")

    assert log_messages[0].startswith("verified with transformers ")
    assert log_messages[1].startswith(f"wrote {tmp_path / 'out'}: ")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_model_is_exported_to_ctranslate2_and_verified(
    save: Save, tmp_path: Path, log_messages: list[str]
) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    search = SearchConfig(length_norm="wu", max_length=40, early_stopping=False)
    model = save(random_model(positions="rotary", norm="pre", search=search))

    export_model(model, tmp_path / "out", to="ctranslate2")

    assert log_messages[0].startswith("verified with CTranslate2 ")
    assert log_messages[2] == (
        "translate_batch(pieces, beam_size=4, length_penalty=1.0, min_decoding_length=0, "
        "max_decoding_length=131, max_input_length=0) comes closest to "
        "`tfm translate --length-norm power --early-stopping`"
    )


def test_call_of_ctranslate2_has_the_options_against_repetition() -> None:
    search = SearchConfig(no_repeat_ngram_size=3, repetition_penalty=1.5)

    assert "no_repeat_ngram_size=3, repetition_penalty=1.5)" in exporting._nearest_call(search)


@representative("quantization", ["int8", "int16", "float16", "bfloat16"])
@pytest.mark.slow
def test_quantized_weights_are_written_after_fp32_was_verified(
    quantization: str | None, save: Save, tmp_path: Path, log_messages: list[str]
) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = save(random_model())

    export_model(model, tmp_path / "out", to="ctranslate2", quantization=quantization)

    assert log_messages[0].startswith("verified with CTranslate2 ")
    assert log_messages[1].startswith(f"{quantization}: ")
    assert log_messages[1].endswith(" lines keep their translation")


def test_damaged_export_is_detected_and_leaves_nothing(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="pip install 'tfm-cli[hf]'")
    right = writing.hugging_face_tensors

    def wrong(model: TrainedModel, positions: int) -> dict[str, torch.Tensor]:
        tensors = right(model, positions)
        tensors["model.encoder.layers.0.self_attn.k_proj.weight"][0] += 0.5
        return tensors

    monkeypatch.setattr(writing, "hugging_face_tensors", wrong)
    model = save(random_model())

    with pytest.raises(ModelError, match=r"transformers .+ does not compute what tfm computes"):
        export_model(model, tmp_path / "out", to="hf")

    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_export_to_ctranslate2_leaves_the_old_one(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = save(random_model())
    export_model(model, tmp_path / "out", to="ctranslate2")
    before = (tmp_path / "out" / "model.bin").read_bytes()
    right = ctranslate2.write_ctranslate2

    def wrong(directory: Path, model: TrainedModel, *, quantization: str | None) -> None:
        model.transformer.target_embedding.weight.data[8] += 1
        right(directory, model, quantization=quantization)
        model.transformer.target_embedding.weight.data[8] -= 1

    monkeypatch.setattr(exporting, "write_ctranslate2", wrong)

    with pytest.raises(ModelError, match=r"CTranslate2 .+ does not compute what tfm computes"):
        export_model(model, tmp_path / "out", to="ctranslate2", overwrite=True)

    assert (tmp_path / "out" / "model.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_inexpressible_model_is_refused_first(save: Save, tmp_path: Path) -> None:
    model = save(random_model(norm="pre", positions="rotary"))

    with pytest.raises(ConfigError, match=r"model\.norm: .*\n  model\.positions: "):
        export_model(model, tmp_path / "out", to="hf")

    assert not (tmp_path / "out").exists()


def test_lines_of_the_probe_are_compared(
    save: Save, tmp_path: Path, log_messages: list[str]
) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    (tmp_path / "probe.txt").write_text("".join(f"{line}\n" for line in lines(5)))
    model = save(random_model())

    export_model(model, tmp_path / "out", to="ctranslate2", probe=tmp_path / "probe.txt")

    assert " on 5 lines: " in log_messages[0]


def test_missing_probe_leaves_nothing(save: Save, tmp_path: Path, unverified: None) -> None:
    model = save(random_model())

    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        export_model(model, tmp_path / "out", to="hf", probe=tmp_path / "none.txt")

    assert not (tmp_path / "out").exists()


def test_export_is_replaced_only_with_overwrite(
    save: Save, tmp_path: Path, unverified: None
) -> None:
    model = save(random_model())
    export_model(model, tmp_path / "out", to="hf")
    (tmp_path / "out" / "vocab.json").write_text("old")

    with pytest.raises(ConfigError, match="out: holds an export"):
        export_model(model, tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "vocab.json").read_text() == "old"

    export_model(model, tmp_path / "out", to="hf", overwrite=True)
    assert (tmp_path / "out" / "vocab.json").read_text() != "old"


def test_foreign_directory_is_never_replaced(save: Save, tmp_path: Path, unverified: None) -> None:
    model = save(random_model())
    before = sorted(path.name for path in model.iterdir())

    with pytest.raises(ConfigError, match=r"holds files of something else: `tokenizer\.model`"):
        export_model(model, model, to="hf", overwrite=True)
    folder = tmp_path / "out" / "vocab.json"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds files of something else: `vocab\.json`"):
        export_model(model, tmp_path / "out", to="hf", overwrite=True)

    mine = tmp_path / "mine" / "config.json"
    mine.parent.mkdir()
    mine.write_text("my precious")
    for to in ("hf", "ctranslate2"):
        with pytest.raises(ConfigError, match=r"holds files of something else: `config\.json`"):
            export_model(model, mine.parent, to=to, overwrite=True)

    assert sorted(path.name for path in model.iterdir()) == before
    assert folder.is_dir()
    assert mine.read_text() == "my precious"


def test_model_of_another_program_with_the_same_files_is_never_replaced(
    save: Save, tmp_path: Path, unverified: None
) -> None:
    model = save(random_model())
    export_model(model, tmp_path / "out", to="hf")
    (tmp_path / "out" / ".tfm-export.json").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    with pytest.raises(ConfigError, match=r"holds files of something else: `config\.json`"):
        export_model(model, tmp_path / "out", to="hf", overwrite=True)

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_export_with_a_link_in_it_is_never_replaced(
    save: Save, tmp_path: Path, unverified: None
) -> None:
    model = save(random_model())
    export_model(model, tmp_path / "out", to="hf")
    (tmp_path / "out" / "vocab.json").rename(tmp_path / "theirs")
    (tmp_path / "out" / "vocab.json").symlink_to(tmp_path / "theirs")

    with pytest.raises(ConfigError, match=r"holds files of something else: `vocab\.json`"):
        export_model(model, tmp_path / "out", to="hf", overwrite=True)

    assert (tmp_path / "out" / "vocab.json").is_symlink()


@pytest.mark.parametrize("links", [False, True])
def test_export_that_holds_an_input_is_never_replaced(
    links: bool, save: Save, tmp_path: Path, unverified: None
) -> None:
    model = save(random_model())
    export_model(model, tmp_path / "out", to="hf")
    probe = tmp_path / "out" / "vocab.json"
    if links:
        probe = tmp_path / "probe"
        probe.symlink_to(tmp_path / "out" / "vocab.json")
    before = probe.read_bytes()

    with pytest.raises(ConfigError, match=f"would replace or remove `{probe}`, which is read"):
        export_model(model, tmp_path / "out", to="hf", overwrite=True, probe=probe)

    assert probe.read_bytes() == before


def test_directory_that_appears_during_an_export_is_not_replaced(
    save: Save, tmp_path: Path, unverified: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(random_model())
    export_model(model, tmp_path / "out", to="hf")
    write = writing.write_hugging_face

    def written_slowly(directory: Path, trained: TrainedModel) -> None:
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        write(directory, trained)

    monkeypatch.setattr(exporting, "write_hugging_face", written_slowly)

    with pytest.raises(ResourceError, match="it exists and was not created by tfm"):
        export_model(model, tmp_path / "out", to="hf", overwrite=True)

    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_empty_directory_is_used_and_a_link_is_kept(
    save: Save, tmp_path: Path, unverified: None
) -> None:
    model = save(random_model())
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    export_model(model, tmp_path / "link", to="hf")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "vocab.json").is_file()


def test_file_as_output_is_refused(save: Save, tmp_path: Path, unverified: None) -> None:
    (tmp_path / "out").write_text("text")

    with pytest.raises(ResourceError, match="out: cannot be written: it is not a directory"):
        export_model(save(random_model()), tmp_path / "out", to="hf")


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(ConfigError, match="`--to` must be one of hf, ctranslate2, tfm, got onnx"):
        export_model(tmp_path, out, to="onnx")
    message = "`--quantization` is for `--to ctranslate2` and `--to tfm`"
    with pytest.raises(ConfigError, match=message):
        export_model(tmp_path, out, to="hf", quantization="int8")
    with pytest.raises(ConfigError, match=r"`--quantization` must be one of int8, .*, got int4"):
        export_model(tmp_path, out, to="ctranslate2", quantization="int4")


def test_missing_ctranslate2_is_reported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfm_cli.interop.exporting.is_installed", lambda package: False)

    with pytest.raises(ResourceError, match="CTranslate2 is not installed"):
        export_model(tmp_path, tmp_path / "out", to="ctranslate2")


def test_without_transformers_the_export_is_written_with_a_warning(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_messages: list[str]
) -> None:
    monkeypatch.setattr("tfm_cli.interop.verification.is_installed", lambda package: False)

    export_model(save(random_model()), tmp_path / "out", to="hf")

    assert log_messages[0] == "not verified: transformers is not installed"
    assert (tmp_path / "out" / "config.json").is_file()
