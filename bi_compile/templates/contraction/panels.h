// The walk over a product: threads share panels of columns, and each panel is walked along K from beginning to end.
//
// Rows are packed once for all panels of a thread. A panel reads its columns once, in the order they lie in memory
// when they are contiguous along K, and keeps the partial sums of the tree close by.
#pragma once

#include <ATen/Parallel.h>

#include <optional>
#include <vector>

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
    constexpr int64_t kTogether = S::kRowsAsColumns ? kColumns<S> : 1;
    for (int64_t row = 0; row < count; row += kTogether) {
      for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
        const Operand<T> source = p.rows_at(batch, first + row, chunk);
        if constexpr (S::kRowsAsColumns) {
          pack_columns<S>(source, std::min(kTogether, count - row), p.elements(chunk), at(chunk, row));
        } else {
          pack_rows<S>(source, 1, p.elements(chunk), at(chunk, row));
        }
      }
    }
  }
};

// Packed panels of columns that a thread keeps for its next blocks of rows.
template <class S>
struct KeptColumns {
  using Packed = typename S::Packed;
  Packed* data;
  int64_t size;                // of a panel
  std::vector<int64_t> owner;  // the batch whose columns a panel holds

  static int64_t size_of_panel(int64_t width, int64_t chunks) { return width * chunks * kSteps<S>; }

  // Whether all panels are few enough to be kept.
  static bool fit(int64_t width, int64_t chunks, int64_t panels) {
    constexpr int64_t kBytes = 8 << 20;
    return panels * size_of_panel(width, chunks) * int64_t(sizeof(Packed)) <= kBytes;
  }

  KeptColumns(int64_t width, int64_t chunks, int64_t panels)
      : size(size_of_panel(width, chunks)), owner(panels, -1) {
    data = workspace<Packed>(1, panels * size);
  }

  Packed* at(int64_t panel) const { return data + panel * size; }
};

// How a product is cut: blocks of rows, each met by all panels of columns.
template <class S>
struct Blocks {
  int64_t rows;  // of a block
  bool kept;     // columns are packed for the first block of a thread and kept for the others

  // Packed rows that are read again for every panel should stay in the second-level cache. If panels are not kept,
  // there should be enough rows to make up for packing each panel.
  template <class T>
  static Blocks of(const Product<T>& p, int64_t width) {
    constexpr int64_t kBytes = 1 << 20, kFewest = S::kFewestRows, kMost = 4 * kFewest;
    const bool kept = !S::kRowsAsColumns && p.rows > kFewest &&
                      KeptColumns<S>::fit(width, p.chunks(), ceil_div(p.columns, width));
    const int64_t size = std::max<int64_t>(1, p.length) * int64_t(sizeof(typename S::Packed)) / S::kPerStep;
    const int64_t fitting = std::clamp((kept ? kBytes / 2 : kBytes) / size, kFewest, kMost);
    const int64_t rows = ceil_div(p.rows, ceil_div(p.rows, fitting));
    return {std::min(p.rows, PackedRows<S>::height(rows)), kept};
  }
};

// Calls panel(batch, rows, columns, column, count, next_column) for all blocks of rows and all panels of `width`
// columns. `columns` are kept ones or null, next_column is where the same thread goes on.
template <class S, class T, class Panel>
void for_each_panel(const Product<T>& p, int64_t width, const Panel& panel) {
  const int64_t chunks = p.chunks();
  const auto [block, kept] = Blocks<S>::of(p, width);
  const int64_t blocks = ceil_div(p.rows, block), panels = ceil_div(p.columns, width);
  // A thread should have some ten microseconds of work.
  const int64_t work = width * block * std::max<int64_t>(1, p.length);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / work);
  at::parallel_for(0, p.batches * blocks * panels, grain, [&](int64_t begin, int64_t end) {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    [[maybe_unused]] const typename S::Unit unit;
    constexpr auto height = &PackedRows<S>::height;
    PackedRows<S> rows{workspace<typename S::Packed>(0, chunks * height(block) * PackedRows<S>::kSpace), 0, 0};
    std::optional<KeptColumns<S>> columns;
    if (kept) columns.emplace(width, chunks, panels);
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
      panel(batch, rows, columns ? &*columns : nullptr, column, std::min(width, p.columns - column), next);
    }
  });
}

// The share of one tile in bringing near the `width` columns at `next`, which are packed after `tiles` tiles.
template <class S, class T>
void share(const Operand<T>& next, int64_t width, int64_t tile, int64_t tiles, Ahead& ahead) {
  constexpr int64_t kSize = sizeof(T);
  ahead.count = 0;
  if (next.along == 1) {
    const int64_t first = tile * width / tiles;
    ahead.data = reinterpret_cast<const char*>(next.at(first, 0));
    ahead.stride = next.across * kSize;
    ahead.count = (tile + 1) * width / tiles - first;
    ahead.width = 1;
    ahead.advance = 16 * S::kPerStep * kSize;
  } else if (next.across == 1) {
    ahead.data = reinterpret_cast<const char*>(next.at(0, tile * kChunk / tiles));
    ahead.stride = next.along * kSize;
    ahead.count = ceil_div(kChunk, tiles * (kSteps<S> / 16));
    ahead.width = ceil_div(width * kSize, 64);
    ahead.advance = ahead.count * ahead.stride;
  }
}

// The same for `count` packed values at `next`.
template <class S>
void share(const typename S::Packed* next, int64_t count, int64_t tile, int64_t tiles, Ahead& ahead) {
  constexpr int64_t kFetches = kSteps<S> / 16, kLine = 64 / sizeof(typename S::Packed);
  ahead.count = ceil_div(count, kLine * kFetches * tiles);
  ahead.data = reinterpret_cast<const char*>(next + tile * ahead.count * kFetches * kLine);
  ahead.stride = 64;
  ahead.width = 1;
  ahead.advance = ahead.count * 64;
}

// The cache lines of some rows of the output, about to be written.
template <class T>
void fetch_output(const Product<T>& p, int64_t batch, int64_t row, int64_t rows, int64_t column, int64_t count) {
  if (p.out_column != 1) return;
  T* out = p.out + batch * p.out_batch + row * p.out_row + column;
  for (int64_t i = 0; i < rows; ++i, out += p.out_row) {
    for (int64_t j = 0; j < count; j += 64 / sizeof(T)) __builtin_prefetch(out + j, 1);
  }
}

// `count` columns of a block of rows, at most `Panels` panels of them: each chunk of columns is packed, unless it was
// kept, then used by all rows.
template <class S, int64_t Panels, class T>
void packed_panel(const Product<T>& p, int64_t batch, const PackedRows<S>& rows, KeptColumns<S>* kept, int64_t column,
                  int64_t count, int64_t next_column) {
  using Sum = typename S::Sum;
  using Packed = typename S::Packed;
  constexpr int64_t kPanel = kColumns<S>;
  constexpr int64_t kTile = S::kTileRows * kPanel;
  const int64_t chunks = p.chunks();
  const int64_t height = ceil_div(rows.count, S::kTileRows), panels = ceil_div(count, kPanel);
  const int64_t tiles = height * panels;
  constexpr int64_t kChunkSize = Panels * kSteps<S> * kPanel;
  const int64_t number = column / (Panels * kPanel), next_number = next_column / (Panels * kPanel);
  const bool packed = kept && kept->owner[number] == batch, next_packed = kept && kept->owner[next_number] == batch;
  if (kept) kept->owner[number] = batch;
  Sum* levels = workspace<Sum>(2, counter_levels(chunks) * tiles * kTile);

  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const bool last = chunk + 1 == chunks;
    const int64_t elements = p.elements(chunk);
    Packed* columns = kept ? kept->at(number) + chunk * kChunkSize : workspace<Packed>(1, kChunkSize);
    for (int64_t panel = 0; panel < panels && !packed; ++panel) {
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
      if (last) {
        fetch_output(p, batch, rows.first + first, tile_rows, column + panel * kPanel,
                     std::min(kPanel, count - panel * kPanel));
      }
      {
        [[maybe_unused]] const typename S::Mode mode;
        Ahead ahead;
        if (packed && !last) {
          share<S>(columns + kChunkSize, kChunkSize, tile, tiles, ahead);
        } else if (last && next_packed) {
          share<S>(kept->at(next_number), kChunkSize, tile, tiles, ahead);
        } else {
          share<S>(next, count, tile, tiles, ahead);
        }
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
                    [&](int64_t batch, const PackedRows<S>& rows, KeptColumns<S>* kept, int64_t column, int64_t count,
                        int64_t next) { packed_panel<S, Panels>(p, batch, rows, kept, column, count, next);
                    });
}

}  // namespace
