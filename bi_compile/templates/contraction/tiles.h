// bf16 products by AMX tiles, in contract.py's order "tiles". One of a product's operands streams through as A, its
// lines copied or, if they are read once only, taken where they lie; the other is packed as B once.
#pragma once

#include "contraction/panels.h"
#include "cpu/tile_unit.h"

#if defined(BI_TILES)

namespace {

struct Tiles : Scheme {
  using Packed = uint32_t;
  using Sum = float;
  using F = Fma<float>;
  using Unit = TileUnit;
  static constexpr bool kRowsAsColumns = true;
  static constexpr int64_t kPerStep = 2;
  static constexpr int64_t kMultiple = 16;
  static constexpr int64_t kFewestRows = 128;
};

constexpr int64_t kTileSide = 16;
constexpr int64_t kLines = 2 * kTileSide;  // of the streaming operand, taken together

// One chunk: sums[line * 16 Columns + row] of kLines lines `stride` bytes apart and 16 Columns packed rows.
template <int Columns>
void multiply_chunk(const char* lines, int64_t stride, const uint32_t* rows, int64_t steps, Ahead& ahead, float* sums) {
  constexpr int64_t kRowsStride = kColumns<Tiles> * sizeof(uint32_t);
  const char* b = reinterpret_cast<const char*>(rows);
  zero_tile<0>(), zero_tile<1>();
  if constexpr (Columns == 2) zero_tile<2>(), zero_tile<3>();
  for (int64_t step = 0; step < steps; step += 16, lines += 64, b += 16 * kRowsStride) {
    ahead.fetch();
    load_tile<4>(b, kRowsStride);
    load_tile<6>(lines, stride);
    multiply_tiles<0, 6, 4>();
    load_tile<7>(lines + 16 * stride, stride);
    multiply_tiles<1, 7, 4>();
    if constexpr (Columns == 2) {
      load_tile<5>(b + 64, kRowsStride);
      multiply_tiles<2, 6, 5>();
      multiply_tiles<3, 7, 5>();
    }
  }
  constexpr int64_t kWide = Columns * kTileSide, kSumsStride = kWide * sizeof(float);
  store_tile<0>(sums, kSumsStride);
  store_tile<1>(sums + 16 * kWide, kSumsStride);
  if constexpr (Columns == 2) {
    store_tile<2>(sums + 16, kSumsStride);
    store_tile<3>(sums + 16 * kWide + 16, kSumsStride);
  }
}

// sums[line * wide + row] to out[row * kLines + line].
inline void exchange(const float* sums, int64_t wide, float* out) {
  for (int64_t line = 0; line < kLines; line += 16) {
    for (int64_t row = 0; row < wide; row += 16) {
      __m512i r[16];
      load_block<Plain<float>, true>(sums + line * wide + row, wide, 16, r);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (row + i) * kLines + line, r[i]);
    }
  }
}

// The lines of a panel at `chunk`, as TDPBF16PS reads them: where they lie, or copied.
struct Lines {
  const char* data;
  int64_t stride;  // bytes
};

inline Lines lines_of(const Operand<at::BFloat16>& source, int64_t count, int64_t elements, bool once, uint32_t* copy) {
  constexpr int64_t kElements = Tiles::kPerStep * Tiles::kMultiple, kSize = sizeof(at::BFloat16);
  if (once && source.along == 1 && count == kLines && elements % kElements == 0) {
    return {reinterpret_cast<const char*>(source.data), source.across * kSize};
  }
  pack_rows<Tiles>(source, count, elements, copy);
  return {reinterpret_cast<const char*>(copy), kRowStride<Tiles> * int64_t(sizeof(uint32_t))};
}

// Panels of kLines columns stream through; rows are packed.
inline void product_by_tiles(const Product<at::BFloat16>& p) {
  for_each_panel<Tiles>(p, kLines, [&](int64_t batch, const PackedRows<Tiles>& rows, KeptColumns<Tiles>*, int64_t column,
                                       int64_t count, int64_t next_column) {
    constexpr int64_t kMostSums = kLines * kColumns<Tiles>;
    const int64_t chunks = p.chunks(), parts = ceil_div(rows.count, kColumns<Tiles>);
    uint32_t* copy = workspace<uint32_t>(1, kLines * kRowStride<Tiles>);
    float* levels = workspace<float>(2, counter_levels(chunks) * parts * kMostSums);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const bool last = chunk + 1 == chunks;
      const int64_t steps = steps_of<Tiles>(p.elements(chunk));
      const Lines lines = lines_of(p.columns_at(batch, column, chunk), count, p.elements(chunk), parts == 1, copy);
      const auto next = last ? p.columns_at(batch, next_column, 0) : p.columns_at(batch, column, chunk + 1);
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = part * kColumns<Tiles>, present = std::min(kColumns<Tiles>, rows.count - first);
        const int64_t wide = present > kTileSide ? 2 * kTileSide : kTileSide;
        const auto multiply = wide == kTileSide ? &multiply_chunk<1> : &multiply_chunk<2>;
        const auto slot = [&](int64_t level) { return levels + (level * parts + part) * kMostSums; };
        alignas(64) float elsewhere[kMostSums];
        float* sums = sums_of(chunk, last, slot, elsewhere);
        Ahead ahead;
        share<Tiles>(next, count, part, parts, ahead);
        multiply(lines.data, lines.stride, rows.at(chunk, first), steps, ahead, sums);
        if (sums == elsewhere) combine(sums, kLines * wide, chunk, last, slot);
        if (!last) continue;
        if (p.out_row == 1) {
          const Product<at::BFloat16> exchanged = p.transposed();
          for (int64_t i = 0; i < count; ++i) {
            finish(exchanged, sums + i * wide, batch, column + i, rows.first + first, present);
          }
        } else {
          alignas(64) float by_rows[kMostSums];
          exchange(sums, wide, by_rows);
          for (int64_t i = 0; i < present; ++i) {
            finish(p, by_rows + i * kLines, batch, rows.first + first + i, column, count);
          }
        }
      }
    }
  });
}

// The operand that streams is the longer one of those that lie along K.
inline void product_of_tiles(const Product<at::BFloat16>& p) {
  const bool along = p.b_k == 1, exchangeable = p.a_k == 1 || p.a_row != 1;
  const bool exchange = (along && exchangeable) ? p.rows > p.columns : exchangeable;
  product_by_tiles(exchange ? p.transposed() : p);
}

}  // namespace

#endif
