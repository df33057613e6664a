"""Settings survive being written and read."""

import dataclasses
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfm_cli.config.loading import resolve, to_mapping, write_toml
from tfm_cli.config.presets import PRESETS
from tfm_cli.config.settings import SECTIONS, RunConfig
from tfm_cli.config.validation import Problems, from_mapping


def _values(field: dataclasses.Field[Any], kind: Any) -> st.SearchStrategy[Any]:
    bounds = field.metadata
    if bounds["choices"] and field.type not in (int, str):
        return st.lists(st.sampled_from(bounds["choices"]), min_size=1).map(tuple)
    if bounds["choices"]:
        return st.sampled_from(bounds["choices"])
    lowest, highest = bounds["ge"], bounds["le"]
    if kind is int:
        top = highest if highest is not None else (bounds["lt"] or 10**9) - 1
        return st.integers(lowest, int(top))
    if kind is float:
        is_open = bounds["lt"] is not None
        return st.floats(
            lowest,
            bounds["lt"] if is_open else highest,
            exclude_max=is_open,
            allow_nan=False,
            allow_infinity=False,
        )
    if kind == tuple[float, ...]:
        return st.lists(st.floats(0.5, 100), max_size=3).map(tuple)
    if kind is bool:
        return st.booleans()
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
    return text if kind is str else st.lists(text, max_size=3).map(tuple)


def _section(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    fields = {f.name: _values(f, hints[f.name]) for f in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


_HINTS = typing.get_type_hints(RunConfig)
_CONFIGS: st.SearchStrategy[RunConfig] = st.builds(
    RunConfig,
    preset=st.sampled_from(sorted(PRESETS)),
    **{section: _section(_HINTS[section]) for section in SECTIONS},
)


def _fits_together(config: RunConfig) -> RunConfig:
    """The settings, but for those that must agree with others."""
    num_files = max(1, len(config.data.source) + len(config.data.pairs))
    weights = (*config.data.weights, *[1.0] * num_files)[:num_files]
    has_text = config.data.source or config.data.pairs
    has_segmentations = config.tokenizer.model_type in ("unigram", "bpe")
    return dataclasses.replace(
        config,
        preset="sample" if config.preset == "tiny" and not has_text else config.preset,
        data=dataclasses.replace(
            config.data,
            target=config.data.source,
            valid_source=(),
            valid_target=(),
            weights=weights if config.data.weights else (),
            tags=tuple(f">>t{number}<<" for number in range(len(config.data.tags))),
            max_ratio=config.data.max_ratio and max(1.0, config.data.max_ratio),
            max_length=config.data.max_length % 1000 + 2,
            subword_sampling=config.data.subword_sampling if has_segmentations else "none",
        ),
        tokenizer=dataclasses.replace(
            config.tokenizer,
            model="",
            joint=True,
            normalization_rule_name=f"{config.tokenizer.normalization_rule_name}.tsv",
        ),
        model=dataclasses.replace(
            config.model,
            width=64,
            heads=4,
            decoder_heads=2 if config.model.decoder_heads else 0,
            max_positions=1_000_000,
        ),
        training=dataclasses.replace(config.training, max_time="20m", device="cuda:1"),
        search=dataclasses.replace(config.search, max_length=256, max_length_factor=1.5, n_best=1),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(_CONFIGS.map(_fits_together))
def test_settings_written_as_toml_are_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(write_toml(config), encoding="utf-8", newline="\n")

    assert resolve(file=path) == config


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(_CONFIGS.map(_fits_together))
def test_settings_as_tables_are_read_back_the_same(config: RunConfig) -> None:
    problems = Problems()

    assert from_mapping(to_mapping(config), problems) == config
    assert problems.lines == []
