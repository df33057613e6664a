import dataclasses
import typing
from typing import Any

import pytest
import torch

from tfm_cli.config.presets import PRESETS, SAMPLE_RUN
from tfm_cli.config.settings import SECTIONS, ModelConfig, RunConfig, StackShape
from tfm_cli.config.validation import Problems, coerce, from_mapping
from tfm_cli.model_directory.weights import build_transformer

FIELDS = [
    pytest.param(section, field, id=f"{section}.{field.name}")
    for section in SECTIONS
    for field in dataclasses.fields(getattr(RunConfig(), section))
]


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_default_is_legal_and_help_is_a_sentence(
    section: str, field: dataclasses.Field[Any]
) -> None:
    kind = typing.get_type_hints(RunConfig)[section]

    value, complaint = coerce(
        field.default, typing.get_type_hints(kind)[field.name], field.metadata
    )

    assert complaint == ""
    assert value == field.default
    assert type(value) is type(field.default)
    assert field.metadata["help"].endswith(".")
    assert field.metadata["help"][0].isupper()


def test_settings_cannot_be_changed_in_place() -> None:
    config = RunConfig()

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.width = 5  # type: ignore[misc]


@pytest.mark.parametrize("values", [*PRESETS.values(), SAMPLE_RUN], ids=[*PRESETS, "sample run"])
def test_preset_has_legal_settings_only(values: dict[str, Any]) -> None:
    problems = Problems()

    from_mapping(values, problems)

    assert problems.lines == []


# Vaswani et al. 2017, table 3: N, d_model, d_ff, h, P_drop, e_ls, train steps, parameters.
TABLE_3 = {
    "base": (6, 512, 2048, 8, 0.1, 0.1, 100_000, 65e6),
    "big": (6, 1024, 4096, 16, 0.3, 0.1, 300_000, 213e6),
}


def test_decoder_is_as_the_encoder_where_nothing_else_is_said() -> None:
    shape = ModelConfig(encoder_layers=3, decoder_layers=1, width=32, heads=4)

    assert shape.encoder == StackShape(3, 4, 2048)
    assert shape.decoder == StackShape(1, 4, 2048)
    assert dataclasses.replace(shape, decoder_heads=4, decoder_feed_forward_width=2048) == shape


def test_decoder_may_have_heads_and_feed_forward_layers_of_its_own() -> None:
    shape = ModelConfig(
        heads=4, feed_forward_width=160, decoder_heads=6, decoder_feed_forward_width=224
    )

    assert shape.encoder == StackShape(6, 4, 160)
    assert shape.decoder == StackShape(6, 6, 224)


@pytest.mark.parametrize("name", TABLE_3)
def test_base_and_big_are_the_papers(name: str) -> None:
    layers, width, inner, heads, dropout, smoothing, updates, num_parameters = TABLE_3[name]

    config = from_mapping(PRESETS[name], Problems())
    with torch.device("meta"):
        model = build_transformer(config.model, (config.tokenizer.vocab_size,) * 2)

    shape, recipe = config.model, config.training
    assert (shape.encoder_layers, shape.decoder_layers) == (layers, layers)
    assert (shape.width, shape.feed_forward_width, shape.heads) == (width, inner, heads)
    assert (shape.dropout, recipe.label_smoothing) == (dropout, smoothing)
    assert (shape.norm, shape.positions, shape.activation) == ("post", "sinusoidal", "relu")
    assert shape.tied_embeddings == 3
    assert recipe.max_updates == updates
    # Sections 5.1 to 5.3: 37000 pieces, 25000 target pieces a batch, Adam, 4000 warm-up steps.
    assert (config.tokenizer.vocab_size, recipe.max_tokens) == (37_000, 25_000)
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert recipe.lr_warmup == 4000
    assert recipe.learn_rate == pytest.approx(width**-0.5 * 4000**-0.5)
    result = sum(parameter.numel() for parameter in model.parameters())
    assert result == pytest.approx(num_parameters, rel=0.04)  # the paper rounds, and counts 65
