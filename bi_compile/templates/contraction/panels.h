// The walk over a product: threads share panels of columns, and each panel is walked along K from beginning to end.
//
// Rows are packed once for all panels of a thread. A panel reads its columns once, in the order they lie in memory
// when they are contiguous along K, and keeps the partial sums of the tree close by.
#pragma once

#include <ATen/Parallel.h>

#include "contraction/product.h"

namespace {

// A block of rows, packed: chunk after chunk, row after row. With S::kRowsAsColumns a chunk is panels of
// kColumns<S> rows, each packed as columns are; `row` is the first of one.
template <class S>
struct PackedRows {
  static constexpr int64_t kSpace = S::kRowsAsColumns ? kSteps<S> : kRowStride<S>;
  typename S::Packed* data;
  int64_t first, count;  // in the output

  static int64_t height(int64_t count) {
    return S::kRowsAsColumns ? ceil_div(count, kColumns<S>) * kColumns<S> : count;
  }
  typename S::Packed* at(int64_t chunk, int64_t row) const { return data + (chunk * height(count) + row) * kSpace; }

  template <class T>
  void pack(const Product<T>& p, int64_t batch) const {
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
      const int64_t elements = p.elements(chunk);
      if constexpr (S::kRowsAsColumns) {
        for (int64_t row = 0; row < count; row += kColumns<S>) {
          pack_columns<S>(p.rows_at(batch, first + row, chunk), std::min(kColumns<S>, count - row), elements,
                          at(chunk, row));
        }
      } else {
        pack_rows<S>(p.rows_at(batch, first, chunk), count, elements, at(chunk, 0));
      }
    }
  }
};

// Packed rows that are read again for every panel should stay in the second-level cache, and there should be
// enough of them to make up for packing each panel.
template <class S>
int64_t rows_of_block(int64_t rows, int64_t length) {
  constexpr int64_t kBytes = 1 << 20, kFewest = S::kFewestRows, kMost = 4 * kFewest;
  const int64_t fitting = kBytes / (std::max<int64_t>(1, length) * int64_t(sizeof(typename S::Packed)) / S::kPerStep);
  const int64_t blocks = ceil_div(rows, std::clamp(fitting, kFewest, kMost));
  return std::min(rows, PackedRows<S>::height(ceil_div(rows, blocks)));
}

// Calls panel(batch, rows, column, count, next_column) for all blocks of rows and all panels of `width` columns.
// next_column is where the same thread goes on.
template <class S, class T, class Panel>
void for_each_panel(const Product<T>& p, int64_t width, const Panel& panel) {
  const int64_t chunks = p.chunks();
  const int64_t block = rows_of_block<S>(p.rows, p.length);
  const int64_t blocks = ceil_div(p.rows, block), panels = ceil_div(p.columns, width);
  // A thread should have some ten microseconds of work.
  const int64_t work = width * block * std::max<int64_t>(1, p.length);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / work);
  at::parallel_for(0, p.batches * blocks * panels, grain, [&](int64_t begin, int64_t end) {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    [[maybe_unused]] const typename S::Unit unit;
    constexpr auto height = &PackedRows<S>::height;
    PackedRows<S> rows{workspace<typename S::Packed>(0, chunks * height(block) * PackedRows<S>::kSpace), 0, 0};
    int64_t packed_block = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / panels / blocks;
      if (task / panels != packed_block) {
        packed_block = task / panels;
        rows.first = packed_block % blocks * block;
        rows.count = std::min(block, p.rows - rows.first);
        rows.pack(p, batch);
      }
      const int64_t column = task % panels * width;
      const int64_t next = (task + 1) % panels * width;
      panel(batch, rows, column, std::min(width, p.columns - column), next);
    }
  });
}

// The share of one tile in bringing near the `width` columns at `next`, which are packed after `tiles` tiles.
template <class S, class T>
Ahead share_of(const Operand<T>& next, int64_t width, int64_t tile, int64_t tiles) {
  constexpr int64_t kSize = sizeof(T);
  const auto bytes = [](const T* p) { return reinterpret_cast<const char*>(p); };
  if (next.along == 1) {
    const int64_t first = tile * width / tiles, last = (tile + 1) * width / tiles;
    return {bytes(next.at(first, 0)), next.across * kSize, last - first, 1, 16 * S::kPerStep * kSize};
  }
  if (next.across == 1) {
    const int64_t stride = next.along * kSize;
    const int64_t count = ceil_div(kChunk, tiles * (kSteps<S> / 16));
    return {bytes(next.at(0, tile * kChunk / tiles)), stride, count, ceil_div(width * kSize, 64), count * stride};
  }
  return {};
}

// `count` columns of a block of rows, at most `Panels` panels of them: each chunk of columns is packed, then used
// by all rows.
template <class S, int64_t Panels, class T>
void packed_panel(const Product<T>& p, int64_t batch, const PackedRows<S>& rows, int64_t column, int64_t count,
                  int64_t next_column) {
  using Sum = typename S::Sum;
  using Packed = typename S::Packed;
  constexpr int64_t kPanel = kColumns<S>;
  constexpr int64_t kTile = S::kTileRows * kPanel;
  const int64_t chunks = p.chunks();
  const int64_t height = ceil_div(rows.count, S::kTileRows), panels = ceil_div(count, kPanel);
  const int64_t tiles = height * panels;
  Packed* columns = workspace<Packed>(1, Panels * kSteps<S> * kPanel);
  Sum* levels = workspace<Sum>(2, counter_levels(chunks) * tiles * kTile);

  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const bool last = chunk + 1 == chunks;
    const int64_t elements = p.elements(chunk);
    for (int64_t panel = 0; panel < panels; ++panel) {
      pack_columns<S>(p.columns_at(batch, column + panel * kPanel, chunk), std::min(kPanel, count - panel * kPanel),
                      elements, columns + panel * kSteps<S> * kPanel);
    }
    const Operand<T> next = last ? p.columns_at(batch, next_column, 0) : p.columns_at(batch, column, chunk + 1);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t panel = tile / height, place = tile % height;
      // Tiles of nearly equal height: a tile of one row would wait for its own sums.
      const int64_t first = place * rows.count / height;
      const int64_t tile_rows = (place + 1) * rows.count / height - first;
      const auto slot = [&](int64_t level) { return levels + (level * tiles + tile) * kTile; };
      alignas(64) Sum elsewhere[kTile];
      Sum* sums = sums_of(chunk, last, slot, elsewhere);
      {
        [[maybe_unused]] const typename S::Mode mode;
        Ahead ahead = share_of<S>(next, count, tile, tiles);
        chain_tile_of<S>(tile_rows)(rows.at(chunk, first), columns + panel * kSteps<S> * kPanel, steps_of<S>(elements),
                                    ahead, sums);
      }
      if (sums == elsewhere) combine(sums, tile_rows * kPanel, chunk, last, slot);
      if (!last) continue;
      for (int64_t i = 0; i < tile_rows; ++i) {
        finish(p, sums + i * kPanel, batch, rows.first + first + i, column + panel * kPanel,
               std::min(kPanel, count - panel * kPanel));
      }
    }
  }
}

template <class S, int64_t Panels, class T>
void product_in_panels(const Product<T>& p) {
  for_each_panel<S>(p, Panels * kColumns<S>,
                    [&](int64_t batch, const PackedRows<S>& rows, int64_t column, int64_t count, int64_t next) {
                      packed_panel<S, Panels>(p, batch, rows, column, count, next);
                    });
}

}  // namespace
