import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.interop.others import LIMIT, QUIET, hugging_face, translations
from tests.interop.random_models import TAG, lines, random_model, random_tokenizers
from tests.tiers import representative
from tests.translation.torch_translator import torch_translator
from tfm_cli.config.settings import SearchConfig
from tfm_cli.corpus.batch import pad_source
from tfm_cli.errors import ConfigError
from tfm_cli.interop.hugging_face.writing import (
    FILES,
    from_halves,
    halves_order,
    to_halves,
    write_hugging_face,
)
from tfm_cli.model_directory.weights import TrainedModel
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer
from tfm_cli.tokenizer.vocabulary import Vocabulary

pytestmark = QUIET

SHAPES: list[dict[str, Any]] = [
    {},
    {"tied_embeddings": 1, "positions": "sinusoidal_halves", "output_bias": True},
    {"tied_embeddings": 2, "positions": "sinusoidal_marian", "activation": "gelu"},
    {"tied_embeddings": 0, "encoder_layers": 1, "decoder_layers": 3, "scale_embeddings": False},
    {"tokenizers": "shared", "activation": "swish", "output_bias": True},
    {"heads": 4, "decoder_heads": 2, "decoder_feed_forward_width": 40},
    {"tokenizers": "separate", "tied_embeddings": 2, "output_bias": True},
    {"tokenizers": "separate", "tied_embeddings": 0, "positions": "sinusoidal_marian"},
    {"tokenizers": "vocabularies", "tied_embeddings": 2},
    {"tokenizers": "padless"},
    {"norm": "deepnorm", "encoder_layers": 3, "decoder_layers": 2},
]


def written(directory: Path, name: str) -> Any:
    return json.loads((directory / name).read_text("utf-8"))


@pytest.mark.slow
@representative("shape", [*SHAPES, {"renormalize": True}], count=2, ids=str)
def test_hugging_face_computes_and_translates_the_same(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    renormalize = bool(shape.get("renormalize"))
    shape = {name: value for name, value in shape.items() if name != "renormalize"}
    search = SearchConfig(beam_size=4, early_stopping=True, max_length=10, renormalize=renormalize)
    model = random_model(search=search, **shape)
    source, target = model.tokenizers.source, model.tokenizers.target
    text = lines(24, seed=5) + [f"{TAG} the cat", f"{TAG}a mat"] * bool(source.language_tags)

    write_hugging_face(tmp_path, model)
    theirs, tokenizer = hugging_face(tmp_path)

    batch = tokenizer(text, return_tensors="pt", padding=True)
    ids = source.encode(text)
    for row, line_ids in enumerate(ids):
        assert batch.input_ids[row, : len(line_ids) + 1].tolist() == [*line_ids, source.eos_id]
        assert int(batch.attention_mask[row].sum()) == len(line_ids) + 1
    padded, keep = pad_source(ids, source.eos_id)
    generator = torch.Generator().manual_seed(1)
    given = torch.randint(0, target.vocab_size, (len(text), 12), generator=generator)
    with torch.no_grad():
        expected = model.transformer(padded, keep, given)
        actual = theirs(**batch, decoder_input_ids=given).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)

    compared = 0
    for beam_size, more in ((4, {}), (1, {"num_beams": 1, "early_stopping": False})):
        rows = theirs.generate(**batch, **more)[:, 1:].tolist()
        best = translations(model, text, beam_size=beam_size, renormalize=renormalize)
        for row, ours in zip(rows, best, strict=True):
            if ours is not None:
                assert tuple(row[: row.index(target.eos_id)]) == ours[0]
                compared += 1
    assert compared >= 10
    assert theirs.generation_config.max_length == LIMIT + 2  # the start and </s>


@pytest.mark.slow
@representative("kind", ["joint", "shared", "separate", "padless"])
def test_both_tokenizers_give_the_same_text(kind: str, tmp_path: Path) -> None:
    search = SearchConfig(beam_size=1, max_length_factor=2.0)
    model = random_model(tokenizers=kind, tied_embeddings=2, search=search)
    text = lines(12, seed=9)
    translator = torch_translator(model.transformer, model.tokenizers, search=search)
    write_hugging_face(tmp_path, model)
    theirs, tokenizer = hugging_face(tmp_path)
    batch = tokenizer(text, return_tensors="pt", padding=True)

    result = tokenizer.batch_decode(
        theirs.generate(**batch, max_length=15), skip_special_tokens=True
    )

    same = [
        text == translation.text.strip()
        for text, translation in zip(result, translator.translate(text), strict=True)
        if translation.num_tokens <= 10  # otherwise it reached a limit
    ]
    assert len(same) >= 3
    assert all(same)


def test_banned_token_is_never_written(tmp_path: Path) -> None:
    model = random_model(output_bias=True)
    assert model.transformer.output_bias is not None
    model.transformer.output_bias.data[list(model.tokenizers.target.banned_ids)] += 50

    write_hugging_face(tmp_path, model)
    theirs, tokenizer = hugging_face(tmp_path)
    batch = tokenizer(lines(8), return_tensors="pt", padding=True)

    for row in theirs.generate(**batch, max_new_tokens=10)[:, 1:].tolist():
        before_end = row[: row.index(3)] if 3 in row else row
        assert not set(before_end) & set(model.tokenizers.target.banned_ids)


def test_neither_transformers_nor_a_network_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    write_hugging_face(tmp_path, random_model())

    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {"target_vocab.json"}


def test_files_describe_the_model(tmp_path: Path) -> None:
    search = SearchConfig(beam_size=3, length_penalty=0.6, early_stopping=False, max_length=1000)
    rates: dict[str, Any] = {"dropout": 0.125, "attention_dropout": 0.25, "activation_dropout": 0.5}
    model = random_model(search=search, **rates)

    write_hugging_face(tmp_path, model)

    config, generation = (
        written(tmp_path, "config.json"),
        written(tmp_path, "generation_config.json"),
    )
    assert {name: config[name] for name in rates} == rates
    assert config["tfm_positions"] == "sinusoidal"
    assert config["max_position_embeddings"] == 3 * 1000 + 10 + 1
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 3)
    assert config["decoder_start_token_id"] == generation["decoder_start_token_id"] == 2
    assert generation["bad_words_ids"] == [[0], [1], [2]]
    assert (generation["num_beams"], generation["length_penalty"]) == (3, 0.6)
    assert generation["early_stopping"] is False
    pieces = model.tokenizers.source.pieces
    assert written(tmp_path, "vocab.json") == {piece: i for i, piece in enumerate(pieces)}
    spm = model.tokenizers.source.model_bytes
    assert (tmp_path / "source.spm").read_bytes() == (tmp_path / "target.spm").read_bytes() == spm
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert not file.get_tensor("final_logits_bias").any()


def test_greedy_search_is_written_without_beam_options(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, random_model(search=SearchConfig(beam_size=1)))

    generation = written(tmp_path, "generation_config.json")
    assert generation["num_beams"] == 1
    assert not {"early_stopping", "length_penalty"} & set(generation)


def test_halves_are_native_and_cause_no_warning(tmp_path: Path, log_messages: list[str]) -> None:
    write_hugging_face(tmp_path, random_model(positions="sinusoidal_halves"))

    assert "tfm_positions" not in written(tmp_path, "config.json")
    assert log_messages == []


def test_marians_own_positions_are_written_as_a_table_with_a_warning(
    tmp_path: Path, log_messages: list[str]
) -> None:
    write_hugging_face(tmp_path, random_model(positions="sinusoidal_marian"))

    assert log_messages == ["model.positions: a runtime must read `sinusoidal_marian` from "
                    "`embed_positions` in model.safetensors"]  # fmt: skip
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        assert file.get_tensor("model.decoder.embed_positions.weight").shape == (512, 16)


def test_other_length_norm_causes_a_warning(tmp_path: Path, log_messages: list[str]) -> None:
    for penalty in (0.0, 1.0):
        search = SearchConfig(length_norm="wu", length_penalty=penalty)
        directory = tmp_path / str(penalty)
        directory.mkdir()
        write_hugging_face(directory, random_model(search=search))

    assert log_messages == ["search.length_norm: `wu` is unknown there, `power` was written"]


def test_no_repeat_ngram_size_is_written_if_set(tmp_path: Path) -> None:
    for size, expected in ((0, None), (3, 3)):
        search = SearchConfig(no_repeat_ngram_size=size)
        directory = tmp_path / str(size)
        directory.mkdir()
        write_hugging_face(directory, random_model(search=search))

        actual = written(directory, "generation_config.json").get("no_repeat_ngram_size")
        assert actual == expected


def test_repetition_penalty_is_left_out_with_a_warning(
    tmp_path: Path, log_messages: list[str]
) -> None:
    write_hugging_face(tmp_path, random_model(search=SearchConfig(repetition_penalty=1.5)))

    assert "repetition_penalty" not in written(tmp_path, "generation_config.json")
    assert log_messages == [
        "search.repetition_penalty: is computed differently there, and was left out"
    ]


def test_number_of_positions_is_limited_with_a_warning(
    tmp_path: Path, log_messages: list[str]
) -> None:
    write_hugging_face(tmp_path, random_model(search=SearchConfig(max_length=1_000_000)))

    assert written(tmp_path, "config.json")["max_position_embeddings"] == 16384
    assert written(tmp_path, "generation_config.json")["max_length"] == 16385
    assert log_messages == ["search.max_length: needs 3000011 positions, 16384 were written"]


def test_two_vocabularies_are_both_written(tmp_path: Path) -> None:
    model = random_model(tokenizers="vocabularies", tied_embeddings=0)

    write_hugging_face(tmp_path, model)

    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    target = model.tokenizers.target.pieces
    assert written(tmp_path, "target_vocab.json") == {piece: i for i, piece in enumerate(target)}
    assert written(tmp_path, "tokenizer_config.json")["separate_vocabs"] is True
    # <pad> has different ids on the two sides, so </s> is the padding.
    assert written(tmp_path, "config.json")["pad_token_id"] == 0
    assert written(tmp_path, "config.json")["decoder_start_token_id"] == len(target) - 1


def test_all_inexpressible_features_are_listed(tmp_path: Path) -> None:
    model = random_model(norm="pre", positions="rotary", activation="swiglu")

    with pytest.raises(ConfigError) as refused:
        write_hugging_face(tmp_path, model)

    assert str(refused.value).split("\n") == [
        "the model cannot be written as Hugging Face Marian",
        "  model.norm: Marian has `post` only, got `pre`",
        "  model.positions: Marian has sinusoids only, got `rotary`",
        "  model.activation: Marian has no gates, got `swiglu`",
    ]
    assert not list(tmp_path.iterdir())


def test_learned_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Marian has sinusoids only, got `learned`"):
        write_hugging_face(tmp_path, random_model(positions="learned"))


def test_two_end_pieces_are_refused(tmp_path: Path) -> None:
    model = with_target(random_tokenizers("separate"), lambda pieces: ("</s>", *pieces))

    with pytest.raises(
        ConfigError, match="has one end piece for both sides, got `</s>` with the id 3"
    ):
        write_hugging_face(tmp_path, model)


def test_other_piece_with_the_id_of_unk_is_refused(tmp_path: Path) -> None:
    pair = random_tokenizers("separate")
    model = with_target(pair, lambda pieces: ("<pad>", pieces[0], "<unk>", "</s>", *pieces[1:]))

    with pytest.raises(ConfigError, match=r"`<unk>` has the id 1, which is `.+` in the target"):
        write_hugging_face(tmp_path, model)


def with_target(pair: TokenizerPair, order: Any) -> TrainedModel:
    """Return a model whose target vocabulary has its own order."""
    plain = [piece for piece in pair.target.pieces if not piece.startswith("<")]
    missing = [p for p in ("<pad>", "<unk>", "</s>") if p not in order(plain)]
    vocabulary = Vocabulary((*order(plain), *missing), banned=("<pad>", "<unk>"))
    target = Tokenizer(pair.target.model_bytes, vocabulary)
    model = random_model(tokenizers="separate", tied_embeddings=2)
    return dataclasses.replace(model, tokenizers=TokenizerPair(pair.source, target))


def test_sines_come_before_cosines() -> None:
    assert halves_order(7).tolist() == [0, 2, 4, 6, 1, 3, 5]


def test_round_trip_is_bit_exact() -> None:
    for norm in ("post", "pre"):
        model = random_model(tokenizers="separate", tied_embeddings=0, norm=norm, output_bias=True)
        weights = model.transformer.state_dict()

        there = to_halves(weights, model.config.model)
        back = from_halves(there, model.config.model)

        assert back.keys() == weights.keys()
        assert all(torch.equal(back[name], weights[name]) for name in weights)
        assert all(value.data_ptr() != weights[name].data_ptr() for name, value in there.items())


def test_only_tensors_without_a_width_axis_are_unchanged() -> None:
    model = random_model(tokenizers="separate", tied_embeddings=0, norm="pre", output_bias=True)
    weights = model.transformer.state_dict()

    there = to_halves(weights, model.config.model)

    same = {name.rpartition(".")[0] for name in weights if torch.equal(there[name], weights[name])}
    biases = {"projection", "inner"}
    assert {name.rpartition(".")[2] for name in same} == {"", *biases}
    for name in weights:
        if name.endswith(("projection.weight", "inner.weight")):
            assert not torch.equal(there[name], weights[name])


@pytest.mark.slow
def test_halves_compute_the_same_as_interleaved_sinusoids() -> None:
    source = torch.arange(4, 12).reshape(2, 4)
    target = torch.arange(5, 15).reshape(2, 5)
    shapes: list[dict[str, Any]] = [
        {"norm": "post"},
        {"norm": "pre", "tied_embeddings": 0, "activation": "swiglu", "output_bias": True},
        {"tied_embeddings": 1, "scale_embeddings": False},
    ]
    for shape in shapes:
        ours = random_model(positions="sinusoidal", **shape)
        halves = random_model(positions="sinusoidal_halves", **shape)
        weights = to_halves(ours.transformer.state_dict(), ours.config.model)
        halves.transformer.load_state_dict(weights)

        with torch.no_grad():
            expected = ours.transformer(source, None, target)
            actual = halves.transformer(source, None, target)

        # Only the order of sums differs.
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
