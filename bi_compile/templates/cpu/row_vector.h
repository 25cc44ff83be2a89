// Vectors of one row kernel: loads that widen to the accumulator type, stores that round once.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace {

// fp64 computes in fp64, everything else in fp32.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A>
using Vec = at::vec::Vectorized<A>;

template <class A>
constexpr int64_t kWidth = Vec<A>::size();

template <class A>
constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// The payload and sign of a NaN depend on operand order, which a compiler may swap: results carry one NaN only.
template <class A>
inline A canonical(A x) {
  return x != x ? kNaN<A> : x;
}

template <class A>
inline Vec<A> canonical(const Vec<A>& x) {
#if defined(BI_ISA_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(kNaN<float>));
  }
#endif
  return Vec<A>::blendv(x, Vec<A>(kNaN<A>), x != x);
}

// kWidth elements at p, widened. The last kWidth - count of them are zero and their memory is not touched.
template <class T>
inline Vec<Acc<T>> load(const T* p, int64_t count) {
  using A = Acc<T>;
  if constexpr (std::is_same_v<T, A>) {
    return count == kWidth<A> ? Vec<A>::loadu(p) : Vec<A>::loadu(p, count);
  } else {
#if defined(BI_ISA_AVX512)
    const __m256i half = count == 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                     : _mm256_maskz_loadu_epi16((1u << count) - 1, p);
    if constexpr (std::is_same_v<T, at::Half>) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#else
    T padded[kWidth<A>] = {};
    if (count < kWidth<A>) {
      std::memcpy(static_cast<void*>(padded), p, count * sizeof(T));
      p = padded;
    }
#if defined(BI_ISA_AVX2)
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (std::is_same_v<T, at::Half>) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#else
    A widened[kWidth<A>];
    for (int64_t j = 0; j < kWidth<A>; ++j) widened[j] = static_cast<A>(p[j]);
    return Vec<A>::loadu(widened);
#endif
#endif
  }
}

// The first count elements of x, rounded to nearest even once, NaN canonical.
template <class T>
inline void store(T* p, const Vec<Acc<T>>& value, int64_t count) {
  using A = Acc<T>;
  const Vec<A> x = canonical(value);
  if constexpr (std::is_same_v<T, A>) {
    if (count == kWidth<A>) {
      x.store(p);
    } else {
      x.store(p, count);
    }
  } else {
#if defined(BI_ISA_AVX512)
    __m256i half;
    if constexpr (std::is_same_v<T, at::Half>) {
      half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      // Half of the last kept bit is added, less one when the kept part is even. The canonical NaN survives.
      const __m512i bits = _mm512_castps_si512(x);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
    }
    if (count == 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
    } else {
      _mm256_mask_storeu_epi16(p, (1u << count) - 1, half);
    }
#else
    A wide[kWidth<A>];
    x.store(wide);
    for (int64_t j = 0; j < count; ++j) p[j] = static_cast<T>(wide[j]);
#endif
  }
}

// The first element of x, rounded to T.
template <class T>
inline T first(const Vec<Acc<T>>& x) {
  Acc<T> wide[kWidth<Acc<T>>];
  x.store(wide);
  return static_cast<T>(canonical(wide[0]));
}

}  // namespace
