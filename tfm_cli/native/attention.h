// Scaled dot-product attention of one query over cached keys and values.
// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
//
// A cache holds the keys and values of one layer and one segment, [head][entry][padded head width], as
// floats or as bf16. The K hypotheses of a segment share it: entry position * K + k was written by
// hypothesis k at a position, and the ancestors of a hypothesis are the entries that it reads at each
// position. A beam is therefore reordered without moving any keys and values.
//
// The order of every sum depends only on the number of positions and the head width.
//
// H heads, E head width, P positions
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "allocation.h"
#include "vectors.h"

namespace tfm {

// The elements of a cached head, padded with zeros: whole vectors of floats, or whole vectors of pairs
// of bf16, in which element l of a pair of vectors is next to element l + VL.
template <class T>
constexpr int padded_head_width(int head_width) {
  constexpr int multiple = sizeof(T) == 4 ? VL : 2 * VL;
  return (head_width + multiple - 1) / multiple * multiple;
}

// Positions of a block: decoder caches grow by blocks, so that the memory they touch depends on the
// actual lengths of translations, not on their limits.
constexpr int kBlockBits = 5;
constexpr int kBlock = 1 << kBlockBits;

template <class T>
struct Cache {  // of one layer and one segment, all heads
  T* keys;      // (H, capacity, padded E)
  T* values;    // (H, capacity, padded E)
  int capacity;     // entries, of a block where there are several
  const long* blocks = nullptr;  // offset of each block from the first; nullptr if there is only one
};

// Return the number of elements of the keys, or of the values, of `capacity` entries.
template <class T>
constexpr size_t cache_size(int heads, int head_width, int capacity) {
  return size_t(heads) * size_t(capacity) * size_t(padded_head_width<T>(head_width));
}

// Return the number of floats of scratch memory that `attend` needs.
constexpr size_t attention_scratch(int num_positions, int head_width) {
  return round_up(size_t(num_positions), VL) + round_up(size_t(head_width), 2 * VL) + VL;
}

static TFM_INLINE vf load_up_to(const float* p, int count) {
  return count >= VL ? load(p) : count > 0 ? load_first(p, count) : vf{};
}

static inline void store_head(float* to, const float* from, int head_width) {
  for (int e = 0; e < head_width; e += VL) store(to + e, load_up_to(from + e, head_width - e));
}
static inline void store_head(uint16_t* to, const float* from, int head_width) {
  for (int e = 0; e < head_width; e += 2 * VL)
    store_int(to + e, pair_of_bf16(load_up_to(from + e, head_width - e), load_up_to(from + e + VL, head_width - e - VL)));
}

// Write the key and value (H * E each) of one entry.
template <class T>
static void store(Cache<T> cache, int heads, int head_width, int entry, const float* key, const float* value) {
  const size_t width = size_t(padded_head_width<T>(head_width));
  size_t start = 0;
  if (cache.blocks != nullptr) {
    start = size_t(cache.blocks[entry / cache.capacity]);
    entry %= cache.capacity;
  }
  for (int h = 0; h < heads; h++) {
    const size_t at = start + (size_t(h) * size_t(cache.capacity) + size_t(entry)) * width;
    store_head(cache.keys + at, key + h * head_width, head_width);
    store_head(cache.values + at, value + h * head_width, head_width);
  }
}

// Return vector i of a cached head.
static TFM_INLINE vf head_vector(const float* p, int i) { return load(p + i * VL); }
static TFM_INLINE vf head_vector(const uint16_t* p, int i) {
  const vi pairs = load_int(p + i / 2 * 2 * VL);
  return i % 2 == 0 ? lower_half(pairs) : upper_half(pairs);
}

// Add the lower and upper halves of each group of 2 * HALF lanes of a, then of b.
template <int HALF, int... I>
static TFM_INLINE vf add_halves(vf a, vf b, std::integer_sequence<int, I...>) {
  const vi lower = {(I / HALF * 2 * HALF + I % HALF)...};
  return shuffled(a, b, lower) + shuffled(a, b, lower + HALF);
}
// Return the sums of VL vectors, one in each lane, in the order of `sum`.
static TFM_INLINE vf sums_of(const vf* v) {
  vf left[VL];
  for (int i = 0; i < VL; i++) left[i] = v[i];
  int count = VL;
  auto halve = [&](auto half) {
    for (int i = 0; i < count / 2; i++) left[i] = add_halves<decltype(half)::value>(left[2 * i], left[2 * i + 1], std::make_integer_sequence<int, VL>());
    count /= 2;
  };
#if defined(__AVX512F__)
  halve(std::integral_constant<int, 8>());
#endif
#if defined(__AVX2__)
  halve(std::integral_constant<int, 4>());
#endif
  halve(std::integral_constant<int, 2>());
  halve(std::integral_constant<int, 1>());
  return left[0];
}

// Prefetch `count` elements starting at `from`, of vectors j … of a cached head.
template <class T>
static TFM_INLINE void prefetch(const T* head, int count, int j) {
  constexpr int kLine = int(kCacheLine / sizeof(T));
#pragma GCC unroll 4
  for (int i = 0; i < count; i += kLine) __builtin_prefetch(head + j * VL + i);
}

#if defined(__AVX512F__)
constexpr int kValueVectors = 4;  // of the result at a time: with 4 sums each they fit in registers
#else
constexpr int kValueVectors = 2;
#endif

// Compute vectors j … j + COUNT - 1 of the weighted sum of values, each as 4 partial sums: over positions
// 0, 4, 8, …, over 1, 5, …, and so on.
template <int COUNT, class T, class Entry>
static TFM_INLINE void add_values(const T* values, int j, const float* p, int num_positions, float inverse, Entry entry,
                                  const T* next_keys, vf* result) {
  vf sums[COUNT][4] = {};
  auto add = [&](int chain, int position) {
    const size_t at = entry(position);
    const T* value = values + at;
    prefetch(next_keys + at, COUNT * VL, j);
    const vf weight = broadcast(p[position]);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; i++) sums[i][chain] = multiply_add(head_vector(value, j + i), weight, sums[i][chain]);
  };
  int position = 0;
  for (; position + 4 <= num_positions; position += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) add(i, position + i);
  }
  if (position < num_positions) add(0, position);
  if (position + 1 < num_positions) add(1, position + 1);
  if (position + 2 < num_positions) add(2, position + 2);
  for (int i = 0; i < COUNT; i++) result[i] = ((sums[i][0] + sums[i][1]) + (sums[i][2] + sums[i][3])) * inverse;
}

// Compute the attention of one head. V: vectors of a cached head, or 0 for any number. p: (P,) output, the attention
// weights. Values are prefetched while scores are computed, and the keys of the next head while values
// are summed.
template <int V, class T>
static void attend_head(const float* query, const T* keys, const T* values, int num_vectors, int head_width,
                        int num_positions, int stride, const uint8_t* ancestors, const long* blocks, const T* next_keys, float* out, float* p) {
  const int vectors = V ? V : num_vectors;
  const size_t width = size_t(vectors) * VL;
  const vf scale = broadcast(1 / std::sqrt(float(head_width)));
  auto entry = [&](int position) {
    const size_t beam = ancestors ? ancestors[position] : 0;
    if (blocks == nullptr) return (size_t(position) * size_t(stride) + beam) * width;
    return size_t(blocks[position >> kBlockBits]) + (size_t(position & (kBlock - 1)) * size_t(stride) + beam) * width;
  };
  vf top = broadcast(-kInfinity), sums[VL] = {};
  for (int from = 0; from < num_positions; from += VL) {
    const int count = std::min(VL, num_positions - from);
    for (int i = 0; i < count; i++) {
      const size_t at = entry(from + i);
      const T* key = keys + at;
      prefetch(values + at, vectors * VL, 0);
      vf s = {};
#pragma GCC unroll 8
      for (int j = 0; j < vectors; j++) s = multiply_add(head_vector(key, j), load(query + j * VL), s);
      sums[i] = s;
    }
    vf s = sums_of(sums) * scale;
    if (count < VL) s = lanes() < broadcast(count) ? s : broadcast(-kInfinity);
    store(p + from, s);
    top = max(top, s);
  }
  const vf most = broadcast(largest(top));
  vf total = {};
  for (int from = 0; from < num_positions; from += VL) {
    vf e = exp(load(p + from) - most);
    if (from + VL > num_positions) e = lanes() < broadcast(num_positions - from) ? e : vf{};
    store(p + from, e);
    total += e;
  }
  const float inverse = 1 / sum(total);
  for (int j = 0; j < vectors;) {
    vf result[kValueVectors];
    int count = kValueVectors;
    if (j + kValueVectors <= vectors) {
      add_values<kValueVectors>(values, j, p, num_positions, inverse, entry, next_keys, result);
    } else if (kValueVectors > 2 && j + 2 <= vectors) {
      count = 2;
      add_values<2>(values, j, p, num_positions, inverse, entry, next_keys, result);
    } else {
      count = 1;
      add_values<1>(values, j, p, num_positions, inverse, entry, next_keys, result);
    }
    for (int i = 0; i < count; i++, j++) {
      const int remaining = head_width - j * VL;
      if (remaining >= VL) store(out + j * VL, result[i]);
      else if (remaining > 0) store_first(out + j * VL, result[i], remaining);
    }
  }
  const vf factor = broadcast(inverse);
  for (int from = 0; from < num_positions; from += VL) store(p + from, load(p + from) * factor);
}

// Compute the attention of one query in all heads: softmax(query keys^T / sqrt(E)) values.
//   query, out: (H * E,); scratch: attention_scratch(num_positions, E) floats
//   stride: hypotheses that share the cache, K; ancestors: (P,) or nullptr for entries position * stride
//   weights: (P,), to which the mean over heads of the attention weights is added; nullptr for none
//   next: the cache that is read next, if known
template <class T>
static void attend(const float* query, Cache<T> cache, int heads, int head_width, int num_positions, int stride,
                   const uint8_t* ancestors, float* out, float* scratch, float* weights = nullptr,
                   const Cache<T>* next = nullptr) {
  const int width = padded_head_width<T>(head_width), vectors = width / VL;
  float* q = scratch;  // (padded E,)
  float* p = scratch + round_up(size_t(head_width), 2 * VL);
  for (int h = 0; h < heads; h++) {
    const size_t at = size_t(h) * size_t(cache.capacity) * size_t(width);
    const float* from = query + h * head_width;
    if (head_width != width) {
      for (int j = 0; j < vectors; j++) store(q + j * VL, load_up_to(from + j * VL, head_width - j * VL));
      from = q;
    }
    const T* next_keys = h + 1 < heads ? cache.keys + at + size_t(cache.capacity) * size_t(width) : next ? next->keys : cache.keys;
    auto head = vectors == 2 ? attend_head<2, T> : vectors == 4 ? attend_head<4, T> : vectors == 8 ? attend_head<8, T> : attend_head<0, T>;
    head(from, cache.keys + at, cache.values + at, vectors, head_width, num_positions, stride, ancestors, cache.blocks,
         next_keys, out + h * head_width, p);
    if (weights == nullptr) continue;
    const float share = 1.0f / float(heads);
    for (int i = 0; i < num_positions; i++) weights[i] = multiply_add(p[i], share, weights[i]);
  }
}

}  // namespace tfm
