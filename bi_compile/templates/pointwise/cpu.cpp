// Pointwise functions of eager calls: every element goes through at::vec, the tail of a run in a padded vector.
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <unordered_map>

namespace {

template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t kGrain = 16384;

// Elements [begin, end) in runs of one vector: widened into a buffer, computed, rounded on the way out.
template <class T, class Function>
void apply(const T* x, const T* y, T* out, int64_t begin, int64_t end, Function function) {
  using C = Compute<T>;
  using V = at::vec::Vectorized<C>;
  constexpr int64_t width = V::size();
  alignas(64) C a[width], b[width];
  for (int64_t i = begin; i < end; i += width) {
    const int64_t n = std::min<int64_t>(width, end - i);
    // Idle lanes get 1: a value on which no function is slow.
    for (int64_t j = 0; j < width; ++j) {
      a[j] = j < n ? static_cast<C>(x[i + j]) : C(1);
      b[j] = y != nullptr && j < n ? static_cast<C>(y[i + j]) : C(1);
    }
    function(V::loadu(a), V::loadu(b)).store(a);
    for (int64_t j = 0; j < n; ++j) out[i + j] = static_cast<T>(a[j]);
  }
}

template <class T>
using Kernel = void (*)(const T*, const T*, T*, int64_t, int64_t);

template <class T>
const std::unordered_map<std::string, Kernel<T>>& kernels() {
  static const std::unordered_map<std::string, Kernel<T>> table = {
#define BI_KERNEL(NAME, EXPRESSION)                                          \
  {#NAME, [](const T* px, const T* py, T* out, int64_t begin, int64_t end) { \
     apply<T>(px, py, out, begin, end, [](auto x, [[maybe_unused]] auto y) { \
       using V [[maybe_unused]] = decltype(x);                               \
       return EXPRESSION;                                                    \
     });                                                                     \
   }},
#define BI_UNARY BI_KERNEL
#define BI_BINARY BI_KERNEL
#include "pointwise/functions.def"
#undef BI_UNARY
#undef BI_BINARY
#undef BI_KERNEL
  };
  return table;
}

template <class T>
void run(const at::Tensor& x, const at::Tensor* y, at::Tensor& out, const std::string& name) {
  const auto found = kernels<T>().find(name);
  TORCH_CHECK(found != kernels<T>().end(), "bi_compile: unknown pointwise function ", name);
  const T* px = x.const_data_ptr<T>();
  const T* py = y ? y->const_data_ptr<T>() : nullptr;
  T* po = out.mutable_data_ptr<T>();
  at::parallel_for(0, out.numel(), kGrain,
                   [&](int64_t begin, int64_t end) { found->second(px, py, po, begin, end); });
}

void dispatch(const at::Tensor& x, const at::Tensor* y, at::Tensor& out, const std::string& name) {
  switch (out.scalar_type()) {
    case at::kFloat: return run<float>(x, y, out, name);
    case at::kDouble: return run<double>(x, y, out, name);
    case at::kBFloat16: return run<at::BFloat16>(x, y, out, name);
    case at::kHalf: return run<at::Half>(x, y, out, name);
    default: TORCH_CHECK(false, "bi_compile: ", name, " does not support ", out.scalar_type());
  }
}

at::Tensor unary(const at::Tensor& x, const std::string& name) {
  const at::Tensor dense = x.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::Contiguous));
  dispatch(dense, nullptr, out, name);
  return out;
}

at::Tensor binary(const at::Tensor& x, const at::Tensor& y, const std::string& name) {
  TORCH_CHECK(x.scalar_type() == y.scalar_type(), "bi_compile: ", name, " needs equal dtypes");
  const auto sizes = at::infer_size(x.sizes(), y.sizes());
  const at::Tensor dense_x = x.expand(sizes).contiguous();
  const at::Tensor dense_y = y.expand(sizes).contiguous();
  at::Tensor out = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
  dispatch(dense_x, &dense_y, out, name);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("unary", &unary);
  m.impl("binary", &binary);
}
