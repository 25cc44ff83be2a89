// Additions into rows chosen by an index: each thread owns some columns and walks every index in order.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace {

// The accumulator has the width the sum is rounded in; the caller rounds once at the end.
template <class T, class A>
void add_rows(const at::Tensor& grad, const at::Tensor& indices, at::Tensor& sums, int64_t padding_idx) {
  const int64_t count = indices.numel(), columns = sums.size(1), rows = sums.size(0);
  const T* g = grad.const_data_ptr<T>();
  const int64_t* index = indices.const_data_ptr<int64_t>();
  A* s = sums.mutable_data_ptr<A>();
  for (int64_t i = 0; i < count; ++i)
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < rows, "embedding index ", index[i], " out of ", rows);
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, count));
  at::parallel_for(0, columns, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      if (index[i] == padding_idx) continue;
      A* row = s + index[i] * columns;
      const T* source = g + i * columns;
      for (int64_t c = begin; c < end; ++c) row[c] += static_cast<A>(source[c]);
    }
  });
}

at::Tensor embedding_grad(const at::Tensor& grad, const at::Tensor& indices, int64_t rows,
                          int64_t padding_idx) {
  const at::Tensor dense = grad.contiguous();
  const at::Tensor index = indices.to(at::kLong).contiguous();
  const auto type = grad.scalar_type();
  const auto wide = type == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sums = at::zeros({rows, grad.size(-1)}, grad.options().dtype(wide));
  switch (type) {
    case at::kFloat: add_rows<float, float>(dense, index, sums, padding_idx); break;
    case at::kDouble: add_rows<double, double>(dense, index, sums, padding_idx); break;
    case at::kBFloat16: add_rows<at::BFloat16, float>(dense, index, sums, padding_idx); break;
    case at::kHalf: add_rows<at::Half, float>(dense, index, sums, padding_idx); break;
    default: TORCH_CHECK(false, "bi_compile: embedding_grad does not support ", type);
  }
  return sums.to(type);
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) { m.impl("embedding_grad", &embedding_grad); }
