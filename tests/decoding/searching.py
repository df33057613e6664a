"""The searches of `decoding`, with their options and special tokens as plain keywords."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tfm_cli.config.settings import SearchConfig
from tfm_cli.decoding import beam, greedy, sampling
from tfm_cli.decoding.interface import DecodingOptions, Hypothesis, TargetVocabulary
from tfm_cli.decoding.utf8 import Utf8

_VOCABULARY = frozenset(field.name for field in dataclasses.fields(TargetVocabulary))
_SETTINGS = frozenset(field.name for field in dataclasses.fields(SearchConfig))
_OPTIONS = frozenset(field.name for field in dataclasses.fields(DecodingOptions))

Rules = tuple[TargetVocabulary, SearchConfig]


def rules(
    start_id: int,
    eos_id: int,
    banned_ids: Sequence[int] = (),
    *,
    utf8: Utf8 | None = None,
    **settings: Any,
) -> Rules:
    """Return the special tokens and the settings of a search."""
    return TargetVocabulary(start_id, eos_id, banned_ids, utf8), SearchConfig(**settings)


def _grouped(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return keywords as objects; a `vocabulary` and `settings` may be given."""
    vocabulary = keywords.pop("vocabulary", None)
    if vocabulary is None:
        names = _VOCABULARY & keywords.keys()
        vocabulary = TargetVocabulary(**{name: keywords.pop(name) for name in names})
    keywords.setdefault(
        "settings",
        SearchConfig(**{name: keywords.pop(name) for name in _SETTINGS & keywords.keys()}),
    )
    names = _OPTIONS & keywords.keys()
    options = DecodingOptions(**{name: keywords.pop(name) for name in names})
    return {"vocabulary": vocabulary, "options": options, **keywords}


def beam_search(
    model: Any, source: Tensor, source_keep: Tensor | None, **keywords: Any
) -> list[list[Hypothesis]]:
    return beam.beam_search(model, source, source_keep, **_grouped(keywords))


def sample(
    model: Any, source: Tensor, source_keep: Tensor | None, **keywords: Any
) -> list[Hypothesis]:
    return sampling.sample(model, source, source_keep, **_grouped(keywords))


def greedy_search(
    model: Any, source: Tensor, source_keep: Tensor | None, **keywords: Any
) -> list[Hypothesis]:
    stops_loops = keywords.pop("stops_loops", False)
    grouped = _grouped(keywords)
    del grouped["options"]
    return greedy.greedy_search(model, source, source_keep, stops_loops=stops_loops, **grouped)
