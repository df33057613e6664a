"""The text and the run of two processes that several test files interrupt."""

import pytest

from tests.conftest import TinyCorpus
from tests.distributed.ranks_run import RanksRun, unbroken
from tests.runs import write_part


@pytest.fixture(scope="session")
def text(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the flags of a corpus whose epochs have five batches."""
    return write_part(tiny_corpus, tmp_path_factory.mktemp("text"), pairs=55)


@pytest.fixture(scope="session")
def whole(tiny_corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> RanksRun:
    """Return a run of two processes that was never interrupted."""
    return unbroken(tiny_corpus, tmp_path_factory.mktemp("whole"))
