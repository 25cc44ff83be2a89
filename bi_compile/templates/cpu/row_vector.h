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

// The first count elements of x, rounded to nearest even once. No NaN, or the canonical one, is among them.
template <class T>
inline void store_canonical(T* p, const Vec<Acc<T>>& x, int64_t count) {
  using A = Acc<T>;
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

// The first count elements of x, rounded to nearest even once, every NaN made the canonical one.
template <class T>
inline void store(T* p, const Vec<Acc<T>>& x, int64_t count) {
  store_canonical(p, canonical(x), count);
}

// x / y, correctly rounded, for 0 <= x <= y and y >= 1; reciprocal is 1 / y, correctly rounded.
//
// A division unit is slow. The quotient by the reciprocal is off by at most an ulp; the residual is exact by a fused
// multiply-add, and the quotient so corrected is the rounded one (Markstein 1990), as long as no step underflows:
// a quotient of 2^-75 has a residual of at least 2^-122. Zero is itself.
template <class A>
inline Vec<A> divide(const Vec<A>& x, const Vec<A>& y, const Vec<A>& reciprocal) {
#if defined(BI_ISA_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    const __m512 quotient = _mm512_mul_ps(x, reciprocal);
    const __mmask16 tiny = _mm512_cmp_ps_mask(quotient, _mm512_set1_ps(0x1p-75f), _CMP_LT_OQ);
    if (_mm512_mask_cmp_ps_mask(tiny, x, _mm512_setzero_ps(), _CMP_NEQ_OQ)) return x / y;
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, y, x), reciprocal, quotient);
  }
#elif defined(BI_ISA_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    const __m256 quotient = _mm256_mul_ps(x, reciprocal);
    const __m256 tiny = _mm256_and_ps(_mm256_cmp_ps(quotient, _mm256_set1_ps(0x1p-75f), _CMP_LT_OQ),
                                      _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_OQ));
    if (_mm256_movemask_ps(tiny)) return x / y;
    return _mm256_fmadd_ps(_mm256_fnmadd_ps(quotient, y, x), reciprocal, quotient);
  }
#endif
  return x / y;
}

// x, read from memory once: the compiler would make it a memory operand of each instruction that uses it.
template <class A>
inline Vec<A> in_register(Vec<A> x) {
#if defined(BI_ISA_AVX512)
  asm("" : "+v"(x.values));
#endif
  return x;
}

// The first element.
template <class A>
inline A first(const Vec<A>& x) {
#if defined(BI_ISA_AVX512)
  if constexpr (std::is_same_v<A, float>) return _mm512_cvtss_f32(x);
  else return _mm512_cvtsd_f64(x);
#elif defined(BI_ISA_AVX2)
  if constexpr (std::is_same_v<A, float>) return _mm256_cvtss_f32(x);
  else return _mm256_cvtsd_f64(x);
#else
  A elements[kWidth<A>];
  x.store(elements);
  return elements[0];
#endif
}

// Element j + kHalf in the place of element j, for j below kHalf; the other places hold anything.
template <int64_t kHalf, class A>
inline Vec<A> upper(const Vec<A>& x) {
#if defined(BI_ISA_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    if constexpr (kHalf == 8) return _mm512_shuffle_f32x4(x, x, 0b1110);
    if constexpr (kHalf == 4) return _mm512_shuffle_f32x4(x, x, 0b01);
    if constexpr (kHalf == 2) return _mm512_permute_ps(x, 0b1110);
    return _mm512_permute_ps(x, 0b01);
  } else {
    if constexpr (kHalf == 4) return _mm512_shuffle_f64x2(x, x, 0b1110);
    if constexpr (kHalf == 2) return _mm512_shuffle_f64x2(x, x, 0b01);
    return _mm512_permute_pd(x, 0b01);
  }
#elif defined(BI_ISA_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    if constexpr (kHalf == 4) return _mm256_permute2f128_ps(x, x, 1);
    if constexpr (kHalf == 2) return _mm256_permute_ps(x, 0b1110);
    return _mm256_permute_ps(x, 0b01);
  } else {
    if constexpr (kHalf == 2) return _mm256_permute2f128_pd(x, x, 1);
    return _mm256_permute_pd(x, 0b01);
  }
#else
  A elements[2 * kWidth<A>] = {};
  x.store(elements);
  return Vec<A>::loadu(elements + kHalf);
#endif
}

// Places in which a NaN was met, by comparisons that cover two vectors at a time.
template <class A>
class NaNs {
 public:
  void meet(const Vec<A>& a, const Vec<A>& b) {
#if defined(BI_ISA_AVX512)
    if constexpr (std::is_same_v<A, float>) {
      found_ = static_cast<Found>(found_ | _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q));
    } else {
      found_ = static_cast<Found>(found_ | _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q));
    }
#elif defined(BI_ISA_AVX2)
    if constexpr (std::is_same_v<A, float>) {
      found_ = found_ | Vec<A>(_mm256_cmp_ps(a, b, _CMP_UNORD_Q));
    } else {
      found_ = found_ | Vec<A>(_mm256_cmp_pd(a, b, _CMP_UNORD_Q));
    }
#else
    found_ = found_ | (a != a) | (b != b);
#endif
  }

  bool any() const {
#if defined(BI_ISA_AVX512)
    return found_ != 0;
#else
    return mark(Vec<A>(A(0))).zero_mask() != (1 << kWidth<A>) - 1;
#endif
  }

  // x, and NaN in the places where one was met.
  Vec<A> mark(const Vec<A>& x) const {
#if defined(BI_ISA_AVX512)
    if constexpr (std::is_same_v<A, float>) {
      return _mm512_mask_mov_ps(x, found_, _mm512_set1_ps(kNaN<A>));
    } else {
      return _mm512_mask_mov_pd(x, found_, _mm512_set1_pd(kNaN<A>));
    }
#else
    return Vec<A>::blendv(x, Vec<A>(kNaN<A>), found_);
#endif
  }

 private:
#if defined(BI_ISA_AVX512)
  using Found = std::conditional_t<std::is_same_v<A, float>, __mmask16, __mmask8>;
  Found found_ = 0;
#else
  Vec<A> found_ = Vec<A>(A(0));
#endif
};

}  // namespace
