// What is computed, out = alpha * (a x b) + beta * c for a batch of matrices, and the end of its tree: how the sums
// of chunks are combined, scaled and rounded.
#pragma once

#include <cstdlib>
#include <memory>

#include "contraction/chain.h"
#include "contraction/pack.h"

namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

  // The same product of some columns alone.
  Product of_columns(int64_t first, int64_t count) const {
    Product p = *this;
    p.columns = count;
    p.b += first * b_column;
    p.out += first * out_column;
    if (c.data) p.c.data += first * c.column;
    return p;
  }

  int64_t chunks() const { return std::max<int64_t>(1, ceil_div(length, kChunk)); }
  int64_t elements(int64_t chunk) const { return std::min(kChunk, length - chunk * kChunk); }

  Operand<T> rows_at(int64_t batch, int64_t row, int64_t chunk) const {
    return {a + batch * a_batch + row * a_row + chunk * kChunk * a_k, a_row, a_k};
  }
  Operand<T> columns_at(int64_t batch, int64_t column, int64_t chunk) const {
    return {b + batch * b_batch + column * b_column + chunk * kChunk * b_k, b_column, b_k};
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

// Levels of the binary counter before the last chunk: one for each bit of its number.
inline int64_t counter_levels(int64_t chunks) {
  int64_t levels = 0;
  while ((chunks - 1) >> levels) ++levels;
  return levels;
}

// Adds to the sums of chunk `chunk` the stored sums they are combined with: the carry of a binary counter, or, after
// the last chunk, all that is left. slot(level) points to a stored tile. The result is stored at its level, after the
// last chunk at `sums`.
template <class Sum, class Slot>
void combine(Sum* sums, int64_t count, int64_t chunk, bool last, const Slot& slot) {
  const Sum* stored[64];
  int64_t adds = 0, level = 0;
  for (; chunk >> level && (last || chunk >> level & 1); ++level) {
    if (chunk >> level & 1) stored[adds++] = slot(level);
  }
  Sum* out = last ? sums : slot(level);
  if (out == sums && adds == 0) return;
  for (int64_t j = 0; j < count; j += kWidth<Sum>) {
    Vec<Sum> sum = Vec<Sum>::loadu(sums + j);
    for (int64_t i = 0; i < adds; ++i) sum = Vec<Sum>::loadu(stored[i] + j) + sum;
    sum.store(out + j);
  }
}

// Where the sums of `chunk` are computed: at once where they are stored, if nothing is added to them.
template <class Sum, class Slot>
Sum* sums_of(int64_t chunk, bool last, const Slot& slot, Sum* elsewhere) {
  return chunk % 2 == 0 && !last ? slot(0) : elsewhere;
}

// Columns of the widest panel.
constexpr int64_t kMostColumns = 128;

// One row of finished sums through alpha, beta * c and the final rounding.
template <class T>
void finish(const Product<T>& p, Acc<T>* sums, int64_t batch, int64_t row, int64_t column, int64_t count) {
  using A = Acc<T>;
  T* out = p.out + batch * p.out_batch + row * p.out_row + column * p.out_column;
  T rounded[kMostColumns];
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

}  // namespace
