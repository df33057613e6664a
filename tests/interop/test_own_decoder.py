"""A decoder with its own heads and feed-forward width: trained, used, exported and imported."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_SHAPE, RunTfm, TinyCorpus
from tests.interop.marian_directories import hugging_face_model, write_hugging_face_directory
from tests.interop.others import QUIET
from tests.interop.random_models import lines, random_tokenizers
from tests.runs import metrics
from tfm_cli.config.settings import StackShape
from tfm_cli.model_directory.weights import load_model
from tfm_cli.translation.translator import Translator

pytestmark = QUIET
CPU = torch.device("cpu")


@pytest.mark.torture
@pytest.mark.timeout(300)
def test_trained_model_is_used_exported_and_imported(
    tiny_corpus: TinyCorpus, run_tfm: RunTfm, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    model = tmp_path / "model"
    train = ["train", *tiny_corpus.train_arguments(), *TINY_SHAPE, "-o", str(model),
             "--set", "model.decoder_heads=4", "--set", "model.decoder_feed_forward_width=96",
             "--max-tokens", "512", "--lr", "8e-3", "--lr-warmup", "50", "--valid-freq", "100",
             "--save-freq", "100", "--dropout", "0.0", "--device", "cpu",
             "--set", "training.ema_decay=0.98"]  # fmt: skip
    for updates in ("200", "400"):  # it is resumed once
        result = run_tfm([*train, "--max-updates", updates])
        assert result.code == 0, result.err

    shape = load_model(model, CPU).config.model
    assert (shape.encoder, shape.decoder) == (StackShape(1, 2, 64), StackShape(1, 4, 96))
    assert metrics(model)[-1]["bleu"] > 90
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "2+4 heads, feed-forward 64+96" in card
    text = "".join(f"{line}\n" for line in tiny_corpus.lines("test.en"))
    translated = run_tfm(["translate", "--model", str(model), "--device", "cpu"], text)
    expected = tiny_corpus.lines("test.de")
    actual = translated.out.split("\n")[:-1]
    assert sum(ours == theirs for ours, theirs in zip(actual, expected, strict=True)) > 30

    for target in ("hf", "ctranslate2"):
        result = run_tfm(["export", str(model), "--to", target, "-o", str(tmp_path / target)])
        assert result.code == 0, result.err
        assert "verified with" in result.err
    result = run_tfm(["import", str(tmp_path / "hf"), "-o", str(tmp_path / "again")])
    assert result.code == 0, result.err
    ours, again = load_model(model, CPU), load_model(tmp_path / "again", CPU)
    assert again.config.model == shape
    tensors = again.transformer.state_dict()
    for name, tensor in ours.transformer.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def test_model_of_hugging_face_is_imported_and_verified(run_tfm: RunTfm, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    pair = random_tokenizers("shared")
    theirs = hugging_face_model(
        pair, d_model=48, encoder_ffn_dim=160, decoder_ffn_dim=224,
        encoder_attention_heads=4, decoder_attention_heads=6,
    )  # fmt: skip
    write_hugging_face_directory(tmp_path / "hf", theirs, pair)

    result = run_tfm(["import", str(tmp_path / "hf"), "-o", str(tmp_path / "model")])

    assert result.code == 0, result.err
    assert "verified with transformers" in result.err
    model = load_model(tmp_path / "model", CPU)
    assert model.config.model.encoder == StackShape(2, 4, 160)
    assert model.config.model.decoder == StackShape(2, 6, 224)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "width 48, 4+6 heads, feed-forward 160+224, " in card
    translator = Translator.load(tmp_path / "model", device="cpu")
    text = lines(3)
    assert len(list(translator.translate(text))) == len(text)
