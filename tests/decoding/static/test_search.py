from tfm_cli.decoding.static import search
from tfm_cli.decoding.static.search import CAPACITY_BLOCK, bucket_size, source_capacity


def test_sizes_are_few_and_large_enough() -> None:
    sizes = [bucket_size(count) for count in range(1, 50)]

    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    for count, size in enumerate(sizes, 1):
        assert size == min(each for each in set(sizes) if each >= count)


def test_source_room_is_that_of_whole_blocks() -> None:
    assert [source_capacity(length) for length in (1, 16, 17, 33)] == [16, 16, 32, 48]


def test_what_is_done_is_not_under_way_when_caches_grow() -> None:
    """Else an answer would be read for rows that have moved."""
    assert CAPACITY_BLOCK % search._CHECK_INTERVAL == 0
    assert search._READ_DELAY < search._CHECK_INTERVAL
