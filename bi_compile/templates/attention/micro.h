// The two products of a block on a few rows: scores = Q K^T and accumulator += P V.
// Each output element is one chain of fused multiply-adds in index order, however many rows and columns a
// kernel holds in registers.
#pragma once

#include <utility>

#include "attention/pack.h"

namespace {

// Rows held in registers together, and registers of columns beside each: 6 x 4 of 32 or 6 x 2 of 16.
constexpr int kRows = 6;
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
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n] = V::load(out + r * out_stride + n * V::width) * scale;
  }
  for (int key = 0; key < keys; ++key) {
    if (R <= 4) ahead.touch(key);
    V x[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const bool partial = n == N - 1;
      x[n] = load_widened<T>(v + key * v_stride + n * V::width, partial ? last : all, partial ? tail : V::width);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V weight = V::broadcast(p[r * kBlock + key]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = fma(weight, x[n], sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[r][n].store(out + r * out_stride + n * V::width);
}

// Calls f with the two numbers as compile-time constants: rows in 1 ... kRows, columns in 1 ... kColumns.
template <class F>
BI_INLINE void with_constants(int rows, int columns, F f) {
  const auto with_columns = [&](auto r) {
    switch (columns) {
      case 1: return f(r, std::integral_constant<int, 1>());
      case 2: return f(r, std::integral_constant<int, 2>());
#if defined(BI_ISA_AVX512)
      case 3: return f(r, std::integral_constant<int, 3>());
      case 4: return f(r, std::integral_constant<int, 4>());
#endif
    }
  };
  switch (rows) {
    case 1: return with_columns(std::integral_constant<int, 1>());
    case 2: return with_columns(std::integral_constant<int, 2>());
    case 3: return with_columns(std::integral_constant<int, 3>());
    case 4: return with_columns(std::integral_constant<int, 4>());
    case 5: return with_columns(std::integral_constant<int, 5>());
    case 6: return with_columns(std::integral_constant<int, 6>());
  }
}

// Scores of up to kRows rows against `keys` packed keys; columns up to the next multiple of 16 are written.
template <class A>
inline void score_block(int rows, const A* q, int64_t q_stride, const A* packed, int keys, int64_t size, A* scores) {
  const int total = (keys + kLanes - 1) / kLanes * Lanes<A>::count;
  for (int at = 0; at < total; at += kColumns) {
    with_constants(rows, std::min(kColumns, total - at), [&](auto r, auto n) {
      const int column = at * Vec<A>::width;
      multiply_keys<A, r, n>(q, q_stride, packed + column, size, scores + column);
    });
  }
}

#if defined(BI_ISA_AVX512)

// Scores of one query against G groups of sixteen keys, transposed in registers: with a single row, a packed copy
// would be read but once. The chains are the same.
template <class T, int G>
BI_INLINE void score_groups(const float* q, const T* keys, int64_t stride, int count, int64_t size, float* scores,
                            const Ahead& ahead, int touched) {
  constexpr int step = 16 / sizeof(T), per_unit = 4 / sizeof(T);
  const char* key[G][kLanes];
  __m512 sum[G];
  for (int g = 0; g < G; ++g) {
    point_at_keys(keys + g * kLanes * stride, stride, std::min(kLanes, count - g * kLanes), key[g]);
    sum[g] = _mm512_setzero_ps();
  }
  const int touches = static_cast<int>((G * kLanes * step + size - 1) / std::max<int64_t>(size, 1));
  int64_t d = 0;
  for (; d + step <= size; d += step) {
    for (int i = 0; i < touches; ++i) ahead.touch(touched++);
    __m512 unit[G][4];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) transpose_16_keys(key[g], d * static_cast<int64_t>(sizeof(T)), unit[g]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        __m512 wide[per_unit];
        widen_unit<T>(unit[g][i], wide);
        for (int j = 0; j < per_unit; ++j)
          sum[g] = _mm512_fmadd_ps(_mm512_set1_ps(q[d + i * per_unit + j]), wide[j], sum[g]);
      }
    }
  }
  for (; d < size; ++d) {
    for (int g = 0; g < G; ++g) {
      float column[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        T x;
        std::memcpy(&x, key[g][j] + d * sizeof(T), sizeof(T));
        column[j] = static_cast<float>(x);
      }
      sum[g] = _mm512_fmadd_ps(_mm512_set1_ps(q[d]), _mm512_loadu_ps(column), sum[g]);
    }
  }
  for (int g = 0; g < G; ++g) _mm512_storeu_ps(scores + g * kLanes, sum[g]);
}

// As score_block for one row, from keys whose elements lie side by side.
template <class T>
inline void score_one_query(const float* q, const T* keys, int64_t stride, int count, int64_t size, float* scores,
                            const Ahead& ahead) {
  for (int first = 0; first < count; first += 2 * kLanes) {
    const T* at = keys + first * stride;
    if (count - first > kLanes) {
      score_groups<T, 2>(q, at, stride, count - first, size, scores + first, ahead, first);
    } else {
      score_groups<T, 1>(q, at, stride, count - first, size, scores + first, ahead, first);
    }
  }
}

#endif

// The accumulators of up to kRows rows take in `keys` keys; out_stride is a multiple of kLanes.
template <class A, class T>
inline void accumulate_block(int rows, const A* p, const A* alpha, const T* v, int64_t v_stride, int keys,
                             int64_t value_size, A* out, int64_t out_stride, const Ahead& ahead) {
  constexpr int step = kColumns * Vec<A>::width;
  for (int64_t at = 0; at < value_size; at += step) {
    const int left = static_cast<int>(std::min<int64_t>(step, value_size - at));
    const int columns = (left + Vec<A>::width - 1) / Vec<A>::width;
    with_constants(rows, columns, [&](auto r, auto n) {
      const int tail = left - (columns - 1) * Vec<A>::width;
      multiply_values<A, T, r, n>(p, alpha, v + at, v_stride, keys, tail, out + at, out_stride,
                                  at == 0 ? ahead : Ahead());
    });
  }
}

}  // namespace
