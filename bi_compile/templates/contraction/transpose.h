// Columns of an operand brought side by side in registers.
#pragma once

#include "contraction/chain.h"

namespace {

#if defined(BI_ISA_AVX512)

// Half of `elements` <= 16 packed values of a line: values 8 * half to 8 * half + 7 of `upper` above those of
// `lower`. Absent values are zero and not read. For 32-bit packed values only.
template <class S, bool Whole, class T>
inline __attribute__((always_inline)) __m512i load_halves(const T* lower, const T* upper, int half, int64_t elements) {
  constexpr int kElements = 8 * S::kPerStep;
  lower += half * kElements, upper += half * kElements;
  const int64_t present = Whole ? kElements : std::clamp<int64_t>(elements - half * kElements, 0, kElements);
  if constexpr (sizeof(T) * S::kPerStep == 4) {
    const auto load = [present](const T* p) {
      if constexpr (Whole) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      if constexpr (sizeof(T) == 4) return _mm256_maskz_loadu_epi32((1u << present) - 1, p);
      return _mm256_maskz_loadu_epi16((1u << present) - 1, p);
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(load(lower)), load(upper), 1);
  } else {
    const auto load = [present](const T* p) {
      if constexpr (Whole) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      return _mm_maskz_loadu_epi16((1u << present) - 1, p);
    };
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(load(lower)), load(upper), 1);
    if constexpr (std::is_same_v<T, at::Half>) return _mm512_castps_si512(_mm512_cvtph_ps(both));
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(both), 16);
    return S::kSwapped ? _mm512_shuffle_epi32(wide, _MM_PERM_CDAB) : wide;
  }
}

// Register 8 h + i of r holds values 8 h to 8 h + 7 of line i, then of line i + 8. Afterwards register k holds value k
// of lines 0 to 15.
inline __attribute__((always_inline)) void transpose_halves(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  // r[8 h + 4 u + c] has in its four 128-bit lanes: values 8 h + c and 8 h + 4 + c of lines 4 u to 4 u + 3, then
  // the same of lines 8 + 4 u to 8 + 4 u + 3.
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    r[4 * q + 0] = _mm512_unpacklo_epi64(t[4 * q], t[4 * q + 2]);
    r[4 * q + 1] = _mm512_unpackhi_epi64(t[4 * q], t[4 * q + 2]);
    r[4 * q + 2] = _mm512_unpacklo_epi64(t[4 * q + 1], t[4 * q + 3]);
    r[4 * q + 3] = _mm512_unpackhi_epi64(t[4 * q + 1], t[4 * q + 3]);
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      t[8 * h + c] = _mm512_permutex2var_epi64(r[8 * h + c], low, r[8 * h + 4 + c]);
      t[8 * h + 4 + c] = _mm512_permutex2var_epi64(r[8 * h + c], high, r[8 * h + 4 + c]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// 4 values of 16 lines to 4 registers, one a value.
template <class T>
inline __attribute__((always_inline)) void transpose_quarters(const T* lines, int64_t across, __m512i* out) {
  const auto at = [&](int line) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lines + line * across)); };
  __m512i r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_castsi128_si512(at(i));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00f0, at(i + 4));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0f00, at(i + 8));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xf000, at(i + 12));
  }
  const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm512_unpacklo_epi64(a, c), out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d), out[3] = _mm512_unpackhi_epi64(b, d);
}

// 16 steps of 16 lines contiguous along K, one register a step. Without Whole only `elements` are left of them.
template <class S, bool Whole, class T>
inline __attribute__((always_inline)) void load_block(const T* lines, int64_t across, int64_t elements,
                                                      __m512i (&r)[16]) {
  if constexpr (Whole && sizeof(T) * S::kPerStep == 4) {
    // The loads put 4 values of lines i, i + 4, i + 8 and i + 12 side by side: fewer shuffles, of which a processor
    // does one a cycle, and more loads.
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) transpose_quarters(lines + q * 4 * S::kPerStep, across, r + 4 * q);
  } else {
    // Register 8 h + i: values 8 h to 8 h + 7 of line i, then of line i + 8.
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      r[i] = load_halves<S, Whole>(lines + i % 8 * across, lines + (i % 8 + 8) * across, i / 8, elements);
    }
    transpose_halves(r);
  }
}

// 16 lines contiguous along K.
template <class S, class T>
void transpose_columns(const T* lines, int64_t across, int64_t elements, typename S::Packed* out) {
  constexpr int64_t kBlock = 16 * S::kPerStep;
  const int64_t steps = steps_of<S>(elements);
  for (int64_t first = 0; first < steps; first += 16, lines += kBlock, elements -= kBlock) {
    __m512i r[16];
    auto* target = out + first * kColumns<S>;
    if (kBlock <= elements) {
      load_block<S, true>(lines, across, kBlock, r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(target + i * kColumns<S>, r[i]);
    } else {
      load_block<S, false>(lines, across, elements, r);
      for (int64_t i = 0; i < 16 && first + i < steps; ++i) _mm512_storeu_si512(target + i * kColumns<S>, r[i]);
    }
  }
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
