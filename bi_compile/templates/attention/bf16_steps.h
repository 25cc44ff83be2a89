// bf16 products in the order "tiles", element by element: the sums of TDPBF16PS where the machine has none.
//
// A step is 32 elements: from +0 one chain over the even ones and one over the odd ones, and their sum is added to the
// sum so far. Every operation takes subnormals as zero. Weights are rounded to bf16 before they meet the values.
#pragma once

#include "attention/arena.h"
#include "attention/problem.h"
#include "cpu/simd.h"

namespace {

using Bf16 = c10::BFloat16;

constexpr int kStep = 32;

// The sums of a few columns: Term(i) gives element i of `count` as two factors. Not inlined: the processor's mode is set
// around it, and arithmetic must not move there.
template <int Columns, class Term>
__attribute__((noinline)) void sum_in_steps(int64_t count, Term term, float* sums) {
  std::fill_n(sums, Columns, 0.0f);
  for (int64_t first = 0; first < count; first += kStep) {
    float chain[2][Columns] = {};
    const int64_t end = std::min<int64_t>(count, first + kStep);
    for (int64_t i = first; i < end; ++i) {
      const auto [left, right] = term(i);
      float(&sum)[Columns] = chain[i % 2];
      for (int c = 0; c < Columns; ++c) sum[c] = flushed_step(sum[c], left, right[c]);
    }
    for (int c = 0; c < Columns; ++c) sums[c] = flushed_step(sums[c], 1, flushed_step(chain[0][c], 1, chain[1][c]));
  }
}

struct Factors {
  float left;
  const float* right;  // of each column
};

// Weights as bf16: rounded to nearest even, NaN kept. They are at least 2^-126, or zero.
inline Bf16 rounded_weight(float p) { return static_cast<Bf16>(p); }

struct CarefulBf16Steps {
  static float score(const Bf16* q, int64_t q_stride, const Bf16* k, int64_t k_stride, int64_t size) {
    const FloatingPointMode mode(FloatingPointMode::kFlush);
    float key, sum;
    sum_in_steps<1>(
        size,
        [&](int64_t d) {
          key = k[d * k_stride];
          return Factors{q[d * q_stride], &key};
        },
        &sum);
    return sum;
  }

  // out = out * alpha + the sums of the block. Neither the weight nor the values of a key that is not `present` are
  // looked at.
  static void accumulate(const float* weight, const bool* present, int count, float alpha, const Bf16* v,
                         const int64_t (&stride)[4], int64_t size, float* out) {
    for (int64_t d = 0; d < size; ++d) {
      float value, sum;
      const auto term = [&](int64_t j) {
        value = present[j] ? static_cast<float>(v[j * stride[2] + d * stride[3]]) : 0.0f;
        return Factors{present[j] ? static_cast<float>(rounded_weight(weight[j])) : 0.0f, &value};
      };
      {
        const FloatingPointMode mode(FloatingPointMode::kFlush);
        sum_in_steps<1>(count, term, &sum);
      }
      out[d] = std::fma(out[d], alpha, sum);
    }
  }
};

// The interface of Chains. Keys, values and queries are widened to fp32.
class Bf16Steps {
 public:
  using Careful = CarefulBf16Steps;
  using Unit = NoUnit;
  static constexpr int64_t kStrip = kRows;

  using Query = float;
  static int64_t query_elements(const Problem<Bf16>& problem, int64_t rows) { return rows * problem.size; }
  static size_t bytes(const Problem<Bf16>& problem) {
    return Arena::bytes<float>(problem.size * kBlock) + Arena::bytes<float>(kBlock * padded(problem.value_size));
  }

  Bf16Steps(const Problem<Bf16>& problem, Arena& arena)
      : problem_(problem), value_size_(padded(problem.value_size)) {
    keys_ = arena.take<float>(problem.size * kBlock);
    values_ = arena.take<float>(kBlock * value_size_);
  }

  void set_query(float* queries, int64_t r, int64_t, const Bf16* query) const {
    for (int64_t d = 0; d < problem_.size; ++d) queries[r * problem_.size + d] = query[d * problem_.q_stride[3]];
  }

  void begin(const Block<Bf16>& block, int64_t, const Block<Bf16>&) {
    std::fill_n(keys_, problem_.size * kBlock, 0.0f);
    pack_keys(block.keys, problem_.k_stride[2], problem_.k_stride[3], block.count, problem_.size, keys_);
    for (int j = 0; j < block.count; ++j)
      copy_widened(block.values + j * problem_.v_stride[2], problem_.v_stride[3], problem_.value_size,
                   values_ + j * value_size_, value_size_);
  }

  void score(const float* queries, int64_t r, int rows, int, float* scores) {
    const FloatingPointMode mode(FloatingPointMode::kFlush);
    for (int i = 0; i < rows; ++i) {
      const float* q = queries + (r + i) * problem_.size;
      for (int at = 0; at < kBlock; at += kLanes) {
        const auto term = [&](int64_t d) { return Factors{q[d], keys_ + d * kBlock + at}; };
        sum_in_steps<kLanes>(problem_.size, term, scores + i * kBlock + at);
      }
    }
  }

  void accumulate(int rows, int seen, const float* weights, const float* alpha, float* out) {
    for (int i = 0; i < rows; ++i) {
      float weight[kBlock];
      for (int j = 0; j < seen; ++j) weight[j] = rounded_weight(weights[i * kBlock + j]);
      for (int64_t at = 0; at < value_size_; at += kLanes) {
        const auto term = [&](int64_t j) { return Factors{weight[j], values_ + j * value_size_ + at}; };
        float sums[kLanes];
        {
          const FloatingPointMode mode(FloatingPointMode::kFlush);
          sum_in_steps<kLanes>(seen, term, sums);
        }
        float* row = out + i * value_size_ + at;
        for (int c = 0; c < kLanes; ++c) row[c] = std::fma(row[c], alpha[i], sums[c]);
      }
    }
  }

 private:
  static int64_t padded(int64_t size) { return round_up(size, kLanes); }

  const Problem<Bf16>& problem_;
  const int64_t value_size_;
  float *keys_, *values_;
};

}  // namespace
