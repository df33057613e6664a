from pathlib import Path
from typing import Any

import pytest

from tests.interop.marian_directories import (
    changed_json,
)
from tfm_cli.errors import ModelError
from tfm_cli.interop.hugging_face.reading import read_hugging_face

transformers = pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of transformers do not concern us


def test_search_settings_come_from_the_source(directory: Path) -> None:
    changed_json(
        directory / "generation_config.json",
        num_beams=6, length_penalty=0.8, early_stopping=True, bad_words_ids=[[1]],
        no_repeat_ngram_size=3,
    )  # fmt: skip

    imported = read_hugging_face(directory, allow_pickle=False)

    search, target = imported.config.search, imported.tokenizers.target
    assert (search.beam_size, search.length_penalty, search.early_stopping) == (6, 0.8, True)
    assert (search.length_norm, search.no_repeat_ngram_size) == ("power", 3)
    assert (target.banned_ids, target.eos_id) == ((1,), 0)
    assert target.start_id == target.vocab_size - 1


def test_dropout_comes_from_the_source(directory: Path) -> None:
    rates = {"dropout": 0.125, "attention_dropout": 0.25, "activation_dropout": 0.5}
    changed_json(directory / "config.json", **rates)

    imported = read_hugging_face(directory, allow_pickle=False)

    assert {name: getattr(imported.config.model, name) for name in rates} == rates
    assert imported.config.model.word_dropout == 0
    assert imported.notes == ()


def test_without_a_generation_config_the_config_is_used(directory: Path) -> None:
    (directory / "generation_config.json").unlink()
    changed_json(directory / "config.json", num_beams=3, bad_words_ids=[[1], [0]])

    imported = read_hugging_face(directory, allow_pickle=False)

    assert imported.config.search.beam_size == 3
    assert imported.tokenizers.target.banned_ids == (1,)  # </s> is never banned


def test_invalid_sizes_are_the_only_problem_listed(directory: Path) -> None:
    changed_json(directory / "config.json", vocab_size=10_000_000, decoder_vocab_size=None)

    with pytest.raises(ModelError) as caught:
        read_hugging_face(directory, allow_pickle=False)

    assert str(caught.value).split("\n  ")[1:] == [
        "config.json: `vocab_size` must be between 2 and 1000000, got `10000000`"
    ]


def test_invalid_end_is_the_only_problem_listed(directory: Path) -> None:
    changed_json(directory / "generation_config.json", eos_token_id="end", forced_eos_token_id=None)
    changed_json(directory / "config.json", eos_token_id=None)

    with pytest.raises(ModelError) as caught:
        read_hugging_face(directory, allow_pickle=False)

    assert str(caught.value).split("\n  ")[1:] == [
        "generation_config.json: `eos_token_id` is `end`, expected one id"
    ]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"max_length": 512}, "`max_length` of `512` is left out: there, translations may "
                              "have 511 tokens; here, 3 for each source token plus 10"),
        ({"max_new_tokens": 64, "max_length": 512},
         "`max_new_tokens` of `64` is left out: there, translations may have 64 "
         "tokens; here, 3 for each source token plus 10"),
        ({"max_length": 20}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_length_limit_is_noted(directory: Path, changes: dict[str, Any], note: str | None) -> None:
    changed_json(directory / "generation_config.json", **changes)

    assert read_hugging_face(directory, allow_pickle=False).notes == ((note,) if note else ())


def test_aliases_must_agree(directory: Path) -> None:
    changed_json(directory / "config.json", num_hidden_layers=5)

    with pytest.raises(ModelError, match="`num_hidden_layers` is `5`, but `encoder_layers` is `2`"):
        read_hugging_face(directory, allow_pickle=False)


def test_all_unsupported_options_are_listed(directory: Path) -> None:
    changed_json(
        directory / "config.json",
        normalize_before=True, add_final_layer_norm=True, normalize_embedding=True,
        activation_function="mish", static_position_embeddings=False, decoder_ffn_dim=-48,
    )  # fmt: skip
    changed_json(directory / "generation_config.json", forced_bos_token_id=3)

    with pytest.raises(ModelError) as caught:
        read_hugging_face(directory, allow_pickle=False)

    message = str(caught.value)
    assert "cannot be imported" in message
    names = ("normalize_before", "add_final_layer_norm", "normalize_embedding", "`mish`",
             "static_position_embeddings", "decoder_ffn_dim", "forced_bos_token_id")  # fmt: skip
    assert [name for name in names if name not in message] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "`model_type` is `bart`, expected `marian`"),
        ({"model_type": None}, "`model_type` is missing, expected `marian`"),
        ({"architectures": ["MarianForCausalLM"]}, "`architectures` is"),
        ({"decoder_attention_heads": 3}, "`decoder_attention_heads` must divide `d_model`"),
        ({"decoder_attention_heads": 0}, "`decoder_attention_heads` must be at least 1, got 0"),
        ({"decoder_ffn_dim": 0}, "`decoder_ffn_dim` must be at least 1, got 0"),
        ({"decoder_ffn_dim": None}, "`decoder_ffn_dim` is missing"),
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "must divide `d_model`"),
        ({"d_model": None}, "`d_model` is missing"),
        ({"d_model": 0}, "`d_model` must be at least 2, got 0"),
        ({"encoder_layers": "two"}, "`encoder_layers` must be a whole number"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` must be true or false"),
        ({"eos_token_id": 2}, "`eos_token_id` is 0 in generation_config.json and 2 in config.json"),
        ({"attention_dropout": "\x1b"}, "`attention_dropout` must be a number, got `\x1b`"),
        ({"decoder_layerdrop": [1]}, "`decoder_layerdrop` must be a number, got"),
        ({"tfm_positions": "spiral"}, "`tfm_positions` is `spiral`"),
        ({"tfm_positions": "sinusoidal_marian"}, "but no such table is stored"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` is"),
    ],
)  # fmt: skip
def test_unsupported_config_is_refused(
    directory: Path, changes: dict[str, Any], message: str
) -> None:
    changed_json(directory / "config.json", **changes)

    with pytest.raises(ModelError, match=message):
        read_hugging_face(directory, allow_pickle=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_repeat_ngram_size": -1}, "`no_repeat_ngram_size` must be at least 0, got -1"),
        ({"repetition_penalty": 1.2}, "`repetition_penalty` is `1.2`, expected `1.0`"),
        ({"do_sample": True}, "`do_sample` is true, expected false"),
        ({"early_stopping": "never"}, "`early_stopping` must be true or false, got `never`"),
        ({"eos_token_id": [0, 1]}, "expected one id"),
        ({"bad_words_ids": [[3, 4]]}, "expected single ids"),
        ({"bad_words_ids": [[999]]}, "generation_config.json: `bad_words_ids` has the id 999"),
        ({"num_beams": 0}, "`num_beams` must be at least 1, got 0"),
        ({"forced_eos_token_id": 3}, "`forced_eos_token_id` is `3`, expected `eos_token_id`"),
    ],
)
def test_unsupported_generation_is_refused(
    directory: Path, changes: dict[str, Any], message: str
) -> None:
    changed_json(directory / "generation_config.json", **changes)

    with pytest.raises(ModelError, match=message):
        read_hugging_face(directory, allow_pickle=False)
