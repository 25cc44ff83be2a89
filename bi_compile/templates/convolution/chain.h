// The contraction tree over the elements of a window: chunks are chains of fused multiply-adds in index order, their
// sums the leaves of a balanced tree.
#pragma once

#include <utility>

#include "convolution/problem.h"

namespace {

constexpr int64_t kChunk = BI_CONTRACTION_CHUNK;

#if defined(BI_ISA_AVX512)
constexpr int kTileRows = 12;
#elif defined(BI_ISA_AVX2)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

template <class A>
constexpr int64_t kColumns = kTileVectors * Fma<A>::kWidth;

// Where finished sums go, channels `stride` apart; null for sums that are combined first.
template <class A>
struct Output {
  A* data = nullptr;
  int64_t stride = 0;
  const A* bias = nullptr;  // of the first channel, or null
};

// Whether vectors of sums can be finished in registers.
template <class A>
constexpr bool kTilesFinish = std::is_constructible_v<Vec<A>, typename Fma<A>::V>;

// sums[row * kColumns + column] of `Rows` output channels and `Vectors` vectors of positions, or, with an output, whole
// vectors of it. Brings near the rows at `ahead`, unless it is null.
template <class A, int Rows, int Vectors>
void chain_tile(const A* rows, int64_t row_stride, const A* columns, int64_t steps, const A* ahead, A* sums,
                const Output<A>& output) {
  using F = Fma<A>;
  using V = typename F::V;
  V sum[Rows][Vectors];
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < Vectors; ++j) sum[i][j] = F::zero();
  }
  for (int64_t block = 0; block < steps; block += 16) {
    if (ahead) {
      for (int i = 0; i < Rows; ++i) __builtin_prefetch(ahead + i * row_stride + block, 0, 3);
    }
    const int64_t end = std::min(block + 16, steps);
    for (int64_t k = block; k < end; ++k) {
      V column[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) column[j] = F::load(columns + k * kColumns<A> + j * F::kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const V row = F::broadcast(rows[i * row_stride + k]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sum[i][j] = F::fma(row, column[j], sum[i][j]);
      }
    }
  }
  if constexpr (kTilesFinish<A>) {
    if (output.data) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) {
          Vec<A> value(sum[i][j]);
          if (output.bias) value = value + Vec<A>(output.bias[i]);
          canonical(value).store(output.data + i * output.stride + j * F::kWidth);
        }
      }
      return;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) F::store(sums + i * kColumns<A> + j * F::kWidth, sum[i][j]);
  }
}

template <class A>
using ChainTile = void (*)(const A*, int64_t, const A*, int64_t, const A*, A*, const Output<A>&);

template <class A, int Vectors, int... Rows>
ChainTile<A> chain_tile_of(int64_t rows, std::integer_sequence<int, Rows...>) {
  static constexpr ChainTile<A> tiles[] = {&chain_tile<A, Rows + 1, Vectors>...};
  return tiles[rows - 1];
}

// The kernel for 1 <= rows <= kTileRows and 1 or 2 vectors.
template <class A>
ChainTile<A> chain_tile_of(int64_t rows, int64_t vectors) {
  constexpr auto kRows = std::make_integer_sequence<int, kTileRows>();
  return vectors == 1 ? chain_tile_of<A, 1>(rows, kRows) : chain_tile_of<A, 2>(rows, kRows);
}

// Levels of the binary counter before the last chunk: one for each bit of its number.
inline int64_t counter_levels(int64_t chunks) {
  int64_t levels = 0;
  while ((chunks - 1) >> levels) ++levels;
  return levels;
}

// Adds to the sums of chunk `chunk` the stored sums they are combined with: the carry of a binary counter, or,
// after the last chunk, all that is left. slot(level) points to the stored sums. Returns the level to store at.
template <class A, class Slot>
int64_t combine(A* sums, int64_t count, int64_t chunk, bool last, const Slot& slot) {
  int64_t level = 0;
  for (; chunk >> level; ++level) {
    if ((chunk >> level & 1) == 0) {
      if (last) continue;
      break;
    }
    const A* stored = slot(level);
    for (int64_t j = 0; j < count; j += kWidth<A>) {
      (Vec<A>::loadu(stored + j) + Vec<A>::loadu(sums + j)).store(sums + j);
    }
  }
  return level;
}

// count finished sums, plus the bias of their channel, rounded once.
template <class T>
void finish(const Acc<T>* sums, const T* bias, int64_t count, T* out) {
  using A = Acc<T>;
  const Vec<A> addend(bias ? static_cast<A>(*bias) : A(0));
  for (int64_t j = 0; j < count; j += kWidth<A>) {
    const int64_t m = std::min(kWidth<A>, count - j);
    Vec<A> value = m == kWidth<A> ? Vec<A>::loadu(sums + j) : Vec<A>::loadu(sums + j, m);
    if (bias) value = value + addend;
    store(out + j, value, m);
  }
}

}  // namespace
