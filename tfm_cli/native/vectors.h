// Vectors of floats and integers, with the vector extensions of GCC and Clang; -march sets their width.
//
// Few operations need an intrinsic. Where two code paths must give the same bits, products are added by
// multiply_add, so that the rounding does not depend on the compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define TFM_INLINE inline __attribute__((always_inline))

namespace tfm {

#if defined(__AVX512F__)
constexpr int VL = 16;  // floats of a vector
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint8_t vb __attribute__((vector_size(VL)));

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

static TFM_INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
static TFM_INLINE vi load_int(const void* p) { vi v; std::memcpy(&v, p, sizeof v); return v; }
static TFM_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
static TFM_INLINE void store_int(void* p, vi v) { std::memcpy(p, &v, sizeof v); }
static TFM_INLINE vf broadcast(float x) { return x - vf{}; }
static TFM_INLINE vi broadcast(int32_t x) { return x - vi{}; }
// Load or store the first `count` < VL floats, without reading or writing bytes after them.
static TFM_INLINE vf load_first(const float* p, int count) {
  vf v = {};
  std::memcpy(&v, p, size_t(count) * 4);
  return v;
}
static TFM_INLINE void store_first(float* p, vf v, int count) { std::memcpy(p, &v, size_t(count) * 4); }

static TFM_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
static TFM_INLINE vi max(vi a, vi b) { return a > b ? a : b; }
static TFM_INLINE vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
static TFM_INLINE vi lanes() {
  vi v;
  for (int i = 0; i < VL; i++) v[i] = i;
  return v;
}

// Return a * b + c, rounded once if the processor supports it.
static TFM_INLINE vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
static TFM_INLINE float multiply_add(float a, float b, float c) {
#if defined(__AVX512F__) || defined(__FMA__) || defined(__ARM_NEON)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Return the lower or the upper half of the lanes of a vector.
#if defined(__AVX512F__)
typedef float half_vf __attribute__((vector_size(32)));
static TFM_INLINE half_vf low_lanes(vf v) { return (half_vf)_mm512_castps512_ps256((__m512)v); }
static TFM_INLINE half_vf high_lanes(vf v) { return (half_vf)_mm512_extractf32x8_ps((__m512)v, 1); }
#endif
typedef float four_floats __attribute__((vector_size(16)));
#if defined(__AVX2__)
typedef float eight_floats __attribute__((vector_size(32)));
static TFM_INLINE four_floats low_lanes(eight_floats v) { return (four_floats)_mm256_castps256_ps128((__m256)v); }
static TFM_INLINE four_floats high_lanes(eight_floats v) { return (four_floats)_mm256_extractf128_ps((__m256)v, 1); }
#endif

// Return the sum of the lanes in a fixed order: the upper half is added to the lower repeatedly.
static TFM_INLINE float sum(four_floats v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#if defined(__AVX2__)
static TFM_INLINE float sum(eight_floats v) { return sum(low_lanes(v) + high_lanes(v)); }
#endif
#if defined(__AVX512F__)
static TFM_INLINE float sum(vf v) { return sum(low_lanes(v) + high_lanes(v)); }
#endif
// Return a vector whose lane i is lane from[i] of a and b concatenated.
template <class V>
static TFM_INLINE V shuffled(V a, V b, vi from) {
#if defined(__clang__)
  V out;
  for (int i = 0; i < VL; i++) out[i] = from[i] < VL ? a[from[i]] : b[from[i] - VL];
  return out;
#else
  return __builtin_shuffle(a, b, from);
#endif
}
// Return the largest lane; no lane may be NaN.
static TFM_INLINE float largest(vf v) {
  for (int half = VL / 2; half >= 1; half /= 2) {
    v = max(v, shuffled(v, v, lanes() ^ half));
  }
  return v[0];
}
static TFM_INLINE int32_t largest(vi v) {
  for (int half = VL / 2; half >= 1; half /= 2) {
    v = max(v, shuffled(v, v, lanes() ^ half));
  }
  return v[0];
}
// Return true if a lane of a is at least that of b.
static TFM_INLINE bool any_at_least(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ)) != 0;
#else
  vi m = a >= b;
  return (m[0] | m[1] | m[2] | m[3]) != 0;
#endif
}

// Return e^x to about 2 units in the last place; x below -87.3 is treated as -87.3, and NaN stays NaN.
// Source: expf of the Cephes library (Moshier).
static TFM_INLINE vf exp(vf x) {
  x = x < -87.3f ? broadcast(-87.3f) : x;
  x = x > 88.3f ? broadcast(88.3f) : x;
  const vf magic = broadcast(12582912.0f);  // 1.5 * 2^23: a sum with it is rounded to an integer
  vf shifted = multiply_add(x, broadcast(1.44269504088896341f), magic);
  vf n = shifted - magic;
  vf r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  vf p = multiply_add(r, broadcast(1.9875691500e-4f), broadcast(1.3981999507e-3f));
  p = multiply_add(p, r, broadcast(8.3334519073e-3f));
  p = multiply_add(p, r, broadcast(4.1665795894e-2f));
  p = multiply_add(p, r, broadcast(1.6666665459e-1f));
  p = multiply_add(p, r, broadcast(5.0000001201e-1f));
  p = multiply_add(p, r * r, r) + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(__mmask16(-1), (__m512)p, (__m512)n);
#else
  vf power = (vf)(((vi)shifted << 23) + (vi)p);  // the low bits of `shifted` are n
  return x == x ? power : x;
#endif
}

static TFM_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }
static TFM_INLINE vf swish(vf x) { return x / (1.0f + exp(-x)); }

// Return erf(x) with an error of at most 3e-7. Source: the rational approximation of Eigen (generic_fast_erf).
static TFM_INLINE vf erf(vf x) {
  x = x < -4.0f ? broadcast(-4.0f) : x;
  x = x > 4.0f ? broadcast(4.0f) : x;
  vf y = x * x;
  vf p = multiply_add(y, broadcast(-2.72614225801306e-10f), broadcast(2.77068142495902e-08f));
  p = multiply_add(p, y, broadcast(-2.10102402082508e-06f));
  p = multiply_add(p, y, broadcast(-5.69250639462346e-05f));
  p = multiply_add(p, y, broadcast(-7.34990630326855e-04f));
  p = multiply_add(p, y, broadcast(-2.95459980854025e-03f));
  p = multiply_add(p, y, broadcast(-1.60960333262415e-02f));
  vf q = multiply_add(y, broadcast(-1.45660718464996e-05f), broadcast(-2.13374055278905e-04f));
  q = multiply_add(q, y, broadcast(-1.68282697438203e-03f));
  q = multiply_add(q, y, broadcast(-7.37332916720468e-03f));
  q = multiply_add(q, y, broadcast(-1.42647390514189e-02f));
  return x * p / q;
}
// Return the exact GELU, with erf. Source: Hendrycks and Gimpel 2016, arXiv:1606.08415.
static TFM_INLINE vf gelu(vf x) {
  vf half = 0.5f * x;
  return multiply_add(half, erf(x * 0.70710678118654752f), half);
}

// The zero point of 8-bit activations. The dot product of x86 multiplies unsigned by signed bytes, that of
// ARM signed by signed bytes.
#if defined(__ARM_NEON)
constexpr int kZeroPoint = 0;
#else
constexpr int kZeroPoint = 128;
#endif

// Return sums plus the exact sum of 4 products of bytes in each lane of 32 bits.
static TFM_INLINE vi dot_of_4(vi sums, vi activations, vi weights) {
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
  return (vi)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)activations, (__m512i)weights);
#elif defined(__AVX512BW__)
  const __m512i low = _mm512_set1_epi16(0xff);
  __m512i ue = _mm512_and_si512((__m512i)activations, low), uo = _mm512_srli_epi16((__m512i)activations, 8);
  __m512i se = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)weights, 8), 8), so = _mm512_srai_epi16((__m512i)weights, 8);
  return sums + (vi)_mm512_add_epi32(_mm512_madd_epi16(ue, se), _mm512_madd_epi16(uo, so));
#elif defined(__AVXVNNI__)
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)activations, (__m256i)weights);
#elif defined(__AVX2__)
  // Even and odd bytes are widened separately, since 16 bits cannot hold a sum of two products of bytes.
  const __m256i low = _mm256_set1_epi16(0xff);
  __m256i ue = _mm256_and_si256((__m256i)activations, low), uo = _mm256_srli_epi16((__m256i)activations, 8);
  __m256i se = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)weights, 8), 8), so = _mm256_srai_epi16((__m256i)weights, 8);
  return sums + (vi)_mm256_add_epi32(_mm256_madd_epi16(ue, se), _mm256_madd_epi16(uo, so));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (vi)vdotq_s32((int32x4_t)sums, (int8x16_t)activations, (int8x16_t)weights);
#else
  for (int b = 0; b < 4; b++) {
    vi w = (vi)((vu)weights << (24 - 8 * b)) >> 24;
    vi a = kZeroPoint ? (activations >> (8 * b)) & 255 : (vi)((vu)activations << (24 - 8 * b)) >> 24;
    sums += a * w;
  }
  return sums;
#endif
}

// Return the first or the second bf16 of each lane of 32 bits as a float, whose upper half it is.
static TFM_INLINE vf lower_half(vi pairs) { return (vf)((vu)pairs << 16); }
static TFM_INLINE vf upper_half(vi pairs) { return (vf)((vu)pairs & 0xffff0000u); }
// Round to the nearest bf16, ties to even, in the upper half of each lane; NaN stays NaN.
static TFM_INLINE vu round_to_bf16(vf x) {
  vu bits = (vu)x;
  vu rounded = bits + (0x7fffu + ((bits >> 16) & 1u));
  return (vu)(x == x ? (vf)rounded : (vf)(bits | 0x400000u));
}
static TFM_INLINE vi pair_of_bf16(vf lower, vf upper) {
  return (vi)((round_to_bf16(lower) >> 16) | (round_to_bf16(upper) & 0xffff0000u));
}
static TFM_INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return uint16_t((bits | 0x400000u) >> 16);
  return uint16_t((bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16);
}
static TFM_INLINE float from_bf16(uint16_t half) {
  uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

#if defined(__AVX512BF16__) && defined(__AVX512F__)
constexpr bool kHasBf16 = true;
// Return sums plus the sum of 2 products of bf16 in each lane.
static TFM_INLINE vf dot_of_2(vf sums, vi activations, vi weights) {
  return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)activations, (__m512bh)weights);
}
#else
constexpr bool kHasBf16 = false;
#endif

}  // namespace tfm
