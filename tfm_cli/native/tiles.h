// Products in the tiles of Intel's AMX: 16 rows times 16 columns of 64 bytes of input in one instruction.
//
// The instructions are written as assembly, so that one library serves processors with and without them.
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
  constexpr unsigned kTileState = 3u << 17;  // configuration and data are saved by the system
  if ((low & kTileState) != kTileState) return false;
  // The system gives a process the registers (8 KiB) when it asks for them, and then to all its threads.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
// Whether this process may use tiles.
inline bool has_tiles() {
  static const bool result = ask_for_tiles();
  return result;
}

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 … 3 hold sums, 4 and 5 rows of activations, 6 and 7 weights. While this stands, they are in use.
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
static TFM_INLINE void tile_multiply_bytes() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Activations), "i"(Weights));
}
// The same of pairs of bf16, into floats.
template <int Sums, int Activations, int Weights>
static TFM_INLINE void tile_multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Activations), "i"(Weights));
}
#else
inline bool has_tiles() { return false; }
#endif

}  // namespace tfm
