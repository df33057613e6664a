"""The content and the use of model directories in int8."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import RunTfm
from tests.interop.random_models import lines, random_model
from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.interop import exporting
from tfm_cli.interop.exporting import export_model
from tfm_cli.model_directory.config_file import save_config
from tfm_cli.model_directory.weight_shapes import SCALES, stored_precision
from tfm_cli.model_directory.weights import WeightsFacts, load_model, save_weights, weights_facts
from tfm_cli.native import library
from tfm_cli.native.model import NativeModel
from tfm_cli.native.search import NativeSearch, Segments
from tfm_cli.translation.translator import Translator

MODEL = Path(__file__).parents[1] / "golden" / "model_v1"
LINES = ["null zwei drei", "vier", "neun acht sieben sechs fünf"]
pytestmark = pytest.mark.skipif(
    not library.available(), reason="needs the native engine: build it with `make install`"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "int8"
    export_model(MODEL, output, to="tfm", quantization="int8")
    return output


def hypotheses(model: NativeModel) -> Any:
    sources = model.tokenizers.source.encode(LINES)
    search = NativeSearch([model], model.config.search, token_log_probs=True)
    return search(Segments(sources=sources, limits=[20] * len(sources)))


def test_matrices_are_int8_with_scales_and_the_rest_is_unchanged(exported: Path) -> None:
    expected = load_file(MODEL / "model.safetensors")

    actual = load_file(exported / "model.safetensors")

    assert {name for name in actual if not name.endswith(SCALES)} == set(expected)
    for name, tensor in expected.items():
        if tensor.ndim == 1:
            assert torch.equal(actual[name], tensor)
        else:
            rounded = actual[name].float() * actual[name + SCALES][:, None]
            steps = actual[name + SCALES][:, None]
            assert actual[name].dtype == torch.int8
            assert bool(((rounded - tensor).abs() <= 0.501 * steps).all())
    assert weights_facts(exported) == weights_facts(MODEL)


def test_size_is_about_a_quarter(exported: Path) -> None:
    size = (exported / "model.safetensors").stat().st_size

    assert size < 0.45 * (MODEL / "model.safetensors").stat().st_size  # for a narrow model


def test_translations_equal_those_of_a_model_quantized_on_loading(exported: Path) -> None:
    expected = hypotheses(NativeModel.load(MODEL, precision="int8"))

    assert hypotheses(NativeModel.load(exported, precision="int8")) == expected


@pytest.mark.parametrize("norm", ["post", "pre", "deepnorm"])
def test_model_of_any_norm_is_the_one_that_is_quantized_on_loading(
    norm: str, tmp_path: Path
) -> None:
    model = random_model(norm=norm, encoder_layers=3, decoder_layers=2)
    (tmp_path / "model").mkdir()
    save_config(tmp_path / "model", model.config, model.tokenizers)
    save_weights(
        tmp_path / "model",
        model.transformer.state_dict(),
        model.tokenizers,
        model.config.model,
        WeightsFacts(7, {}),
    )

    export_model(tmp_path / "model", tmp_path / "int8", to="tfm", quantization="int8")

    one, other = (NativeModel.load(tmp_path / name, precision="int8") for name in ("model", "int8"))
    segments = Segments(sources=model.tokenizers.source.encode(lines(8)), limits=[12] * 8)
    found = [
        NativeSearch([each], each.config.search, token_log_probs=True)(segments)
        for each in (one, other)
    ]
    assert found[0] == found[1]


def test_model_in_int8_is_translated_in_int8_by_default(exported: Path) -> None:
    expected = [one.text for one in Translator.load(MODEL, precision="int8").translate(LINES)]

    assert stored_precision(exported / "model.safetensors") == "int8"
    assert [one.text for one in Translator.load(exported).translate(LINES)] == expected
    for precision in ("fp32", "bf16"):
        with pytest.raises(ModelError, match="has weights in int8, which only the native CPU eng"):
            Translator.load(exported, precision=precision)


def test_model_in_int8_translates_together_with_one_in_fp32(exported: Path) -> None:
    together = Translator.load(MODEL, others=[exported])

    expected = Translator.load(exported)
    assert [one.text for one in together.translate(LINES)] == [
        one.text for one in expected.translate(LINES)
    ]


def test_commands_refuse_a_model_in_int8_with_a_reason(
    exported: Path, run_tfm: RunTfm, tmp_path: Path
) -> None:
    message = "model.safetensors: has weights in int8, which only the native CPU engine can use"

    export = run_tfm(["export", str(exported), "--to", "hf", "--output", str(tmp_path / "out")])

    assert (export.code, export.out) == (4, "")
    assert message in export.err
    with pytest.raises(ModelError, match=message):
        load_model(exported, torch.device("cpu"))


def test_damaged_model_in_int8_is_refused(exported: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(exported, tmp_path / "model"))
    path = directory / "model.safetensors"
    whole = path.read_bytes()

    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match="the weights are not those that were saved"):
        NativeModel.load(directory, precision="int8")
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match="is damaged or not a safetensors file"):
        NativeModel.load(directory, precision="int8")


def test_export_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exporting._quantize

    def wrong(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, scales = right(matrix)
        return values, scales * 1.01

    monkeypatch.setattr(exporting, "_quantize", wrong)

    with pytest.raises(ModelError, match="computes something else than the model does in int8"):
        export_model(MODEL, tmp_path / "out", to="tfm", quantization="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "quantization", "message"),
    [
        ("tfm", None, "`--to tfm` needs `--quantization int8`, got none"),
        ("tfm", "int16", "`--to tfm` needs `--quantization int8`, got int16"),
        ("hf", "int8", "`--quantization` is for `--to ctranslate2` and `--to tfm`"),
    ],
)
def test_other_precisions_are_refused(
    to: str, quantization: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(MODEL, tmp_path / "out", to=to, quantization=quantization)


def test_export_without_the_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFM_NATIVE_LIBRARY", "none")

    with pytest.raises(ResourceError, match="the native CPU engine is unavailable"):
        export_model(MODEL, tmp_path / "out", to="tfm", quantization="int8")


def test_export_is_replaced_only_with_overwrite(exported: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(exported, tmp_path / "out"))
    with pytest.raises(ConfigError, match="out: holds an export"):
        export_model(MODEL, output, to="tfm", quantization="int8")

    export_model(MODEL, output, to="tfm", quantization="int8", overwrite=True)

    for name in ("config.json", "model.safetensors"):
        assert (output / name).read_bytes() == (exported / name).read_bytes()


def test_model_that_was_trained_is_never_replaced(tmp_path: Path) -> None:
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))

    with pytest.raises(ConfigError, match="holds files of something else"):
        export_model(MODEL, model, to="tfm", quantization="int8", overwrite=True)
