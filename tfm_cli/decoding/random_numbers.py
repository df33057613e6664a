"""Random numbers by counter: each is a function of a seed and a step, and there is no state.

What is drawn at a step depends on nothing that was drawn before, so it is the same in a batch of
any size and order, after a restart, and in any language that has integers of 64 bits.
"""

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15  # the golden ratio, 2**64 / 1.618…, made odd


def mixed(number: int) -> int:
    """Return 64 bits that each depend on all bits of a number of 64 bits.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    doi:10.1145/2660193.2660195, figure 16, with the constants of variant 13 of Stafford.
    """
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


def random_bits(seed: int, step: int) -> int:
    """Return output number `step`, from 0, of the generator SplitMix64 with a seed, as 64 bits."""
    return mixed(seed + (step + 1) * _GAMMA & _MASK)


def uniform(seed: int, step: int) -> float:
    """Return a number in [0, 1), one of the 2**53 multiples of 2**-53 there."""
    return (random_bits(seed, step) >> 11) * 2.0**-53
