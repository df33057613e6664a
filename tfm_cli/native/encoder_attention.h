// Attention of all pieces of a segment to each other.
#pragma once
#include "attention.h"
#include "layers.h"

namespace tfm {

// projected: queries, keys and values of a segment, (S, 3D) with rows `wide` apart; out: (S, D).
inline void attend_all(Scratch& scratch, const float* projected, long wide, int S, int heads, int E, float* out, long stride) {
  const long D = long(heads) * E;
  const size_t size = cache_size<float>(heads, E, S);
  float* memory = scratch.scores.get<float>(2 * size + attention_scratch(S, E));
  Cache<float> cache{memory, memory + size, S};
  for (int s = 0; s < S; s++) store(cache, heads, E, s, projected + s * wide + D, projected + s * wide + 2 * D);
  for (int s = 0; s < S; s++)
    attend(projected + s * wide, cache, heads, E, S, 1, nullptr, out + s * stride, memory + 2 * size);
}

}  // namespace tfm
