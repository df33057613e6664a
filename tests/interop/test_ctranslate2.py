import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.others import LIMIT, ctranslate2, pieces, translations
from tests.interop.random_models import lines, random_model, random_tokenizers
from tests.tiers import representative
from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.errors import ConfigError, ModelError, ResourceError
from tfm_cli.interop.ctranslate2 import FILES, QUANTIZATIONS, num_positions, write_ctranslate2
from tfm_cli.interop.verification import verify_quantized_ctranslate2
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

SHAPES: list[dict[str, Any]] = [
    {},
    {"norm": "pre", "activation": "swiglu", "positions": "learned"},
    {"norm": "pre", "activation": "gelu", "positions": "rotary", "scale_embeddings": False},
    {"positions": "rotary", "heads": 4, "output_bias": True, "decoder_heads": 2,
     "decoder_feed_forward_width": 40},
    {"tied_embeddings": 0, "positions": "sinusoidal_marian", "activation": "swish"},
    {"tied_embeddings": 1, "encoder_layers": 1, "decoder_layers": 3, "output_bias": True},
    {"tied_embeddings": 2, "positions": "sinusoidal_halves"},
    {"tokenizers": "shared", "activation": "swish", "output_bias": True},
    {"tokenizers": "separate", "tied_embeddings": 2},
    {"tokenizers": "vocabularies", "tied_embeddings": 0, "output_bias": True},
    {"tokenizers": "padless"},
    {"norm": "deepnorm", "encoder_layers": 3, "decoder_layers": 2, "activation": "gelu"},
]  # fmt: skip


@pytest.mark.slow
@representative("shape", SHAPES, count=2, ids=str)
def test_ctranslate2_computes_and_translates_the_same(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model(**shape)
    source, target = model.tokenizers.source, model.tokenizers.target
    text = lines(24, seed=5)
    write_ctranslate2(tmp_path, model, quantization=None)
    translator = ctranslate2(tmp_path)

    # Log-probabilities of given tokens, on a padded batch.
    generator = torch.Generator().manual_seed(1)
    given = torch.randint(0, target.vocab_size, (len(text), 12), generator=generator)
    given[torch.isin(given, torch.tensor([*target.banned_ids, target.eos_id]))] = (
        target.vocab_size // 2
    )
    results = translator.score_batch(source.encode_pieces(text), pieces(target, given.tolist()))
    actual = torch.tensor([result.log_probs[:12] for result in results])
    padded, keep = pad_source(source.encode(text), source.eos_id)
    start = torch.full((len(text), 1), target.start_id)
    with torch.no_grad():
        logits = model.transformer(padded, keep, torch.cat((start, given[:, :-1]), dim=1))
    logits[..., list(target.banned_ids)] = -math.inf
    expected = logits.log_softmax(dim=-1).gather(-1, given[..., None])[..., 0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)

    compared = 0
    for beam_size in (1, 4):
        theirs = translator.translate_batch(
            source.encode_pieces(text), beam_size=beam_size, min_decoding_length=0,
            max_decoding_length=LIMIT + 1, return_scores=True,
        )  # fmt: skip
        best = translations(model, text, beam_size=beam_size, renormalize=True)
        for result, ours in zip(theirs, best, strict=True):
            if ours is not None:
                assert result.hypotheses[0] == [target.pieces[index] for index in ours[0]]
                assert result.scores[0] == pytest.approx(ours[1], abs=1e-4)
                compared += 1
    assert compared >= 10


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_banned_token_is_never_written(quantization: str | None, tmp_path: Path) -> None:
    model = random_model(output_bias=True, tokenizers="shared")
    target = model.tokenizers.target
    assert model.transformer.output_bias is not None
    model.transformer.output_bias.data[list(target.banned_ids)] += 50

    write_ctranslate2(tmp_path, model, quantization=quantization)
    translator = ctranslate2(tmp_path, compute_type="default")
    results = translator.translate_batch(
        model.tokenizers.source.encode_pieces(lines(20)), num_hypotheses=4, beam_size=4,
        max_decoding_length=20, return_scores=True,
    )  # fmt: skip

    banned = {target.pieces[index] for index in target.banned_ids}
    assert not banned & {piece for r in results for actual in r.hypotheses for piece in actual}
    assert all(-30 < score <= 0 for result in results for score in result.scores)


def test_files_describe_the_model(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = random_model(tokenizers="vocabularies", tied_embeddings=0)
    source, target = model.tokenizers.source, model.tokenizers.target

    write_ctranslate2(tmp_path, model, quantization=None)

    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {"shared_vocabulary.json"}
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["add_source_eos"] is True
    assert config["add_source_bos"] is False
    assert config["decoder_start_token"] == "<pad>"
    assert (config["eos_token"], config["unk_token"]) == ("</s>", "<unk>")
    vocabularies = [
        tuple(json.loads((tmp_path / f"{side}_vocabulary.json").read_text("utf-8")))
        for side in ("source", "target")
    ]
    assert vocabularies == [source.pieces, target.pieces]
    assert (tmp_path / "source.spm").read_bytes() == source.model_bytes
    assert (tmp_path / "target.spm").read_bytes() == target.model_bytes


def test_joint_vocabulary_is_written_once(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")

    write_ctranslate2(tmp_path, random_model(), quantization=None)

    assert (tmp_path / "shared_vocabulary.json").is_file()
    assert not (tmp_path / "source_vocabulary.json").exists()


def test_positions_cover_the_longest_source_and_translation() -> None:
    long = random_model(search=SearchConfig(max_length=1000, max_length_factor=2.0))

    assert num_positions(long) == 2 * 1000 + 10 + 1
    assert num_positions(random_model()) == 512
    assert num_positions(random_model(positions="learned", max_positions=30)) == 30
    assert num_positions(random_model(search=SearchConfig(max_length=1_000_000))) == 16384


def test_quantized_weights_take_less_space(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    sizes = {}
    for quantization in (None, "float16", "int8"):
        directory = tmp_path / str(quantization)
        directory.mkdir()
        write_ctranslate2(
            directory, random_model(width=32, feed_forward_width=128), quantization=quantization
        )
        sizes[quantization] = (directory / "model.bin").stat().st_size

    assert sizes["int8"] < sizes[None]
    assert sizes["float16"] < sizes[None]


def test_differing_end_and_unknown_pieces_are_listed(tmp_path: Path) -> None:
    pair = random_tokenizers("separate")
    renamed = {"</s>": "<end>", "<unk>": "<what>"}
    order = tuple(renamed.get(piece, piece) for piece in pair.target.pieces)
    vocabulary = Vocabulary(order, eos="<end>", unk="<what>", banned=("<pad>", "<what>"))
    target = Tokenizer(pair.target.model_bytes, vocabulary)
    model = random_model(tokenizers="separate", tied_embeddings=2)
    model = dataclasses.replace(model, tokenizers=TokenizerPair(pair.source, target))

    with pytest.raises(ConfigError) as refused:
        write_ctranslate2(tmp_path, model, quantization=None)

    assert str(refused.value).split("\n") == [
        "the model cannot be written for CTranslate2",
        "  tokenizers: CTranslate2 has one end piece for both sides, got `</s>` and `<end>`",
        "  tokenizers: CTranslate2 has one unknown piece for both sides, got `<unk>` and `<what>`",
    ]
    assert not list(tmp_path.iterdir())


def test_without_ctranslate2_the_hint_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)

    with pytest.raises(ResourceError, match="CTranslate2 is not installed") as refused:
        write_ctranslate2(tmp_path, random_model(), quantization=None)

    assert refused.value.hint is not None  # with the version that the installed package requires
    assert re.fullmatch(r"install it with `pip install 'ctranslate2>=[\d.]+'`", refused.value.hint)


def test_quantized_weights_keep_most_translations(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    model = random_model()
    write_ctranslate2(tmp_path, model, quantization="float16")

    result = verify_quantized_ctranslate2(model, tmp_path, [*lines(20), ""])

    assert result.lines == 20
    assert 10 <= result.unchanged <= 20
    assert 0 < result.difference < 0.01


@pytest.mark.slow
def test_quantized_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="pip install 'tfm-cli[ctranslate2]'")
    write_ctranslate2(tmp_path, random_model(seed=2), quantization="int8")

    with pytest.raises(ModelError, match=r"log-probabilities differ by .+ on average"):
        verify_quantized_ctranslate2(random_model(seed=1), tmp_path, lines(20))
