// Sixteen keys whose elements lie side by side become registers of one element of each: for chains that run along the
// elements of a key, sixteen keys at a time. AVX-512 alone.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "attention/vector.h"

namespace {

// fp64 computes in fp64, everything else in fp32.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

#if defined(BI_ISA_AVX512)

// Sixteen keys at equal distances, in few enough numbers to stay in registers.
struct EvenKeys {
  const char* quarter[4];
  int64_t stride, thrice;

  EvenKeys(const char* first, int64_t stride) : stride(stride), thrice(3 * stride) {
    for (int i = 0; i < 4; ++i) quarter[i] = first + 4 * i * stride;
  }
  BI_INLINE const char* operator[](int i) const {
    return quarter[i / 4] + (i % 4 == 3 ? thrice : i % 4 * stride);
  }
};

// Lane l of unit[i] is element i of lane l of row[0], row[1], row[2] and row[3], a lane being 16 bytes.
BI_INLINE void transpose_lanes(const __m512* row, __m512* unit) {
  const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
  const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
  const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
  const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
  unit[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
  unit[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
  unit[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
  unit[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

// 16 * S bytes at the same place of sixteen keys, transposed: unit[i] holds the i-th 4 bytes of each key.
template <int S, class Keys>
BI_INLINE void transpose_16_keys(const Keys& key, int64_t offset, __m512 (&unit)[4 * S]) {
  static_assert(S == 1 || S == 4);
  if constexpr (S == 1) {
    __m512 quad[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const auto at = [&](int i) { return _mm_loadu_ps(reinterpret_cast<const float*>(key[i] + offset)); };
      __m512 z = _mm512_castps128_ps512(at(j));
      z = _mm512_mask_broadcast_f32x4(z, 0x00f0, at(4 + j));
      z = _mm512_mask_broadcast_f32x4(z, 0x0f00, at(8 + j));
      quad[j] = _mm512_mask_broadcast_f32x4(z, 0xf000, at(12 + j));
    }
    transpose_lanes(quad, unit);
  } else {
    // Half a cache line of keys 0 and 4, 1 and 5 ... 8 and 12 ... The other half is read at once: keys often lie a power
    // of two apart, where sixteen lines evict each other.
    __m512 half[2][8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int low = j % 4 + j / 4 * 8;
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const auto at = [&](int i) { return _mm256_loadu_ps(reinterpret_cast<const float*>(key[i] + offset + 32 * h)); };
        half[h][j] = _mm512_insertf32x8(_mm512_castps256_ps512(at(low)), at(low + 4), 1);
      }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m512 low[4], high[4];  // keys 0 ... 7 and 8 ... 15, elements i and 4 + i
      transpose_lanes(half[h], low);
      transpose_lanes(half[h] + 4, high);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        unit[8 * h + i] = _mm512_shuffle_f32x4(low[i], high[i], 0x88);
        unit[8 * h + 4 + i] = _mm512_shuffle_f32x4(low[i], high[i], 0xdd);
      }
    }
  }
}

// A unit as fp32: itself, or for 2-byte elements those at d (even) and d+1 (odd).
template <class T>
BI_INLINE void widen_unit(__m512 unit, __m512 (&wide)[4 / sizeof(T)]) {
  const __m512i bits = _mm512_castps_si512(unit);
  if constexpr (sizeof(T) == 4) {
    wide[0] = unit;
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    wide[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits));
    wide[1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
  } else {
    wide[0] = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    wide[1] = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000)));
  }
}

// Calls f(i, unit i of the sixteen keys) for i = from, from + 1, ... < units, as far as whole steps of 4 * S units go;
// returns the first one left out.
template <int S, class Keys, class F>
BI_INLINE int64_t for_each_unit(const Keys& key, int64_t from, int64_t units, F f) {
  int64_t first = from;
  for (; first + 4 * S <= units; first += 4 * S) {
    __m512 unit[4 * S];
    transpose_16_keys<S>(key, 4 * first, unit);
#pragma GCC unroll 16
    for (int i = 0; i < 4 * S; ++i) f(first + i, unit[i]);
  }
  return first;
}

// The same for elements d = from, from + 1, ...
template <class T, int S, class Keys, class F>
BI_INLINE int64_t for_each_element(const Keys& key, int64_t from, int64_t size, F f) {
  constexpr int per_unit = 4 / sizeof(T);
  return per_unit * for_each_unit<S>(key, from / per_unit, size / per_unit, [&](int64_t i, __m512 unit) {
           __m512 wide[per_unit];
           widen_unit<T>(unit, wide);
           for (int j = 0; j < per_unit; ++j) f(i * per_unit + j, wide[j]);
         });
}

// Sixteen keys from `first`, of which `present` exist. An absent one reads the last present one: its score is
// thrown away.
template <class T>
BI_INLINE void point_at_keys(const T* first, int64_t stride, int present, const char* (&key)[kLanes]) {
  for (int j = 0; j < kLanes; ++j) key[j] = reinterpret_cast<const char*>(first + std::min(j, present - 1) * stride);
}

#endif

}  // namespace
