// Scaled dot-product attention of one query over cached keys and values.
// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
//
// A cache holds the keys and values of one layer and one segment, [head][entry][padded head width], as
// floats or as bf16. The K hypotheses of a segment share it: entry position * K + k is what hypothesis k
// wrote at a position, and a table of ancestors names the entry that a later one reads there. So nothing
// is moved when hypotheses change places.
//
// Every sum has one order that depends on the number of positions and the head width alone.
//
// H heads, E head width, P positions
#pragma once
#include "allocation.h"
#include "vectors.h"

namespace tfm {

// The elements of a cached head, with zeros behind E: whole vectors of floats, or whole vectors of pairs
// of bf16, where element l of a pair of vectors stands beside element l + VL.
template <class T>
constexpr int padded_head_width(int head_width) {
  constexpr int multiple = sizeof(T) == 4 ? VL : 2 * VL;
  return (head_width + multiple - 1) / multiple * multiple;
}

template <class T>
struct Cache {  // of one layer and one segment, all heads
  T* keys;      // (H, room, padded E)
  T* values;    // (H, room, padded E)
  int room;     // entries
};

// Elements of the keys, and as many of the values, of `room` entries.
template <class T>
constexpr size_t cache_size(int heads, int head_width, int room) {
  return size_t(heads) * size_t(room) * size_t(padded_head_width<T>(head_width));
}

// Floats of scratch memory that `attend` needs.
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
  for (int h = 0; h < heads; h++) {
    const size_t at = (size_t(h) * size_t(cache.room) + size_t(entry)) * width;
    store_head(cache.keys + at, key + h * head_width, head_width);
    store_head(cache.values + at, value + h * head_width, head_width);
  }
}

// Vectors 2i and 2i + 1 of a cached head.
static TFM_INLINE void two_vectors(const float* p, int i, vf& first, vf& second) {
  first = load(p + 2 * i * VL);
  second = load(p + (2 * i + 1) * VL);
}
static TFM_INLINE void two_vectors(const uint16_t* p, int i, vf& first, vf& second) {
  vi pairs = load_int(p + 2 * i * VL);
  first = lower_half(pairs);
  second = upper_half(pairs);
}
static TFM_INLINE vf last_vector(const float* p, int i) { return load(p + i * VL); }
static TFM_INLINE vf last_vector(const uint16_t*, int) { return vf{}; }  // vectors of bf16 come in twos

// The sums of VL vectors, one in each lane, added up as `sum` does.
static TFM_INLINE vf sums_of(const vf* v) {
  vf result;
  for (int i = 0; i < VL; i++) result[i] = sum(v[i]);
  return result;
}

// One head. V: vectors of a cached head, or 0 for any number.
template <int V, class T>
static void attend_head(const float* query, const T* keys, const T* values, int num_vectors, int head_width,
                        int num_positions, int stride, const uint8_t* ancestors, float* out, float* p) {
  const int vectors = V ? V : num_vectors;
  const size_t width = size_t(vectors) * VL;
  const float scale = 1 / std::sqrt(float(head_width));
  auto entry = [&](int position) { return size_t(position) * size_t(stride) + (ancestors ? ancestors[position] : 0); };
  vf top = broadcast(-kInfinity);
  for (int from = 0; from < num_positions; from += VL) {
    vf sums[VL];
#pragma GCC unroll 1
    for (int i = 0; i < VL; i++) {
      const int position = from + i < num_positions ? from + i : num_positions - 1;
      const T* key = keys + entry(position) * width;
      vf s = {};
      for (int j = 0; j < vectors / 2; j++) {
        vf a, b;
        two_vectors(key, j, a, b);
        s = multiply_add(a, load(query + 2 * j * VL), s);
        s = multiply_add(b, load(query + (2 * j + 1) * VL), s);
      }
      if (vectors % 2) s = multiply_add(last_vector(key, vectors - 1), load(query + (vectors - 1) * VL), s);
      sums[i] = s;
    }
    vf s = sums_of(sums) * scale;
    if (from + VL > num_positions) s = lanes() < broadcast(num_positions - from) ? s : broadcast(-kInfinity);
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
  // Two vectors of the result at a time, each the sum of 4 sums: of the positions 0, 4, 8, …, of 1, 5, …
  for (int j = 0; j < (vectors + 1) / 2; j++) {
    vf a[4] = {}, b[4] = {};
    auto add = [&](int chain, int position) {
      const T* value = values + entry(position) * width;
      const vf weight = broadcast(p[position]);
      vf first, second = {};
      if (2 * j + 1 < vectors) two_vectors(value, j, first, second);
      else first = last_vector(value, vectors - 1);
      a[chain] = multiply_add(first, weight, a[chain]);
      b[chain] = multiply_add(second, weight, b[chain]);
    };
    int position = 0;
    for (; position + 4 <= num_positions; position += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) add(i, position + i);
    for (int i = 0; position + i < num_positions; i++) add(i, position + i);
    vf first = ((a[0] + a[1]) + (a[2] + a[3])) * inverse, second = ((b[0] + b[1]) + (b[2] + b[3])) * inverse;
    const int e = 2 * j * VL;
    if (e + VL <= head_width) store(out + e, first);
    else store_first(out + e, first, head_width - e);
    if (e + 2 * VL <= head_width) store(out + e + VL, second);
    else if (e + VL < head_width) store_first(out + e + VL, second, head_width - e - VL);
  }
  const vf factor = broadcast(inverse);
  for (int from = 0; from < num_positions; from += VL) store(p + from, load(p + from) * factor);
}

// One query, all heads: softmax(query keys^T / sqrt(E)) values.
//   query, out: (H * E,); scratch: attention_scratch(num_positions, E) floats
//   stride: hypotheses that share the cache, K; ancestors: (P,) or nullptr for entries position * stride
//   weights: (P,), to which the mean over heads of the attention weights is added; nullptr: not wanted
template <class T>
static void attend(const float* query, Cache<T> cache, int heads, int head_width, int num_positions, int stride,
                   const uint8_t* ancestors, float* out, float* scratch, float* weights = nullptr) {
  const int width = padded_head_width<T>(head_width), vectors = width / VL;
  float* q = scratch;  // (padded E,)
  float* p = scratch + round_up(size_t(head_width), 2 * VL);
  for (int h = 0; h < heads; h++) {
    const size_t at = size_t(h) * size_t(cache.room) * size_t(width);
    const float* from = query + h * head_width;
    if (head_width != width) {
      for (int j = 0; j < vectors; j++) store(q + j * VL, load_up_to(from + j * VL, head_width - j * VL));
      from = q;
    }
    auto head = vectors == 2 ? attend_head<2, T> : vectors == 4 ? attend_head<4, T> : vectors == 8 ? attend_head<8, T> : attend_head<0, T>;
    head(from, cache.keys + at, cache.values + at, vectors, head_width, num_positions, stride, ancestors, out + h * head_width, p);
    if (weights == nullptr) continue;
    const float share = 1.0f / float(heads);
    for (int i = 0; i < num_positions; i++) weights[i] = multiply_add(p[i], share, weights[i]);
  }
}

}  // namespace tfm
