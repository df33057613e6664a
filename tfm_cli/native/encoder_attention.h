// Self-attention of all tokens of a segment: several queries at a time, so that each loaded key and
// value serves all of them.
// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
//
// The order of each sum, over elements of a head or over keys, does not depend on the grouping of queries.
//
// S tokens, H heads, E width of a head, D = H * E
#pragma once
#include <algorithm>

#include "allocation.h"
#include "vectors.h"

namespace tfm {

#if defined(__AVX512F__)
constexpr int QUERIES = 6;  // at a time: 6 x 4 sums in 32 registers
constexpr int VALUES = 4;   // vectors of a head at a time
#else
constexpr int QUERIES = 3;
constexpr int VALUES = 3;
#endif

// Transpose the keys of a head (S, E), rows `wide` apart, to [block of VL keys][E][VL], padded with
// zeros, so that scores of VL keys need no sums across lanes.
inline void transpose_keys(const float* keys, long wide, int S, int E, float* transposed) {
  for (int from = 0; from < S; from += VL, transposed += long(E) * VL)
    for (int i = 0; i < VL; i++)
      for (int e = 0; e < E; e++) transposed[e * VL + i] = from + i < S ? keys[(from + i) * wide + e] : 0.0f;
}

// Compute softmax(Q K^T / sqrt(E)) of N queries, without the division by the sums, which are stored in `totals`.
//   queries: (N, E), rows `wide` apart; weights: (N, padded S)
template <int N>
static void attention_weights(const float* queries, long wide, const float* transposed, int S, int E, float* weights,
                              float* totals) {
  const int padded = int(round_up(size_t(S), VL));
  const float scale = 1 / std::sqrt(float(E));
  vf top[N];
  for (int i = 0; i < N; i++) top[i] = broadcast(-kInfinity);
  for (int from = 0; from < padded; from += 2 * VL) {
    const float* first = transposed + long(from) * E;
    const float* second = from + VL < padded ? first + long(E) * VL : first;  // or the first again, whose results are unused
    vf sums[N][2] = {};
    for (int e = 0; e < E; e++) {
      const vf a = load(first + e * VL), b = load(second + e * VL);
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) {
        const vf q = broadcast(queries[i * wide + e]);
        sums[i][0] = multiply_add(q, a, sums[i][0]);
        sums[i][1] = multiply_add(q, b, sums[i][1]);
      }
    }
    for (int j = 0; j < 2 && from + j * VL < padded; j++) {
      const int at = from + j * VL;
      for (int i = 0; i < N; i++) {
        vf s = sums[i][j] * scale;
        if (at + VL > S) s = lanes() < broadcast(S - at) ? s : broadcast(-kInfinity);
        store(weights + i * padded + at, s);
        top[i] = max(top[i], s);
      }
    }
  }
  for (int i = 0; i < N; i++) {
    const vf most = broadcast(largest(top[i]));
    vf total = {};
    for (int at = 0; at < padded; at += VL) {
      vf e = exp(load(weights + i * padded + at) - most);
      if (at + VL > S) e = lanes() < broadcast(S - at) ? e : vf{};
      store(weights + i * padded + at, e);
      total += e;
    }
    totals[i] = sum(total);
  }
}

// Compute NV vectors of the weighted sum of the values for N queries.
//   values: (S, E), rows `wide` apart; out: rows `stride` apart, `width` numbers of each
template <int N, int NV>
static void mix_values(const float* weights, const float* totals, const float* values, long wide, int S, int width,
                       float* out, long stride) {
  const int padded = int(round_up(size_t(S), VL));
  vf sums[N][NV] = {};
  for (int s = 0; s < S; s++) {
    vf v[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) v[j] = load(values + s * wide + j * VL);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      const vf weight = broadcast(weights[i * padded + s]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sums[i][j] = multiply_add(weight, v[j], sums[i][j]);
    }
  }
  for (int i = 0; i < N; i++) {
    const float share = 1 / totals[i];
    for (int j = 0; j < NV; j++) {
      const int count = std::min(VL, width - j * VL);
      float* to = out + i * stride + j * VL;
      count == VL ? store(to, sums[i][j] * share) : store_first(to, sums[i][j] * share, count);
    }
  }
}

// Compute the attention of N queries (N, E) of one head to its keys, transposed (see transpose_keys), and its values,
// whose rows are `wide` apart.
template <int N>
static void attend_queries(const float* queries, const float* values, long wide, const float* transposed, int S, int E,
                           float* weights, float* out, long stride) {
  float totals[N];
  attention_weights<N>(queries, wide, transposed, S, E, weights, totals);
  for (int e = 0; e < E; e += VALUES * VL) {
    const int width = std::min(E - e, VALUES * VL), vectors = (width + VL - 1) / VL;
    auto mix = vectors == 1 ? mix_values<N, 1> : vectors == 2 ? mix_values<N, 2> : vectors == 3 ? mix_values<N, 3> : mix_values<N, VALUES>;
    mix(weights, totals, values + e, wide, S, width, out + e, stride);
  }
}

template <int N = QUERIES>
static void attend_up_to(int count, const float* queries, const float* values, long wide, const float* transposed, int S,
                         int E, float* weights, float* out, long stride) {
  if (count == N) return attend_queries<N>(queries, values, wide, transposed, S, E, weights, out, stride);
  if constexpr (N > 1) attend_up_to<N - 1>(count, queries, values, wide, transposed, S, E, weights, out, stride);
}

// Compute the self-attention of a segment.
//   projected: queries, keys and values, (S, 3D), rows `wide` apart; out: (S, D), rows `stride` apart
inline void attend_all(Buffer& memory, const float* projected, long wide, int S, int heads, int E, float* out, long stride) {
  const long D = long(heads) * E;
  const size_t padded = round_up(size_t(S), VL);
  float* transposed = memory.get<float>(padded * size_t(E) + QUERIES * padded);
  float* weights = transposed + padded * size_t(E);  // (QUERIES, padded S)
  const int tiles = (S + QUERIES - 1) / QUERIES;
  for (int h = 0; h < heads; h++) {
    const float* own = projected + long(h) * E;
    transpose_keys(own + D, wide, S, E, transposed);
    for (int i = 0; i < tiles; i++) {
      const int from = int(long(S) * i / tiles), to = int(long(S) * (i + 1) / tiles);
      attend_up_to(to - from, own + from * wide, own + 2 * D, wide, transposed, S, E, weights,
                   out + from * stride + long(h) * E, stride);
    }
  }
}

}  // namespace tfm
