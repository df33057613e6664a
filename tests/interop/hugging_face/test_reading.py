import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from tests.decoding.searching import beam_search
from tests.interop.marian_directories import (
    changed_json,
    hugging_face_model,
    transformer_of,
    write_hugging_face_directory,
)
from tests.interop.random_models import lines, random_model, random_tokenizers
from tfm_cli.corpus.batch import pad_source
from tfm_cli.errors import ModelError
from tfm_cli.interop.hugging_face.reading import read_hugging_face
from tfm_cli.interop.hugging_face.writing import hugging_face_tensors
from tfm_cli.model.positions import marian_sinusoids
from tfm_cli.tokenizer.pair import TokenizerPair

transformers = pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us

LIMIT = 20  # tokens of a translation, on both sides

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied, swish": ("shared", {"encoder_layers": 2, "decoder_layers": 1}),
    "decoder of its own": (
        "shared",
        {"d_model": 48, "encoder_ffn_dim": 160, "decoder_ffn_dim": 224,
         "encoder_attention_heads": 4, "decoder_attention_heads": 6},
    ),
    "output tied, relu": (
        "shared",
        {"share_encoder_decoder_embeddings": False, "activation_function": "relu"},
    ),
    "source tied, silu": ("shared", {"tie_word_embeddings": False, "activation_function": "silu"}),
    "separate, gelu": ("vocabularies", {"decoder_layers": 3, "activation_function": "gelu"}),
    "separate, untied, unscaled": (
        "vocabularies",
        {"tie_word_embeddings": False, "scale_embedding": False, "encoder_layers": 1},
    ),
}  # fmt: skip


def ragged_batch(pair: TokenizerPair) -> tuple[Tensor, Tensor | None, Tensor]:
    encoded = pair.source.encode(lines(12))
    source, keep = pad_source(encoded, pair.source.eos_id)
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(0, pair.target.vocab_size, (12, 9), generator=generator)
    return source, keep, target


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_transformers(tmp_path: Path, shape: str) -> None:
    kind, settings = SHAPES[shape]
    pair = random_tokenizers(kind)
    theirs = hugging_face_model(pair, **settings)
    imported = read_hugging_face(
        write_hugging_face_directory(tmp_path, theirs, pair), allow_pickle=False
    )
    source, keep, target = ragged_batch(pair)

    with torch.no_grad():
        ours = transformer_of(imported)(source, keep, target)
        attention = torch.ones_like(source) if keep is None else keep[:, 0, 0].long()
        expected = theirs(
            input_ids=source, attention_mask=attention, decoder_input_ids=target
        ).logits

    # Sums differ in order, in fp32; logits range up to 10 here.
    assert_close(ours, expected, rtol=0, atol=3e-5)
    assert (imported.tokenizers.source.pieces, imported.tokenizers.target.pieces) == (
        pair.source.pieces,
        pair.target.pieces,
    )


@pytest.mark.parametrize(
    ("beam_size", "early_stopping", "renormalize"),
    [
        (1, False, False),
        (4, False, True),
        pytest.param(4, True, False, marks=pytest.mark.torture),
        pytest.param(4, False, False, marks=pytest.mark.torture),
    ],
)
def test_translations_and_scores_equal_those_of_generate(
    tmp_path: Path, beam_size: int, early_stopping: bool, renormalize: bool
) -> None:
    model = random_model(
        tokenizers="shared", width=32, heads=4, positions="sinusoidal_halves", activation="swish",
        output_bias=True,
    )  # fmt: skip
    theirs = hugging_face_model(
        model.tokenizers, d_model=32, encoder_attention_heads=4, decoder_attention_heads=4
    )
    theirs.load_state_dict(hugging_face_tensors(model, 64), strict=False)
    generation = {
        "num_beams": beam_size,
        "early_stopping": early_stopping if beam_size > 1 else None,
        "bad_words_ids": [[i] for i in model.tokenizers.target.banned_ids],
        "renormalize_logits": renormalize,
    }
    write_hugging_face_directory(tmp_path, theirs, model.tokenizers, **generation)
    imported = read_hugging_face(tmp_path, allow_pickle=False)
    # In double, since random weights give near ties.
    ours, theirs = transformer_of(imported).double(), theirs.double()
    encoded = imported.tokenizers.source.encode(lines(200, seed=2))
    source, keep = pad_source(encoded, 0)
    assert keep is not None

    search, target = imported.config.search, imported.tokenizers.target
    with torch.inference_mode():
        actual = beam_search(
            ours, source, keep, limits=[LIMIT] * 200, start_id=target.start_id,
            eos_id=target.eos_id, banned_ids=target.banned_ids, beam_size=search.beam_size,
            length_penalty=search.length_penalty, length_norm=search.length_norm,
            early_stopping=search.early_stopping, renormalize=search.renormalize,
        )  # fmt: skip
        expected = theirs.generate(
            input_ids=source, attention_mask=keep[:, 0, 0].long(), max_length=LIMIT + 2,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip

    assert search.beam_size == beam_size
    compared = set()
    for row, hypotheses in enumerate(actual):
        # At the limit, </s> is free there and scored here.
        sequence = [*expected.sequences[row, 1:].tolist(), target.eos_id]
        sequence = sequence[: sequence.index(target.eos_id)]
        if max(len(sequence), *(len(hypothesis.ids) for hypothesis in hypotheses)) == LIMIT:
            continue
        assert list(hypotheses[0].ids) == sequence
        compared.add(hypotheses[0].ids)
        if beam_size > 1:
            score = float(expected.sequences_scores[row])
            assert hypotheses[0].score == pytest.approx(score, abs=1e-5)
    assert len(compared) > 15


def test_pickle_is_read_only_if_allowed(directory: Path) -> None:
    expected = read_hugging_face(directory, allow_pickle=False)
    state = transformers.MarianMTModel.from_pretrained(directory).state_dict()
    torch.save(dict(state), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"has its weights in a pickle") as caught:
        read_hugging_face(directory, allow_pickle=False)
    actual = read_hugging_face(directory, allow_pickle=True)

    assert "--allow-pickle" in str(caught.value.hint)
    assert_close(actual.weights, expected.weights, rtol=0, atol=0)
    assert any("read as a pickle" in note for note in actual.notes)


def test_permuted_width_of_an_own_export_is_restored(directory: Path) -> None:
    from tfm_cli.interop.hugging_face.writing import to_halves

    before = read_hugging_face(directory, allow_pickle=False)
    changed_json(directory / "config.json", tfm_positions="sinusoidal")

    after = read_hugging_face(directory, allow_pickle=False)

    shape = after.config.model
    assert shape == dataclasses.replace(before.config.model, positions="sinusoidal")
    assert_close(to_halves(after.weights, shape), before.weights, rtol=0, atol=0)


def rewritten(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_zero_bias_is_dropped(directory: Path) -> None:
    rewritten(directory, lambda tensors: tensors["final_logits_bias"].zero_())

    imported = read_hugging_face(directory, allow_pickle=False)

    assert imported.config.model.output_bias is False


def test_half_precision_is_converted_with_a_note(directory: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    rewritten(directory, halve)
    imported = read_hugging_face(directory, allow_pickle=False)

    assert all(tensor.dtype == torch.float32 for tensor in imported.weights.values())
    assert imported.notes == ("weights stored as float16 are kept as float32",)


def test_equal_copies_of_a_tied_tensor_are_accepted(directory: Path) -> None:
    before = read_hugging_face(directory, allow_pickle=False)

    def copy(tensors: dict[str, Tensor]) -> None:
        shared = tensors.pop("model.shared.weight")
        tensors["lm_head.weight"] = shared.clone()
        tensors["model.encoder.embed_tokens.weight"] = shared.clone()

    rewritten(directory, copy)
    after = read_hugging_face(directory, allow_pickle=False)

    assert_close(after.weights, before.weights, rtol=0, atol=0)


def test_differing_copies_of_a_tied_tensor_are_refused(directory: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.shared.weight"] + 1

    rewritten(directory, add)

    with pytest.raises(ModelError, match=r"lm_head.weight: differs from model.shared.weight"):
        read_hugging_face(directory, allow_pickle=False)


def test_copies_of_other_types_are_refused_by_name(directory: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.shared.weight"].to(torch.float8_e4m3fn)

    rewritten(directory, add)

    with pytest.raises(ModelError, match=r"lm_head.weight: has type float8_e4m3fn, expected"):
        read_hugging_face(directory, allow_pickle=False)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("final_logits_bias", torch.zeros(1, 7), r"has shape \(1, 7\), expected \(1, "),
        ("final_logits_bias", torch.zeros(0), r"has shape \(0,\), expected \(1, "),
        ("final_logits_bias", None, "final_logits_bias: has type float8_e4m3fn, expected float32"),
        ("model.encoder.embed_positions.weight", torch.zeros(64, 15),
         r"has shape \(64, 15\), expected \(1 or more, 16\)"),
        ("model.decoder.embed_positions.weight", torch.zeros(0, 16),
         r"has shape \(0, 16\), expected \(1 or more, 16\)"),
        ("model.decoder.embed_positions.weight", torch.zeros(4, 16, dtype=torch.int32),
         "has type int32, expected float32"),
    ],
)  # fmt: skip
def test_unused_tensors_are_checked_too(
    directory: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn) if tensor is None else tensor

    rewritten(directory, store)

    with pytest.raises(ModelError, match=message) as caught:
        read_hugging_face(directory, allow_pickle=False)

    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["sinusoidal_halves", "sinusoidal_marian"])
def test_stored_positions_are_recognized(directory: Path, kind: str) -> None:
    theirs = transformers.MarianMTModel.from_pretrained(directory)
    table = theirs.model.encoder.embed_positions.weight.detach().clone()
    if kind == "sinusoidal_marian":
        table = marian_sinusoids(torch.arange(64), 16)

    def store(tensors: dict[str, Tensor]) -> None:
        for side in ("encoder", "decoder"):
            tensors[f"model.{side}.embed_positions.weight"] = table.clone()

    rewritten(directory, store)

    assert read_hugging_face(directory, allow_pickle=False).config.model.positions == kind


def test_other_positions_are_refused_by_name(directory: Path) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors["model.encoder.embed_positions.weight"] = torch.ones(64, 16)

    rewritten(directory, store)

    with pytest.raises(ModelError, match=r"encoder.embed_positions.weight holds no sinusoids"):
        read_hugging_face(directory, allow_pickle=False)


def test_two_kinds_of_positions_are_refused(directory: Path) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors["model.encoder.embed_positions.weight"] = marian_sinusoids(torch.arange(64), 16)
        theirs = transformers.MarianMTModel.from_pretrained(directory).model.decoder
        tensors["model.decoder.embed_positions.weight"] = theirs.embed_positions.weight.detach()

    rewritten(directory, store)

    with pytest.raises(ModelError, match="has two kinds of positions, sinusoidal_marian in model"):
        read_hugging_face(directory, allow_pickle=False)
