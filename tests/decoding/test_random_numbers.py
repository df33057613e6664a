from collections import Counter
from collections.abc import Iterable

import pytest

from tfm_cli.decoding import sampling
from tfm_cli.decoding.sampling import mixed, random_bits, uniform

# The first outputs of the generators of Steele, Lea and Flood as others print them: of seed
# 1234567, https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64; of 0, what Java's
# SplittableRandom(0).nextLong() and the seeding of xoshiro256** by Vigna's splitmix64.c give.
PUBLISHED = {
    1234567: [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ],
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC],
}  # fmt: skip
# 99.99 % of chi-square values with 99 degrees of freedom lie below, from tables.
MOST_OF_99 = 161.3


def chi_square(counts: Iterable[int], expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("seed", PUBLISHED)
def test_outputs_are_those_published_for_splitmix64(seed: int) -> None:
    expected = PUBLISHED[seed]

    assert [random_bits(seed, step) for step in range(len(expected))] == expected


def test_numbers_wrap_at_64_bits() -> None:
    assert random_bits(2**64 - 1, 0) == mixed(0x9E3779B97F4A7C14)
    assert random_bits(5, 2**64) == random_bits(5, 0)
    assert max(random_bits(2**64 - 1, step) for step in range(1000)) < 2**64


def test_uniform_numbers_are_the_leading_bits() -> None:
    assert uniform(0, 0) == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_uniform_numbers_reach_neither_1_nor_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "random_bits", lambda seed, step: 2**64 - 1)
    assert uniform(1, 1) == 1 - 2**-53

    monkeypatch.setattr(sampling, "random_bits", lambda seed, step: 2**11 - 1)
    assert uniform(1, 1) == 0


def test_each_bit_of_the_seed_changes_half_of_the_bits() -> None:
    for bit in range(64):
        changed = sum(
            (random_bits(seed, 3) ^ random_bits(seed ^ 1 << bit, 3)).bit_count()
            for seed in range(100)
        )
        # 6,400 bits, of which half change: six standard deviations of 40 each.
        assert abs(changed - 3200) < 240


@pytest.mark.parametrize("pairs", [
    [(uniform(seed, 0), uniform(seed + 1, 0)) for seed in range(0, 20000, 2)],
    [(uniform(seed, 0), uniform(seed, 1)) for seed in range(10000)],
    [(uniform(7, step), uniform(7, step + 1)) for step in range(0, 20000, 2)],
    [(uniform(8, step), uniform(9, step)) for step in range(10000)],
], ids=["seeds", "first_steps", "steps", "sequences"])  # fmt: skip
def test_neighbors_have_nothing_to_do_with_each_other(pairs: list[tuple[float, float]]) -> None:
    counts = Counter((int(10 * one), int(10 * other)) for one, other in pairs)

    cells = [counts[row, column] for row in range(10) for column in range(10)]
    assert chi_square(cells, len(pairs) / 100) < MOST_OF_99
