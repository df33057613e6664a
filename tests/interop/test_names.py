import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from tests.interop.marian_directories import hugging_face_model, marian_arrays
from tests.interop.random_models import random_tokenizers
from tfm_cli.config.settings import ModelConfig
from tfm_cli.interop.names import TensorName, tensor_names
from tfm_cli.model_directory.weight_shapes import weight_shapes

SHAPES = [
    ModelConfig(
        encoder_layers=1, decoder_layers=2, width=16, heads=2, feed_forward_width=24,
        norm=norm, positions=positions, activation=activation, tied_embeddings=tied,
        output_bias=bias, max_positions=20,
    )
    for norm, (positions, activation), tied, bias in itertools.product(
        ("post", "pre"),
        (("sinusoidal", "swish"), ("learned", "swiglu"), ("rotary", "relu")),
        (0, 1, 2, 3),
        (False, True),
    )
]  # fmt: skip
SIDES = ("encoder", "decoder")
FORMATS = ("hugging_face", "marian", "ctranslate2")


def sizes(config: ModelConfig) -> tuple[int, int]:
    return (30, 30) if config.tied_embeddings & 1 else (30, 34)


@pytest.mark.parametrize("config", SHAPES)
def test_every_part_of_every_parameter_is_named_once(config: ModelConfig) -> None:
    table = tensor_names(config)

    result = Counter((name.tfm, name.part) for name in table)
    parts = {name.tfm: name.parts for name in table}
    shapes = weight_shapes(config, sizes(config))

    assert set(parts) == set(shapes)
    assert result == Counter((name, part) for name in parts for part in range(parts[name]))
    assert all(shapes[name][0] % count == 0 for name, count in parts.items())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("config", SHAPES)
def test_foreign_name_belongs_to_one_tensor(config: ModelConfig, kind: str) -> None:
    owners: dict[str, list[TensorName]] = {}
    for name in tensor_names(config):
        foreign = getattr(name, kind)
        if foreign is not None:
            owners.setdefault(foreign, []).append(name)

    for together in owners.values():
        assert len({name.tfm for name in together}) == 1
        places = [name.part for name in together]
        assert places == list(range(places[0], places[0] + len(places)))
        if kind != "ctranslate2":
            assert len(together) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("shares", "ties"), list(itertools.product((True, False), repeat=2)))
def test_table_covers_all_tensors_of_a_real_model(shares: bool, ties: bool) -> None:
    pytest.importorskip("transformers", reason="needs tfm-cli[hf]")
    theirs: Any = hugging_face_model(
        random_tokenizers("shared"), share_encoder_decoder_embeddings=shares,
        tie_word_embeddings=ties,
    )  # fmt: skip
    config = ModelConfig(
        encoder_layers=2, decoder_layers=2, width=16, heads=2, feed_forward_width=24,
        activation="swish", output_bias=True, tied_embeddings=shares + 2 * ties,
    )  # fmt: skip

    named = {name.hugging_face for name in tensor_names(config)}
    state = theirs.state_dict()
    # A tied parameter is stored under each of its names.
    copies = {
        name
        for name in ("lm_head.weight", *(f"model.{s}.embed_tokens.weight" for s in SIDES))
        if name not in named and any(torch.equal(state[name], state[other]) for other in named)
    }

    assert named <= set(state)
    left = set(state) - named - copies
    assert {name for name in left if "embed_positions" not in name} == set()
    marian = {name.marian for name in tensor_names(config)}
    assert marian == set(marian_arrays(theirs))


@pytest.mark.parametrize("name", ["decoder_top_ln_scale", "encoder_l1_self_Wo_ln_scale_pre"])
def test_pre_norms_have_marians_names(name: str) -> None:
    # As Marian 1.12 writes them with `--transformer-preprocess n --transformer-postprocess-top n`.
    result = {entry.marian for entry in tensor_names(ModelConfig(norm="pre"))}

    assert name in result
