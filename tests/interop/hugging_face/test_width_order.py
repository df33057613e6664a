from typing import Any

import pytest
import torch

from tests.interop.random_models import random_model
from tfm_cli.interop.hugging_face.writing import from_halves, halves_order, to_halves


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
            wanted = ours.transformer(source, None, target)
            found = halves.transformer(source, None, target)

        # Only the order of sums differs.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
