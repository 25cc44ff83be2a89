// Columns of an operand brought side by side in registers.
#pragma once

#include "contraction/chain.h"

namespace {

#if defined(BI_ISA_AVX512)

// r[i] lane j <-> r[j] lane i, for 32-bit lanes.
inline __attribute__((always_inline)) void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  // Each 128-bit lane of r[4 q + c] now gets column c of its 4 x 4 block of rows 4 q ...
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    r[4 * q + 0] = _mm512_unpacklo_epi64(t[4 * q], t[4 * q + 2]);
    r[4 * q + 1] = _mm512_unpackhi_epi64(t[4 * q], t[4 * q + 2]);
    r[4 * q + 2] = _mm512_unpacklo_epi64(t[4 * q + 1], t[4 * q + 3]);
    r[4 * q + 3] = _mm512_unpackhi_epi64(t[4 * q + 1], t[4 * q + 3]);
  }
  // ... and the blocks are transposed as 4 x 4 lanes of 128 bits.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
    r[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
    r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
    r[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
  }
}

// 16 packed values of one line. For 32-bit packed values only.
template <class S, class T>
inline __attribute__((always_inline)) __m512i load16(const T* p) {
  if constexpr (std::is_same_v<T, at::Half>) {
    return _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  } else if constexpr (std::is_same_v<T, at::BFloat16> && S::kPerStep == 1) {
    // Widened with each pair's halves in swapped order.
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_shuffle_epi32(_mm512_slli_epi32(wide, 16), _MM_PERM_CDAB);
  } else {
    return _mm512_loadu_si512(p);
  }
}

// Lines contiguous along K. Returns the number of steps packed, a multiple of 16.
template <class S, class T>
int64_t transpose_columns(const T* data, int64_t across, int64_t elements, typename S::Packed* out) {
  if constexpr (sizeof(typename S::Packed) == 4) {
    const int64_t blocks = elements / (16 * S::kPerStep);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t line = 0; line < kColumns<S>; line += 16) {
        const T* source = data + line * across + block * 16 * S::kPerStep;
        __m512i r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = load16<S>(source + i * across);
        transpose16(r);
        auto* target = out + block * 16 * kColumns<S> + line;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(target + i * kColumns<S>, r[i]);
      }
    }
    return blocks * 16;
  }
  return 0;
}

// Lines side by side. Returns the number of steps packed.
template <class S, class T>
int64_t interleave_columns(const T* data, int64_t along, int64_t elements, typename S::Packed* out) {
  constexpr int64_t kWidth = S::F::kWidth;
  if constexpr (S::kPerStep == 2) {
    const int64_t steps = elements / 2;
    const __m512i low = _mm512_set1_epi32(0xffff);
    for (int64_t step = 0; step < steps; ++step) {
      const T* even = data + 2 * step * along;
      const T* odd = even + along;
      for (int64_t line = 0; line < kColumns<S>; line += kWidth) {
        const __m512i e = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + line)));
        const __m512i o = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd + line)));
        const __m512i pair = _mm512_or_si512(_mm512_and_si512(e, low), _mm512_slli_epi32(o, 16));
        _mm512_storeu_si512(out + step * kColumns<S> + line, pair);
      }
    }
    return steps;
  } else {
    const int64_t steps = S::kSwapped ? elements / 2 * 2 : elements;
    for (int64_t step = 0; step < steps; ++step) {
      const T* source = data + (S::kSwapped ? step ^ 1 : step) * along;
      for (int64_t line = 0; line < kColumns<S>; line += kWidth) {
        load(source + line, kWidth).store(out + step * kColumns<S> + line);
      }
    }
    return steps;
  }
}

#endif

}  // namespace
