// Products of matrices with one order of summation for every shape, layout, thread count and instruction set.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "contraction/stream.h"
#include "contraction/tiles.h"

namespace {

#if defined(BI_ISA_AVX512)
bool may_use_pairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && !without_bf16_instructions();
  return has;
}
#endif

template <class S, class T>
void product(const Product<T>& given) {
  // Columns come in whole panels, rows one by one: the short side becomes the rows.
  const bool tall = given.columns < kColumns<S> && given.rows > given.columns;
  Product<T> p = tall ? given.transposed() : given;
  const int64_t streamed = product_in_stream<S>(p);
  if (streamed == p.columns) return;
  p = p.of_columns(streamed, p.columns - streamed);
  // Columns that lie side by side are read in long pieces, if enough of them are left for the threads.
  constexpr int64_t kWide = 4;
  const bool wide = p.b_column == 1 && p.columns >= 2 * at::get_num_threads() * kWide * kColumns<S>;
  wide ? product_in_panels<S, kWide>(p) : product_in_panels<S, 1>(p);
}

template <class T>
void run(const Product<T>& p) {
  product<Plain<T>>(p);
}

template <>
void run(const Product<at::BFloat16>& p) {
  if (bf16_order() == Bf16Order::kTiles) {
#if defined(BI_TILES)
    if (may_use_tiles()) return product_of_tiles(p);
#endif
    return product<FlushedTiles>(p);
  }
#if defined(BI_ISA_AVX512)
  if (may_use_pairs()) return product<HardwarePairs>(p);
#endif
  product<FlushedPairs>(p);
}

// a [B, M, K], b [B, K, N], out [B, M, N], c as out (any strides, 0 among them) or undefined.
template <class T>
void compute(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, at::Tensor& out, double beta,
             double alpha) {
  Product<T> p{};
  p.batches = a.size(0), p.rows = a.size(1), p.columns = b.size(2), p.length = a.size(2);
  p.a = a.const_data_ptr<T>(), p.a_batch = a.stride(0), p.a_row = a.stride(1), p.a_k = a.stride(2);
  p.b = b.const_data_ptr<T>(), p.b_batch = b.stride(0), p.b_k = b.stride(1), p.b_column = b.stride(2);
  p.out = out.mutable_data_ptr<T>();
  p.out_batch = out.stride(0), p.out_row = out.stride(1), p.out_column = out.stride(2);
  // With beta = 0 c is not read: what it holds, NaN included, does not matter.
  if (c.defined() && beta != 0) p.c = {c.const_data_ptr<T>(), c.stride(0), c.stride(1), c.stride(2)};
  p.alpha = static_cast<Acc<T>>(alpha), p.beta = static_cast<Acc<T>>(beta);
  if (out.numel() != 0) run(p);
}

void check_dtypes(const char* op, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type() && (!c.defined() || c.scalar_type() == a.scalar_type()), op,
              ": expected one dtype, got ", a.scalar_type(), " and ", b.scalar_type(),
              c.defined() ? " and an addend of another" : "");
}

void dispatch(const char* op, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, at::Tensor& out,
              double beta = 1, double alpha = 1) {
  check_dtypes(op, a, b, c);
  switch (a.scalar_type()) {
    case at::kFloat: return compute<float>(a, b, c, out, beta, alpha);
    case at::kDouble: return compute<double>(a, b, c, out, beta, alpha);
    case at::kBFloat16: return compute<at::BFloat16>(a, b, c, out, beta, alpha);
    case at::kHalf: return compute<at::Half>(a, b, c, out, beta, alpha);
    default:
      TORCH_CHECK(false, "bi_compile: ", op, " does not support ", a.scalar_type(),
                  "; supported dtypes: float32, float64, bfloat16, float16");
  }
}

at::Tensor multiply(const char* op, const at::Tensor& a, const at::Tensor& b, int64_t dim, const at::Tensor& c = {},
                    const at::Scalar& beta = 1, const at::Scalar& alpha = 1) {
  TORCH_CHECK(a.dim() == dim && b.dim() == dim, op, ": expected ", dim, "-D tensors, got ", a.dim(), "-D and ",
              b.dim(), "-D");
  TORCH_CHECK(a.size(-1) == b.size(-2) && (dim == 2 || a.size(0) == b.size(0)), op, ": shapes ", a.sizes(), " and ",
              b.sizes(), " cannot be multiplied");
  std::vector<int64_t> shape = a.sizes().vec();
  shape.back() = b.size(-1);
  at::Tensor out = at::empty(shape, a.options());
  const at::Tensor addend = c.defined() ? c.expand(shape) : c;
  if (dim == 3) {
    dispatch(op, a, b, addend, out, beta.toDouble(), alpha.toDouble());
  } else {
    at::Tensor flat = out.unsqueeze(0);
    dispatch(op, a.unsqueeze(0), b.unsqueeze(0), addend.defined() ? addend.unsqueeze(0) : addend, flat,
             beta.toDouble(), alpha.toDouble());
  }
  return out;
}

at::Tensor mm(const at::Tensor& a, const at::Tensor& b) { return multiply("mm", a, b, 2); }

at::Tensor bmm(const at::Tensor& a, const at::Tensor& b) { return multiply("bmm", a, b, 3); }

at::Tensor addmm(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, const at::Scalar& beta,
                 const at::Scalar& alpha) {
  return multiply("addmm", a, b, 2, c, beta, alpha);
}

at::Tensor baddbmm(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, const at::Scalar& beta,
                   const at::Scalar& alpha) {
  return multiply("baddbmm", a, b, 3, c, beta, alpha);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() >= 1 && w.dim() == 2, "linear: expected an input of at least 1 dimension and a 2-D weight, got ",
              x.dim(), "-D and ", w.dim(), "-D");
  TORCH_CHECK(x.size(-1) == w.size(1), "linear: input ", x.sizes(), " and weight ", w.sizes(),
              " cannot be multiplied");
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = w.size(0);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  at::Tensor out = at::empty(shape, x.options());
  at::Tensor flat = out.view({1, rows, w.size(0)});
  at::Tensor addend;
  if (bias && bias->defined()) addend = bias->expand({1, rows, w.size(0)});
  dispatch("linear", x.reshape({1, rows, w.size(1)}), w.t().unsqueeze(0), addend, flat);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("mm", &mm);
  m.impl("bmm", &bmm);
  m.impl("addmm", &addmm);
  m.impl("baddbmm", &baddbmm);
  m.impl("linear", &linear);
}

TORCH_LIBRARY_FRAGMENT(bi_compile, m) {
  m.def("bf16_order() -> str", [] { return std::string(bf16_order() == Bf16Order::kTiles ? "tiles" : "pairs"); });
}
