import dataclasses
import re
from typing import Any

import pytest

from tfm_cli.config.settings import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    ValidationConfig,
)
from tfm_cli.evaluation.scores import corpus_scores
from tfm_cli.training.artifacts import CardFacts, model_card
from tfm_cli.training.state import TrainState

SCORES = tuple(corpus_scores(["a b c d"], [["a b c d"]], metrics=["bleu", "chrf"]))


def card(config: RunConfig, **other: Any) -> str:
    facts: dict[str, Any] = {
        "precision": "bf16 on cpu",
        "num_parameters": 1_234_567,
        "vocab_sizes": (8000, 8000),
        "num_pairs": 20_000,
        "dropped": {"too long": 3, "blank side": 0},
        "update": 1500,
        "values": {"bleu": 34.214, "chrf": 61.5, "loss": 1.23456},
        "scores": SCORES,
    }
    state = TrainState(update=2000, target_tokens=9_876_543, train_seconds=7260)
    return model_card(config, state, CardFacts(**{**facts, **other}))


CONFIG = RunConfig(
    data=DataConfig(source=("train.en",), target=("train.fr",)),
    model=ModelConfig(width=128, encoder_layers=4, decoder_layers=2),
    training=TrainingConfig(ema_decay=0.999),
    validation=ValidationConfig(beam_size=3),
)


def test_card_has_data_shape_training_and_scores() -> None:
    text = card(CONFIG)

    for fact in (
        "| training text | train.en, train.fr |",
        "| pairs | 20000 (left out: 3 too long) |",
        "| shape | 4+2 layers, width 128, 8 heads, feed-forward 2048, post-norm, ",
        "| parameters | 1,234,567 |",
        "| vocabulary | 8,000 |",
        "| trained | 2000 updates, 9,876,543 target tokens, 2h01m |",
        "| precision | bf16 on cpu |",
        "| these weights | after update 1500, moving average 0.999 |",
        "## Scores on the validation text (beam 3)",
        "| loss | 1.2346 | nats per target token |",
        "tfm translate --model . < source.txt",
    ):
        assert fact in text
    assert text.endswith("`config.json`.\n")


def test_card_has_the_shape_of_a_different_decoder() -> None:
    shape = dataclasses.replace(CONFIG.model, decoder_heads=4, decoder_feed_forward_width=1536)

    text = card(dataclasses.replace(CONFIG, model=shape))

    assert "| shape | 4+2 layers, width 128, 8+4 heads, feed-forward 2048+1536, post" in text


def test_each_score_has_its_signature() -> None:
    text = card(CONFIG)

    assert re.search(r"^\| bleu \| 34\.21 \| `nrefs:1.*tok:13a.*` \|$", text, re.MULTILINE)
    assert re.search(r"^\| chrf \| 61\.50 \| `nrefs:1.*nc:6.*` \|$", text, re.MULTILINE)


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    data = DataConfig(source=("a|b.en",), target=("c\nd.fr",))
    columns = 0

    for line in card(RunConfig(data=data)).split("\n"):
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        if not line.startswith("|"):
            columns = 0
        else:
            columns = columns or cells
            assert cells == columns


def test_model_without_validation_has_no_scores() -> None:
    text = card(CONFIG, values={}, scores=(), update=2000)

    assert "Scores" not in text
    assert "| these weights | after update 2000" in text


def test_weights_without_an_average_mention_none() -> None:
    text = card(RunConfig(training=TrainingConfig(ema_decay=0.0)))

    assert "| these weights | after update 1500 |" in text


def test_sample_corpus_is_named() -> None:
    assert "| training text | the sample corpus of tfm (generated) |" in card(RunConfig())


@pytest.mark.parametrize("dropped", [{}, {"blank side": 0}])
def test_without_dropped_pairs_none_are_listed(dropped: dict[str, int]) -> None:
    assert "| pairs | 20000 |" in card(CONFIG, dropped=dropped)


def test_name_of_a_file_injects_neither_markdown_nor_html() -> None:
    name = "<img src=x onerror=alert(1)>\\|`[a](http://b)` **x**\n# y.en"

    text = card(RunConfig(data=DataConfig(source=(name,), target=("b.fr",))))

    (row,) = [line for line in text.split("\n") if line.startswith("| training text |")]
    assert not set(row[len("| training text |") : -1]) & set("\\|<>`*[]")
    assert "alert(1)" in row
