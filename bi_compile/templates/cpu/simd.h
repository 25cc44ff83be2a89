// Fused multiply-add on vectors of the chosen instruction set, and the floating-point mode kernels run in.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

// at::vec's fmadd rounds twice where the machine has no FMA; these round once everywhere.
template <class A>
struct Fma;

#if defined(BI_ISA_AVX512)

template <>
struct Fma<float> {
  using V = __m512;
  static constexpr int64_t kWidth = 16;
  static V zero() { return _mm512_setzero_ps(); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V broadcast(float x) { return _mm512_set1_ps(x); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
};

template <>
struct Fma<double> {
  using V = __m512d;
  static constexpr int64_t kWidth = 8;
  static V zero() { return _mm512_setzero_pd(); }
  static V load(const double* p) { return _mm512_loadu_pd(p); }
  static V broadcast(double x) { return _mm512_set1_pd(x); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  static void store(double* p, V v) { _mm512_storeu_pd(p, v); }
};

#elif defined(BI_ISA_AVX2)

template <>
struct Fma<float> {
  using V = __m256;
  static constexpr int64_t kWidth = 8;
  static V zero() { return _mm256_setzero_ps(); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V broadcast(float x) { return _mm256_set1_ps(x); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
};

template <>
struct Fma<double> {
  using V = __m256d;
  static constexpr int64_t kWidth = 4;
  static V zero() { return _mm256_setzero_pd(); }
  static V load(const double* p) { return _mm256_loadu_pd(p); }
  static V broadcast(double x) { return _mm256_set1_pd(x); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static void store(double* p, V v) { _mm256_storeu_pd(p, v); }
};

#else

template <class A>
struct Fma {
  static constexpr int64_t kWidth = 8;
  struct V {
    A lane[kWidth];
  };
  static V zero() { return broadcast(A(0)); }
  static V load(const A* p) {
    V v;
    for (int64_t j = 0; j < kWidth; ++j) v.lane[j] = p[j];
    return v;
  }
  static V broadcast(A x) {
    V v;
    for (int64_t j = 0; j < kWidth; ++j) v.lane[j] = x;
    return v;
  }
  static V fma(const V& a, const V& b, V c) {
    for (int64_t j = 0; j < kWidth; ++j) c.lane[j] = std::fma(a.lane[j], b.lane[j], c.lane[j]);
    return c;
  }
  static void store(A* p, const V& v) {
    for (int64_t j = 0; j < kWidth; ++j) p[j] = v.lane[j];
  }
};

#endif

// Rounding to nearest even with subnormals kept, or with subnormal operands and results taken as zero, whatever
// the calling thread has set (torch.set_flush_denormal reaches one thread only). Restored on leaving. Portable code
// keeps them in either mode: there flushed_step takes them as zero.
class FloatingPointMode {
 public:
  enum Subnormals { kKeep, kFlush };
#if defined(__SSE2__)
  explicit FloatingPointMode(Subnormals mode) : saved_(_mm_getcsr()) {
    constexpr unsigned kMasked = 0x1f80, kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)
    constexpr unsigned kFlushing = kMasked | kFlushToZero | kDenormalsAreZero;
#else
    constexpr unsigned kFlushing = kMasked;
#endif
    _mm_setcsr(mode == kFlush ? kFlushing : kMasked);
  }
  ~FloatingPointMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  explicit FloatingPointMode(Subnormals) {}
#endif
};

// fma(a, b, sum) with subnormal operands and results taken as zero, as x86 takes them in the mode kFlush.
#if defined(BI_ISA_AVX512) || defined(BI_ISA_AVX2)
inline float flushed_step(float sum, float a, float b) { return std::fma(a, b, sum); }
#else
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline float flushed_step(float sum, float a, float b) {
  sum = flushed(sum), a = flushed(a), b = flushed(b);
  const float r = std::fma(a, b, sum);
  // x86 asks whether a result is subnormal after rounding it as if exponents had no end: a value just below
  // the smallest normal number may have been rounded up to it by the coarser steps of subnormals.
  const bool smallest = std::fabs(r) == 0x1p-126f && std::fabs(std::fma(a * 0x1p64f, b, sum * 0x1p64f)) < 0x1p-62f;
  return smallest ? std::copysign(0.0f, r) : flushed(r);
}
#endif

}  // namespace
