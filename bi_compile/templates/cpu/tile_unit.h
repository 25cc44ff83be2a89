// bf16 products by AMX: eight registers of 16 rows of 64 bytes, and one instruction that multiplies two of them.
//
// TDPBF16PS takes 32 elements of K at once: A as 16 lines of 32 elements, B as 16 steps of 16 pairs, and computes for
// 16 x 16 outputs a chain over the even elements and one over the odd ones, whose sum is added to the sum so far.
// Assembly, because the instruction set extension is looked for at run time and not switched on for the whole file.
#pragma once

#include "cpu/bf16_order.h"

#if defined(BI_ISA_AVX512) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define BI_TILES
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace {

// Linux gives a process the registers when it asks for them.
inline bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted =
      machine_has_tiles() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 && !without_bf16_instructions();
  return granted;
}

// All registers at full size, and given back at the end: a process that keeps them in use is slow to switch to.
struct TileUnit {
  TileUnit() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration kFull;
    asm volatile("ldtilecfg %0" ::"m"(kFull));
  }
  ~TileUnit() { asm volatile("tilerelease"); }
};

template <int Tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

template <int Tile>
inline void load_tile(const char* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(Tile) : "memory");
}

template <int Tile>
inline void store_tile(float* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(Tile) : "memory");
}

// sum += a x b
template <int Sum, int A, int B>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

}  // namespace

#endif
