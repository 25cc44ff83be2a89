// Distances between all pairs of rows: each the norm of a difference that is never stored.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

#include "cpu/row_tree.h"
#include "cpu/row_view.h"

namespace {

// element(difference) enters the tree, finish(root) is the distance.
template <class Tree, class T, class Element, class Finish>
void all_pairs(const at::Tensor& a, const at::Tensor& b, at::Tensor& out, const Element& element,
               const Finish& finish) {
  using A = Acc<T>;
  const int64_t rows = a.size(-2), others = b.size(-2), n = a.size(-1);
  const T* x = a.const_data_ptr<T>();
  const T* y = b.const_data_ptr<T>();
  T* distances = out.mutable_data_ptr<T>();
  for_each_task(out.numel() / std::max<int64_t>(1, others), others * n, [&](int64_t row) {
    const T* left = x + row * n;
    for (int64_t j = 0; j < others; ++j) {
      const T* right = y + (row / rows * others + j) * n;
      const A root = reduce_row<Tree, A>(n, [&](int64_t begin, int64_t end) {
        return reduce_span<Tree, A>(begin, end, [&](int64_t i, int64_t count) {
          return element(load(left + i, count) - load(right + i, count));
        });
      });
      distances[row * others + j] = static_cast<T>(canonical(finish(root)));
    }
  });
}

template <class T>
void distances(const at::Tensor& a, const at::Tensor& b, double p, at::Tensor& out) {
  using A = Acc<T>;
  using V = Vec<A>;
  const auto magnitude = [](const V& d) { return d.abs(); };
  const auto itself = [](A root) { return root; };
  if (p == kInfinity<double>) {
    all_pairs<Maximum, T>(a, b, out, magnitude, itself);
  } else if (p == 0) {
    all_pairs<Sum, T>(a, b, out, [](const V& d) { return V::blendv(V(A(0)), V(A(1)), d != V(A(0))); }, itself);
  } else if (p == 1) {
    all_pairs<Sum, T>(a, b, out, magnitude, itself);
  } else if (p == 2) {
    all_pairs<Sum, T>(a, b, out, [](const V& d) { return d * d; }, [](A root) { return std::sqrt(root); });
  } else {
    const V power(static_cast<A>(p)), inverse(static_cast<A>(1 / p));
    all_pairs<Sum, T>(a, b, out, [&](const V& d) { return d.abs().pow(power); },
                      [&](A root) { return first<A>(V(root).pow(inverse)); });
  }
}

at::Tensor cdist(const at::Tensor& a, const at::Tensor& b, double p) {
  bool fits = a.dim() >= 2 && a.dim() == b.dim() && a.scalar_type() == b.scalar_type() && a.size(-1) == b.size(-1);
  for (int64_t d = 0; fits && d < a.dim() - 2; ++d) fits = a.size(d) == b.size(d);
  TORCH_CHECK_VALUE(fits, "cdist: rows of sizes ", a.sizes(), " and ", b.sizes(), " do not fit");
  at::DimVector shape(a.sizes());
  shape.back() = b.size(-2);
  const auto options = a.options().memory_format(at::MemoryFormat::Contiguous);
  if (a.size(-1) == 0) return at::zeros(shape, options);
  at::Tensor out = at::empty(shape, options);
  const at::Tensor left = a.contiguous(), right = b.contiguous();
  for_dtype("cdist", a.scalar_type(), [&](auto* type) {
    distances<std::remove_pointer_t<decltype(type)>>(left, right, p, out);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) { m.impl("cdist", &cdist); }
