// layer_norm and rms_norm over trailing dims, sums by the tree of cpu/row_tree.h, every operation rounded.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <tuple>

#include "cpu/row_tree.h"
#include "cpu/row_view.h"

namespace {

// What a row is scaled and shifted by, in the dtype of the computation; null where there is none.
template <class A>
struct Affine {
  const A* weight;
  const A* bias;
  bool finite;  // neither holds NaN or inf, so that finite statistics give no NaN
};

template <class A>
bool all_finite(const A* p, int64_t n) {
  if (p == nullptr) return true;
  A not_finite(0);
  // NaN or inf times zero is NaN, and NaN stays.
  for (int64_t i = 0; i < n; ++i) not_finite = not_finite + p[i] * A(0);
  return not_finite == A(0);
}

template <class A>
struct Moments {
  A mean;
  A rstd;
};

template <class A>
Vec<A> rstd_of(A sum_of_squares, int64_t n, double eps) {
  const Vec<A> variance = Vec<A>(sum_of_squares) / Vec<A>(static_cast<A>(n));
  return Vec<A>(A(1)) / (variance + Vec<A>(static_cast<A>(eps))).sqrt();
}

// out = ((x - mean) * rstd) * weight + bias; without kCentred nothing is subtracted and the mean is 0.
template <bool kCentred, class T, class P>
Moments<Acc<T>> normalize_row(const P* x, int64_t n, double eps, const Affine<Acc<T>>& affine, T* out) {
  using A = Acc<T>;
  using V = Vec<A>;
  const auto sum = [&](const auto& element) {
    return reduce_row<Sum, A>(n, [&](int64_t begin, int64_t end) {
      return reduce_span<Sum, A>(begin, end,
                                 [&](int64_t i, int64_t count) { return element(load(x + i, count)); });
    });
  };
  // Of no elements eager says that the mean is 0.
  V mean(A(0));
  if (kCentred && n > 0) mean = V(sum([](const V& v) { return v; })) / V(static_cast<A>(n));
  const auto centred = [&](const V& v) { return kCentred ? v - mean : v; };
  const V rstd = rstd_of(sum([&](const V& v) {
                           const V d = centred(v);
                           return d * d;
                         }),
                         n, eps);
  const auto write = [&](const auto& put) {
    const auto finish = [&](int64_t i, int64_t count) {
      V y = centred(load(x + i, count)) * rstd;
      if (affine.weight) y = y * load(affine.weight + i, count);
      if (affine.bias) y = y + load(affine.bias + i, count);
      put(out + i, y, count);
    };
    int64_t i = 0;
    for (; i + kWidth<A> <= n; i += kWidth<A>) finish(i, kWidth<A>);
    if (i < n) finish(i, n - i);
  };
  // A finite positive rstd comes of finite deviations: then 0 * inf and inf - inf cannot arise below.
  const A scale = first<A>(rstd);
  if (affine.finite && scale > 0 && scale < kInfinity<A>) {
    write([](T* p, const V& y, int64_t count) { store_canonical(p, y, count); });
  } else {
    write([](T* p, const V& y, int64_t count) { store(p, y, count); });
  }
  return {first<A>(mean), first<A>(rstd)};
}

// record(row, moments) keeps the statistics.
template <bool kCentred, class T, class Record>
void normalize_rows(const RowView& view, const T* x, double eps, const Affine<Acc<T>>& affine, T* out,
                    const Record& record) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, view.n));
  at::parallel_for(0, view.rows, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<Acc<T>[]> elements(view.contiguous() ? nullptr : new Acc<T>[view.n]);
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + offset(view.kept, row);
      T* to = out + row * view.n;
      if (view.contiguous()) {
        record(row, normalize_row<kCentred>(from, view.n, eps, affine, to));
      } else {
        gather(view.reduced, from, 0, view.n, elements.get());
        record(row, normalize_row<kCentred>(elements.get(), view.n, eps, affine, to));
      }
    }
  });
}

at::ScalarType compute_dtype(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor parameter(const char* op, const at::Tensor& x, at::IntArrayRef normalized,
                     const std::optional<at::Tensor>& given) {
  if (!given) return {};
  TORCH_CHECK(given->sizes() == normalized, "bi_compile: ", op, " over ", normalized,
              " has a weight or bias of shape ", given->sizes());
  TORCH_CHECK(given->is_floating_point() && given->element_size() <= (x.scalar_type() == at::kDouble ? 8 : 4),
              "bi_compile: ", op, " computes in ", compute_dtype(x), " and does not support a weight or bias in ",
              given->scalar_type());
  return given->to(compute_dtype(x)).contiguous();
}

template <bool kCentred>
std::tuple<at::Tensor, at::Tensor, at::Tensor> normalize(const char* op, const at::Tensor& x,
                                                         at::IntArrayRef normalized,
                                                         const std::optional<at::Tensor>& weight,
                                                         const std::optional<at::Tensor>& bias, double eps,
                                                         at::ScalarType statistics) {
  const int64_t outer = x.dim() - static_cast<int64_t>(normalized.size());
  TORCH_CHECK(!normalized.empty() && outer >= 0 && x.sizes().slice(outer) == normalized, "Given normalized_shape=",
              normalized, ", expected the last dims of the input to be these, but got input of size", x.sizes());
  const at::Tensor wide_weight = parameter(op, x, normalized, weight);
  const at::Tensor wide_bias = parameter(op, x, normalized, bias);
  std::vector<int64_t> sizes = x.sizes().vec();
  std::fill(sizes.begin() + outer, sizes.end(), 1);
  const auto options = at::TensorOptions().device(x.device());
  at::Tensor out = at::empty(x.sizes(), options.dtype(x.dtype()));
  at::Tensor mean = at::empty(sizes, options.dtype(statistics));
  at::Tensor rstd = at::empty(sizes, options.dtype(statistics));
  DimFlags reduced;
  for (int64_t d = outer; d < x.dim(); ++d) reduced.set(d);
  const RowView view(x, reduced);
  for_dtype(op, x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = Acc<T>;
    const A* w = wide_weight.defined() ? wide_weight.const_data_ptr<A>() : nullptr;
    const A* b = wide_bias.defined() ? wide_bias.const_data_ptr<A>() : nullptr;
    const bool worth_asking = view.rows >= 4;
    const Affine<A> affine{w, b, worth_asking && all_finite(w, view.n) && all_finite(b, view.n)};
    const auto run = [&](auto* kept) {
      using S = std::remove_pointer_t<decltype(kept)>;
      S* means = mean.mutable_data_ptr<S>();
      S* rstds = rstd.mutable_data_ptr<S>();
      normalize_rows<kCentred>(view, x.const_data_ptr<T>(), eps, affine, out.mutable_data_ptr<T>(),
                               [=](int64_t row, const Moments<A>& moments) {
                                 means[row] = static_cast<S>(canonical(moments.mean));
                                 rstds[row] = static_cast<S>(canonical(moments.rstd));
                               });
    };
    if (statistics == x.scalar_type()) {
      run(static_cast<T*>(nullptr));
    } else {
      run(static_cast<A*>(nullptr));
    }
  });
  return {out, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm(const at::Tensor& x, at::IntArrayRef normalized_shape,
                                                          const std::optional<at::Tensor>& weight,
                                                          const std::optional<at::Tensor>& bias, double eps) {
  // Eager keeps the statistics in x's dtype, or in fp32 when the parameters are wider than x.
  bool same = true;
  for (const auto& given : {weight, bias}) same = same && (!given || given->scalar_type() == x.scalar_type());
  return normalize<true>("layer_norm", x, normalized_shape, weight, bias, eps,
                         same ? x.scalar_type() : compute_dtype(x));
}

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, at::IntArrayRef normalized_shape,
                                            const std::optional<at::Tensor>& weight, double eps) {
  auto [out, mean, rstd] =
      normalize<false>("rms_norm", x, normalized_shape, weight, std::nullopt, eps, compute_dtype(x));
  return {out, rstd};
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("layer_norm", &layer_norm);
  m.impl("rms_norm", &rms_norm);
}
