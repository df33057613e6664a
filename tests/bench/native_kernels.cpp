// The speed of the engine's kernels beside what the processor can do at most, one thread.
//
//   g++ -std=c++17 -O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math
//       -Itfm_cli/native tests/bench/native_kernels.cpp -o kernels && ./kernels
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "attention.h"
#include "matrix_product.h"

using namespace tfm;

// Of this thread: others may share the core.
static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// The least time of one run of f.
template <class F>
static double best_of(F f) {
  double best = 1e9;
  const double begin = now();
  for (int i = 0; i < 30 && (i < 3 || now() - begin < 0.3); i++) {
    const double from = now();
    f();
    best = std::min(best, now() - from);
  }
  return best;
}

static void limits() {
  vf sums[10] = {}, factor = broadcast(0.999f);
  constexpr int kTimes = 1000000;
  double seconds = best_of([&] {
    for (int i = 0; i < kTimes; i++) {
#pragma GCC unroll 10
      for (vf& s : sums) s = multiply_add(s, factor, factor);
      asm volatile("" : "+x"(factor));
    }
  });
  std::printf("fp32: %.0f GFLOP/s\n", kTimes * 20.0 * VL / seconds / 1e9);
  vi counts[10] = {}, bytes = broadcast(0x01020304);
  seconds = best_of([&] {
    for (int i = 0; i < kTimes; i++) {
#pragma GCC unroll 10
      for (vi& c : counts) c = dot_of_4(c, bytes, bytes);
      asm volatile("" : "+x"(bytes));
    }
  });
  float kept = 0;
  for (int i = 0; i < 10; i++) kept += sum(sums[i]) + float(counts[i][0]);
  std::printf("int8: %.0f Gop/s in vectors (%g)\n", kTimes * 80.0 * VL / seconds / 1e9, double(kept));
  for (size_t kib : {24, 1024, 16384, 262144}) {
    const size_t count = kib * 256;
    Block block(count * 4, true);
    const float* p = static_cast<const float*>(block.data());
    std::fill_n(static_cast<float*>(block.data()), count, 1.0f);
    const size_t times = std::max<size_t>(1, 65536 / kib);
    seconds = best_of([&] {
      vf s[8] = {};
      for (size_t t = 0; t < times; t++)
        for (size_t i = 0; i < count; i += 8 * VL) {
#pragma GCC unroll 8
          for (size_t j = 0; j < 8; j++) s[j] += load(p + i + j * VL);
        }
      volatile float end = sum(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
      (void)end;
    });
    std::printf("reading %zu KiB: %.0f GB/s\n", kib, double(times * count * 4) / seconds / 1e9);
  }
}

static void products() {
  const int shapes[][2] = {{384, 128}, {768, 256}, {1536, 512}, {2048, 512}, {512, 2048}, {32000, 512}};
  const char* names[] = {"fp32", "bf16", "int8"};
  for (const auto& [N, K] : shapes)
    for (int M : {1, 4, 16, 64, 256})
      for (int precision = 0; precision < 3; precision++) {
        const std::vector<float> w(size_t(N) * size_t(K), 0.01f), x(size_t(M) * size_t(K), 0.5f);
        std::vector<float> y(size_t(M) * (size_t(N) + NR));
        // Several layers by turns, so that weights come from as far as those of a model.
        std::vector<Linear> layers(std::max<size_t>(1, std::min<size_t>(40, 60000000 / (w.size() * 4))));
        Arena arena;
        for (Linear& layer : layers) layer.pack(arena, w.data(), N, K, Precision(precision));
        RowBuffer buffer;
        const Rows rows = buffer.rows(x.data(), K, M, layers[0]);
        Store epilogue{y.data(), layers[0].padded_columns()};
        const double seconds = best_of([&] {
                                 for (const Linear& layer : layers) multiply(rows, M, layer, epilogue);
                               }) / double(layers.size());
        const double work = double(N) * K;
        std::printf("%s, %5d x %4d, %3d rows: %8.1f us, %6.0f Gop/s, %5.1f GB/s\n", names[precision], N, K, M, seconds * 1e6,
                    2 * work * M / seconds / 1e9, work * (precision == 0 ? 4 : precision == 1 ? 2 : 1) / seconds / 1e9);
      }
}

template <class T>
static void attention(const char* name) {
  constexpr int H = 8, E = 64, kLayers = 4;
  for (int P : {8, 30, 100})
    for (int segments : {4, 64}) {
      const size_t size = cache_size<T>(H, E, P), count = size_t(segments * kLayers);
      Block keys(size * count * sizeof(T), true), values(size * count * sizeof(T), true);
      auto cache = [&](size_t i) { return Cache<T>{static_cast<T*>(keys.data()) + i * size, static_cast<T*>(values.data()) + i * size, P}; };
      const std::vector<float> row(H * E, 0.5f);
      std::vector<float> out(H * E), scratch(attention_scratch(P, E));
      for (size_t i = 0; i < count; i++)
        for (int p = 0; p < P; p++) store(cache(i), H, E, p, row.data(), row.data());
      const double seconds = best_of([&] {
        for (size_t i = 0; i < count; i++) attend<T>(row.data(), cache(i), H, E, P, 1, nullptr, out.data(), scratch.data());
      });
      std::printf("%s, %3d positions, %2d segments: %6.0f ns a head of %d\n", name, P, segments, seconds / double(count) / H * 1e9, E);
    }
}

int main() {
  std::printf("tiles: %s\n", has_tiles() ? "yes" : "no");
  limits();
  products();
  attention<float>("attention, fp32");
  attention<uint16_t>("attention, bf16");
}
