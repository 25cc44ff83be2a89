// Products with few rows: columns go from memory through registers into the chains.
//
// Such a product reads its columns once, so copying them first would cost more than computing with them. Columns
// that lie along K are transposed in registers, columns that lie side by side are taken as they are.
#pragma once

#include "contraction/panels.h"

namespace {

// One chunk of a few columns: sums[row * columns + column] of a few packed rows. `stride` leads from column to column
// or from step to step, and the columns at `next` follow.
template <class S, class T>
using StreamTile = void (*)(const typename S::Packed* rows, const T* columns, const T* next, int64_t stride,
                            int64_t elements, typename S::Sum* sums);

#if defined(BI_ISA_AVX512)

constexpr int kAlongRows = 8;
constexpr int64_t kAlongColumns = 16;

// One chunk of 16 lines: sums[row * 16 + line] of `Rows` packed rows. Meanwhile the lines at `next` are on their way
// to the cache.
template <class S, int Rows, class T>
void along_tile(const typename S::Packed* rows, const T* lines, const T* next, int64_t across, int64_t elements,
                 typename S::Sum* sums) {
  constexpr int64_t kBlock = 16 * S::kPerStep;
  typename S::V sum[Rows];
  for (int i = 0; i < Rows; ++i) sum[i] = S::F::zero();
  int64_t k = 0;
  for (; k + kBlock <= elements; k += kBlock, rows += 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(next + k + i * across), _MM_HINT_T0);
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
  for (int i = 0; i < Rows; ++i) S::F::store(sums + i * kAlongColumns, sum[i]);
}

template <class S, class T, int... Rows>
constexpr StreamTile<S, T> along_tile_of(int64_t rows, std::integer_sequence<int, Rows...>) {
  constexpr StreamTile<S, T> tiles[] = {&along_tile<S, Rows + 1, T>...};
  return tiles[rows - 1];
}

// The kernel for 1 <= rows <= kAlongRows.
template <class S, class T>
StreamTile<S, T> along_tile_of(int64_t rows) {
  return along_tile_of<S, T>(rows, std::make_integer_sequence<int, kAlongRows>());
}

#endif

#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)

constexpr int kBesideRows = 2;
constexpr int kBesideVectors = 8;
template <class S>
constexpr int64_t kBesideColumns = kBesideVectors * S::F::kWidth;

// One chunk of columns side by side, `along` from one step to the next.
template <class S, int Rows, class T>
void beside_tile(const typename S::Packed* rows, const T* columns, const T*, int64_t along, int64_t elements,
                 typename S::Sum* sums) {
  constexpr int64_t kWidth = S::F::kWidth, kStepsAhead = 16, kLine = 64 / sizeof(T);
  typename S::V sum[Rows][kBesideVectors];
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < kBesideVectors; ++j) sum[i][j] = S::F::zero();
  }
  for (int64_t k = 0; k < elements; ++k, columns += along) {
    for (int64_t j = 0; j < kBesideColumns<S>; j += kLine) __builtin_prefetch(columns + kStepsAhead * along + j, 0, 2);
#pragma GCC unroll 8
    for (int j = 0; j < kBesideVectors; ++j) {
      const typename S::V column = load(columns + j * kWidth, kWidth);
#pragma GCC unroll 2
      for (int i = 0; i < Rows; ++i) sum[i][j] = S::step(sum[i][j], rows + i * kRowStride<S> + k, column);
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < kBesideVectors; ++j) S::F::store(sums + (i * kBesideVectors + j) * kWidth, sum[i][j]);
  }
}

// The kernel for 1 <= rows <= kBesideRows.
template <class S, class T>
StreamTile<S, T> beside_tile_of(int64_t rows) {
  return rows == 1 ? &beside_tile<S, 1, T> : &beside_tile<S, 2, T>;
}

#endif

// Whole panels of `width` columns by a kernel that takes all rows.
template <class S, class T>
void product_in_stream(const Product<T>& p, int64_t width, StreamTile<S, T> compute, int64_t stride) {
  using Sum = typename S::Sum;
  constexpr int64_t kMostSums = 256;
  const int64_t chunks = p.chunks(), count = p.rows * width;
  for_each_panel<S>(p, width, [&](int64_t batch, const PackedRows<S>& rows, KeptColumns<S>*, int64_t column, int64_t,
                                  int64_t next_column) {
    Sum* levels = workspace<Sum>(2, counter_levels(chunks) * count);
    const auto slot = [&](int64_t level) { return levels + level * count; };
    alignas(64) Sum elsewhere[kMostSums];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const bool last = chunk + 1 == chunks;
      Sum* sums = sums_of(chunk, last, slot, elsewhere);
      const T* next = last ? p.columns_at(batch, next_column, 0).data : p.columns_at(batch, column, chunk + 1).data;
      {
        [[maybe_unused]] const typename S::Mode mode;
        compute(rows.at(chunk, 0), p.columns_at(batch, column, chunk).data, next, stride, p.elements(chunk), sums);
      }
      if (sums == elsewhere) combine(sums, count, chunk, last, slot);
    }
    for (int64_t i = 0; i < p.rows; ++i) finish(p, elsewhere + i * width, batch, i, column, width);
  });
}

// Computes as many of the columns as stream in whole panels. Returns how many.
template <class S, class T>
int64_t product_in_stream(const Product<T>& p) {
#if defined(BI_ISA_AVX512)
  if constexpr (S::kStreams && sizeof(typename S::Packed) == 4) {
    if (p.rows <= kAlongRows && p.b_k == 1) {
      const int64_t whole = p.columns / kAlongColumns * kAlongColumns;
      product_in_stream<S, T>(p.of_columns(0, whole), kAlongColumns, along_tile_of<S, T>(p.rows), p.b_column);
      return whole;
    }
  }
#endif
#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)
  if constexpr (S::kStreams && S::kPerStep == 1 && !S::kSwapped) {
    if (p.rows <= kBesideRows && p.b_column == 1) {
      const int64_t whole = p.columns / kBesideColumns<S> * kBesideColumns<S>;
      product_in_stream<S, T>(p.of_columns(0, whole), kBesideColumns<S>, beside_tile_of<S, T>(p.rows), p.b_k);
      return whole;
    }
  }
#endif
  return 0;
}

}  // namespace
