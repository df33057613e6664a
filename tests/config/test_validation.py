from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm_cli.config.settings import RunConfig
from tfm_cli.config.validation import Problems, duration_seconds, from_mapping
from tfm_cli.errors import ConfigError


def problems_of(tables: dict[str, Any]) -> list[str]:
    problems = Problems()
    from_mapping(tables, problems)
    return problems.lines


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"widht": 5}}, "model.widht: unknown setting; did you mean `width`?"),
        ({"model": {"qqq": 5}}, "model.qqq: unknown setting"),
        ({"modle": {}}, "modle: unknown section; did you mean `model`?"),
        ({"model": 5}, "model: must be a table of settings"),
        ({"model": {"width": "64"}}, "model.width: must be a whole number, got `64`"),
        ({"model": {"width": 64.0}}, "model.width: must be a whole number, got 64.0"),
        ({"model": {"width": True}}, "model.width: must be a whole number, got true"),
        ({"model": {"dropout": "much"}}, "model.dropout: must be a number, got `much`"),
        ({"model": {"dropout": 1}}, "model.dropout: must be below 1, got 1.0"),
        ({"model": {"dropout": -0.5}}, "model.dropout: must be at least 0, got -0.5"),
        ({"model": {"dropout": float("nan")}}, "model.dropout: must be a finite number, got nan"),
        (
            {"data": {"subword_sampling": "all"}},
            "data.subword_sampling: must be one of `none`, `source`, `target`, `both`, got `all`",
        ),
        (
            {"data": {"subword_sampling": "both"}, "tokenizer": {"model_type": "char"}},
            "tokenizer.model_type: must be unigram or bpe with data.subword_sampling, got `char`: "
            "it cuts text in one way only",
        ),
        ({"model": {"heads": 257}}, "model.heads: must be at most 256, got 257"),
        ({"training": {"learn_rate": 0}}, "training.learn_rate: must be at least 1e-20, got 0.0"),
        (
            {"training": {"learn_rate": 10**400}},
            "training.learn_rate: must be a finite number, got one of too many digits",
        ),
        ({"training": {"max_time": 5}}, "training.max_time: must be a string, got 5"),
        ({"data": {"source": [1]}}, "data.source: must be a list of strings, got [1]"),
        ({"data": {"weights": "a"}}, "data.weights: must be a list of numbers, got `a`"),
        ({"data": {"weights": [True]}}, "data.weights: must be a list of numbers, got [True]"),
        ({"data": {"weights": [0]}}, "data.weights: must be at least 1e-12, got 0.0"),
        ({"data": {"weights": [100.5]}}, "data.weights: must be at most 100, got 100.5"),
        ({"data": {"weights": ["nan"]}}, "data.weights: must be a finite number, got nan"),
        (
            {"data": {"weights": [1, 2]}},
            "data.weights: must be as many numbers as training files, got 2 and 1",
        ),
        ({"data": {"max_ratio": 0.5}}, "data.max_ratio: must be 0 or at least 1, got 0.5"),
        (
            {"data": {"pairs": ["a"], "pairs_format": "csv"}},
            "data.pairs_format: must be one of `auto`, `tsv`, `jsonl`, got `csv`; "
            "did you mean `tsv`?",
        ),
        (
            {"tokenizer": {"byte_fallback": "Yes"}},
            "tokenizer.byte_fallback: must be true or false, got `Yes`",
        ),
        (
            {"model": {"norm": "psot"}},
            "model.norm: must be one of `post`, `pre`, `deepnorm`, got `psot`; did you mean "
            "`post`?",
        ),
        (
            {"validation": {"metrics": ["bleu", "ter"]}},
            "validation.metrics: must be one of `bleu`, `chrf`, `loss`, got `ter`",
        ),
        ({"validation": {"metrics": []}}, "validation.metrics: must not be empty"),
    ],
)
def test_wrong_setting_is_named_with_what_was_wanted(tables: dict[str, Any], message: str) -> None:
    assert problems_of(tables) == [message]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"model": {"width": 100, "heads": 3}},
            "model.heads: must divide model.width, got 3 and 100",
        ),
        (
            {"model": {"width": 12, "heads": 4, "positions": "rotary"}},
            "model.heads: must leave an even width for each head, got 3 "
            "(rotary positions rotate pairs)",
        ),
        (
            {"model": {"width": 12, "heads": 4, "decoder_heads": 5}},
            "model.decoder_heads: must divide model.width, got 5 and 12",
        ),
        (
            {"model": {"width": 12, "heads": 3, "decoder_heads": 4, "positions": "rotary"}},
            "model.decoder_heads: must leave an even width for each head, got 3 "
            "(rotary positions rotate pairs)",
        ),
        (
            {"model": {"positions": "learned", "max_positions": 100}},
            "model.max_positions: must be at least 779, got 100: from "
            "data.max_length, search.max_length and search.max_length_factor",
        ),
        (
            {"data": {"source": ["a", "b"], "target": "c"}},
            "data.target: must be as many files as data.source, got 1 and 2",
        ),
        (
            {"data": {"valid_source": "a", "valid_target": "b"}},
            "data.source: is missing: there is validation text, but no training text",
        ),
        (
            {"search": {"n_best": 5, "beam_size": 4}},
            "search.n_best: must be at most search.beam_size, got 5 and 4",
        ),
        (
            {"tokenizer": {"model": "a.model"}, "training": {"pretrained_model": "b"}},
            "tokenizer.model: must not be set with training.pretrained_model, "
            "which has its own tokenizer",
        ),
        (
            {"training": {"device": "gpu"}},
            "training.device: must be auto, cpu, cuda, cuda:N or mps, got `gpu`",
        ),
        (
            {"training": {"max_time": "soon"}},
            "training.max_time: must be a duration such as 90s, 20m or 2h35m, got `soon`",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_named(tables: dict[str, Any], message: str) -> None:
    assert problems_of(tables) == [message]


def test_even_share_of_a_head_is_asked_for_with_rotary_positions_only() -> None:
    assert problems_of({"model": {"width": 12, "heads": 4, "positions": "learned"}}) == []


@pytest.mark.parametrize(
    ("training", "needed"),
    [
        ({"consistency": "r-drop"}, "dropout"),
        ({"consistency": "simcut", "token_cutoff": 0.0}, "dropout or training.token_cutoff"),
    ],
)
def test_consistency_training_needs_two_different_views(
    training: dict[str, Any], needed: str
) -> None:
    method = training["consistency"]
    tables = {"model": {"dropout": 0.0}, "training": training}

    assert problems_of(tables) == [
        f"training.consistency: must be `none` without {needed}, got `{method}`: "
        "both computations would be the same"
    ]
    for name in ("dropout", "attention_dropout", "activation_dropout", "word_dropout"):
        assert problems_of({**tables, "model": {"dropout": 0.0, name: 0.1}}) == []
    without = {"model": {"dropout": 0.0}}
    assert problems_of({**without, "training": {"consistency": "simcut"}}) == []
    assert problems_of({**without, "training": {"token_cutoff": 0.0}}) == []


def test_all_problems_are_told_at_once() -> None:
    problems = Problems()
    from_mapping({"model": {"widht": 5, "heads": 0}, "training": {"seed": -1}}, problems)

    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()

    assert str(caught.value) == (
        "the settings have 3 problems\n"
        "  model.widht: unknown setting; did you mean `width`?\n"
        "  model.heads: must be at least 1, got 0\n"
        "  training.seed: must be at least 0, got -1"
    )


def test_no_problem_raises_nothing() -> None:
    problems = Problems()

    config = from_mapping({}, problems)
    problems.raise_if_any()

    assert config == RunConfig()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("300", 300),
        ("0.5", 0.5),
        ("2h35m", 9300),
        ("1h30m10s", 5410),
        ("1d2h", 93_600),
        ("90m5s", 5405),
        ("1d5s", 86_405),
    ],
)
def test_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


def test_empty_duration_is_no_limit() -> None:
    assert duration_seconds("") is None


@pytest.mark.parametrize(
    "text",
    [
        "s",
        "0",
        "0m",
        "-5",
        "0h0m",
        "30m1h",
        "1h30",
        "1.5h30m",
        "1h 30m",
        "1h1h",
        "nan",
        "inf",
        "1e999",
        "5 m",
        "٣m",
    ],
)
def test_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration such as 90s, 20m or 2h35m"):
        duration_seconds(text)


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["preset", "data", "tokenizer", "model", "training", "search", "x"]),
        anything
        | st.dictionaries(
            st.sampled_from(
                ["width", "heads", "source", "metrics", "max_time", "norm", "device", "seed", "y"]
            ),
            anything,
        ),
    )
)
def test_any_table_gives_settings_or_problems(tables: dict[str, Any]) -> None:
    check: Callable[[dict[str, Any]], list[str]] = problems_of

    lines = check(tables)

    assert all(isinstance(line, str) for line in lines)
