import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.interop.marian_directories import (
    marian_arrays,
    marian_model,
    transformer_of,
    write_marian_directory,
)
from tests.interop.random_models import lines
from tests.tiers import representative
from tfm_cli.corpus.batch import pad_source
from tfm_cli.errors import ModelError
from tfm_cli.interop.marian.reading import read_marian
from tfm_cli.interop.tensors import ImportedModel
from tfm_cli.interop.verification import compare
from tfm_cli.model.positions import marian_sinusoids
from tfm_cli.tokenizer.pair import TokenizerPair

pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytest.importorskip("yaml", reason="needs tfm-cli[marian]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us

# The kind of tokenizers, settings of `MarianMTModel`, and the equivalent options of Marian.
SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all tied, decoder of its own": (
        "shared", {"decoder_ffn_dim": 40}, {"transformer_decoder_dim_ffn": "40"},
    ),
    "output tied, relu": (
        "vocabularies",
        {"activation_function": "relu", "decoder_layers": 1},
        {"tied_embeddings_all": "false", "tied_embeddings": "true", "dec_depth": "1",
         "transformer_ffn_activation": "relu"},
    ),
    "source tied": (
        "shared",
        {"tie_word_embeddings": False},
        {"tied_embeddings_all": "false", "tied_embeddings_src": "true"},
    ),
    "untied": (
        "vocabularies",
        {"tie_word_embeddings": False},
        {"tied_embeddings_all": "false"},
    ),
}  # fmt: skip


def logits_of_both(theirs: Any, imported: ImportedModel, pair: TokenizerPair) -> list[Tensor]:
    source, keep = pad_source(pair.source.encode(lines(12)), pair.source.eos_id)
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, pair.target.vocab_size - 1, (12, 9), generator=generator)
    target[:, 0] = pair.target.start_id
    attention = torch.ones_like(source) if keep is None else keep[:, 0, 0].long()
    with torch.no_grad():
        expected = theirs(
            input_ids=source, attention_mask=attention, decoder_input_ids=target
        ).logits
        return [transformer_of(imported)(source, keep, target), expected]


@representative("shape", SHAPES)
def test_logits_equal_those_of_the_original(tmp_path: Path, shape: str) -> None:
    kind, settings, options = SHAPES[shape]
    theirs, pair = marian_model(kind, **settings)
    write_marian_directory(tmp_path, marian_arrays(theirs), pair, **options)

    imported = read_marian(tmp_path, positions="halves")
    ours, expected = logits_of_both(theirs, imported, pair)

    # Marian has no start token, so ours has no probability.
    assert_close(ours[..., :-1], expected[..., :-1], rtol=0, atol=3e-5)
    assert imported.tokenizers.source.pieces == pair.source.pieces
    assert imported.tokenizers.target.pieces == pair.target.pieces


def test_positions_are_marians_own(directory: Path) -> None:
    theirs, pair = marian_model()
    for side in (theirs.model.encoder, theirs.model.decoder):
        side.embed_positions.weight.data = marian_sinusoids(torch.arange(64), 16)

    ours, expected = logits_of_both(theirs, read_marian(directory), pair)

    assert_close(ours[..., :-1], expected[..., :-1], rtol=0, atol=3e-5)


def test_start_token_has_no_probability(directory: Path) -> None:
    theirs, pair = marian_model()

    ours, _ = logits_of_both(theirs, read_marian(directory), pair)

    assert float(ours.softmax(dim=-1)[..., -1].max()) < 1e-30


@pytest.mark.slow
@representative("kind", ["shared", "vocabularies"])
def test_ctranslate2_converts_it_to_the_same_model(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("ctranslate2", reason="needs tfm-cli[ctranslate2]")
    from ctranslate2.converters import OpusMTConverter

    from tfm_cli.interop.runtimes import CTranslate2Runtime
    from tfm_cli.model_directory.weights import TrainedModel

    theirs, pair = marian_model(kind)
    options: dict[str, Any] = (
        {} if kind == "shared" else {"tied_embeddings_all": "false", "tied_embeddings": "true"}
    )
    decoder = {"allow-unk": "true"}  # CTranslate2 does not ban it
    directory = write_marian_directory(
        tmp_path / "source", marian_arrays(theirs), pair, decoder=decoder, **options
    )
    OpusMTConverter(str(directory)).convert(str(tmp_path / "converted"))
    imported = read_marian(directory, positions="halves")
    model = TrainedModel(imported.config, imported.tokenizers, transformer_of(imported))
    runtime = CTranslate2Runtime(tmp_path / "converted", imported.tokenizers, max_tokens=100)

    result = compare(model, runtime, lines(24))

    assert (result.lines, result.difference <= 1e-4) == (24, True)


def test_two_vocabularies_without_decoder_yml_are_distinguished_by_name(tmp_path: Path) -> None:
    theirs, pair = marian_model("vocabularies")
    write_marian_directory(
        tmp_path, marian_arrays(theirs), pair, tied_embeddings_all="false", tied_embeddings="true"
    )
    (tmp_path / "decoder.yml").unlink()
    shutil.copy(tmp_path / "target.vocab.yml", tmp_path / "a.trg.vocab.yml")
    (tmp_path / "target.vocab.yml").unlink()

    assert read_marian(tmp_path).tokenizers.source.pieces == pair.source.pieces


def test_two_archives_need_a_decoder_yml(directory: Path) -> None:
    (directory / "decoder.yml").unlink()
    shutil.copy(directory / "model.npz", directory / "other.npz")

    with pytest.raises(ModelError, match=r"expected one `.npz` file, got `model.npz`, `other.npz`"):
        read_marian(directory)


def test_two_models_are_refused(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    decoder = {"models": "[model.npz, other.npz]"}
    write_marian_directory(tmp_path, marian_arrays(theirs), pair, decoder=decoder)

    with pytest.raises(ModelError, match=r"`models` is .*, expected one name"):
        read_marian(tmp_path)


def test_two_vocabularies_must_be_named(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    decoder = {"vocabs": "[opus.vocab.yml]"}
    write_marian_directory(tmp_path, marian_arrays(theirs), pair, decoder=decoder)

    with pytest.raises(ModelError, match="expected a vocabulary for the source and one"):
        read_marian(tmp_path)


def test_missing_output_bias_is_zero(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    theirs.final_logits_bias.zero_()
    arrays = marian_arrays(theirs)
    del arrays["decoder_ff_logit_out_b"]
    write_marian_directory(tmp_path, arrays, pair, output_omit_bias="true")

    ours, expected = logits_of_both(theirs, read_marian(tmp_path, positions="halves"), pair)

    assert_close(ours[..., :-1], expected[..., :-1], rtol=0, atol=3e-5)


def test_old_output_matrices_are_transposed(tmp_path: Path) -> None:
    theirs, pair = marian_model(tie_word_embeddings=False)
    arrays = marian_arrays(theirs)
    arrays["decoder_ff_logit_out_W"] = arrays.pop("decoder_ff_logit_out_Wt").T
    write_marian_directory(
        tmp_path, arrays, pair, tied_embeddings_all="false", tied_embeddings_src="true"
    )

    ours, expected = logits_of_both(theirs, read_marian(tmp_path, positions="halves"), pair)

    assert_close(ours[..., :-1], expected[..., :-1], rtol=0, atol=3e-5)


def test_pre_norm_has_its_own_names(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    arrays = {
        f"{name}_pre" if "_ln_" in name else name: value
        for name, value in marian_arrays(theirs).items()
    }
    generator = np.random.default_rng(1)
    for side in ("encoder", "decoder"):
        for kind in ("scale", "bias"):
            arrays[f"{side}_top_ln_{kind}"] = generator.normal(size=(1, 16)).astype(np.float32)
    write_marian_directory(
        tmp_path, arrays, pair, transformer_preprocess="n", transformer_postprocess="da",
        transformer_postprocess_top="n",
    )  # fmt: skip

    imported = read_marian(tmp_path)

    assert imported.config.model.norm == "pre"
    result = imported.weights["decoder_norm.weight"]
    assert_close(result, torch.from_numpy(arrays["decoder_top_ln_scale"][0]), rtol=0, atol=0)


def test_missing_and_unknown_tensors_are_listed_at_once(tmp_path: Path) -> None:
    theirs, pair = marian_model()
    arrays = marian_arrays(theirs)
    arrays["Wpos"] = arrays.pop("encoder_l1_self_Wq")
    arrays["decoder_l1_ffn_b1"] = arrays["decoder_l1_ffn_b1"][:, :5]
    write_marian_directory(tmp_path, arrays, pair)

    with pytest.raises(ModelError) as caught:
        read_marian(tmp_path)

    message = str(caught.value)
    assert "encoder_l1_self_Wq: missing" in message
    assert "Wpos: unknown" in message
    assert "decoder_l1_ffn_b1: has shape (1, 5), expected (1, 24)" in message
