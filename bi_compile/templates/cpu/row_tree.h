// The tree of every row reduction (bi_compile/numerics.py), over the index 0 .. n-1 of the reduced elements.
//
// Chunks of kChunk elements are anchored at 0. Inside a chunk lane j of kLanes starts at the identity and takes
// in elements j, j + kLanes, ... in order; lanes fold in halves. Chunks combine by the balanced binary tree
// anchored at chunk 0, absent right leaves being the identity. Elements that are absent from the last step
// enter as the identity too, which changes no bit: a lane that started at +0 is never -0.
#pragma once

#include <ATen/Parallel.h>

#include <vector>

#include "cpu/row_vector.h"

namespace {

constexpr int64_t kLanes = BI_REDUCTION_LANES;
constexpr int64_t kChunk = BI_REDUCTION_CHUNK;
// A span is what one thread takes of a long row: a power of two of chunks, so that it is a subtree.
constexpr int64_t kSpan = 32 * kChunk;

struct Sum {
  static constexpr bool kOrdered = true;
  template <class A> static constexpr A identity() { return A(0); }
  template <class V> static V combine(const V& a, const V& b) { return a + b; }
};

struct Product {
  static constexpr bool kOrdered = true;
  template <class A> static constexpr A identity() { return A(1); }
  template <class V> static V combine(const V& a, const V& b) { return a * b; }
};

// max and min pick an element and have no rounding: the canonical NaN wins, and the two zeros are told apart, so
// that any order gives the same bits.
template <bool kMaximum>
struct Extremum {
  static constexpr bool kOrdered = false;
  template <class A> static constexpr A identity() { return kMaximum ? -kInfinity<A> : kInfinity<A>; }

  template <class A> static A combine(const A& a, const A& b) {
    if (a != a || b != b) return kNaN<A>;
    if (a == b) return std::signbit(a) == kMaximum ? b : a;
    return (a > b) == kMaximum ? a : b;
  }

  template <class A> static Vec<A> combine(const Vec<A>& a, const Vec<A>& b) {
    // Each of the two orders returns its own zero: their conjunction is +0 if either is, their disjunction -0.
    const Vec<A> r = kMaximum ? rough(a, b) & rough(b, a) : rough(a, b) | rough(b, a);
    NaNs<A> nans;
    nans.meet(a, b);
    return nans.mark(r);
  }

  // One instruction: a where b is NaN or equal.
  template <class A> static Vec<A> rough(const Vec<A>& a, const Vec<A>& b) {
    return kMaximum ? at::vec::clamp_min(a, b) : at::vec::clamp_max(a, b);
  }
};

using Maximum = Extremum<true>;
using Minimum = Extremum<false>;

// The first count elements of x, the identity in the others.
template <class Tree, class A>
inline Vec<A> with_identity(const Vec<A>& x, int64_t count) {
  return Vec<A>::set(Vec<A>(Tree::template identity<A>()), x, count);
}

template <int64_t kHalf, class A, class Combine>
__attribute__((always_inline)) inline Vec<A> fold_halves(const Vec<A>& x, const Combine& combine) {
  if constexpr (kHalf == 0) {
    return x;
  } else {
    return fold_halves<kHalf / 2>(combine(x, upper<kHalf>(x)), combine);
  }
}

template <size_t kHalf, class A, class Combine>
__attribute__((always_inline)) inline Vec<A> fold_vectors(const Vec<A>* lanes, const Combine& combine) {
  if constexpr (kHalf == 0) {
    return lanes[0];
  } else {
    Vec<A> folded[kHalf];
#pragma GCC unroll 8
    for (size_t k = 0; k < kHalf; ++k) folded[k] = combine(lanes[k], lanes[k + kHalf]);
    return fold_vectors<kHalf / 2>(folded, combine);
  }
}

// Lane j takes in lane j + 16, then j + 8, 4, 2, 1.
template <class A, size_t kVectors, class Combine>
__attribute__((always_inline)) inline A fold(const Vec<A> (&lanes)[kVectors], const Combine& combine) {
  return first(fold_halves<kWidth<A> / 2>(fold_vectors<kVectors / 2>(lanes, combine), combine));
}

// Balanced tree by a binary counter: slot l holds a finished subtree of 2^l leaves.
template <class Tree, class Value>
class Counter {
 public:
  void push(Value value) {
    int level = 0;
    for (; (count_ >> level) & 1; ++level) value = Tree::combine(slots_[level], value);
    slots_[level] = value;
    ++count_;
  }

  // At least one leaf was pushed.
  Value total() const {
    int level = 0;
    while (!((count_ >> level) & 1)) ++level;
    Value value = slots_[level];
    for (++level; count_ >> level; ++level) {
      if ((count_ >> level) & 1) value = Tree::combine(slots_[level], value);
    }
    return value;
  }

 private:
  Value slots_[48];
  uint64_t count_ = 0;
};

// Elements [begin, end) of one chunk. load(i, count) gives a vector whose first count elements are i, i + 1, ...
template <class Tree, class A, class Load>
inline A reduce_chunk(int64_t begin, int64_t end, const Load& load_at) {
  constexpr int64_t vectors = kLanes / kWidth<A>;
  Vec<A> lanes[vectors];
  for (int64_t k = 0; k < vectors; ++k) lanes[k] = Vec<A>(Tree::template identity<A>());
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    for (int64_t k = 0; k < vectors; ++k) {
      lanes[k] = Tree::combine(lanes[k], load_at(i + k * kWidth<A>, kWidth<A>));
    }
  }
  for (int64_t k = 0; i < end; ++k, i += kWidth<A>) {
    const int64_t count = std::min(kWidth<A>, end - i);
    lanes[k] = Tree::combine(lanes[k], with_identity<Tree>(load_at(i, count), count));
  }
  return fold(lanes, [](const Vec<A>& a, const Vec<A>& b) { return Tree::combine(a, b); });
}

// combine over elements [begin, end) in the order that is fastest; look(x, y) sees them too, two vectors at a time.
// Four named vectors: the compiler would keep an array of them in memory.
template <class Tree, class A, class Load, class Combine, class Look>
__attribute__((always_inline)) inline A in_any_order(int64_t begin, int64_t end, const Load& load_at,
                                                     const Combine& combine, const Look& look) {
  constexpr int64_t width = kWidth<A>;
  const Vec<A> identity(Tree::template identity<A>());
  Vec<A> a = identity, b = identity, c = identity, d = identity;
  int64_t i = begin;
  for (; i + 4 * width <= end; i += 4 * width) {
    const Vec<A> x = in_register(load_at(i, width)), y = in_register(load_at(i + width, width));
    const Vec<A> z = in_register(load_at(i + 2 * width, width)), w = in_register(load_at(i + 3 * width, width));
    a = combine(a, x);
    b = combine(b, y);
    c = combine(c, z);
    d = combine(d, w);
    look(x, y);
    look(z, w);
  }
  for (; i < end; i += width) {
    const int64_t count = std::min(width, end - i);
    const Vec<A> x = with_identity<Tree>(load_at(i, count), count);
    a = combine(a, x);
    look(x, x);
  }
  return first(fold_halves<width / 2>(combine(combine(a, b), combine(c, d)), combine));
}

// The largest element: NaNs are passed over and the sign of a zero is arbitrary.
template <class A, class Load>
inline A largest(int64_t n, const Load& load_at) {
  return in_any_order<Maximum, A>(
      0, n, load_at, [](const Vec<A>& a, const Vec<A>& x) { return Maximum::rough(x, a); },
      [](const Vec<A>&, const Vec<A>&) {});
}

// The extremum of elements [begin, end) by the exact combination. Apart, so that the fast walk below stays small.
template <class Tree, class A, class Load>
__attribute__((noinline)) A reduce_exactly(int64_t begin, int64_t end, const Load& load_at) {
  return in_any_order<Tree, A>(
      begin, end, load_at, [](const Vec<A>& a, const Vec<A>& x) { return Tree::combine(a, x); },
      [](const Vec<A>&, const Vec<A>&) {});
}

// The same, fast: rough() passes NaNs over and gives either zero, so NaNs are looked for beside it, and a zero is
// decided by a second walk, which is rare.
template <class Tree, class A, class Load>
inline A reduce_unordered(int64_t begin, int64_t end, const Load& load_at) {
  NaNs<A> nans;
  // The new element comes first: rough() then keeps what it has where that is a NaN.
  const A result = in_any_order<Tree, A>(
      begin, end, load_at, [](const Vec<A>& a, const Vec<A>& x) { return Tree::rough(x, a); },
      [&](const Vec<A>& x, const Vec<A>& y) { nans.meet(x, y); });
  if (nans.any()) return kNaN<A>;
  return result != 0 ? result : reduce_exactly<Tree, A>(begin, end, load_at);
}

// Elements [begin, end), begin a multiple of kChunk: as a part of a longer row it is a subtree.
template <class Tree, class A, class Load>
inline A reduce_span(int64_t begin, int64_t end, const Load& load_at) {
  if constexpr (!Tree::kOrdered) return reduce_unordered<Tree, A>(begin, end, load_at);
  if (end - begin <= kChunk) return reduce_chunk<Tree, A>(begin, end, load_at);
  Counter<Tree, A> chunks;
  for (int64_t i = begin; i < end; i += kChunk) {
    chunks.push(reduce_chunk<Tree, A>(i, std::min(i + kChunk, end), load_at));
  }
  return chunks.total();
}

// Elements 0 .. n-1, where span(begin, end) reduces at most kSpan of them. Threads share the spans.
template <class Tree, class A, class Span>
inline A reduce_row(int64_t n, const Span& span) {
  if (n <= kSpan) return span(int64_t(0), n);
  std::vector<A> parts((n + kSpan - 1) / kSpan);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) parts[s] = span(s * kSpan, std::min((s + 1) * kSpan, n));
  });
  Counter<Tree, A> spans;
  for (const A part : parts) spans.push(part);
  return spans.total();
}

// Vectors that go through one recipe together: a row's result in every lane of one vector, or one result for each
// of kColumnGroup vectors of neighbouring columns.
template <class A, int64_t kSize>
struct Group {
  static constexpr int64_t size = kSize;
  Vec<A> v[kSize];

  template <class F> Group map(const F& f) const {
    Group r;
    for (int64_t k = 0; k < kSize; ++k) r.v[k] = f(v[k], k);
    return r;
  }
};

constexpr int64_t kColumnGroup = 4;

// Columns side by side: the reduced index walks down the rows at row_at(i), a vector load_at(row, k) holds
// neighbouring columns, and every column has the tree above.
template <class Tree, class A, class RowAt, class Load>
class ColumnWalk {
 public:
  using Columns = Group<A, kColumnGroup>;

  ColumnWalk(const RowAt& row_at, const Load& load_at) : row_at_(row_at), load_at_(load_at) {}

  Columns reduce(int64_t n) {
    if constexpr (!Tree::kOrdered) return lane(0, n, 1);
    // Lanes that never hold an element would only fold in the identity.
    int64_t lanes = kLanes;
    while (lanes > 1 && lanes / 2 >= n) lanes /= 2;
    if (n <= kLanes / 8) {
      reduce_chunk<0>(0, n, lanes);
    } else {
      for (int64_t begin = 0; begin < n; begin += kChunk) reduce_chunk<2>(begin, std::min(begin + kChunk, n), lanes);
    }
    return total();
  }

 private:
  __attribute__((always_inline)) Columns lane(int64_t begin, int64_t end, int64_t stride) const {
    Columns sum;
#pragma GCC unroll 8
    for (int64_t k = 0; k < kColumnGroup; ++k) sum.v[k] = Vec<A>(Tree::template identity<A>());
    for (int64_t i = begin; i < end; i += stride) {
      const auto row = row_at_(i);
#pragma GCC unroll 8
      for (int64_t k = 0; k < kColumnGroup; ++k) sum.v[k] = Tree::combine(sum.v[k], load_at_(row, k));
    }
    return sum;
  }

  __attribute__((always_inline)) static Columns combine(const Columns& a, const Columns& b) {
    Columns r;
#pragma GCC unroll 8
    for (int64_t k = 0; k < kColumnGroup; ++k) r.v[k] = Tree::combine(a.v[k], b.v[k]);
    return r;
  }

  // The fold in halves of the 2^kDepth lanes that are `apart` from `first` on.
  template <int kDepth>
  __attribute__((always_inline)) Columns lanes_from(int64_t first, int64_t apart, int64_t end) const {
    if constexpr (kDepth == 0) {
      return lane(first, end, kLanes);
    } else {
      return combine(lanes_from<kDepth - 1>(first, 2 * apart, end),
                     lanes_from<kDepth - 1>(first + apart, 2 * apart, end));
    }
  }

  // Visiting the lanes in bit-reversed order makes the fold in halves a binary counter, and the tree of chunks its
  // continuation. 2^kDepth lanes at a time are folded in registers.
  template <int kDepth>
  void reduce_chunk(int64_t begin, int64_t end, int64_t lanes) {
    const int64_t leaves = lanes >> kDepth;
    for (int64_t turn = 0, leaf = 0; turn < leaves; ++turn) {
      push(lanes_from<kDepth>(begin + leaf, leaves, end));
      int64_t bit = leaves / 2;
      for (; leaf & bit; bit /= 2) leaf ^= bit;
      leaf |= bit;
    }
  }

  __attribute__((always_inline)) void push(Columns value) {
    int level = 0;
    for (; (leaves_ >> level) & 1; ++level) value = combine(slot(level), value);
#pragma GCC unroll 8
    for (int64_t k = 0; k < kColumnGroup; ++k) value.v[k].store(slots_[level][k]);
    ++leaves_;
  }

  Columns total() const {
    int level = 0;
    while (!((leaves_ >> level) & 1)) ++level;
    Columns value = slot(level);
    for (++level; leaves_ >> level; ++level) {
      if ((leaves_ >> level) & 1) value = combine(slot(level), value);
    }
    return value;
  }

  __attribute__((always_inline)) Columns slot(int level) const {
    Columns value;
#pragma GCC unroll 8
    for (int64_t k = 0; k < kColumnGroup; ++k) value.v[k] = Vec<A>::loadu(slots_[level][k]);
    return value;
  }

  const RowAt& row_at_;
  const Load& load_at_;
  // Slot l holds a finished subtree of 2^l leaves. Plain memory: vectors would all be cleared first.
  alignas(64) A slots_[48][kColumnGroup][kWidth<A>];
  uint64_t leaves_ = 0;
};

template <class Tree, class A, class RowAt, class Load>
inline Group<A, kColumnGroup> reduce_columns(int64_t n, const RowAt& row_at, const Load& load_at) {
  return ColumnWalk<Tree, A, RowAt, Load>(row_at, load_at).reduce(n);
}

}  // namespace
