// The instruction set that a library was built for, and a check that this processor has it.
//
// This file is compiled for the oldest processors, unlike the engine, since its functions are called
// before the processor is known to support the engine.
#include <cstdint>
#include <string_view>

#include "interface.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// The build defines the instruction set; otherwise it follows from the compiler flags.
#if !defined(TFM_INSTRUCTION_SET)
#if defined(__AVX512BF16__)
#define TFM_INSTRUCTION_SET "avx512_bf16"
#elif defined(__AVX512VNNI__)
#define TFM_INSTRUCTION_SET "avx512_vnni"
#elif defined(__AVX2__)
#define TFM_INSTRUCTION_SET "avx2"
#elif defined(__ARM_NEON)
#define TFM_INSTRUCTION_SET "neon"
#else
#define TFM_INSTRUCTION_SET "baseline"
#endif
#endif

namespace {

constexpr std::string_view kInstructionSet = TFM_INSTRUCTION_SET;
constexpr bool kHasBf16 = kInstructionSet == "avx512_bf16";
constexpr bool kHasAvx512 = kHasBf16 || kInstructionSet == "avx512_vnni";
constexpr bool kHasAvx2 = kHasAvx512 || kInstructionSet == "avx2";

#if defined(__x86_64__)

// A bit of the result of the instruction CPUID. Source: Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2A, CPUID; leaf 0x80000001: AMD64 Architecture Programmer's Manual 3.
enum Register { kEax, kEbx, kEcx, kEdx };
struct Feature {
  uint32_t leaf, subleaf;
  Register where;
  int bit;
};

// The features of -march=x86-64-v3 and -march=x86-64-v4 beyond x86-64. Source: x86-64 psABI, table 3.1.
constexpr Feature kVersion3[] = {
    {1, 0, kEcx, 0},            // SSE3
    {1, 0, kEcx, 9},            // SSSE3
    {1, 0, kEcx, 12},           // FMA
    {1, 0, kEcx, 13},           // CMPXCHG16B
    {1, 0, kEcx, 19},           // SSE4.1
    {1, 0, kEcx, 20},           // SSE4.2
    {1, 0, kEcx, 22},           // MOVBE
    {1, 0, kEcx, 23},           // POPCNT
    {1, 0, kEcx, 27},           // OSXSAVE: XGETBV may be used
    {1, 0, kEcx, 28},           // AVX
    {1, 0, kEcx, 29},           // F16C
    {7, 0, kEbx, 3},            // BMI1
    {7, 0, kEbx, 5},            // AVX2
    {7, 0, kEbx, 8},            // BMI2
    {0x80000001, 0, kEcx, 0},   // LAHF, SAHF
    {0x80000001, 0, kEcx, 5},   // LZCNT
};
constexpr Feature kVersion4[] = {
    {7, 0, kEbx, 16},  // AVX512F
    {7, 0, kEbx, 17},  // AVX512DQ
    {7, 0, kEbx, 28},  // AVX512CD
    {7, 0, kEbx, 30},  // AVX512BW
    {7, 0, kEbx, 31},  // AVX512VL
};
constexpr Feature kVnni[] = {{7, 0, kEcx, 11}};  // AVX512_VNNI
constexpr Feature kBf16[] = {{7, 1, kEax, 5}};   // AVX512_BF16

template <int N>
bool has_all(const Feature (&features)[N]) {
  for (const Feature& feature : features) {
    uint32_t registers[4] = {};
    if (!__get_cpuid_count(feature.leaf, feature.subleaf, &registers[kEax], &registers[kEbx],
                           &registers[kEcx], &registers[kEdx]))
      return false;
    if (!(registers[feature.where] >> feature.bit & 1)) return false;
  }
  return true;
}

// The register states that the operating system saves for each thread. Source: as above, XGETBV.
bool system_keeps(uint32_t states) {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & states) == states;
}
constexpr uint32_t kYmm = 0x06, kZmm = 0xe6;  // XMM and YMM; with opmask and both halves of ZMM too

bool runs_here() {
  if (kHasAvx2 && !(has_all(kVersion3) && system_keeps(kYmm))) return false;
  if (kHasAvx512 && !(has_all(kVersion4) && has_all(kVnni) && system_keeps(kZmm))) return false;
  return !kHasBf16 || has_all(kBf16);
}

#elif defined(__aarch64__) && defined(__linux__)

// The dot product of bytes, of ARMv8.2. Source: Linux, Documentation/arch/arm64/elf_hwcaps.rst.
bool runs_here() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }

#else

bool runs_here() { return true; }  // all Apple processors have the dot product of bytes

#endif

}  // namespace

int32_t tfm_abi(void) { return TFM_ABI; }
int32_t tfm_runs_here(void) { return runs_here(); }
const char* tfm_instruction_set(void) { return TFM_INSTRUCTION_SET; }
int32_t tfm_has_bf16(void) { return kHasBf16; }
