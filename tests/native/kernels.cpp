// Products, attention, functions of vectors and memory against loops that are plainly right.
// Says what is wrong and returns 1 then.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "allocation.h"
#include "attention.h"
#include "matrix_product.h"
#include "vectors.h"

using namespace tfm;
using Floats = std::vector<float>;

static int num_faults = 0;
#define EXPECT(condition, ...)                     \
  do {                                             \
    if (!(condition) && num_faults++ < 20) {       \
      std::printf("line %d: %s: ", __LINE__, #condition); \
      std::printf(__VA_ARGS__);                    \
      std::printf("\n");                           \
    }                                              \
  } while (0)

static std::mt19937 generator(1);
static Floats numbers(size_t count, float size = 1) {
  std::uniform_real_distribution<float> uniform(-size, size);
  Floats result(count);
  for (float& x : result) x = uniform(generator);
  return result;
}
static bool same_bits(const float* a, const float* b, size_t count) { return std::memcmp(a, b, count * 4) == 0; }

// ---- products ----

static const int kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 27, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 104, 105, 130};
constexpr int kMostRows = 131;

// (M, padded columns) of the first M rows.
static Floats product(const Linear& layer, const Floats& x, int M) {
  RowBuffer buffer;
  const long stride = layer.padded_columns();
  Floats y(size_t(M * stride), 99);
  Store epilogue{y.data(), stride};
  multiply(buffer.rows(x.data(), layer.K, M, layer), M, layer, epilogue);
  return y;
}

// What one number in a product of a precision may be off by, as a share of the sum of absolute terms.
static double tolerance(Precision precision) {
  return precision == Precision::fp32 ? 2e-6 : precision == Precision::bf16 ? 8e-3 : 2.5e-2;
}

static void test_products() {
  for (Precision precision : {Precision::fp32, Precision::bf16, Precision::int8})
    for (int N : {1, 5, 16, 31, 33, 64, 65, 100, 130, 160})
      for (int K : {1, 3, 4, 7, 16, 31, 33, 64, 65, 130, 512}) {
        Arena arena;
        const Floats w = numbers(size_t(N * K)), x = numbers(size_t(kMostRows * K), 3), bias = numbers(size_t(N));
        Linear layer;
        layer.pack(arena, w.data(), N, K, precision, -kInfinity);
        layer.set_bias(bias.data());
        const Floats whole = product(layer, x, kMostRows);
        const long stride = layer.padded_columns();
        for (int m = 0; m < kMostRows; m++)
          for (int n = 0; n < stride; n++) {
            const float y = whole[size_t(m * stride + n)];
            if (n >= N) {
              EXPECT(y == -kInfinity, "padding of %d x %d is %g", N, K, y);
              continue;
            }
            double sum = bias[size_t(n)], size = std::fabs(sum), most_x = 0, most_w = 0;
            for (int k = 0; k < K; k++) {
              const double a = x[size_t(m * K + k)], b = w[size_t(n * K + k)];
              sum += a * b;
              size += std::fabs(a * b);
              most_x = std::fmax(most_x, std::fabs(a));
              most_w = std::fmax(most_w, std::fabs(b));
            }
            if (precision == Precision::int8) size = K * most_x * most_w;
            EXPECT(std::fabs(y - sum) <= tolerance(precision) * size, "%d of %d x %d is %g, not %g", int(precision), N, K, y, sum);
          }
        for (int M : kRows) {
          const Floats part = product(layer, x, M);
          EXPECT(same_bits(part.data(), whole.data(), part.size()), "precision %d, %d x %d, %d rows", int(precision), N, K, M);
        }
      }
}

static void test_bytes_are_multiplied_exactly() {
  for (int M : {1, 13, 40}) {
    const int N = 70, K = 300;
    Arena arena;
    const Floats w = numbers(size_t(N * K)), x = numbers(size_t(M * K), 5);
    Linear layer, again;
    layer.pack(arena, w.data(), N, K, Precision::int8);
    std::vector<int8_t> bytes(size_t(N * K));
    Floats scales(static_cast<size_t>(N));
    for (int n = 0; n < N; n++) scales[size_t(n)] = quantize_weights(&w[size_t(n * K)], size_t(K), &bytes[size_t(n * K)]);
    again.pack_int8(arena, bytes.data(), scales.data(), N, K);
    const Floats y = product(layer, x, M), z = product(again, x, M);
    EXPECT(same_bits(y.data(), z.data(), y.size()), "weights that were quantized before");
    const int padded = layer.padded_inputs();
    std::vector<uint8_t> row(static_cast<size_t>(padded));
    for (int m = 0; m < M; m++) {
      const float scale = quantize_row(&x[size_t(m * K)], K, padded, row.data());
      for (int n = 0; n < N; n++) {
        int32_t sum = 0;
        for (int k = 0; k < K; k++) sum += (int(kZeroPoint ? row[size_t(k)] : uint8_t(row[size_t(k)] ^ 128)) - 128) * bytes[size_t(n * K + k)];
        const float wanted = float(sum) * (scales[size_t(n)] * scale);
        EXPECT(y[size_t(m * layer.padded_columns() + n)] == wanted, "row %d, column %d", m, n);
      }
    }
  }
}

static void test_a_row_that_is_not_finite_stays_alone() {
  for (Precision precision : {Precision::fp32, Precision::bf16, Precision::int8})
    for (float bad : {kNaN, kInfinity, -kInfinity})
      for (int K : {5, 64, 200}) {
        const int N = 40, M = 30;
        Arena arena;
        const Floats w = numbers(size_t(N * K));
        Floats x = numbers(size_t(M * K));
        Linear layer;
        layer.pack(arena, w.data(), N, K, precision);
        const Floats good = product(layer, x, M);
        x[size_t(7 * K + K - 1)] = bad;
        const Floats y = product(layer, x, M);
        const size_t stride = size_t(layer.padded_columns());
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++) {
            const size_t at = size_t(m) * stride + size_t(n);
            if (m == 7) EXPECT(!std::isfinite(y[at]), "precision %d: %g", int(precision), y[at]);
            else EXPECT(y[at] == good[at], "precision %d: row %d", int(precision), m);
          }
      }
}

static void test_rows_of_bytes() {
  for (int K : {1, 7, 16, 64, 65, 100}) {
    const int padded = int(round_up(size_t(K), 64));
    std::vector<uint8_t> bytes(size_t(padded) + 8, 77);
    for (float size : {0.0f, 1e-38f, 1e-20f, 1.0f, 1.5e38f}) {
      const Floats x = numbers(size_t(K), size);
      float most = 0;
      for (float each : x) most = std::fmax(most, std::fabs(each));
      const float scale = quantize_row(x.data(), K, padded, bytes.data());
      for (int k = 0; k < padded + 8; k++) {
        const int byte = kZeroPoint ? bytes[size_t(k)] - kZeroPoint : int8_t(bytes[size_t(k)]);
        if (k >= padded) EXPECT(bytes[size_t(k)] == 77, "byte %d behind %d", k, padded);
        else if (k >= K) EXPECT(byte == 0, "padding");
        else EXPECT(std::fabs(byte * scale - x[size_t(k)]) <= 0.51f * scale || most < 1e-30f, "%g as %d", x[size_t(k)], byte);
      }
    }
  }
}

// ---- attention ----

template <class T>
static void test_attention(double tolerance) {
  for (int E : {1, 7, 8, 16, 20, 32, 40, 56, 64, 80, 96, 128, 160})
    for (int P : {1, 2, 3, 4, 15, 16, 17, 33, 100})
      for (int K : {1, 4, 7}) {
        const int H = 3, room = P * K, D = H * E;
        std::vector<T> keys(cache_size<T>(H, E, room)), values(keys.size()), own_keys(cache_size<T>(H, E, P)), own_values(own_keys.size());
        const Cache<T> shared{keys.data(), values.data(), room}, own{own_keys.data(), own_values.data(), P};
        const Floats key = numbers(size_t(room * D), 2), value = numbers(size_t(room * D), 2), query = numbers(size_t(D), 2);
        std::vector<uint8_t> ancestors(static_cast<size_t>(P));
        for (auto& each : ancestors) each = uint8_t(generator() % unsigned(K));
        for (int e = 0; e < room; e++) store(shared, H, E, e, &key[size_t(e * D)], &value[size_t(e * D)]);
        for (int p = 0; p < P; p++) {
          const size_t from = size_t((p * K + ancestors[size_t(p)]) * D);
          store(own, H, E, p, &key[from], &value[from]);
        }
        Floats out(query.size()), alone(query.size()), scratch(attention_scratch(P, E)), weights(ancestors.size());
        attend(query.data(), shared, H, E, P, K, ancestors.data(), out.data(), scratch.data(), weights.data());
        attend<T>(query.data(), own, H, E, P, 1, nullptr, alone.data(), scratch.data());
        EXPECT(same_bits(out.data(), alone.data(), out.size()), "beams change a hypothesis: E %d, P %d, K %d", E, P, K);
        std::vector<double> mean(size_t(P), 0.0);
        for (int h = 0; h < H; h++) {
          std::vector<double> scores(static_cast<size_t>(P));
          double most = -1e9, total = 0;
          auto entry = [&](int p) { return size_t((p * K + ancestors[size_t(p)]) * D + h * E); };
          for (int p = 0; p < P; p++) {
            double dot = 0;
            for (int e = 0; e < E; e++) dot += double(query[size_t(h * E + e)]) * key[entry(p) + size_t(e)];
            scores[size_t(p)] = dot / std::sqrt(double(E));
            most = std::fmax(most, scores[size_t(p)]);
          }
          for (double& s : scores) total += s = std::exp(s - most);
          for (int p = 0; p < P; p++) mean[size_t(p)] += scores[size_t(p)] / total / H;
          for (int e = 0; e < E; e++) {
            double sum = 0;
            for (int p = 0; p < P; p++) sum += scores[size_t(p)] / total * value[entry(p) + size_t(e)];
            const float got = out[size_t(h * E + e)];
            EXPECT(std::fabs(got - sum) < tolerance, "E %d, P %d, K %d: %g, not %g", E, P, K, got, sum);
          }
        }
        for (int p = 0; p < P; p++) EXPECT(std::fabs(weights[size_t(p)] - mean[size_t(p)]) < tolerance, "weight %d of %d", p, P);
      }
}

static void test_attention_of_nan() {
  const int E = 32, P = 20;
  std::vector<float> keys(cache_size<float>(1, E, P)), values(keys.size());
  Floats row = numbers(size_t(E)), out(static_cast<size_t>(E)), scratch(attention_scratch(P, E));
  const Cache<float> cache{keys.data(), values.data(), P};
  for (int p = 0; p < P; p++) store(cache, 1, E, p, row.data(), row.data());
  row[3] = kNaN;
  attend<float>(row.data(), cache, 1, E, P, 1, nullptr, out.data(), scratch.data());
  for (float each : out) EXPECT(std::isnan(each), "%g", each);
}

// ---- functions ----

static void test_functions() {
  for (float x = -80; x < 80; x += 0.0137f) {
    EXPECT(std::fabs(tfm::exp(broadcast(x))[0] / std::exp(double(x)) - 1) < 3e-7, "exp(%g)", x);
    EXPECT(std::fabs(sigmoid(broadcast(x))[0] - 1 / (1 + std::exp(-double(x)))) < 2e-7, "sigmoid(%g)", x);
    EXPECT(std::fabs(swish(broadcast(x))[0] - x / (1 + std::exp(-double(x)))) < 3e-7 * std::fmax(1, std::fabs(x)), "swish(%g)", x);
    EXPECT(std::fabs(tfm::erf(broadcast(x))[0] - std::erf(double(x))) < 4e-7, "erf(%g)", x);
    const double gelu_x = 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    EXPECT(std::fabs(gelu(broadcast(x))[0] - gelu_x) < 1e-6 * std::fmax(1, std::fabs(x)), "gelu(%g)", x);
  }
  for (float x : {-kInfinity, -1e30f, -100.0f}) EXPECT(tfm::exp(broadcast(x))[0] < 2e-38f, "exp(%g)", x);
  EXPECT(std::isnan(tfm::exp(broadcast(kNaN))[0]) && std::isnan(tfm::erf(broadcast(kNaN))[0]) && std::isnan(swish(broadcast(kNaN))[0]), "NaN");
  vf v, parts[VL];
  for (int i = 0; i < VL; i++) {
    v[i] = float(i * i % 7);
    const Floats random = numbers(VL);
    parts[i] = load(random.data());
  }
  EXPECT(largest(v) == 4, "largest %g", largest(v));
  const vf sums = sums_of(parts);
  for (int i = 0; i < VL; i++) EXPECT(sums[i] == sum(parts[i]), "sum %d: %g, not %g", i, sums[i], sum(parts[i]));
  for (float x : {1.0f, -2.5f, 1.00390625f, 1.01171875f, 3e38f, 1e-40f, kInfinity}) {
    const float rounded = from_bf16(to_bf16(x));
    EXPECT(rounded == lower_half(pair_of_bf16(broadcast(x), vf{}))[0], "bf16 of %g", x);
    EXPECT(std::fabs(rounded - x) <= std::fabs(x) / 256 || rounded == x || std::fabs(x) < 1e-38f, "bf16 of %g is %g", x, rounded);
  }
  EXPECT(std::isnan(from_bf16(to_bf16(kNaN))), "bf16 of NaN");
}

// ---- memory ----

template <class F>
static bool has_no_memory(F f) {
  try {
    f();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

static void test_memory() {
  Arena arena;
  for (size_t size : {1, 100, 5000000, 70, 30000000}) {
    char* p = arena.take<char>(size);
    EXPECT(uintptr_t(p) % kCacheLine == 0, "alignment");
    EXPECT(p[0] == 0 && p[size - 1] == 0, "zeros");
    std::memset(p, 1, size);
  }
  EXPECT(arena.bytes() == 35000320, "%zu bytes", arena.bytes());
  Buffer buffer;
  buffer.get<float>(10)[9] = 1;
  const size_t before = buffer.bytes();
  EXPECT(has_no_memory([&] { buffer.get<double>(size_t(-1) / 4); }), "absurd size");
  EXPECT(has_no_memory([&] { arena.take<double>(size_t(-1) / 16); }), "absurd size");
  EXPECT(before > 0, "bytes");
  fail_allocation(2);
  buffer.release();
  buffer.get<float>(10);
  EXPECT(has_no_memory([&] { buffer.get<float>(1000000); }), "the second fails");
  buffer.get<float>(1000000)[999999] = 1;
  EXPECT(has_no_memory([] {
           fail_allocation(1);
           Vector<int> v(3);
         }),
         "a vector's allocation fails");
  fail_allocation(0);
}

int main() {
  test_products();
  test_bytes_are_multiplied_exactly();
  test_a_row_that_is_not_finite_stays_alone();
  test_rows_of_bytes();
  test_attention<float>(1e-5);
  test_attention<uint16_t>(4e-2);
  test_attention_of_nan();
  test_functions();
  test_memory();
  std::printf(num_faults ? "%d faults\n" : "as it should be\n", num_faults);
  return num_faults != 0;
}
