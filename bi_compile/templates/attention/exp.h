// exp, tanh and log with one sequence of IEEE operations on every instruction set.
#pragma once

#include "attention/vector.h"

namespace {

template <class A>
struct ExpConstants;

// exp(r) = 1 + r + r*r*q(r) on |r| <= ln(2)/2. q of degree 4 is a minimax fit, relative error 3.2e-9, whose
// coefficients were rounded to fp32 one by one, lowest first, and the others fitted again after each.
template <>
struct ExpConstants<float> {
  static constexpr float log2_e = 0x1.715476p+0f;
  // 1.5 * 2^23 rounds to an integer; 127 more leave the exponent field of 2^n in the low bits.
  static constexpr float shift = 0x1.8p+23f + 127;
  static constexpr float ln2_high = 0x1.62e43p-1f;
  static constexpr float ln2_low = -0x1.05c61p-29f;
  // Results below this would be subnormal; they are zero.
  static constexpr float lowest = -87.0f;
  static constexpr float q[] = {0x1.6a4ce4p-10f, 0x1.123988p-7f, 0x1.5558b0p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f};
};

// The same with the Taylor series to r^13: the rest is below 5e-18.
template <>
struct ExpConstants<double> {
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double shift = 0x1.8p+52 + 1023;
  static constexpr double ln2_high = 0x1.62e42fefa39efp-1;
  static constexpr double ln2_low = 0x1.abc9e3b39803fp-56;
  static constexpr double lowest = -708.0;
  static constexpr double q[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320,
                                 1. / 5040,       1. / 720,       1. / 120,      1. / 24,      1. / 6,      1. / 2};
};

// For x <= 0 and NaN. exp(0) is exactly 1, below `lowest` (and at -inf) the result is exactly +0.
template <class A>
BI_INLINE Vec<A> exp(Vec<A> x) {
  using V = Vec<A>;
  using C = ExpConstants<A>;
  const V shift = V::broadcast(C::shift);
  const V shifted = fma(x, V::broadcast(C::log2_e), shift);
  const V n = shifted - shift;
  V r = fma(n, V::broadcast(-C::ln2_high), x);
  r = fma(n, V::broadcast(-C::ln2_low), r);
  V q = V::broadcast(C::q[0]);
#pragma GCC unroll 16
  for (size_t i = 1; i < sizeof(C::q) / sizeof(A); ++i) q = fma(q, r, V::broadcast(C::q[i]));
  q = fma(q, r, V::broadcast(1));
  q = fma(q, r, V::broadcast(1));
  return V::select(x.less(V::broadcast(C::lowest)), V::broadcast(0), q * shifted.power_of_two());
}

template <class A>
BI_INLINE A exp_one(A x) {
  A lane[Vec<A>::width];
  exp(Vec<A>::broadcast(x)).store(lane);
  return lane[0];
}

template <class A>
struct TanhConstants;

// tanh(x) = x + x * z * p(z) with z = x * x up to `near`; minimax fits, relative errors 3.4e-10 and 2.7e-18.
template <>
struct TanhConstants<float> {
  static constexpr float near = 0.5f;
  static constexpr float p[] = {-0x1.b40c10p-8f, 0x1.5d01c4p-6f, -0x1.b98c6ep-5f, 0x1.110f2ap-3f, -0x1.555552p-2f};
};
template <>
struct TanhConstants<double> {
  static constexpr double near = 0.5;
  static constexpr double p[] = {0x1.dcf5d5deedb9fp-15, -0x1.c8f97c47c33e8p-13, 0x1.31d6554cba16ep-11,
                                 -0x1.7d49d602c2bacp-10, 0x1.d6ce08b0cb52dp-9,  -0x1.226e16a5dc507p-7,
                                 0x1.664f47b8294c5p-6,   -0x1.ba1ba1b71a6c3p-5, 0x1.111111110e3d2p-3,
                                 -0x1.5555555555538p-2};
};

// Beyond `near` (1 - t) / (1 + t) with t = exp(-2 |x|), and the sign of x. NaN stays NaN.
template <class A>
BI_INLINE Vec<A> tanh(Vec<A> x) {
  using V = Vec<A>;
  using C = TanhConstants<A>;
  const V zero = V::broadcast(0), one = V::broadcast(1), negative = zero - x, size = max(x, negative), z = x * x;
  V p = V::broadcast(C::p[0]);
#pragma GCC unroll 16
  for (size_t i = 1; i < sizeof(C::p) / sizeof(A); ++i) p = fma(p, z, V::broadcast(C::p[i]));
  const V series = fma(x * z, p, x);
  const V t = exp(size * V::broadcast(-2)), quotient = (one - t) / (one + t);
  const V far = V::select(x.less(zero), zero - quotient, quotient);
  return V::select(V::broadcast(C::near).less(size), far, series);
}

template <class A>
BI_INLINE A tanh_one(A x) {
  A lane[Vec<A>::width];
  tanh(Vec<A>::broadcast(x)).store(lane);
  return lane[0];
}

// log(x) for positive normal x, in fp64: x = 2^e f, log f = 2 atanh((f - 1) / (f + 1)), series to z^21.
inline double log_positive(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, 8);
  // f lies in [sqrt(1/2), sqrt(2)): the exponent is taken relative to sqrt(1/2).
  constexpr int64_t root_half = 0x3fe6a09e667f3bcd;
  const int64_t e = (bits - root_half) >> 52;
  bits -= e * (int64_t(1) << 52);
  double f;
  std::memcpy(&f, &bits, 8);
  const double z = (f - 1) / (f + 1), w = z * z;
  double s = 1. / 21;
  for (int k = 19; k > 0; k -= 2) s = std::fma(s, w, 1. / k);
  const double n = static_cast<double>(e);
  return std::fma(n, 0x1.62e42fefa39efp-1, std::fma(n, 0x1.abc9e3b39803fp-56, 2 * z * s));
}

}  // namespace
