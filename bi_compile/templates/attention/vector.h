// One register of fp32 or fp64: just the operations attention needs, spelled for each instruction set.
// Every multiply-add here is fused and every other operation rounds once, so all builds give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)
#include <immintrin.h>
#endif

#define BI_INLINE inline __attribute__((always_inline))

namespace {

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <class A>
constexpr A kNaN = std::numeric_limits<A>::quiet_NaN();

template <class A>
struct Vec;

#if defined(BI_ISA_AVX512)

template <>
struct Vec<float> {
  static constexpr int width = 16;
  using Mask = __mmask16;
  __m512 r;

  BI_INLINE static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  BI_INLINE static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  BI_INLINE static Vec load(const float* p, Mask lanes) { return {_mm512_maskz_loadu_ps(lanes, p)}; }
  BI_INLINE void store(float* p) const { _mm512_storeu_ps(p, r); }
  BI_INLINE static Mask first(int n) { return n >= 16 ? 0xffff : static_cast<Mask>((1u << (n < 0 ? 0 : n)) - 1); }
  BI_INLINE static Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_mov_ps(no.r, m, yes.r)}; }
  BI_INLINE Mask less_equal(Vec y) const { return _mm512_cmp_ps_mask(r, y.r, _CMP_LE_OQ); }
  BI_INLINE Mask less(Vec y) const { return _mm512_cmp_ps_mask(r, y.r, _CMP_LT_OQ); }
  BI_INLINE Mask nan() const { return _mm512_cmp_ps_mask(r, r, _CMP_UNORD_Q); }
  // The number whose exponent field is the low mantissa bits of this one.
  BI_INLINE Vec power_of_two() const { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(r), 23))}; }
};
BI_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
BI_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.r, b.r)}; }
BI_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.r, b.r)}; }
BI_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.r, b.r)}; }
BI_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm512_div_ps(a.r, b.r)}; }
BI_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return {_mm512_max_ps(a.r, b.r)}; }

template <>
struct Vec<double> {
  static constexpr int width = 8;
  using Mask = __mmask8;
  __m512d r;

  BI_INLINE static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  BI_INLINE static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  BI_INLINE static Vec load(const double* p, Mask lanes) { return {_mm512_maskz_loadu_pd(lanes, p)}; }
  BI_INLINE void store(double* p) const { _mm512_storeu_pd(p, r); }
  BI_INLINE static Mask first(int n) { return n >= 8 ? 0xff : static_cast<Mask>((1u << (n < 0 ? 0 : n)) - 1); }
  BI_INLINE static Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_mov_pd(no.r, m, yes.r)}; }
  BI_INLINE Mask less_equal(Vec y) const { return _mm512_cmp_pd_mask(r, y.r, _CMP_LE_OQ); }
  BI_INLINE Mask less(Vec y) const { return _mm512_cmp_pd_mask(r, y.r, _CMP_LT_OQ); }
  BI_INLINE Mask nan() const { return _mm512_cmp_pd_mask(r, r, _CMP_UNORD_Q); }
  BI_INLINE Vec power_of_two() const { return {_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(r), 52))}; }
};
BI_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm512_fmadd_pd(a.r, b.r, c.r)}; }
BI_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.r, b.r)}; }
BI_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.r, b.r)}; }
BI_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.r, b.r)}; }
BI_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return {_mm512_div_pd(a.r, b.r)}; }
BI_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return {_mm512_max_pd(a.r, b.r)}; }

#elif defined(BI_ISA_AVX2)

template <>
struct Vec<float> {
  static constexpr int width = 8;
  using Mask = __m256;
  __m256 r;

  BI_INLINE static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  BI_INLINE static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  BI_INLINE static Vec load(const float* p, Mask lanes) { return {_mm256_maskload_ps(p, _mm256_castps_si256(lanes))}; }
  BI_INLINE void store(float* p) const { _mm256_storeu_ps(p, r); }
  BI_INLINE static Mask first(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  }
  BI_INLINE static Vec select(Mask m, Vec yes, Vec no) { return {_mm256_blendv_ps(no.r, yes.r, m)}; }
  BI_INLINE Mask less_equal(Vec y) const { return _mm256_cmp_ps(r, y.r, _CMP_LE_OQ); }
  BI_INLINE Mask less(Vec y) const { return _mm256_cmp_ps(r, y.r, _CMP_LT_OQ); }
  BI_INLINE Mask nan() const { return _mm256_cmp_ps(r, r, _CMP_UNORD_Q); }
  BI_INLINE Vec power_of_two() const { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(r), 23))}; }
};
BI_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.r, b.r, c.r)}; }
BI_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.r, b.r)}; }
BI_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.r, b.r)}; }
BI_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.r, b.r)}; }
BI_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return {_mm256_div_ps(a.r, b.r)}; }
BI_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.r, b.r)}; }

template <>
struct Vec<double> {
  static constexpr int width = 4;
  using Mask = __m256d;
  __m256d r;

  BI_INLINE static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  BI_INLINE static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  BI_INLINE static Vec load(const double* p, Mask lanes) { return {_mm256_maskload_pd(p, _mm256_castpd_si256(lanes))}; }
  BI_INLINE void store(double* p) const { _mm256_storeu_pd(p, r); }
  BI_INLINE static Mask first(int n) {
    return _mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
  }
  BI_INLINE static Vec select(Mask m, Vec yes, Vec no) { return {_mm256_blendv_pd(no.r, yes.r, m)}; }
  BI_INLINE Mask less_equal(Vec y) const { return _mm256_cmp_pd(r, y.r, _CMP_LE_OQ); }
  BI_INLINE Mask less(Vec y) const { return _mm256_cmp_pd(r, y.r, _CMP_LT_OQ); }
  BI_INLINE Mask nan() const { return _mm256_cmp_pd(r, r, _CMP_UNORD_Q); }
  BI_INLINE Vec power_of_two() const { return {_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(r), 52))}; }
};
BI_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.r, b.r, c.r)}; }
BI_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.r, b.r)}; }
BI_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.r, b.r)}; }
BI_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.r, b.r)}; }
BI_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return {_mm256_div_pd(a.r, b.r)}; }
BI_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.r, b.r)}; }

#else

// Plain C++: loops over lanes, which a compiler for another machine may vectorise. std::fma rounds once.
template <class A>
struct Vec {
  static constexpr int width = 4;
  struct Mask {
    bool lane[width];
  };
  A r[width];

  template <class F>
  BI_INLINE static Vec each(F f) {
    Vec x;
    for (int i = 0; i < width; ++i) x.r[i] = f(i);
    return x;
  }
  template <class F>
  BI_INLINE static Mask test(F f) {
    Mask m;
    for (int i = 0; i < width; ++i) m.lane[i] = f(i);
    return m;
  }
  BI_INLINE static Vec broadcast(A x) { return each([&](int) { return x; }); }
  BI_INLINE static Vec load(const A* p) { return each([&](int i) { return p[i]; }); }
  BI_INLINE static Vec load(const A* p, Mask m) { return each([&](int i) { return m.lane[i] ? p[i] : A(0); }); }
  BI_INLINE void store(A* p) const { std::memcpy(p, r, sizeof(r)); }
  BI_INLINE static Mask first(int n) { return test([&](int i) { return i < n; }); }
  BI_INLINE static Vec select(Mask m, Vec yes, Vec no) {
    return each([&](int i) { return m.lane[i] ? yes.r[i] : no.r[i]; });
  }
  BI_INLINE Mask less_equal(Vec y) const { return test([&](int i) { return r[i] <= y.r[i]; }); }
  BI_INLINE Mask less(Vec y) const { return test([&](int i) { return r[i] < y.r[i]; }); }
  BI_INLINE Mask nan() const { return test([&](int i) { return r[i] != r[i]; }); }
  BI_INLINE Vec power_of_two() const {
    return each([&](int i) {
      std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t> bits;
      A x;
      std::memcpy(&bits, &r[i], sizeof(A));
      bits <<= std::numeric_limits<A>::digits - 1;
      std::memcpy(&x, &bits, sizeof(A));
      return x;
    });
  }
};
template <class A>
BI_INLINE Vec<A> fma(Vec<A> a, Vec<A> b, Vec<A> c) {
  return Vec<A>::each([&](int i) { return std::fma(a.r[i], b.r[i], c.r[i]); });
}
template <class A>
BI_INLINE Vec<A> operator+(Vec<A> a, Vec<A> b) {
  return Vec<A>::each([&](int i) { return a.r[i] + b.r[i]; });
}
template <class A>
BI_INLINE Vec<A> operator-(Vec<A> a, Vec<A> b) {
  return Vec<A>::each([&](int i) { return a.r[i] - b.r[i]; });
}
template <class A>
BI_INLINE Vec<A> operator*(Vec<A> a, Vec<A> b) {
  return Vec<A>::each([&](int i) { return a.r[i] * b.r[i]; });
}
template <class A>
BI_INLINE Vec<A> operator/(Vec<A> a, Vec<A> b) {
  return Vec<A>::each([&](int i) { return a.r[i] / b.r[i]; });
}
template <class A>
BI_INLINE Vec<A> max(Vec<A> a, Vec<A> b) {
  return Vec<A>::each([&](int i) { return a.r[i] > b.r[i] ? a.r[i] : b.r[i]; });
}

#endif

#if defined(BI_ISA_AVX512)
BI_INLINE bool any(__mmask16 m) { return m != 0; }
#elif defined(BI_ISA_AVX2)
BI_INLINE bool any(__m256 m) { return _mm256_movemask_ps(m) != 0; }
BI_INLINE bool any(__m256d m) { return _mm256_movemask_pd(m) != 0; }
#else
template <class M>
BI_INLINE bool any(M m) {
  for (bool lane : m.lane)
    if (lane) return true;
  return false;
}
#endif

// Sixteen lanes, in as many registers as that takes.
constexpr int kLanes = 16;

template <class A>
struct Lanes {
  static constexpr int count = kLanes / Vec<A>::width;
  Vec<A> part[count];
};

// Lane j takes in lane j+8, then j+4, j+2, j+1.
template <class A>
BI_INLINE A sum(const Lanes<A>& x) {
#if defined(BI_ISA_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    const __m512 all = x.part[0].r;
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
#endif
  A lane[kLanes];
  for (int i = 0; i < Lanes<A>::count; ++i) x.part[i].store(lane + i * Vec<A>::width);
  for (int half = kLanes / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] = lane[j] + lane[j + half];
  return lane[0];
}

// The largest lane; any order gives the same one. What a NaN does here does not matter: it is in the sum, too.
template <class A>
BI_INLINE A largest(const Lanes<A>& x) {
#if defined(BI_ISA_AVX512)
  if constexpr (std::is_same_v<A, float>) return _mm512_reduce_max_ps(x.part[0].r);
#endif
  A lane[kLanes];
  for (int i = 0; i < Lanes<A>::count; ++i) x.part[i].store(lane + i * Vec<A>::width);
  A result = -kInfinity<A>;
  for (A value : lane) result = value > result ? value : result;
  return result;
}

}  // namespace
