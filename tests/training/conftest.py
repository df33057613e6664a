"""Runs that never stopped, which several files of tests break and compare with."""

import pytest

from tests.conftest import TinyCorpus
from tests.training.small_run import SmallRun, unbroken_run


@pytest.fixture(scope="session")
def small(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run of five updates, which has all that happens in one of seven; do not change it."""
    return unbroken_run(tiny_corpus, tmp_path_factory.mktemp("small"), updates=5)


@pytest.fixture(scope="session")
def longer(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run of seven updates; do not change it."""
    return unbroken_run(tiny_corpus, tmp_path_factory.mktemp("longer"))
