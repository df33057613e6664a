// Counter-based random numbers, as in `decoding/sampling.py`: functions of a seed and a step.
#pragma once
#include <cstdint>

namespace tfm {

// Return 64 bits that each depend on all bits of a number.
//
// Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
// doi:10.1145/2660193.2660195, figure 16, with the constants of variant 13 of Stafford.
inline uint64_t mixed(uint64_t number) {
  number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9u;
  number = (number ^ (number >> 27)) * 0x94D049BB133111EBu;
  return number ^ (number >> 31);
}

// Return a uniformly distributed multiple of 2^-53 in [0, 1).
inline double uniform(uint64_t seed, uint64_t step) {
  constexpr uint64_t gamma = 0x9E3779B97F4A7C15u;  // the golden ratio, 2^64 / 1.618…, rounded to an odd number
  return static_cast<double>(mixed(seed + (step + 1) * gamma) >> 11) * 0x1p-53;
}

}  // namespace tfm
