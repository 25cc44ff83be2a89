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
  template <class A> static constexpr A identity() { return A(0); }
  template <class V> static V combine(const V& a, const V& b) { return a + b; }
};

struct Product {
  template <class A> static constexpr A identity() { return A(1); }
  template <class V> static V combine(const V& a, const V& b) { return a * b; }
};

// max and min pick an element and have no rounding: the canonical NaN wins, and the two zeros are told apart so
// that order cannot matter.
template <bool kMaximum>
struct Extremum {
  template <class A> static constexpr A identity() { return kMaximum ? -kInfinity<A> : kInfinity<A>; }

  template <class A> static A combine(const A& a, const A& b) {
    if (a != a || b != b) return kNaN<A>;
    if (a == b) return std::signbit(a) == kMaximum ? b : a;
    return (a > b) == kMaximum ? a : b;
  }

  template <class A> static Vec<A> combine(const Vec<A>& a, const Vec<A>& b) {
    // Each of the two orders returns its own zero: their conjunction is +0 if either is, their disjunction -0.
    const Vec<A> r = kMaximum ? at::vec::clamp_min(a, b) & at::vec::clamp_min(b, a)
                              : at::vec::clamp_max(a, b) | at::vec::clamp_max(b, a);
#if defined(BI_ISA_AVX512)
    if constexpr (std::is_same_v<A, float>) {
      return _mm512_mask_mov_ps(r, _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q), _mm512_set1_ps(kNaN<float>));
    }
#endif
    return Vec<A>::blendv(r, Vec<A>(kNaN<A>), (a != a) | (b != b));
  }
};

using Maximum = Extremum<true>;
using Minimum = Extremum<false>;

// The first count elements of x, the identity in the others.
template <class Tree, class A>
inline Vec<A> with_identity(const Vec<A>& x, int64_t count) {
  return Vec<A>::set(Vec<A>(Tree::template identity<A>()), x, count);
}

// Lane j takes in lane j + 16, then j + 8, 4, 2, 1.
template <class Tree, class A>
inline A fold(const Vec<A> (&lanes)[kLanes / kWidth<A>]) {
  constexpr int64_t vectors = kLanes / kWidth<A>;
  Vec<A> folded[vectors];
  for (int64_t k = 0; k < vectors; ++k) folded[k] = lanes[k];
  for (int64_t half = vectors / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) folded[k] = Tree::combine(folded[k], folded[k + half]);
  }
  alignas(64) A rest[kWidth<A>];
  folded[0].store(rest);
  for (int64_t half = kWidth<A> / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) rest[j] = Tree::combine(rest[j], rest[j + half]);
  }
  return rest[0];
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
  return fold<Tree, A>(lanes);
}

// Elements [begin, end), begin a multiple of kChunk: as a part of a longer row it is a subtree.
template <class Tree, class A, class Load>
inline A reduce_span(int64_t begin, int64_t end, const Load& load_at) {
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

// The largest element, in any order: NaNs are passed over and the sign of a zero is arbitrary.
template <class A, class Load>
inline A largest(int64_t n, const Load& load_at) {
  constexpr int64_t vectors = 8;
  Vec<A> most[vectors];
  for (int64_t k = 0; k < vectors; ++k) most[k] = Vec<A>(-kInfinity<A>);
  int64_t i = 0;
  for (; i + vectors * kWidth<A> <= n; i += vectors * kWidth<A>) {
    for (int64_t k = 0; k < vectors; ++k) {
      most[k] = at::vec::clamp_min(most[k], load_at(i + k * kWidth<A>, kWidth<A>));
    }
  }
  for (int64_t k = 0; i < n; ++k, i += kWidth<A>) {
    const int64_t count = std::min(kWidth<A>, n - i);
    most[k] = at::vec::clamp_min(most[k], with_identity<Maximum>(load_at(i, count), count));
  }
  for (int64_t half = vectors / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) most[k] = at::vec::clamp_min(most[k], most[k + half]);
  }
  alignas(64) A rest[kWidth<A>];
  most[0].store(rest);
  for (int64_t j = 1; j < kWidth<A>; ++j) rest[0] = rest[j] > rest[0] ? rest[j] : rest[0];
  return rest[0];
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

template <class Tree>
struct Grouped {
  template <class G> static G combine(const G& a, const G& b) {
    return a.map([&](const auto& value, int64_t k) { return Tree::combine(value, b.v[k]); });
  }
};

constexpr int64_t kColumnGroup = 8;

// Columns side by side: the reduced index walks down, a vector holds the same lane of neighbouring columns, and
// every column has the tree above.
// load_at(i, k) gives vector k of the group in row i.
template <class Tree, class A, class Load>
inline Group<A, kColumnGroup> reduce_columns(int64_t n, const Load& load_at) {
  using Columns = Group<A, kColumnGroup>;
  Columns identity;
  for (int64_t k = 0; k < kColumnGroup; ++k) identity.v[k] = Vec<A>(Tree::template identity<A>());
  if (n == 0) return identity;
  // Lanes that never hold an element would only fold in the identity.
  int64_t lanes = kLanes;
  while (lanes / 2 >= n) lanes /= 2;
  // Visiting the lanes in bit-reversed order makes the fold in halves a binary counter, and the tree of chunks its
  // continuation: no lane has to wait in memory.
  Counter<Grouped<Tree>, Columns> counter;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n);
    for (int64_t turn = 0; turn < lanes; ++turn) {
      int64_t lane = 0;
      for (int64_t bit = 1; bit < lanes; bit *= 2) lane = lane * 2 + ((turn & bit) != 0);
      Columns sum = identity;
      for (int64_t i = begin + lane; i < end; i += kLanes) {
        for (int64_t k = 0; k < kColumnGroup; ++k) sum.v[k] = Tree::combine(sum.v[k], load_at(i, k));
      }
      counter.push(sum);
    }
  }
  return counter.total();
}

}  // namespace
