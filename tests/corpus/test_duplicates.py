import numpy as np
import pytest

from tfm_cli.corpus.filters import repeated_hashes


@pytest.mark.parametrize("at_a_time", [1, 2, 7, 64, 100, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_all_but_the_first_of_equal_hashes_are_marked(seed: int, at_a_time: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    few = random.integers(0, 2**64, size=40, dtype=np.uint64)
    hashes = random.choice(few, size=100)

    actual = repeated_hashes(hashes, at_a_time=at_a_time)

    listed = hashes.tolist()
    assert actual.tolist() == [value in listed[:index] for index, value in enumerate(listed)]


def test_no_hashes_have_no_duplicates() -> None:
    assert repeated_hashes(np.zeros(0, dtype=np.uint64)).tolist() == []
