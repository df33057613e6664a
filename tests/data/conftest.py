"""Fixtures of the tests of the sample corpus."""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="session")
def read_lines() -> Callable[[str], tuple[str, ...]]:
    """The lines of one file of the corpus, by its name."""

    @cache
    def lines(name: str) -> tuple[str, ...]:
        text = (DATA / name).read_bytes().decode("utf-8")
        return tuple(text.removesuffix("\n").split("\n"))

    return lines


class Project(SimpleNamespace):
    """The generator's modules, and the corpus that it builds."""

    @cached_property
    def corpus(self) -> Any:
        """Takes ten seconds."""
        return importlib.import_module("phrasebook.splits").build_corpus()


@pytest.fixture(scope="session")
def project() -> Iterator[SimpleNamespace]:
    """The generator's modules, and the corpus that it builds."""
    sys.path.insert(0, str(DATA))
    try:
        names = (
            "conjugation", "modifiers", "nouns", "orthography", "pronouns", "verbs", "words",
        )  # fmt: skip
        modules = {name: importlib.import_module(f"phrasebook.{name}") for name in names}
        yield Project(
            **modules,
            generate=importlib.import_module("generate"),
            verb_name=importlib.import_module("phrasebook.syntax").verb_name,
            third=importlib.import_module("phrasebook.english").third,
        )
    finally:
        sys.path.remove(str(DATA))
