// Scans: every line along a dim is one chain in index order; a vector holds the states of several lines.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/row_view.h"

namespace {

// What a chain starts from, and the state after one more element.
struct Sum {
  template <class A>
  static constexpr A kIdentity = A(0);
  template <class V>
  static V step(const V& state, const V& x) {
    return state + x;
  }
};

struct Product {
  template <class A>
  static constexpr A kIdentity = A(1);
  template <class V>
  static V step(const V& state, const V& x) {
    return state * x;
  }
};

struct LogSum {
  template <class A>
  static constexpr A kIdentity = -kInfinity<A>;
  template <class V>
  static V step(const V& state, const V& x) {
    using A = typename V::value_type;
    const V larger = V::blendv(x, state, state > x);
    const V total = larger + (state - x).abs().neg().exp().log1p();
    // Two equal infinities: their difference is NaN.
    return V::blendv(total, larger, (state == x) & (state.abs() == V(kInfinity<A>)));
  }
};

// The lines [line, line + count), at most a vector of them.
template <class Chain, class T>
void scan_lines(const RowView& view, const T* x, T* out, int64_t line, int64_t count) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int64_t kLines = kWidth<A>;
  const Dim along = view.reduced.empty() ? Dim{1, 0, 0} : view.reduced.back();
  V state(Chain::template kIdentity<A>);
  if (view.columns() && line % view.kept.back().size + count <= view.kept.back().size) {
    x += offset(view.kept, line);
    out += offset(view.kept, line, &Dim::out_stride);
    for (int64_t i = 0; i < view.n; ++i, x += along.stride, out += along.out_stride) {
      state = Chain::step(state, load(x, count));
      store(out, state, count);
    }
    return;
  }
  const T* source[kLines];
  T* target[kLines];
  for (int64_t j = 0; j < count; ++j) {
    source[j] = x + offset(view.kept, line + j);
    target[j] = out + offset(view.kept, line + j, &Dim::out_stride);
  }
  T values[kLines] = {};
  for (int64_t i = 0; i < view.n; ++i) {
    for (int64_t j = 0; j < count; ++j) values[j] = source[j][i * along.stride];
    state = Chain::step(state, load(values, kLines));
    store(values, state, kLines);
    for (int64_t j = 0; j < count; ++j) target[j][i * along.out_stride] = values[j];
  }
}

template <class Chain>
at::Tensor scan(const char* op, const at::Tensor& x, int64_t dim) {
  at::Tensor out = at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
  const DimFlags along = reduced_dims(x, {dim});
  const RowView view(x, along, &out);
  for_dtype(op, x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int64_t kLines = kWidth<Acc<T>>;
    const T* source = x.const_data_ptr<T>();
    T* target = out.mutable_data_ptr<T>();
    // Groups end where neighbouring lines do.
    const int64_t side = view.columns() ? view.kept.back().size : view.rows;
    const int64_t groups = side == 0 ? 0 : (side + kLines - 1) / kLines;
    for_each_task(side == 0 ? 0 : view.rows / side * groups, view.n * kLines, [&](int64_t task) {
      const int64_t first = task % groups * kLines;
      scan_lines<Chain>(view, source, target, task / groups * side + first, std::min(kLines, side - first));
    });
  });
  return out;
}

at::Tensor cumsum(const at::Tensor& x, int64_t dim) { return scan<Sum>("cumsum", x, dim); }
at::Tensor cumprod(const at::Tensor& x, int64_t dim) { return scan<Product>("cumprod", x, dim); }
at::Tensor logcumsumexp(const at::Tensor& x, int64_t dim) { return scan<LogSum>("logcumsumexp", x, dim); }

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("cumsum", &cumsum);
  m.impl("cumprod", &cumprod);
  m.impl("logcumsumexp", &logcumsumexp);
}
