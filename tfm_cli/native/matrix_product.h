// Products of rows of activations with packed weights, in fp32, bf16 and int8, with fused epilogues.
//
// Weights are packed once into panels of NR columns, [panel][step][NR], where a step is what one lane of
// 32 bits holds: 1 input in fp32, 2 in bf16, 4 in int8. A kernel then reads them as one stream. What
// becomes of the results (stored, added, compared) is an epilogue, called while they are in registers.
//
// The sum over the inputs has one order, first to last, in every kernel: the results of a row are the
// same bits whatever the number of rows, and `dot` and `column` give them one by one.
//
// M rows, N columns (outputs), K inputs
#pragma once
#include <algorithm>
#include <type_traits>

#include "allocation.h"
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

// A row of K numbers as bytes, round(127 x / max |x|) + kZeroPoint, up to `padded` of them; returns the
// scale. A row that is not finite gives the scale NaN, and so results that are NaN.
inline float quantize_row(const float* x, int K, int padded, uint8_t* bytes) {
  const int whole = K / VL * VL;
  const vi no_sign = broadcast(int32_t{0x7fffffff});
  vi most0 = {}, most1 = {};  // as integers, since their order is that of the numbers, with NaN on top
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
  int32_t bits = largest(max(most0, most1));
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

// The bytes of a row of weights, round(127 w / max |w|), and their scale.
inline float quantize_weights(const float* w, size_t K, int8_t* bytes) {
  float most = 0;
  bool finite = true;
  for (size_t k = 0; k < K; k++) {
    float a = std::fabs(w[k]);
    finite = finite && a < kInfinity;
    most = a > most ? a : most;
  }
  if (!finite || most < 1e-30f) {
    std::memset(bytes, 0, K);
    return finite ? 1.0f : kNaN;
  }
  const float scale = most / 127, inverse = 1 / scale;
  for (size_t k = 0; k < K; k++) bytes[k] = int8_t(int(w[k] * inverse + (w[k] >= 0 ? 0.5f : -0.5f)));
  return scale;
}

// y = x W^T + bias of one layer.
struct Linear {
  int N = 0, K = 0;
  int steps = 0;   // lanes of 32 bits that hold the inputs
  int panels = 0;
  Precision precision = Precision::fp32;
  int32_t* weights = nullptr;  // [panels][steps][NR] floats, pairs of bf16 or fours of int8
  float* bias = nullptr;       // [panels * NR]
  float* scales = nullptr;     // int8: of each column
  int32_t* offsets = nullptr;  // int8: -kZeroPoint times the sum of each column

  int inputs_of_step() const { return precision == Precision::fp32 ? 1 : precision == Precision::bf16 ? 2 : 4; }
  // Inputs with the zeros behind them: what a row of bytes or of bf16 has.
  int padded_inputs() const { return steps * inputs_of_step(); }
  // Columns that an epilogue is called for, a whole number of vectors; what is behind N has weights of
  // 0 and `padding_bias`.
  int padded_columns() const { return int(round_up(size_t(N), VL)); }

  // weight: (n, k) by rows. The bias is 0 until it is set.
  void pack(Arena& arena, const float* weight, int n, int k, Precision p, float padding_bias = 0) {
    begin(arena, n, k, p, padding_bias);
    if (p == Precision::int8) {
      Vector<int8_t> bytes(size_t(steps) * 4, 0);
      for (int i = 0; i < n; i++) {
        float scale = quantize_weights(weight + size_t(i) * size_t(k), size_t(k), bytes.data());
        place_bytes(i, bytes.data(), scale);
      }
      return;
    }
    const int step_inputs = inputs_of_step();
    constexpr int kStrip = 16;  // steps at a time, so that a cache line of each row is read once
    for (int panel = 0; panel < panels; panel++)
      for (int from = 0; from < steps; from += kStrip)
        for (int j = 0; j < NR && panel * NR + j < n; j++) {
          const float* row = weight + size_t(panel * NR + j) * size_t(k);
          int32_t* to = weights + size_t(panel) * size_t(steps) * NR + j;
          for (int s = from; s < from + kStrip && s < steps; s++) {
            if (step_inputs == 1) {
              std::memcpy(to + size_t(s) * NR, row + s, 4);
            } else {
              uint32_t low = to_bf16(row[2 * s]), high = 2 * s + 1 < k ? to_bf16(row[2 * s + 1]) : 0;
              to[size_t(s) * NR] = int32_t(low | high << 16);
            }
          }
        }
  }
  // bytes: (n, k) that were quantized before, by rows, with the scale of each row.
  void pack_bytes(Arena& arena, const int8_t* bytes, const float* row_scales, int n, int k, float padding_bias = 0) {
    begin(arena, n, k, Precision::int8, padding_bias);
    Vector<int8_t> row(size_t(steps) * 4, 0);
    for (int i = 0; i < n; i++) {
      std::memcpy(row.data(), bytes + size_t(i) * size_t(k), size_t(k));
      place_bytes(i, row.data(), row_scales[i]);
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
    // Rows of bytes are written a vector at a time.
    if (p == Precision::int8) steps = int(round_up(size_t(steps) * 4, VL)) / 4;
    if (p == Precision::bf16) steps = int(round_up(size_t(steps), VL));
    weights = arena.take<int32_t>(size_t(panels) * size_t(steps) * NR);
    bias = arena.take<float>(size_t(panels) * NR);
    for (int i = n; i < panels * NR; i++) bias[i] = padding_bias;
    if (p != Precision::int8) return;
    scales = arena.take<float>(size_t(panels) * NR);
    offsets = arena.take<int32_t>(size_t(panels) * NR);
  }
  void place_bytes(int column, const int8_t* bytes, float scale) {
    int32_t total = 0;
    for (int k = 0; k < K; k++) total += bytes[k];
    scales[column] = scale;
    offsets[column] = -kZeroPoint * total;
    int32_t* to = weights + size_t(column / NR) * size_t(steps) * NR + column % NR;
    for (int s = 0; s < steps; s++) std::memcpy(to + size_t(s) * NR, bytes + 4 * s, 4);
  }
};

// Rows of activations as the products of one precision read them: fp32 with a stride, pairs of bf16, or
// bytes with a scale for each row; the latter two have `padded_inputs()` elements a row.
struct Rows {
  const float* x = nullptr;
  long stride = 0;
  const uint8_t* bytes = nullptr;
  const float* scales = nullptr;
  const int32_t* pairs = nullptr;
};

// Holds rows in the form that a layer reads.
class RowBuffer {
 public:
  // x: (M, K) by rows that are `stride` apart. What is returned holds until the next call.
  Rows rows(const float* x, long stride, int M, const Linear& layer) {
    Rows result;
    result.x = x;
    result.stride = stride;
    const size_t width = size_t(layer.padded_inputs());
    if (layer.precision == Precision::int8) {
      uint8_t* bytes = data_.get<uint8_t>(size_t(M) * width);
      float* scales = scales_.get<float>(size_t(M));
      for (int m = 0; m < M; m++) scales[m] = quantize_row(x + m * stride, layer.K, int(width), bytes + size_t(m) * width);
      result.bytes = bytes;
      result.scales = scales;
    } else if (layer.precision == Precision::bf16) {
      if (kHasBf16) {
        int32_t* pairs = data_.get<int32_t>(size_t(M) * width / 2);
        for (int m = 0; m < M; m++) to_pairs(x + m * stride, layer.K, int(width), pairs + size_t(m) * width / 2);
        result.pairs = pairs;
      } else if (layer.K < layer.padded_inputs()) {
        float* padded = data_.get<float>(size_t(M) * width);
        for (int m = 0; m < M; m++) {
          std::memcpy(padded + size_t(m) * width, x + m * stride, sizeof(float) * size_t(layer.K));
          std::memset(padded + size_t(m) * width + layer.K, 0, sizeof(float) * (width - size_t(layer.K)));
        }
        result.x = padded;
        result.stride = long(width);
      }
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
    for (; k + VL <= K; k += VL) put(load(x + k), halves + k);
    if (k < K) {
      put(load_first(x + k, K - k), halves + k);
      k += VL;
    }
    if (k < padded) std::memset(halves + k, 0, size_t(padded - k) * 2);
  }
  static TFM_INLINE void put(vf v, uint16_t* to) {
    typedef uint16_t vh __attribute__((vector_size(VL * 2)));
    vh halves = __builtin_convertvector(round_to_bf16(v) >> 16, vh);
    std::memcpy(to, &halves, sizeof halves);
  }
  Buffer data_, scales_;
};

// What differs between the precisions: how an input is read and multiplied, and how a sum ends.
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

// Rows m … m + M_ - 1 times NV vectors of columns from the first of a panel.
template <class Product, int M_, int NV, class Epilogue>
static void kernel(const Rows& rows, const Linear& layer, int m, int panel, Epilogue& epilogue) {
  const long steps = layer.steps, panel_size = steps * NR;
  const int32_t* w = layer.weights + panel * panel_size;
  typename Product::Sum sums[M_][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M_; i++)
#pragma GCC unroll 16
    for (int j = 0; j < NV; j++) sums[i][j] = Product::start(layer, panel * NR + j * VL);
  for (long s = 0; s < steps; s++) {
    typename Product::Weights b[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; j++) b[j] = Product::read(w + (j / 2) * panel_size + s * NR + (j % 2) * VL);
#pragma GCC unroll 16
    for (int i = 0; i < M_; i++) {
      typename Product::Activation x = Product::input(rows, layer, m + i, s);
#pragma GCC unroll 16
      for (int j = 0; j < NV; j++) sums[i][j] = Product::add(sums[i][j], x, b[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M_; i++)
#pragma GCC unroll 16
    for (int j = 0; j < NV; j++) {
      const int column = panel * NR + j * VL;
      if (column < layer.N) epilogue(m + i, column, Product::finish(sums[i][j], rows, layer, m + i, column));
    }
}

template <class Product, int M_, class Epilogue>
static TFM_INLINE void kernel_of(int num_rows, const Rows& rows, const Linear& layer, int m, int panel, Epilogue& epilogue) {
  if (num_rows == M_) return kernel<Product, M_, 2>(rows, layer, m, panel, epilogue);
  if constexpr (M_ > 1) kernel_of<Product, M_ - 1>(num_rows, rows, layer, m, panel, epilogue);
}

template <class Product, class Epilogue>
static void multiply_as(const Rows& rows, int M, const Linear& layer, Epilogue& epilogue) {
  int panel = 0;
  // Few rows: several panels at once, or too few sums are under way to hide the latency.
  if (M == 1)
    for (; panel + 4 <= layer.panels; panel += 4) kernel<Product, 1, 8>(rows, layer, 0, panel, epilogue);
#if defined(__AVX512F__)
  else if (M == 2)
    for (; panel + 2 <= layer.panels; panel += 2) kernel<Product, 2, 4>(rows, layer, 0, panel, epilogue);
  else if (M == 3)
    for (; panel + 2 <= layer.panels; panel += 2) kernel<Product, 3, 4>(rows, layer, 0, panel, epilogue);
  else if (M == 4)
    for (; panel + 2 <= layer.panels; panel += 2) kernel<Product, 4, 4>(rows, layer, 0, panel, epilogue);
#endif
  constexpr int kChunk = 8 * MR;  // rows that stay in the cache while the panels go by
  for (int chunk = 0; chunk < M; chunk += kChunk) {
    const int num_rows = std::min(M - chunk, kChunk), blocks = (num_rows + MR - 1) / MR;
    for (int p = panel; p < layer.panels; p++)
      for (int b = 0; b < blocks; b++) {
        int from = num_rows * b / blocks, to = num_rows * (b + 1) / blocks;
        kernel_of<Product, MR>(to - from, rows, layer, chunk + from, p, epilogue);
      }
  }
}

// epilogue(row, column, VL results with the bias added) for all M rows and for every VL-th column below
// N. rows: of this layer's precision, as RowBuffer makes them.
template <class Epilogue>
static void multiply(const Rows& rows, int M, const Linear& layer, Epilogue& epilogue) {
  switch (layer.precision) {
    case Precision::fp32: return multiply_as<Fp32Product>(rows, M, layer, epilogue);
    case Precision::bf16: return multiply_as<Bf16Product>(rows, M, layer, epilogue);
    case Precision::int8: return multiply_as<Int8Product>(rows, M, layer, epilogue);
  }
}

// The dot product of two rows of floats, added up as a product in fp32 adds it: with the bias, the very
// bits of `multiply`.
inline float dot(const float* x, const float* w, int K) {
  float sum = 0;
  for (int k = 0; k < K; k++) sum = multiply_add(x[k], w[k], sum);
  return sum;
}

// One result of `multiply`, to the bit.
inline float column(const Rows& rows, int row, const Linear& layer, int n) {
  const int32_t* w = layer.weights + long(n / NR) * layer.steps * NR + n % NR;
  if (layer.precision == Precision::int8) {
    int32_t sum = layer.offsets[n];
    const uint8_t* x = rows.bytes + long(row) * layer.steps * 4;
    for (int s = 0; s < layer.steps; s++) {
      int8_t four[4];
      std::memcpy(four, w + long(s) * NR, 4);
      for (int b = 0; b < 4; b++) sum += (kZeroPoint ? int(x[4 * s + b]) : int(int8_t(x[4 * s + b]))) * four[b];
    }
    return multiply_add(float(sum), layer.scales[n] * rows.scales[row], layer.bias[n]);
  }
  if (layer.precision == Precision::fp32) {
    float sum = 0;
    for (int s = 0; s < layer.steps; s++) {
      float value;
      std::memcpy(&value, w + long(s) * NR, 4);
      sum = multiply_add(rows.x[row * rows.stride + s], value, sum);
    }
    return sum + layer.bias[n];
  }
  vf sum = {};
  for (int s = 0; s < layer.steps; s++) {
    int32_t pair[VL] = {w[long(s) * NR]};
    sum = Bf16Product::add(sum, Bf16Product::input(rows, layer, row, s), Bf16Product::read(pair));
  }
  return sum[0] + layer.bias[n];
}

// The plain epilogues.
struct Store {
  float* y;
  long stride;
  TFM_INLINE void operator()(int row, int column, vf v) const { store(y + row * stride + column, v); }
};
struct Add {  // to what stands there, such as a residual
  float* y;
  long stride;
  TFM_INLINE void operator()(int row, int column, vf v) const {
    float* p = y + row * stride + column;
    store(p, load(p) + v);
  }
};

}  // namespace tfm
