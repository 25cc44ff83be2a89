// The running softmax of a few rows: one block of scores in, weights out; and the merge of two splits.
#pragma once

#include "attention/exp.h"
#include "attention/micro.h"

namespace {

// Running maximum, sum and accumulator of the rows of a tile. Each strip of rows has kLanes slots of `maximum` and `sum`,
// so that its rows fill one register.
template <class A>
struct State {
  A* maximum;
  A* sum;
  A* out;
};

// The maximum to subtract: 0 in place of -infinity, so that a row without a key so far has weights of 0.
template <class A>
BI_INLINE Vec<A> subtrahend(Vec<A> m) {
  const Vec<A> none = Vec<A>::broadcast(-kInfinity<A>);
  return Vec<A>::select(m.less_equal(none), Vec<A>::broadcast(0), m);
}

// A score plus its mask. A mask at or below the lowest finite number of its dtype takes the place of the score: what
// a masked key holds is not seen.
template <class A>
BI_INLINE Vec<A> masked_score(Vec<A> score, Vec<A> mask, Vec<A> lowest) {
  return Vec<A>::select(mask.less_equal(lowest), mask, score + mask);
}

// The operations on a product of query and key before its mask. softcap of 0: none.
template <class A>
BI_INLINE Vec<A> scaled_score(Vec<A> product, Vec<A> scale, Vec<A> softcap, bool capped) {
  const Vec<A> score = product * scale;
  return capped ? tanh(score / softcap) * softcap : score;
}

// scores[r][key] become weights exp(score - maximum). attended[r]: keys of the block row r may see, the others
// have weight 0 whatever stands in their score; for a row without one nothing changes. mask[r]: to be added, or null. alpha[r]: factor for what the row
// has accumulated.
template <class A>
inline void softmax_block(int rows, A* scores, A scale, A softcap, const A* const* mask, A mask_lowest, const int* attended,
                          A* maximum, A* sum_so_far, A* alpha) {
  using V = Vec<A>;
  constexpr int count = Lanes<A>::count;
  A top[kLanes], weight_sum[kLanes] = {}, reference[kLanes];
  for (int r = 0; r < kLanes; ++r) top[r] = -kInfinity<A>;
  const V factor = V::broadcast(scale), cap = V::broadcast(softcap), lowest = V::broadcast(mask_lowest), none = V::broadcast(-kInfinity<A>);
  for (int r = 0; r < rows; ++r) {
    if (attended[r] == 0) continue;
    A* row = scores + r * kBlock;
    Lanes<A> best;
#pragma GCC unroll 16
    for (int i = 0; i < kBlock / V::width; ++i) {
      V s = scaled_score(V::load(row + i * V::width), factor, cap, softcap != 0);
      if (mask[r]) s = masked_score(s, V::load(mask[r] + i * V::width), lowest);
      if (attended[r] < kBlock) s = V::select(V::first(attended[r] - i * V::width), s, none);
      s.store(row + i * V::width);
      best.part[i % count] = i < count ? s : max(best.part[i % count], s);
    }
    top[r] = largest(best);
  }
  for (int i = 0; i < count; ++i) {
    const int at = i * V::width;
    const V old = V::load(maximum + at), now = max(old, V::load(top + at)), base = subtrahend(now);
    now.store(maximum + at);
    base.store(reference + at);
    exp(old - base).store(alpha + at);
  }
  for (int r = 0; r < rows; ++r) {
    A* row = scores + r * kBlock;
    if (attended[r] == 0) {
      std::fill_n(row, kBlock, A(0));
      continue;
    }
    const V base = V::broadcast(reference[r]);
    Lanes<A> total;
#pragma GCC unroll 16
    for (int i = 0; i < kBlock / V::width; ++i) {
      const V p = exp(V::load(row + i * V::width) - base);
      p.store(row + i * V::width);
      total.part[i % count] = i < count ? p : total.part[i % count] + p;
    }
    weight_sum[r] = sum(total);
  }
  for (int i = 0; i < count; ++i) {
    const int at = i * V::width;
    fma(V::load(sum_so_far + at), V::load(alpha + at), V::load(weight_sum + at)).store(sum_so_far + at);
  }
}

// total becomes the merge of total and part, in that order, for one strip of rows.
template <class A>
inline void merge_strip(int rows, int64_t out_stride, State<A> total, State<A> part) {
  using V = Vec<A>;
  A left[kLanes], right[kLanes];
  for (int at = 0; at < kLanes; at += V::width) {
    const V m = V::load(total.maximum + at), other = V::load(part.maximum + at);
    const V now = max(m, other), base = subtrahend(now), a = exp(m - base), c = exp(other - base);
    fma(V::load(total.sum + at), a, V::load(part.sum + at) * c).store(total.sum + at);
    now.store(total.maximum + at);
    a.store(left + at);
    c.store(right + at);
  }
  for (int r = 0; r < rows; ++r) {
    const V a = V::broadcast(left[r]), c = V::broadcast(right[r]);
    for (int64_t i = r * out_stride; i < (r + 1) * out_stride; i += V::width)
      fma(V::load(total.out + i), a, V::load(part.out + i) * c).store(total.out + i);
  }
}

}  // namespace
