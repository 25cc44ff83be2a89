// Which of the two orders bf16 products have in this process: numerics.BF16_ORDERS.
#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

enum class Bf16Order { kTiles, kPairs };

// Whether the processor has AMX tiles with bf16 and the operating system keeps them for its processes.
inline bool machine_has_tiles() {
#if defined(__x86_64__)
  constexpr unsigned kSavesExtendedState = 1u << 27, kTiles = 1u << 24, kBf16 = 1u << 22, kTileState = 3u << 17;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSavesExtendedState)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) == 0 || (d & kBf16) == 0) return false;
  asm("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & kTileState) == kTileState;
#else
  return false;
#endif
}

// The machine's order, or the one that BI_COMPILE_BF16_ORDER names. The same for the life of the process.
inline Bf16Order bf16_order() {
  static const Bf16Order order = [] {
    const char* chosen = std::getenv("BI_COMPILE_BF16_ORDER");
    if (!chosen || !*chosen) return machine_has_tiles() ? Bf16Order::kTiles : Bf16Order::kPairs;
    const std::string_view name(chosen);
    TORCH_CHECK(name == "tiles" || name == "pairs", "bi_compile: BI_COMPILE_BF16_ORDER is \"", chosen,
                "\"; it may be \"tiles\" or \"pairs\"");
    return name == "tiles" ? Bf16Order::kTiles : Bf16Order::kPairs;
  }();
  return order;
}

// For tests that software has the bits of the machine's instructions: compute without these.
inline bool without_bf16_instructions() {
  static const bool without = std::getenv("BI_COMPILE_NO_BF16_INSTRUCTIONS");
  return without;
}

}  // namespace
