// The two products of a block on a few rows: scores = Q K^T and accumulator += P V.
// Each output element is one chain of fused multiply-adds in index order, however many rows and columns a
// kernel holds in registers.
#pragma once

#include <utility>

#include "attention/pack.h"

namespace {

// Rows held in registers together, and registers of columns beside each: 6 x 4 of 32 or 6 x 2 of 16. Few rows hold
// twice the columns of values: their chains are too few to keep the multipliers busy otherwise, and a row of values
// is read to its end.
constexpr int kRows = 6, kFewRows = 2;
#if defined(BI_ISA_AVX512)
constexpr int kColumns = 4;
#else
constexpr int kColumns = 2;
#endif

// scores[r][0 ... N registers) = chain over d of q[r][d] * keys[d][...]
template <class A, int R, int N>
void multiply_keys(const A* q, int64_t q_stride, const A* keys, int64_t size, A* scores) {
  using V = Vec<A>;
  V sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n] = V::broadcast(0);
  for (int64_t d = 0; d < size; ++d) {
    V key[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) key[n] = V::load(keys + d * kBlock + n * V::width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V x = V::broadcast(q[r * q_stride + d]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = fma(x, key[n], sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n].store(scores + r * kBlock + n * V::width);
}

// out[r][...] = out[r][...] * alpha[r], then the chain over the keys of p[r][key] * v[key][...].
// The last of the N registers reads `tail` columns of v.
template <class A, class T, int R, int N>
void multiply_values(const A* p, const A* alpha, const T* v, int64_t v_stride, int keys, int tail, A* out,
                     int64_t out_stride, const Ahead& ahead) {
  using V = Vec<A>;
  const auto all = V::first(V::width), last = V::first(tail);
  V sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const V scale = V::broadcast(alpha[r]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = V::load(out + r * out_stride + n * V::width) * scale;
  }
  for (int key = 0; key < keys; ++key) {
    if (R <= 4) ahead.touch(key);
    V x[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const bool partial = n == N - 1;
      x[n] = load_widened<T>(v + key * v_stride + n * V::width, partial ? last : all, partial ? tail : V::width);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V weight = V::broadcast(p[r * kBlock + key]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] = fma(weight, x[n], sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n].store(out + r * out_stride + n * V::width);
}

// Calls f with n, which is 1 ... Most, as a compile-time constant.
template <int Most, class F>
BI_INLINE void with_constant(int n, F f) {
  if constexpr (Most > 1) {
    if (n < Most) return with_constant<Most - 1>(n, f);
  }
  return f(std::integral_constant<int, Most>());
}

// The same with two numbers: rows in 1 ... Rows, columns in 1 ... Columns.
template <int Rows, int Columns, class F>
BI_INLINE void with_constants(int rows, int columns, F f) {
  with_constant<Rows>(rows, [&](auto r) { with_constant<Columns>(columns, [&](auto n) { f(r, n); }); });
}

// Scores of up to kRows rows against `keys` packed keys; columns up to the next multiple of 16 are written.
template <class A>
inline void score_block(int rows, const A* q, int64_t q_stride, const A* packed, int keys, int64_t size, A* scores) {
  const int total = (keys + kLanes - 1) / kLanes * Lanes<A>::count;
  for (int at = 0; at < total; at += kColumns) {
    with_constants<kRows, kColumns>(rows, std::min(kColumns, total - at), [&](auto r, auto n) {
      const int column = at * Vec<A>::width;
      multiply_keys<A, r, n>(q, q_stride, packed + column, size, scores + column);
    });
  }
}

#if defined(BI_ISA_AVX512)

// As score_block for one row, from keys whose elements lie side by side, transposed in registers: a packed copy
// would be read but once. The chains are the same.
template <class T>
inline void score_one_query(const float* q, const T* keys, int64_t stride, int count, int64_t size, float* scores,
                            const Ahead& ahead) {
  for (int first = 0; first < count; first += kLanes) {
    const int present = std::min(kLanes, count - first);
    for (int j = 0; j < kLanes; ++j) ahead.touch(first + j);
    const auto chain = [&](const auto& key) {
      __m512 sum = _mm512_setzero_ps();
      const auto take_in = [&](int64_t d, __m512 x) { sum = _mm512_fmadd_ps(_mm512_set1_ps(q[d]), x, sum); };
      int64_t d = for_each_element<T, 4>(key, 0, size, take_in);
      for (d = for_each_element<T, 1>(key, d, size, take_in); d < size; ++d) {
        float column[kLanes];
        for (int j = 0; j < kLanes; ++j) {
          T x;
          std::memcpy(&x, key[j] + d * sizeof(T), sizeof(T));
          column[j] = static_cast<float>(x);
        }
        take_in(d, _mm512_loadu_ps(column));
      }
      _mm512_storeu_ps(scores + first, sum);
    };
    if (present == kLanes) {
      chain(EvenKeys(reinterpret_cast<const char*>(keys + first * stride), stride * static_cast<int64_t>(sizeof(T))));
    } else {
      const char* key[kLanes];
      point_at_keys(keys + first * stride, stride, present, key);
      chain(key);
    }
  }
}

#endif

// The accumulators of up to kRows rows take in `keys` keys; out_stride is a multiple of kLanes.
template <class A, class T>
inline void accumulate_block(int rows, const A* p, const A* alpha, const T* v, int64_t v_stride, int keys,
                             int64_t value_size, A* out, int64_t out_stride, const Ahead& ahead) {
  const auto run = [&](auto most_rows, auto most_columns) {
    constexpr int step = most_columns * Vec<A>::width;
    for (int64_t at = 0; at < value_size; at += step) {
      const int left = static_cast<int>(std::min<int64_t>(step, value_size - at));
      const int columns = (left + Vec<A>::width - 1) / Vec<A>::width;
      with_constants<most_rows, most_columns>(rows, columns, [&](auto r, auto n) {
        const int tail = left - (columns - 1) * Vec<A>::width;
        multiply_values<A, T, r, n>(p, alpha, v + at, v_stride, keys, tail, out + at, out_stride,
                                    at == 0 ? ahead : Ahead());
      });
    }
  };
  if (rows <= kFewRows) {
    run(std::integral_constant<int, kFewRows>(), std::integral_constant<int, 2 * kColumns>());
  } else {
    run(std::integral_constant<int, kRows>(), std::integral_constant<int, kColumns>());
  }
}

}  // namespace
