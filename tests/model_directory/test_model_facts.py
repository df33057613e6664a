"""The facts that a weights file records, which training reads when it resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sentencepiece_bytes import MODEL
from tfm_cli.config.settings import ModelConfig
from tfm_cli.errors import ModelError
from tfm_cli.model_directory.weights import (
    WeightsFacts,
    non_finite_tensors,
    save_weights,
    weights_facts,
)
from tfm_cli.tokenizer.pair import TokenizerPair
from tfm_cli.tokenizer.tokenizer import Tokenizer


def facts_of(directory: Path, update: Any, scores: Any) -> WeightsFacts | None:
    pair = TokenizerPair.joint(Tokenizer(MODEL))
    facts = WeightsFacts(update, scores)
    save_weights(directory, {"a": torch.ones(1)}, pair, ModelConfig(), facts)
    return weights_facts(directory)


def test_facts_are_read_back(tmp_path: Path) -> None:
    assert facts_of(tmp_path, 7, {"bleu": 12.5, "loss": 2}) == WeightsFacts(
        7, {"bleu": 12.5, "loss": 2.0}
    )


@pytest.mark.parametrize(
    ("update", "scores"),
    [
        ("7", {}), (None, {}), (True, {}), (7.0, {}), (7, []), (7, {"a": "b"}), (7, {"a": None}),
        (7, {"a": 10**400}),
    ],
)  # fmt: skip
def test_invalid_facts_are_refused(update: object, scores: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"file: it has no valid update and scores"):
        facts_of(tmp_path, update, scores)


def test_exactly_the_non_finite_tensors_are_returned() -> None:
    tensors = {
        "whole": torch.ones(2),
        "large": torch.full((4,), 3e38),  # with an infinite sum
        "nan": torch.tensor([1.0, float("nan")]),
        "both": torch.tensor([float("inf"), -float("inf")]),
        "none": torch.empty(0),
    }

    assert non_finite_tensors(tensors) == ["nan", "both"]
