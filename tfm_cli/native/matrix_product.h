// Products of rows of activations with packed weights, in fp32, bf16 and int8, with fused epilogues.
//
// Weights are packed once into panels of NR columns, [panel][step][NR], where a step is the content of a
// lane of 32 bits: 1 input in fp32, 2 in bf16, 4 in int8. A kernel then reads them as one stream. An
// epilogue, called while results are in registers, stores, adds or compares them.
//
// Every kernel sums over the inputs from first to last, so the results of a row have the same bits for
// any number of rows, and `dot` and `column` compute single results with these bits.
//
// M rows, N columns (outputs), K inputs
#pragma once
#include <algorithm>
#include <type_traits>

#include "allocation.h"
#include "tiles.h"
#include "vectors.h"

namespace tfm {

enum class Precision { fp32 = 0, bf16 = 1, int8 = 2 };

#if defined(__AVX512F__)
constexpr int MR = 13;  // rows of the largest kernel: 13 x 2 sums in 32 registers
#elif defined(__AVX2__)
constexpr int MR = 6;  // 6 x 2 in 16 registers
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2 * VL;  // columns of a panel

// Distance at which weights are prefetched, tuned on Intel processors, whose L3 has a high latency.
constexpr long kPrefetchBytes = 2048;
// Blocks of rows over which the prefetches of the next panel are spread, so as not to delay other loads.
constexpr int kPrefetchBlocks = 8;
// Minimum rows of int8 products, which are exact in any order, for the use of tiles.
constexpr int kTilesFrom = 8;

// Return the bits of the largest of K magnitudes, which exceed those of infinity if one is NaN.
inline int32_t largest_magnitude(const float* x, int K) {
  const int whole = K / VL * VL;
  const vi no_sign = broadcast(int32_t{0x7fffffff});
  vi most0 = {}, most1 = {};  // bits as integers, which have the same order as the numbers, with NaN above all
  int k = 0;
  for (; k + 2 * VL <= K; k += 2 * VL) {
    most0 = max(most0, load_int(x + k) & no_sign);
    most1 = max(most1, load_int(x + k + VL) & no_sign);
  }
  if (k < whole) {
    most0 = max(most0, load_int(x + k) & no_sign);
    k += VL;
  }
  if (k < K) most1 = max(most1, (vi)load_first(x + k, K - k) & no_sign);
  return largest(max(most0, most1));
}

// Quantize a row of K numbers to bytes, round(127 x / max |x|) + kZeroPoint, padded to `padded`, and
// return the scale. A row that is not finite gets the scale NaN, so that its results are NaN.
inline float quantize_row(const float* x, int K, int padded, uint8_t* bytes) {
  const int whole = K / VL * VL;
  const int32_t bits = largest_magnitude(x, K);
  int k;
  float most;
  std::memcpy(&most, &bits, 4);
  const bool finite = bits < 0x7f800000, tiny = most < 1e-30f;
  if (!finite || tiny) {
    std::memset(bytes, kZeroPoint, size_t(padded));
    return finite ? 1.0f : kNaN;
  }
  const float scale = most / 127;
  // The low byte of 1.5 * 2^23 + kZeroPoint + y is y rounded, plus kZeroPoint.
  const vf inverse = broadcast(1 / scale), magic = broadcast(12582912.0f + kZeroPoint);
  auto put = [&](int at, vf v) {
    vb b = __builtin_convertvector((vu)multiply_add(v, inverse, magic) & 255u, vb);
    return std::memcpy(bytes + at, &b, VL);
  };
  for (k = 0; k < whole; k += VL) put(k, load(x + k));
  if (k < K) {
    put(k, load_first(x + k, K - k));  // `padded` is a multiple of VL if K is not
    k += VL;
  }
  if (k < padded) std::memset(bytes + k, kZeroPoint, size_t(padded - k));
  return scale;
}

// Quantize a row of weights to bytes, round(127 w / max |w|), and return the scale.
inline float quantize_weights(const float* w, size_t K, int8_t* bytes) {
  const int32_t bits = largest_magnitude(w, int(K));
  float most;
  std::memcpy(&most, &bits, 4);
  const bool finite = bits < 0x7f800000;
  if (!finite || most < 1e-30f) {
    std::memset(bytes, 0, K);
    return finite ? 1.0f : kNaN;
  }
  const float scale = most / 127, inverse = 1 / scale;
  for (size_t k = 0; k < K; k++) bytes[k] = int8_t(int(w[k] * inverse + (w[k] >= 0 ? 0.5f : -0.5f)));
  return scale;
}

// A linear layer: y = x W^T + bias.
struct Linear {
  int N = 0, K = 0;
  int steps = 0;   // lanes of 32 bits that hold the inputs
  int panels = 0;
  Precision precision = Precision::fp32;
  bool in_tiles = false;   // products use tiles, whose sums have another order
  int32_t* weights = nullptr;  // [panels][steps][NR] floats, pairs of bf16 or fours of int8
  float* bias = nullptr;       // [panels * NR]
  float* scales = nullptr;     // int8: of each column
  int32_t* offsets = nullptr;  // int8: -kZeroPoint times the sum of each column

  int inputs_of_step() const { return precision == Precision::fp32 ? 1 : precision == Precision::bf16 ? 2 : 4; }
  // Return the number of inputs of a row of bytes or bf16, including padding.
  int padded_inputs() const { return steps * inputs_of_step(); }
  // Return the number of pairs of bf16 in a row of activations.
  long row_pairs() const {
    return precision == Precision::bf16 && (kHasBf16 || in_tiles) ? steps : 0;
  }
  // Return the number of columns for which an epilogue is called, a whole number of vectors; columns from N
  // on have weights of 0 and the bias `padding_bias`.
  int padded_columns() const { return int(round_up(size_t(N), VL)); }

  // Pack a matrix (n, k), stored by rows. The bias is 0 until it is set.
  void pack(Arena& arena, const float* weight, int n, int k, Precision p, float padding_bias = 0) {
    begin(arena, n, k, p, padding_bias);
    if (p == Precision::int8) {
      Vector<int8_t> bytes(size_t(steps) * 4, 0);
      for (int i = 0; i < n; i++) {
        float scale = quantize_weights(weight + size_t(i) * size_t(k), size_t(k), bytes.data());
        place_int8(i, bytes.data(), scale);
      }
      return;
    }
    const int step_inputs = inputs_of_step(), filled = (k + step_inputs - 1) / step_inputs;
    constexpr int kStrip = 16;  // steps at a time, so that a cache line of each row is read once
    for (int panel = 0; panel < panels; panel++)
      for (int from = 0; from < filled; from += kStrip)
        for (int j = 0; j < NR && panel * NR + j < n; j++) {
          const float* row = weight + size_t(panel * NR + j) * size_t(k);
          int32_t* to = weights + size_t(panel) * size_t(steps) * NR + j;
          for (int s = from; s < from + kStrip && s < filled; s++) {
            if (step_inputs == 1) {
              std::memcpy(to + size_t(s) * NR, row + s, 4);
            } else {
              uint32_t low = 2 * s < k ? to_bf16(row[2 * s]) : 0, high = 2 * s + 1 < k ? to_bf16(row[2 * s + 1]) : 0;
              to[size_t(s) * NR] = int32_t(low | high << 16);
            }
          }
        }
  }
  // Pack an int8 matrix (n, k), stored by rows, with a scale for each row.
  void pack_int8(Arena& arena, const int8_t* bytes, const float* row_scales, int n, int k, float padding_bias = 0) {
    begin(arena, n, k, Precision::int8, padding_bias);
    Vector<int8_t> row(size_t(steps) * 4, 0);
    for (int i = 0; i < n; i++) {
      std::memcpy(row.data(), bytes + size_t(i) * size_t(k), size_t(k));
      place_int8(i, row.data(), row_scales[i]);
    }
  }
  void set_bias(const float* values) { std::memcpy(bias, values, sizeof(float) * size_t(N)); }

 private:
  void begin(Arena& arena, int n, int k, Precision p, float padding_bias) {
    N = n;
    K = k;
    precision = p;
    panels = (n + NR - 1) / NR;
    steps = (k + inputs_of_step() - 1) / inputs_of_step();
    // Rows of bytes and of bf16 are written a vector at a time; a tile takes 16 steps.
    if (p != Precision::fp32) steps = int(round_up(size_t(steps), VL));
    in_tiles = has_tiles() && p == Precision::bf16;
    weights = arena.take<int32_t>(size_t(panels) * size_t(steps) * NR);
    bias = arena.take<float>(size_t(panels) * NR);
    for (int i = n; i < panels * NR; i++) bias[i] = padding_bias;
    if (p != Precision::int8) return;
    scales = arena.take<float>(size_t(panels) * NR);
    offsets = arena.take<int32_t>(size_t(panels) * NR);
  }
  void place_int8(int column, const int8_t* bytes, float scale) {
    int32_t total = 0;
    for (int k = 0; k < K; k++) total += bytes[k];
    scales[column] = scale;
    offsets[column] = -kZeroPoint * total;
    int32_t* to = weights + size_t(column / NR) * size_t(steps) * NR + column % NR;
    for (int s = 0; s < steps; s++) std::memcpy(to + size_t(s) * NR, bytes + 4 * s, 4);
  }
};

// Rows of activations in the format of the products of one layer.
struct Rows {
  const float* x = nullptr;         // fp32, rows `stride` apart
  long stride = 0;
  const uint8_t* bytes = nullptr;   // int8: (M, padded_inputs) and the scale of each row
  const float* scales = nullptr;
  const int32_t* pairs = nullptr;   // bf16: (M, padded_inputs / 2)
};

// Return only row r.
inline Rows row_of(const Rows& rows, int r, const Linear& layer) {
  Rows row = rows;
  row.x += r * rows.stride;
  if (rows.bytes != nullptr) row.bytes += long(r) * layer.padded_inputs();
  if (rows.scales != nullptr) row.scales += r;
  if (rows.pairs != nullptr) row.pairs += long(r) * layer.row_pairs();
  return row;
}

// A buffer for rows in the format of a layer.
class RowBuffer {
 public:
  // Convert x (M, K), rows `stride` apart. The result is valid until the next call.
  Rows rows(const float* x, long stride, int M, const Linear& layer) {
    Rows result;
    result.x = x;
    result.stride = stride;
    const size_t width = size_t(layer.padded_inputs()), num_rows = size_t(M);
    if (layer.precision == Precision::int8) {
      uint8_t* bytes = data_.get<uint8_t>(num_rows * width);
      float* scales = scales_.get<float>(num_rows);
      for (int m = 0; m < M; m++) scales[m] = quantize_row(x + m * stride, layer.K, int(width), bytes + size_t(m) * width);
      result.bytes = bytes;
      result.scales = scales;
    } else if (layer.row_pairs() > 0) {
      int32_t* pairs = data_.get<int32_t>(num_rows * size_t(layer.row_pairs()));
      for (int m = 0; m < M; m++) to_pairs(x + m * stride, layer.K, int(width), pairs + m * layer.row_pairs());
      result.pairs = pairs;
    } else if (layer.K < layer.padded_inputs()) {
      float* padded = data_.get<float>(num_rows * width);
      for (size_t m = 0; m < num_rows; m++) {
        std::memcpy(padded + m * width, x + long(m) * stride, sizeof(float) * size_t(layer.K));
        std::memset(padded + m * width + layer.K, 0, sizeof(float) * (width - size_t(layer.K)));
      }
      result.x = padded;
      result.stride = long(width);
    }
    return result;
  }
  void release() {
    data_.release();
    scales_.release();
  }
  size_t bytes() const { return data_.bytes() + scales_.bytes(); }

 private:
  static void to_pairs(const float* x, int K, int padded, int32_t* pairs) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(pairs);
    int k = 0;
    for (; k + VL <= K; k += VL) put_halves(load(x + k), halves + k);
    if (k < K) {
      put_halves(load_first(x + k, K - k), halves + k);
      k += VL;
    }
    if (k < padded) std::memset(halves + k, 0, size_t(padded - k) * 2);
  }
  static TFM_INLINE void put_halves(vf v, uint16_t* to) {
    typedef uint16_t vh __attribute__((vector_size(VL * 2)));
    vh halves = __builtin_convertvector(round_to_bf16(v) >> 16, vh);
    std::memcpy(to, &halves, sizeof halves);
  }
  Buffer data_, scales_;
};

// The operations that differ between precisions: load and multiply an input, finish a sum.
struct Fp32Product {
  using Sum = vf;
  using Weights = vf;
  using Activation = vf;
  static TFM_INLINE Sum start(const Linear&, int) { return vf{}; }
  static TFM_INLINE Weights read(const int32_t* w) { return (vf)load_int(w); }
  static TFM_INLINE Activation input(const Rows& rows, const Linear&, int row, long step) {
    return broadcast(rows.x[row * rows.stride + step]);
  }
  static TFM_INLINE Sum add(Sum sum, Activation x, Weights w) { return multiply_add(x, w, sum); }
  static TFM_INLINE vf finish(Sum sum, const Rows&, const Linear& layer, int, int column) {
    return sum + load(layer.bias + column);
  }
};

struct Bf16Product {
  using Sum = vf;
  static TFM_INLINE Sum start(const Linear&, int) { return vf{}; }
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  using Weights = vi;
  using Activation = vi;
  static TFM_INLINE Weights read(const int32_t* w) { return load_int(w); }
  static TFM_INLINE Activation input(const Rows& rows, const Linear& layer, int row, long step) {
    return broadcast(rows.pairs[row * long(layer.steps) + step]);
  }
  static TFM_INLINE Sum add(Sum sum, Activation x, Weights w) { return dot_of_2(sum, x, w); }
#else
  struct Weights { vf first, second; };
  struct Activation { vf first, second; };
  static TFM_INLINE Weights read(const int32_t* w) {
    vi pairs = load_int(w);
    return {lower_half(pairs), upper_half(pairs)};
  }
  static TFM_INLINE Activation input(const Rows& rows, const Linear&, int row, long step) {
    const float* x = rows.x + row * rows.stride + 2 * step;
    return {broadcast(x[0]), broadcast(x[1])};
  }
  static TFM_INLINE Sum add(Sum sum, Activation x, Weights w) {
    return multiply_add(x.second, w.second, multiply_add(x.first, w.first, sum));
  }
#endif
  static TFM_INLINE vf finish(Sum sum, const Rows&, const Linear& layer, int, int column) {
    return sum + load(layer.bias + column);
  }
};

struct Int8Product {
  using Sum = vi;
  using Weights = vi;
  using Activation = vi;
  static TFM_INLINE Sum start(const Linear& layer, int column) { return load_int(layer.offsets + column); }
  static TFM_INLINE Weights read(const int32_t* w) { return load_int(w); }
  static TFM_INLINE Activation input(const Rows& rows, const Linear& layer, int row, long step) {
    int32_t four;
    std::memcpy(&four, rows.bytes + (row * long(layer.steps) + step) * 4, 4);
    return broadcast(four);
  }
  static TFM_INLINE Sum add(Sum sum, Activation x, Weights w) { return dot_of_4(sum, x, w); }
  static TFM_INLINE vf finish(Sum sum, const Rows& rows, const Linear& layer, int row, int column) {
    return multiply_add(__builtin_convertvector(sum, vf), load(layer.scales + column) * rows.scales[row],
                        load(layer.bias + column));
  }
};

// Multiply rows m … m + M_ - 1 by the first NV vectors of columns of a panel: (M_, NV * VL) results with
// the bias added. Each step also prefetches `ahead_step` bytes of memory from `ahead`.
template <class Product, int M_, int NV>
static __attribute__((noinline)) void kernel(const Rows& rows, const Linear& layer, int m, int panel,
                                             float* __restrict results, const char* ahead, long ahead_step) {
  const long steps = layer.steps, panel_size = steps * NR;
  const int32_t* w = layer.weights + panel * panel_size;
  typename Product::Sum sums[M_][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M_; i++)
#pragma GCC unroll 16
    for (int j = 0; j < NV; j++) sums[i][j] = Product::start(layer, panel * NR + j * VL);
  // In fp32 three rows share a pointer: with the stride once and twice as an index, their addresses need
  // no additions. Measured: 1.08 to 1.15 times as fast.
  constexpr bool by_pointers = std::is_same_v<Product, Fp32Product> && M_ > 2;
  constexpr int num_pointers = (M_ + 2) / 3;
  const float* x_of[num_pointers] = {};
  if constexpr (by_pointers) {
#pragma GCC unroll 8
    for (int g = 0; g < num_pointers; g++) x_of[g] = rows.x + (m + 3 * g) * rows.stride;
  }
  const long stride = rows.stride;
  for (long s = 0; s < steps; s++) {
    const int32_t* at = w + s * NR;
    if constexpr (NV == 2) {
      __builtin_prefetch(ahead + s * ahead_step, 0, 2);  // to L2, since L1 is full
    } else {
#pragma GCC unroll 16
      for (int j = 0; j < NV; j += int(kCacheLine) / (4 * VL))
        __builtin_prefetch(reinterpret_cast<const char*>(at + (j / 2) * panel_size + (j % 2) * VL) + kPrefetchBytes);
    }
    typename Product::Weights b[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; j++) b[j] = Product::read(at + (j / 2) * panel_size + (j % 2) * VL);
#pragma GCC unroll 16
    for (int i = 0; i < M_; i++) {
      typename Product::Activation x;
      if constexpr (by_pointers) x = broadcast(x_of[i / 3][i % 3 * stride]);
      else x = Product::input(rows, layer, m + i, s);
#pragma GCC unroll 16
      for (int j = 0; j < NV; j++) sums[i][j] = Product::add(sums[i][j], x, b[j]);
    }
    if constexpr (by_pointers) {
#pragma GCC unroll 8
      for (int g = 0; g < num_pointers; g++) {
        x_of[g]++;
        asm("" : "+r"(x_of[g]));  // otherwise GCC computes the addresses by additions
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M_; i++)
#pragma GCC unroll 16
    for (int j = 0; j < NV; j++)
      store(results + (i * NV + j) * VL, Product::finish(sums[i][j], rows, layer, m + i, panel * NR + j * VL));
}

template <class Product, int M_>
static TFM_INLINE void kernel_of(int num_rows, const Rows& rows, const Linear& layer, int m, int panel, float* results,
                                 const char* ahead, long ahead_step) {
  if (num_rows == M_) return kernel<Product, M_, 2>(rows, layer, m, panel, results, ahead, ahead_step);
  if constexpr (M_ > 1) kernel_of<Product, M_ - 1>(num_rows, rows, layer, m, panel, results, ahead, ahead_step);
}

// Multiply by several panels at once, and return their number.
template <class Product>
static __attribute__((noinline)) int few_rows_kernel(const Rows& rows, int M, const Linear& layer, int panel, float* results) {
  if (M == 1 && panel + 4 <= layer.panels) {
    kernel<Product, 1, 8>(rows, layer, 0, panel, results, nullptr, 0);
    return 4;
  }
#if defined(__AVX512F__)
  if (panel + 2 > layer.panels) return 1;
  switch (M) {
    case 2: kernel<Product, 2, 4>(rows, layer, 0, panel, results, nullptr, 0); return 2;
    case 3: kernel<Product, 3, 4>(rows, layer, 0, panel, results, nullptr, 0); return 2;
    case 4: kernel<Product, 4, 4>(rows, layer, 0, panel, results, nullptr, 0); return 2;
  }
#endif
  return 1;
}

template <class Product>
static __attribute__((noinline)) void panel_kernel(const Rows& rows, int first_row, int num_rows, int block, int blocks,
                                                   const Linear& layer, int panel, float* results) {
  const long panel_bytes = long(layer.steps) * NR * 4;
  const char* here = reinterpret_cast<const char*>(layer.weights) + panel * panel_bytes;
  const char* ahead = here;
  long ahead_step = 0;
  if (blocks == 1) {
    ahead = here + kPrefetchBytes;
    ahead_step = NR * 4;
  } else if (block < kPrefetchBlocks && panel + 1 < layer.panels) {
    // While blocks of rows are multiplied by this panel, the next is prefetched.
    const int sharing = std::min(blocks, kPrefetchBlocks);
    ahead = here + panel_bytes + block * panel_bytes / sharing;
    ahead_step = NR * 4 / sharing;
  }
  kernel_of<Product, MR>(num_rows, rows, layer, first_row, panel, results, ahead, ahead_step);
}

// Pass (num_rows, vectors * VL) results to an epilogue. Kernels are compiled once for all epilogues.
template <class Epilogue>
static TFM_INLINE void apply_epilogue(const float* results, int first_row, int num_rows, int column, int vectors, int N, Epilogue& epilogue) {
  const int inside = std::min(vectors, (N - column + VL - 1) / VL);
  if (inside == 2 && vectors == 2) {
    for (int i = 0; i < num_rows; i++) {
      epilogue(first_row + i, column, load(results + 2 * i * VL));
      epilogue(first_row + i, column + VL, load(results + (2 * i + 1) * VL));
    }
    return;
  }
  for (int i = 0; i < num_rows; i++)
    for (int j = 0; j < inside; j++) epilogue(first_row + i, column + j * VL, load(results + (i * vectors + j) * VL));
}

template <class Product, class Epilogue>
static void multiply_as(const Rows& rows, int M, const Linear& layer, Epilogue& epilogue) {
  alignas(kCacheLine) float results[std::max(MR * 2, 16) * VL];
  int panel = 0;
  // With few rows, several panels at once give enough independent sums to hide the latency.
  while (M <= 4 && panel < layer.panels) {
    const int done = few_rows_kernel<Product>(rows, M, layer, panel, results);
    if (done == 1) break;
    apply_epilogue(results, 0, M, panel * NR, done * 2, layer.N, epilogue);
    panel += done;
  }
  constexpr int kChunk = 8 * MR;  // rows that stay in the cache for all panels
  for (int chunk = 0; chunk < M; chunk += kChunk) {
    const int num_rows = std::min(M - chunk, kChunk), blocks = (num_rows + MR - 1) / MR;
    for (int p = panel; p < layer.panels; p++)
      for (int b = 0; b < blocks; b++) {
        const int from = num_rows * b / blocks, to = num_rows * (b + 1) / blocks;
        panel_kernel<Product>(rows, chunk + from, to - from, b, blocks, layer, p, results);
        apply_epilogue(results, chunk + from, to - from, p * NR, 2, layer.N, epilogue);
      }
  }
}

#if TFM_HAS_TILES
// The operations of a product in tiles: address a row, multiply tiles, finish the sums of a vector of
// columns.
struct Int8Tiles {
  static TFM_INLINE const char* row(const Rows& rows, const Linear& layer, int m) {
    return reinterpret_cast<const char*>(rows.bytes) + long(m) * layer.padded_inputs();
  }
  template <int Sums, int A, int B>
  static TFM_INLINE void add() { tile_multiply_int8<Sums, A, B>(); }

  vi offset;
  vf scale, bias;
  const float* row_scales;
  Int8Tiles(const Rows& rows, const Linear& layer, int column)
      : offset(load_int(layer.offsets + column)), scale(load(layer.scales + column)),
        bias(load(layer.bias + column)), row_scales(rows.scales) {}
  // The result has the bits of Int8Product::finish.
  TFM_INLINE vf finish(const int32_t* sums, int row) const {
    return multiply_add(__builtin_convertvector(load_int(sums) + offset, vf), scale * row_scales[row], bias);
  }
};
struct Bf16Tiles {
  static TFM_INLINE const char* row(const Rows& rows, const Linear& layer, int m) {
    return reinterpret_cast<const char*>(rows.pairs + m * layer.row_pairs());
  }
  template <int Sums, int A, int B>
  static TFM_INLINE void add() { tile_multiply_bf16<Sums, A, B>(); }

  vf bias;
  Bf16Tiles(const Rows&, const Linear& layer, int column) : bias(load(layer.bias + column)) {}
  TFM_INLINE vf finish(const int32_t* sums, int) const { return (vf)load_int(sums) + bias; }
};

// Multiply tile I of rows by tile J of columns; tile I * Columns + J holds the sums.
template <class Product, int I, int J, int Columns>
static TFM_INLINE void add_tile() {
  Product::template add<I * Columns + J, I % 2 == 0 ? 4 : 5, J % 2 == 0 ? 6 : 7>();
}

// Tiles of rows: their first rows, and the number of rows that overlap with the tile before.
struct RowTiles {
  int count = 0, rows = 0;
  int starts[4] = {}, repeated[4] = {};
};

constexpr int kTile = kTileRows * VL;

// Multiply R tiles of rows by C tiles of columns, R * C <= 4, to (R, C) tiles of sums. Each block of 64
// bytes of inputs also prefetches `lines` cache lines from `ahead`.
template <class Product, int R, int C>
static void tile_kernel(const Rows& rows, const Linear& layer, const RowTiles& tiles, int half_panel, int32_t* sums,
                        const char* ahead, int lines) {
  const long row_bytes = layer.steps * 4L;
  const int blocks = layer.steps / kTileRows;
  const char* a[R];
  for (int i = 0; i < R; i++) a[i] = Product::row(rows, layer, tiles.starts[i]);
  const int32_t* b[C];
  for (int j = 0; j < C; j++)
    b[j] = layer.weights + long((half_panel + j) / 2) * layer.steps * NR + (half_panel + j) % 2 * VL;
  tile_zero<0>();
  if constexpr (R * C > 1) tile_zero<1>();
  if constexpr (R * C > 2) tile_zero<2>();
  if constexpr (R * C > 3) tile_zero<3>();
  for (int block = 0; block < blocks; block++) {
    for (int l = 0; l < lines; l++) __builtin_prefetch(ahead + (long(block) * lines + l) * long(kCacheLine));
    const long at = block * 64L, step = long(block) * kTileRows * NR;
    tile_load<4>(a[0] + at, row_bytes);
    tile_load<6>(b[0] + step, NR * 4);
    add_tile<Product, 0, 0, C>();
    if constexpr (C > 1) {
      tile_load<7>(b[1] + step, NR * 4);
      add_tile<Product, 0, 1, C>();
    }
    if constexpr (R > 1) {
      tile_load<5>(a[1] + at, row_bytes);
      add_tile<Product, 1, 0, C>();
      if constexpr (C > 1) add_tile<Product, 1, 1, C>();
    }
    if constexpr (C > 2) {
      tile_load<6>(b[2] + step, NR * 4);
      add_tile<Product, 0, 2, C>();
      tile_load<7>(b[3] + step, NR * 4);
      add_tile<Product, 0, 3, C>();
    }
    if constexpr (R > 2) {
      tile_load<4>(a[2] + at, row_bytes);
      add_tile<Product, 2, 0, C>();
    }
    if constexpr (R > 3) {
      tile_load<5>(a[3] + at, row_bytes);
      add_tile<Product, 3, 0, C>();
    }
  }
  tile_store<0>(sums, VL * 4);
  if constexpr (R * C > 1) tile_store<1>(sums + kTile, VL * 4);
  if constexpr (R * C > 2) tile_store<2>(sums + 2 * kTile, VL * 4);
  if constexpr (R * C > 3) tile_store<3>(sums + 3 * kTile, VL * 4);
}

// Multiply 1 to 4 tiles of rows by 1 to 4 halves of panels, and return the number of the latter.
template <class Product>
static __attribute__((noinline)) int tiles_kernel(const Rows& rows, const Linear& layer, const RowTiles& tiles, int half_panel,
                                                  int halves, int32_t* sums, const char* ahead, int lines) {
  switch (tiles.count) {
    case 1:
      if (halves == 4) {
        tile_kernel<Product, 1, 4>(rows, layer, tiles, half_panel, sums, ahead, 4 * lines);
        return 4;
      }
      tile_kernel<Product, 1, 1>(rows, layer, tiles, half_panel, sums, ahead, lines);
      return 1;
    case 2:
      if (halves == 2) {
        tile_kernel<Product, 2, 2>(rows, layer, tiles, half_panel, sums, ahead, 2 * lines);
        return 2;
      }
      tile_kernel<Product, 2, 1>(rows, layer, tiles, half_panel, sums, ahead, lines);
      return 1;
    case 3: tile_kernel<Product, 3, 1>(rows, layer, tiles, half_panel, sums, ahead, lines); return 1;
    default: tile_kernel<Product, 4, 1>(rows, layer, tiles, half_panel, sums, ahead, lines); return 1;
  }
}

template <class Product, class Epilogue>
static void multiply_tiles(const Rows& rows, int M, const Linear& layer, Epilogue& epilogue) {
  constexpr int kGroup = 4 * kTileRows;
  const int halves = (layer.N + VL - 1) / VL;  // of panels
  const long row_bytes = layer.steps * 4L, half_bytes = row_bytes * VL;
  const char* weights = reinterpret_cast<const char*>(layer.weights);
  // Rows that stay in L2 for all panels, in groups of 4 tiles.
  const int chunk = int(std::max(1L, (1L << 19) / (kGroup * row_bytes))) * kGroup;
  RowTiles tiles;
  tiles.rows = std::min(M, kTileRows);
  alignas(kCacheLine) int32_t sums[4 * kTile];
  const Tiles configuration(tiles.rows);
  for (int first = 0; first < M; first += chunk) {
    const int end = std::min(M, first + chunk), groups = (end - first + kGroup - 1) / kGroup;
    const int step = end - first > kTileRows ? 2 : 4;  // columns at a time
    for (int half = 0; half < halves; half += step)
      for (int group = 0; group < groups; group++) {
        tiles.count = 0;
        for (int m = first + group * kGroup; m < std::min(end, first + (group + 1) * kGroup); m += kTileRows) {
          // The last tile overlaps with the one before if it would exceed the last row.
          tiles.starts[tiles.count] = std::max(0, std::min(m, M - kTileRows));
          tiles.repeated[tiles.count] = m - tiles.starts[tiles.count];
          tiles.count++;
        }
        // The next columns are prefetched while the first groups are multiplied by these.
        const int sharing = std::min(groups, 4), columns = std::min(step, halves - half);
        const char* ahead = weights + (half + step) * half_bytes + group * step * half_bytes / sharing;
        const int lines = half + step < halves && group < sharing ? kTileRows / sharing : 0;
        for (int c = 0; c < columns;) {
          const int done = tiles_kernel<Product>(rows, layer, tiles, half + c, columns - c, sums, ahead + c * half_bytes / sharing, lines);
          for (int j = 0; j < done; j++) {
            const int column = (half + c + j) * VL;
            const Product product(rows, layer, column);
            for (int i = 0; i < tiles.count; i++)
              for (int r = tiles.repeated[i]; r < tiles.rows; r++)
                epilogue(tiles.starts[i] + r, column, product.finish(sums + (i * done + j) * kTile + r * VL, tiles.starts[i] + r));
          }
          c += done;
        }
      }
  }
}
#endif

// Call epilogue(row, column, VL results with the bias added) for all M rows and for every VL-th column
// below N. rows: in this layer's precision, from a RowBuffer.
template <class Epilogue>
static void multiply(const Rows& rows, int M, const Linear& layer, Epilogue& epilogue) {
#if TFM_HAS_TILES
  if (layer.in_tiles) return multiply_tiles<Bf16Tiles>(rows, M, layer, epilogue);
  if (layer.precision == Precision::int8 && M >= kTilesFrom && has_tiles())
    return multiply_tiles<Int8Tiles>(rows, M, layer, epilogue);
#endif
  switch (layer.precision) {
    case Precision::fp32: return multiply_as<Fp32Product>(rows, M, layer, epilogue);
    case Precision::bf16: return multiply_as<Bf16Product>(rows, M, layer, epilogue);
    case Precision::int8: return multiply_as<Int8Product>(rows, M, layer, epilogue);
  }
}

// The plain epilogues.
struct Store {
  float* y;
  long stride;
  TFM_INLINE void operator()(int row, int column, vf v) const { store(y + row * stride + column, v); }
};
struct Add {  // to the previous values, such as a residual
  float* y;
  long stride;
  TFM_INLINE void operator()(int row, int column, vf v) const {
    float* p = y + row * stride + column;
    store(p, load(p) + v);
  }
};

}  // namespace tfm
