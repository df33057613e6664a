// Products in the tiles of Intel's AMX: one instruction multiplies 16 rows by 16 columns, 64 bytes each.
//
// The instructions are inline assembly, so that one library serves processors with and without them.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once
#include <cstdint>

#include "vectors.h"

#if defined(__AVX512VNNI__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TFM_HAS_TILES 1
#else
#define TFM_HAS_TILES 0
#endif

namespace tfm {

constexpr int kTileRows = 16;

#if TFM_HAS_TILES
inline bool ask_for_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;  // the system saves configuration and data
  if ((low & kTileState) != kTileState) return false;
  // A process has to request the registers (8 KiB); then all its threads have them.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
// Return true if this process may use tiles.
inline bool has_tiles() {
  static const bool result = ask_for_tiles();
  return result;
}

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The tile configuration, for its lifetime: 0 … 3 hold sums, 4 and 5 activations, 6 and 7 weights.
class Tiles {
 public:
  explicit Tiles(int activation_rows) {
    TileConfiguration configuration;
    for (int t = 0; t < 8; t++) {
      configuration.row_bytes[t] = 64;
      configuration.rows[t] = uint8_t(t < 6 ? activation_rows : kTileRows);
    }
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

template <int T>
static TFM_INLINE void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T>
static TFM_INLINE void tile_load(const void* from, long stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(stride) : "memory");
}
template <int T>
static TFM_INLINE void tile_store(void* to, long stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(stride) : "memory");
}
// sums += activations (unsigned bytes) times weights (signed bytes)
template <int Sums, int Activations, int Weights>
static TFM_INLINE void tile_multiply_int8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Activations), "i"(Weights));
}
// sums += pairs of bf16 activations times weights, in floats
template <int Sums, int Activations, int Weights>
static TFM_INLINE void tile_multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Activations), "i"(Weights));
}
#else
inline bool has_tiles() { return false; }
#endif

}  // namespace tfm
