// out = alpha * (a x b) + beta * c for a batch of matrices: blocks of the output shared out over threads.
#pragma once

#include <ATen/Parallel.h>

#include <cstdlib>
#include <memory>

#include "contraction/pack.h"

namespace {

// All strides in elements; `row` and `column` are those of the output.
template <class T>
struct Addend {
  const T* data;  // null for none
  int64_t batch, row, column;
};

template <class T>
struct Product {
  int64_t batches, rows, columns, length;
  const T *a, *b;
  int64_t a_batch, a_row, a_k;
  int64_t b_batch, b_column, b_k;
  T* out;
  int64_t out_batch, out_row, out_column;
  Addend<T> c;
  Acc<T> alpha, beta;

  // The same product with the roles of a and b exchanged: multiplication commutes, so every bit stays.
  Product transposed() const {
    Product p = *this;
    std::swap(p.rows, p.columns);
    std::swap(p.a, p.b);
    std::swap(p.a_batch, p.b_batch);
    std::swap(p.a_row, p.b_column);
    std::swap(p.a_k, p.b_k);
    std::swap(p.out_row, p.out_column);
    std::swap(p.c.row, p.c.column);
    return p;
  }
};

// Memory of one thread, kept between calls: fresh pages would cost more than a small product.
template <class P>
P* workspace(int slot, int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  static thread_local Buffer buffers[3];
  Buffer& buffer = buffers[slot];
  const size_t bytes = (count * sizeof(P) + 4095) / 4096 * 4096;
  if (bytes > buffer.bytes) {
    buffer.memory.reset();
    buffer.memory.reset(std::aligned_alloc(4096, bytes));
    TORCH_CHECK(buffer.memory, "bi_compile: out of memory for ", bytes, " bytes of scratch space");
    buffer.bytes = bytes;
  }
  return static_cast<P*>(buffer.memory.get());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Levels of the binary counter before the last chunk: one for each bit of its number.
inline int64_t counter_levels(int64_t chunks) {
  int64_t levels = 0;
  while ((chunks - 1) >> levels) ++levels;
  return levels;
}

// Adds to the sums of chunk `chunk` the stored sums they are combined with: the carry of a binary counter, or,
// after the last chunk, all that is left. slot(level) points to the stored tile. Returns the level to store at.
template <class Sum, class Slot>
int64_t combine(Sum* sums, int64_t count, int64_t chunk, bool last, const Slot& slot) {
  int64_t level = 0;
  for (; chunk >> level; ++level) {
    if ((chunk >> level & 1) == 0) {
      if (last) continue;
      break;
    }
    const Sum* stored = slot(level);
    for (int64_t j = 0; j < count; ++j) sums[j] = stored[j] + sums[j];
  }
  return level;
}

// One row of finished sums through alpha, beta * c and the final rounding.
template <class T>
void finish(const Product<T>& p, Acc<T>* sums, int64_t batch, int64_t row, int64_t column, int64_t count) {
  using A = Acc<T>;
  T* out = p.out + batch * p.out_batch + row * p.out_row + column * p.out_column;
  T rounded[kColumns<Plain<T>>];
  T* target = p.out_column == 1 ? out : rounded;
  const T* c = p.c.data + batch * p.c.batch + row * p.c.row + column * p.c.column;
  for (int64_t j = 0; j < count; j += kWidth<A>) {
    const int64_t m = std::min(kWidth<A>, count - j);
    Vec<A> value = Vec<A>::loadu(sums + j);
    if (p.alpha != A(1)) value = Vec<A>(p.alpha) * value;
    if (p.c.data) {
      Vec<A> addend;
      if (p.c.column == 1) {
        addend = load(c + j, m);
      } else {
        T gathered[kWidth<A>] = {};
        for (int64_t i = 0; i < m; ++i) gathered[i] = c[(j + i) * p.c.column];
        addend = load(gathered, kWidth<A>);
      }
      if (p.beta != A(1)) addend = Vec<A>(p.beta) * addend;
      value = value + addend;
    }
    store(target + j, value, m);
  }
  if (target != out) {
    for (int64_t j = 0; j < count; ++j) out[j * p.out_column] = rounded[j];
  }
}

// How the output is cut: any cut gives the same bits.
struct Blocks {
  int64_t rows, columns;            // of one block
  int64_t row_blocks, column_blocks;

  Blocks(int64_t all_rows, int64_t all_columns, int64_t batches, int64_t panel) {
    constexpr int64_t kMostRows = 16 * kTileRows, kMostColumns = 512;
    row_blocks = ceil_div(all_rows, kMostRows);
    column_blocks = ceil_div(all_columns, kMostColumns);
    // Columns are cut before rows: a thread with more rows packs its columns once for all of them.
    const int64_t threads = at::get_num_threads();
    const int64_t panels = ceil_div(all_columns, panel);
    const int64_t others = batches * row_blocks;
    if (others % threads != 0 && others < 4 * threads) {
      column_blocks = std::min(panels, ceil_div(column_blocks, threads) * threads);
    }
    columns = ceil_div(panels, column_blocks) * panel;
    column_blocks = ceil_div(all_columns, columns);
    rows = ceil_div(all_rows, row_blocks);
    row_blocks = ceil_div(all_rows, rows);
  }
};

// One block of the output. The loop over chunks is outermost: a packed chunk of rows serves all columns of the
// block and a packed panel of columns all its rows, while the tree's partial sums wait in the workspace.
template <class S, class T>
void product_block(const Product<T>& p, int64_t batch, int64_t row0, int64_t rows, int64_t column0, int64_t columns) {
  using Sum = typename S::Sum;
  using Packed = typename S::Packed;
  constexpr int64_t kPanel = kColumns<S>;
  constexpr int64_t kTile = kTileRows * kPanel;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(p.length, kChunk));
  const int64_t tiles = ceil_div(rows, kTileRows);
  const int64_t panels = ceil_div(columns, kPanel);
  const int64_t level_size = tiles * panels * kTile;
  Packed* packed_rows = workspace<Packed>(0, rows * kRowStride<S>);
  Packed* packed_columns = workspace<Packed>(1, kSteps<S> * kPanel);
  Sum* levels = workspace<Sum>(2, counter_levels(chunks) * level_size);

  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t k0 = chunk * kChunk;
    const int64_t elements = std::min(kChunk, p.length - k0);
    const int64_t steps = steps_of<S>(elements);
    const bool last = chunk + 1 == chunks;
    const Operand<T> a{p.a + batch * p.a_batch + row0 * p.a_row + k0 * p.a_k, p.a_row, p.a_k};
    pack_rows<S>(a, rows, elements, packed_rows);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column = column0 + panel * kPanel;
      const int64_t count = std::min(kPanel, column0 + columns - column);
      const Operand<T> b{p.b + batch * p.b_batch + column * p.b_column + k0 * p.b_k, p.b_column, p.b_k};
      pack_columns<S>(b, count, elements, packed_columns);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        // Tiles of nearly equal height: a tile of one row would wait for its own sums.
        const int64_t first = tile * rows / tiles;
        const int64_t height = (tile + 1) * rows / tiles - first;
        alignas(64) Sum sums[kTile];
        {
          const FloatingPointMode mode(S::kSubnormals);
          chain_tile_of<S>(height)(packed_rows + first * kRowStride<S>, packed_columns, steps, sums);
        }
        const auto slot = [&](int64_t level) { return levels + level * level_size + (panel * tiles + tile) * kTile; };
        const int64_t level = combine(sums, height * kPanel, chunk, last, slot);
        if (!last) {
          std::memcpy(slot(level), sums, height * kPanel * sizeof(Sum));
          continue;
        }
        for (int64_t i = 0; i < height; ++i) finish(p, sums + i * kPanel, batch, row0 + first + i, column, count);
      }
    }
  }
}

template <class S, class T>
void product(const Product<T>& given) {
  if (given.batches == 0 || given.rows == 0 || given.columns == 0) return;
  // Columns come in whole panels, rows one by one: the short side becomes the rows.
  const bool tall = given.columns < kColumns<S> && given.rows > given.columns;
  const Product<T> p = tall ? given.transposed() : given;
  const Blocks cut(p.rows, p.columns, p.batches, kColumns<S>);
  const int64_t blocks = cut.row_blocks * cut.column_blocks;
  at::parallel_for(0, p.batches * blocks, 1, [&](int64_t begin, int64_t end) {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row0 = task % blocks / cut.column_blocks * cut.rows;
      const int64_t column0 = task % cut.column_blocks * cut.columns;
      product_block<S>(p, task / blocks, row0, std::min(cut.rows, p.rows - row0), column0,
                       std::min(cut.columns, p.columns - column0));
    }
  });
}

}  // namespace
