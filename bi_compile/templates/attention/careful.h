// One row, one key at a time: the tree of the fast kernels, and masked keys whose values are not even read.
// Used for a row whose fast result holds NaN, since there a weight of 0 may have met a NaN or an infinity.
#pragma once

#include <vector>

#include "attention/problem.h"

namespace {

template <class A>
struct CarefulSplit {
  std::vector<A> out;
  A maximum = -kInfinity<A>;
  bool seen = false;  // a key that is not masked has been taken in

  explicit CarefulSplit(int64_t size) : out(size, A(0)) {}

  // Before a factor of alpha: where that is 0 and all so far were masked keys, they leave nothing.
  void forget(A alpha) {
    if (alpha == 0 && !seen) std::fill(out.begin(), out.end(), A(0));
  }
};

template <class A>
A finite_maximum(A m) {
  return m == -kInfinity<A> ? A(0) : m;
}

// The accumulator of row (b, h, query) over all keys, before the division by the sum. Careful: the products of one row,
// such as CarefulChains.
template <class T, class Careful>
std::vector<Acc<T>> careful_row(const Problem<T>& problem, int64_t b, int64_t h, int64_t query) {
  using A = Acc<T>;
  const auto [begin, attended] = problem.range(b, h, query);
  const int64_t kv_head = h / problem.group();
  const T *q = problem.q_row(b, h, query), *k = problem.k_head(b, kv_head), *v = problem.v_head(b, kv_head);
  CarefulSplit<A> total(problem.value_size);
  for (int64_t split = begin; split < attended; split += BI_ATTENTION_KV_SPLIT) {
    CarefulSplit<A> part(problem.value_size);
    const int64_t split_end = std::min<int64_t>(attended, split + BI_ATTENTION_KV_SPLIT);
    for (int64_t block = split; block < split_end; block += kBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kBlock, split_end - block));
      A score[kBlock];
      bool masked[kBlock] = {};
      A now = part.maximum;
      for (int j = 0; j < count; ++j) {
        const T* key = k + (block + j) * problem.k_stride[2];
        A s = Careful::score(q, problem.q_stride[3], key, problem.k_stride[3], problem.size) * problem.scale;
        if (problem.softcap != 0) s = tanh_one(s / problem.softcap) * problem.softcap;
        problem.with_mask([&](const auto* mask) {
          const auto entry = mask[problem.mask_row(b, h, query) + (block + j) * problem.mask_stride[3]];
          A add;
          if constexpr (std::is_same_v<std::decay_t<decltype(entry)>, bool>) {
            add = entry ? A(0) : -kInfinity<A>;
          } else {
            add = static_cast<A>(entry);
          }
          masked[j] = add <= problem.mask_lowest;
          s = masked[j] ? add : s + add;
        });
        score[j] = s;
        now = s > now ? s : now;
      }
      const A alpha = exp_one(part.maximum - finite_maximum(now));
      part.forget(alpha);
      part.maximum = now;
      A weight[kBlock];
      bool present[kBlock];
      for (int j = 0; j < count; ++j) {
        weight[j] = exp_one(score[j] - finite_maximum(now));
        part.seen |= !masked[j];
        present[j] = !masked[j] || weight[j] != 0;
      }
      Careful::accumulate(weight, present, count, alpha, v + block * problem.v_stride[2], problem.v_stride,
                          problem.value_size, part.out.data());
    }
    const A now = std::max(total.maximum, part.maximum), base = finite_maximum(now);
    const A left = exp_one(total.maximum - base), right = exp_one(part.maximum - base);
    part.forget(right);
    total.forget(left);
    for (int64_t d = 0; d < problem.value_size; ++d)
      total.out[d] = std::fma(total.out[d], left, part.out[d] * right);
    total.seen |= part.seen;
    total.maximum = now;
  }
  return total.out;
}

}  // namespace
