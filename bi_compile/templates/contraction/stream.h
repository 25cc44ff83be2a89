// Products with few rows: columns contiguous along K go from memory through registers into the chains.
//
// Such a product reads its columns once, so copying them first would cost more than computing with them.
#pragma once

#include "contraction/panels.h"

namespace {

#if defined(BI_ISA_AVX512)

constexpr int kStreamRows = 8;
constexpr int64_t kStreamColumns = 16;

// One chunk of 16 lines: sums[row * 16 + line] of `Rows` packed rows. Meanwhile the lines at `next` are on their way
// to the cache.
template <class S, int Rows, class T>
void stream_tile(const typename S::Packed* rows, const T* lines, const T* next, int64_t across, int64_t elements,
                 typename S::Sum* sums) {
  constexpr int64_t kBlock = 16 * S::kPerStep;
  typename S::V sum[Rows];
  for (int i = 0; i < Rows; ++i) sum[i] = S::F::zero();
  int64_t k = 0;
  for (; k + kBlock <= elements; k += kBlock, rows += 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(next + k + i * across), _MM_HINT_T1);
    }
    __m512i r[16];
    load_block<S, true>(lines + k, across, kBlock, r);
#pragma GCC unroll 16
    for (int step = 0; step < 16; ++step) {
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        sum[i] = S::step(sum[i], rows + i * kRowStride<S> + step, _mm512_castsi512_ps(r[step]));
      }
    }
  }
  if (k < elements) {
    __m512i r[16];
    load_block<S, false>(lines + k, across, elements - k, r);
    for (int64_t step = 0; step < steps_of<S>(elements - k); ++step) {
      for (int i = 0; i < Rows; ++i) {
        sum[i] = S::step(sum[i], rows + i * kRowStride<S> + step, _mm512_castsi512_ps(r[step]));
      }
    }
  }
  for (int i = 0; i < Rows; ++i) S::F::store(sums + i * kStreamColumns, sum[i]);
}

template <class S, class T>
using StreamTile = void (*)(const typename S::Packed*, const T*, const T*, int64_t, int64_t, typename S::Sum*);

template <class S, class T, int... Rows>
constexpr StreamTile<S, T> stream_tile_of(int64_t rows, std::integer_sequence<int, Rows...>) {
  constexpr StreamTile<S, T> tiles[] = {&stream_tile<S, Rows + 1, T>...};
  return tiles[rows - 1];
}

// The kernel for 1 <= rows <= kStreamRows.
template <class S, class T>
StreamTile<S, T> stream_tile_of(int64_t rows) {
  return stream_tile_of<S, T>(rows, std::make_integer_sequence<int, kStreamRows>());
}

// Whole panels of kStreamColumns columns, at most kStreamRows rows.
template <class S, class T>
void product_in_stream(const Product<T>& p) {
  using Sum = typename S::Sum;
  constexpr int64_t kSums = kStreamRows * kStreamColumns;
  const int64_t chunks = p.chunks();
  const auto compute = stream_tile_of<S, T>(p.rows);
  for_each_panel<S>(p, kStreamColumns, [&](int64_t batch, const PackedRows<S>& rows, int64_t column, int64_t,
                                           int64_t next_column) {
    Sum* levels = workspace<Sum>(2, counter_levels(chunks) * kSums);
    const auto slot = [&](int64_t level) { return levels + level * kSums; };
    alignas(64) Sum sums[kSums];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const bool last = chunk + 1 == chunks;
      const T* lines = p.columns_at(batch, column, chunk).data;
      const T* next = last ? p.columns_at(batch, next_column, 0).data : lines + kChunk;
      {
        [[maybe_unused]] const typename S::Mode mode;
        compute(rows.at(chunk, 0), lines, next, p.b_column, p.elements(chunk), sums);
      }
      const int64_t level = combine(sums, p.rows * kStreamColumns, chunk, last, slot);
      if (!last) std::memcpy(slot(level), sums, p.rows * kStreamColumns * sizeof(Sum));
    }
    for (int64_t i = 0; i < p.rows; ++i) {
      finish(p, sums + i * kStreamColumns, batch, i, column, kStreamColumns);
    }
  });
}

#endif

}  // namespace
