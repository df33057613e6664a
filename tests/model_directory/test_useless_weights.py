"""Finite weights that overflow: every use of the model refuses it by name."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTfm, TinyCorpus
from tfm_cli.model_directory.weights import WeightsFacts, load_model, save_weights

LINES = "one two three\nfour\nseven eight nine one\n"

# The weights to scale, and the factor.
DAMAGE = {
    "all": ("", 1e30),
    "source embedding": ("source_embedding", 3e38),
    "target embedding": ("target_embedding", 3e38),
    "encoder attention": ("encoder_layers.0.self_attention", 1e25),
    "decoder attention": ("decoder_layers.0.cross_attention", 1e25),
    "feed-forward layer": ("decoder_layers.0.feed_forward", 1e25),
    "last norm": ("decoder_layers.0.feed_forward_norm", 3e38),
}

MODES = {
    "beam": [],
    "greedy": ["--greedy"],
    "scored": ["--with-score"],
    "scored greedy": ["--greedy", "--with-score"],
    "sampling": ["--sampling"],
    "n-best": ["--n-best", "3"],
    "word scores": ["--word-scores"],
    "alignment": ["--alignment", "soft"],
    "greedy alignment": ["--greedy", "--alignment", "hard"],
    "JSON": ["--format", "json"],
    "weighed": ["--no-repeat-ngram-size", "2", "--repetition-penalty", "1.5"],
    "workers": ["--workers", "2", "--buffer-size", "1"],
    "greedy workers": ["--workers", "2", "--greedy", "--max-tokens", "8"],
    "bf16": ["--precision", "bf16"],
    "greedy bf16": ["--greedy", "--precision", "bf16"],
    "int8": ["--precision", "int8"],
    "greedy int8": ["--greedy", "--precision", "int8"],
}


def _damaged(model: Path, place: Path, kind: str) -> Path:
    """Return a copy of a model in which some weights are far too large, yet finite."""
    shutil.copytree(model, place)
    loaded = load_model(model, torch.device("cpu"))
    prefix, factor = DAMAGE[kind]
    weights = {
        name: (tensor.double() * factor).clamp(-3e38, 3e38).float()
        if name.startswith(prefix)
        else tensor
        for name, tensor in loaded.transformer.state_dict().items()
    }
    changed = [name for name, tensor in weights.items() if name.startswith(prefix)]
    assert changed or kind == "source embedding"
    save_weights(place, weights, loaded.tokenizers, loaded.config.model, WeightsFacts(1, {}))
    return place


def _assert_refused(code: int, out: str, err: str, model: Path) -> None:
    assert (code, out) == (4, ""), (code, out, err[-500:])
    assert str(model) in err
    assert "finite" in err


@pytest.mark.parametrize("mode", MODES)
def test_translation_refuses_weights_that_overflow(
    mode: str, tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = _damaged(tiny_model, tmp_path / "damaged", "all")

    result = run_tfm(["translate", "--model", str(model), *MODES[mode]], LINES)

    _assert_refused(result.code, result.out, result.err, model)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("mode", ["beam", "greedy", "sampling", "alignment", "n-best"])
def test_large_weights_never_cause_a_crash(
    mode: str, kind: str, tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = _damaged(tiny_model, tmp_path / "damaged", kind)

    result = run_tfm(["translate", "--model", str(model), "--with-score", *MODES[mode]], LINES)

    assert result.code in (0, 4), result.err[-500:]
    if result.code == 4:
        _assert_refused(result.code, result.out, result.err, model)
    else:
        assert "nan" not in result.out
        assert "inf" not in result.out


def test_ensemble_refuses_weights_that_overflow(
    tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = _damaged(tiny_model, tmp_path / "damaged", "all")

    result = run_tfm(["translate", "--model", str(tiny_model), "--model", str(model)], LINES)

    _assert_refused(result.code, result.out, result.err, model)


def test_shortlist_refuses_weights_that_overflow(
    tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = _damaged(tiny_model, tmp_path / "damaged", "all")
    text = ["-s", tiny_corpus.path("valid.en"), "-t", tiny_corpus.path("valid.de")]

    result = run_tfm(["shortlist", "--model", str(model), *text])

    _assert_refused(result.code, result.out, result.err, model)
    assert not (model / "shortlist.safetensors").exists()


@pytest.mark.parametrize("mode", ["beam", "greedy", "sampling"])
def test_translation_with_a_shortlist_refuses_weights_that_overflow(
    mode: str, tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, run_tfm: RunTfm
) -> None:
    text = ["-s", tiny_corpus.path("valid.en"), "-t", tiny_corpus.path("valid.de")]
    table = str(tmp_path / "table")
    made = run_tfm(["shortlist", "--model", str(tiny_model), *text, "--output", table])
    assert made.code == 0, made.err
    model = _damaged(tiny_model, tmp_path / "damaged", "all")

    result = run_tfm(
        ["translate", "--model", str(model), "--shortlist-file", table, *MODES[mode]], LINES
    )

    _assert_refused(result.code, result.out, result.err, model)


def test_evaluate_refuses_weights_that_overflow(
    tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = _damaged(tiny_model, tmp_path / "damaged", "all")
    reference, source = tiny_corpus.path("valid.de"), tiny_corpus.path("valid.en")

    result = run_tfm(["evaluate", reference, "--model", str(model), "--source", source])

    _assert_refused(result.code, result.out, result.err, model)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("metrics", ["bleu", "loss", "loss,bleu,chrf"])
def test_excessive_learning_rate_diverges(
    metrics: str, precision: str, tiny_corpus: TinyCorpus, tmp_path: Path, run_tfm: RunTfm
) -> None:
    command = ["train", *tiny_corpus.train_arguments(), "--vocab-size", "60", "--lr", "1e9"]
    command += ["--set", "tokenizer.model_type=word", "--set", "tokenizer.byte_fallback=false"]
    command += ["--valid-freq", "3", "--max-tokens", "256", "--valid-metrics", metrics]
    command += ["--max-updates", "40", "--device", "cpu", "--precision", precision]

    result = run_tfm([*command, "--output", str(tmp_path / "model")])

    assert result.code == 6, (result.code, result.err[-800:])
    assert "lower `--learn-rate`" in result.err


@pytest.mark.parametrize("metrics", ["bleu", "loss", "bleu,loss"])
def test_non_finite_validation_is_divergence(
    metrics: str, tiny_model: Path, tiny_corpus: TinyCorpus, tmp_path: Path, run_tfm: RunTfm
) -> None:
    model = _damaged(tiny_model, tmp_path / "damaged", "all")
    command = ["train", *tiny_corpus.train_arguments(), "--pretrained-model", str(model)]
    command += ["--valid-freq", "1", "--max-updates", "2", "--valid-metrics", metrics]

    result = run_tfm([*command, "--device", "cpu", "--output", str(tmp_path / "model")])

    assert result.code == 6, (result.code, result.err[-800:])
    assert "validation" in result.err


@pytest.mark.filterwarnings("ignore")  # of packages that the verification imports
@pytest.mark.parametrize("to", ["hf", "ctranslate2"])
def test_export_refuses_weights_that_overflow(
    to: str, tiny_model: Path, tmp_path: Path, run_tfm: RunTfm
) -> None:
    pytest.importorskip({"hf": "transformers"}.get(to, to), reason="pip install 'tfm-cli[dev]'")
    model = _damaged(tiny_model, tmp_path / "damaged", "all")

    result = run_tfm(["export", str(model), "--to", to, "--output", str(tmp_path / "out")])

    _assert_refused(result.code, result.out, result.err, model)
    assert not (tmp_path / "out").exists()
