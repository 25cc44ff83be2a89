// The two products of a block as chains of fused multiply-adds, in fp32 or fp64: keys, values and queries are widened.
#pragma once

#include "attention/arena.h"
#include "attention/problem.h"

namespace {

// One score, and what a block adds to one row, element by element, in the order of Chains.
template <class T>
struct CarefulChains {
  using A = Acc<T>;

  static A score(const T* q, int64_t q_stride, const T* k, int64_t k_stride, int64_t size) {
    A sum = 0;
    for (int64_t d = 0; d < size; ++d)
      sum = std::fma(static_cast<A>(q[d * q_stride]), static_cast<A>(k[d * k_stride]), sum);
    return sum;
  }

  // Neither the weight nor the values of a key that is not `present` are looked at.
  static void accumulate(const A* weight, const bool* present, int count, A alpha, const T* v, const int64_t (&stride)[4],
                         int64_t size, A* out) {
    for (int64_t d = 0; d < size; ++d) out[d] = out[d] * alpha;
    for (int j = 0; j < count; ++j)
      for (int64_t d = 0; present[j] && d < size; ++d)
        out[d] = std::fma(weight[j], static_cast<A>(v[j * stride[2] + d * stride[3]]), out[d]);
  }
};

template <class T>
class Chains {
  using A = Acc<T>;

 public:
  using Careful = CarefulChains<T>;
  using Unit = NoUnit;
  // Rows of a strip, which a block meets together.
  static constexpr int64_t kStrip = kRows;

  // Elements of the queries of a tile.
  using Query = A;
  static int64_t query_elements(const Problem<T>& problem, int64_t rows) { return rows * padded(problem.size); }
  // Memory for what one block needs.
  static size_t bytes(const Problem<T>& problem) {
    return Arena::bytes<A>(padded(problem.size) * kBlock) + Arena::bytes<A>(kBlock * padded(problem.value_size));
  }

  Chains(const Problem<T>& problem, Arena& arena)
      : problem_(problem), size_(padded(problem.size)), value_size_(padded(problem.value_size)) {
    packed_keys_ = arena.take<A>(size_ * kBlock);
    packed_values_ = arena.take<A>(kBlock * value_size_);
  }

  void set_query(A* queries, int64_t r, int64_t, const T* query) const {
    copy_widened(query, problem_.q_stride[3], problem_.size, queries + r * size_, size_);
  }

  // A block to meet the strips of a tile of `rows` rows. next: what is worth asking for now, empty if nothing is.
  void begin(const Block<T>& block, int64_t rows, const Block<T>& next) {
    block_ = block, next_ = next, rows_ = rows;
    keys_packed_ = values_packed_ = false;
  }

  // scores[i][0 ... seen) of rows r ... r + rows - 1, before their scale.
  void score(const A* queries, int64_t r, int rows, int seen, A* scores) {
    const int64_t stride = problem_.k_stride[2], element = problem_.k_stride[3];
#if defined(BI_ISA_AVX512)
    if constexpr (sizeof(A) == 4) {
      if (rows_ == 1 && element == 1) {
        const Ahead asked = ahead(next_.keys, problem_.k_stride, problem_.size);
        return score_one_query(queries, block_.keys, stride, seen, problem_.size, scores, asked);
      }
    }
#endif
    if (!keys_packed_) pack_keys(block_.keys, stride, element, block_.count, problem_.size, packed_keys_);
    keys_packed_ = true;
    score_block(rows, queries + r * size_, size_, packed_keys_, seen, problem_.size, scores);
  }

  // out[i] = out[i] * alpha[i] + the first `seen` values, each times its weight, of `rows` rows.
  void accumulate(int rows, int seen, const A* weights, const A* alpha, A* out) {
    const int64_t size = problem_.value_size, stride = problem_.v_stride[2], element = problem_.v_stride[3];
    // Copied when not in rows, or when several strips would widen them.
    if (element == 1 && (sizeof(T) == sizeof(A) || rows_ <= 2 * kRows)) {
      const Ahead asked = ahead(next_.values, problem_.v_stride, size);
      return accumulate_block(rows, weights, alpha, block_.values, stride, seen, size, out, value_size_, asked);
    }
    for (int j = 0; !values_packed_ && j < block_.count; ++j)
      copy_widened(block_.values + j * stride, element, size, packed_values_ + j * value_size_, value_size_);
    values_packed_ = true;
    accumulate_block<A, A>(rows, weights, alpha, packed_values_, value_size_, seen, size, out, value_size_, Ahead());
  }

 private:
  static int64_t padded(int64_t size) { return round_up(size, kLanes); }

  // The keys or values that come next, if they are read only once.
  Ahead ahead(const T* first, const int64_t (&strides)[4], int64_t size) const {
    if (rows_ > kRows || strides[3] != 1) return {};
    constexpr int64_t bytes = sizeof(T);
    return {reinterpret_cast<const char*>(first), strides[2] * bytes, size * bytes,
            next_.count};
  }

  const Problem<T>& problem_;
  const int64_t size_, value_size_;
  A *packed_keys_, *packed_values_;
  Block<T> block_, next_;
  int64_t rows_ = 0;
  bool keys_packed_, values_packed_;
};

}  // namespace
