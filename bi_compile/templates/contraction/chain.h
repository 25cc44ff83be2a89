// One chunk of the contraction tree: chains of fused multiply-adds in index order, a tile of them at a time.
//
// A scheme says how a dtype's elements are packed and what chain they enter. All schemes of a dtype have the same
// bits. Operands are packed to rows[row * kRowStride + step] and columns[step * kColumns + column].
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/row_vector.h"
#include "cpu/simd.h"

namespace {

constexpr int64_t kChunk = BI_CONTRACTION_CHUNK;

#if defined(BI_ISA_AVX512)
constexpr int kMostChains = 24;
#elif defined(BI_ISA_AVX2)
constexpr int kMostChains = 12;
#else
constexpr int kMostChains = 8;
#endif
constexpr int kTileVectors = 2;

// The mode a scheme's chains run in. Setting it waits for all arithmetic under way: where nothing changes, nothing is
// set.
struct KeptMode {
  KeptMode() {}
};
struct FlushingMode {
  FloatingPointMode mode{FloatingPointMode::kFlush};
};

// What most schemes have in common.
struct Scheme {
  struct Unit {  // a unit of the processor, set up for as long as a thread computes
    Unit() {}
  };
  static constexpr bool kSwapped = false;        // pairs of K are packed in swapped order
  static constexpr bool kRowsAsColumns = false;  // rows are packed as columns are
  static constexpr int64_t kPerStep = 1;         // elements of K in one packed value
  static constexpr int64_t kMultiple = 1;        // packed values of a chunk are completed with zeros to a multiple
  static constexpr int kTileRows = kMostChains / kTileVectors;
  static constexpr int64_t kFewestRows = 8 * kTileRows;  // of a block
  static constexpr bool kStreams = true;  // stream.h computes it, too
  using Mode = KeptMode;
};

// Chains of fused multiply-adds, one element a step.
template <class A>
struct FmaChain : Scheme {
  using Chain = FmaChain;
  using Packed = A;
  using Sum = A;
  using F = Fma<A>;
  using V = typename F::V;
  static V load(const A* p) { return F::load(p); }
  static V step(V sum, const A* a, V b) { return F::fma(F::broadcast(*a), b, sum); }
};

// fp32, fp64, and fp16 widened to fp32.
template <class T>
struct Plain : FmaChain<Acc<T>> {};

#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)
using FlushedChain = FmaChain<float>;
#else
struct FlushedChain : FmaChain<float> {
  using Chain = FlushedChain;

  static V step(V sum, const float* a, const V& b) {
    for (int64_t j = 0; j < F::kWidth; ++j) sum.lane[j] = flushed_step(sum.lane[j], *a, b.lane[j]);
    return sum;
  }
};
#endif

// bf16 where the machine has no instruction for it: pairs of K in swapped order, one element a step, with
// subnormals flushed as VDPBF16PS flushes them.
struct FlushedPairs : FlushedChain {
  static constexpr bool kSwapped = true;
  static constexpr int64_t kMultiple = 2;
  using Mode = FlushingMode;
};

// bf16 in the order of AMX tiles where the machine has none: every 32 elements of K are one chain over the even ones
// and one over the odd ones, whose sum is added to the sum so far. Every operation flushes.
struct FlushedTiles : FlushedChain {
  using Chain = FlushedTiles;
  static constexpr int64_t kMultiple = 32;
  static constexpr int kTileRows = kMostChains / (3 * kTileVectors);
  static constexpr bool kStreams = false;
  using Mode = FlushingMode;
  static V add(const V& a, const V& b) {
    static constexpr float kOne = 1;
    return FlushedChain::step(a, &kOne, b);
  }
};

#if defined(BI_ISA_AVX512)
// bf16 by VDPBF16PS: two elements a step, the odd one first. Assembly, because the instruction set extension is
// looked for at run time and not switched on for the whole file.
struct HardwarePairs : Scheme {
  using Chain = HardwarePairs;
  using Packed = uint32_t;
  using Sum = float;
  using F = Fma<float>;
  using V = __m512;
  static constexpr int64_t kPerStep = 2;
  static V load(const uint32_t* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static V step(V sum, const uint32_t* a, V b) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(*a));
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pair), "v"(b));
    return sum;
  }
};
#endif

// Packed values of `elements` of K.
template <class S>
int64_t steps_of(int64_t elements) {
  constexpr int64_t kElements = S::kPerStep * S::kMultiple;
  return (elements + kElements - 1) / kElements * S::kMultiple;
}

// Packed values of one chunk of K.
template <class S>
constexpr int64_t kSteps = kChunk / S::kPerStep;

// Rows a multiple of 4096 bytes apart would fall on one set of the first-level cache.
template <class S>
constexpr int64_t kRowStride = kSteps<S> + 16;

template <class S>
constexpr int64_t kColumns = kTileVectors * S::F::kWidth;

// Memory to bring near the caches while a tile is computed: every 16 steps the next `advance` bytes of `count` lines,
// each `width` cache lines wide. Passed by reference: copied, its fields would be read in wider pieces than they were
// written, and such a read waits for every store before it.
struct Ahead {
  const char* data;
  int64_t stride, count, width, advance;

  void fetch() {
    for (int64_t line = 0; line < count; ++line) {
      for (int64_t w = 0; w < width; ++w) __builtin_prefetch(data + line * stride + w * 64, 0, 2);
    }
    data += advance;
  }
};

// sums[row * kColumns + column] of `Rows` rows and all columns of one panel.
template <class S, int Rows>
void chain_tile(const typename S::Packed* rows, const typename S::Packed* columns, int64_t steps, Ahead& ahead,
                typename S::Sum* sums) {
  using V = typename S::V;
  constexpr int64_t kWidth = S::F::kWidth;
  V sum[Rows][kTileVectors];
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < kTileVectors; ++j) sum[i][j] = S::F::zero();
  }
  for (int64_t block = 0; block < steps; block += 16) {
    ahead.fetch();
    const int64_t end = std::min(block + 16, steps);
    for (int64_t k = block; k < end; ++k) {
      V column[kTileVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) column[j] = S::load(columns + k * kColumns<S> + j * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j) sum[i][j] = S::step(sum[i][j], rows + i * kRowStride<S> + k, column[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) S::F::store(sums + i * kColumns<S> + j * kWidth, sum[i][j]);
  }
}

// The same with the sums of FlushedTiles.
template <int Rows>
void paired_chains_tile(const float* rows, const float* columns, int64_t steps, Ahead& ahead, float* sums) {
  using S = FlushedTiles;
  using V = S::V;
  constexpr int64_t kWidth = S::F::kWidth;
  V sum[Rows][kTileVectors];
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < kTileVectors; ++j) sum[i][j] = S::F::zero();
  }
  for (int64_t block = 0; block < steps; block += S::kMultiple) {
    ahead.fetch(), ahead.fetch();
    V chain[2][Rows][kTileVectors];
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j) chain[odd][i][j] = S::F::zero();
      }
    }
    for (int64_t k = block; k < block + S::kMultiple; k += 2) {
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        V column[kTileVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kTileVectors; ++j) column[j] = S::load(columns + (k + odd) * kColumns<S> + j * kWidth);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
          for (int j = 0; j < kTileVectors; ++j) {
            chain[odd][i][j] = S::step(chain[odd][i][j], rows + i * kRowStride<S> + k + odd, column[j]);
          }
        }
      }
    }
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < kTileVectors; ++j) sum[i][j] = S::add(sum[i][j], S::add(chain[0][i][j], chain[1][i][j]));
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < kTileVectors; ++j) S::F::store(sums + i * kColumns<S> + j * kWidth, sum[i][j]);
  }
}

template <class S>
using ChainTile = void (*)(const typename S::Packed*, const typename S::Packed*, int64_t, Ahead&, typename S::Sum*);

template <class S, int... Rows>
constexpr ChainTile<S> chain_tile_of(int64_t rows, std::integer_sequence<int, Rows...>) {
  if constexpr (std::is_same_v<S, FlushedTiles>) {
    constexpr ChainTile<S> tiles[] = {&paired_chains_tile<Rows + 1>...};
    return tiles[rows - 1];
  } else {
    constexpr ChainTile<S> tiles[] = {&chain_tile<typename S::Chain, Rows + 1>...};
    return tiles[rows - 1];
  }
}

// The kernel for 1 <= rows <= S::kTileRows.
template <class S>
ChainTile<S> chain_tile_of(int64_t rows) {
  return chain_tile_of<S>(rows, std::make_integer_sequence<int, S::kTileRows>());
}

}  // namespace
