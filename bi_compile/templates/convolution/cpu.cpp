// Convolutions with one order of summation for every batch, layout, thread count and instruction set.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <torch/library.h>

#include <optional>

#include "convolution/dense.h"
#include "convolution/direct.h"

namespace {

// The arguments of a call; sizes of fewer than three dimensions are preceded by ones.
struct Call {
  at::Tensor x, w, bias;
  Index size, kernel, stride, padding, dilation, out_size;
  int64_t groups;
};

template <class T>
void run(const Problem<T>& p) {
  if (p.images == 0 || p.groups * p.outputs == 0 || p.positions() == 0) return;
  is_direct(p) ? direct(p) : dense(p);
}

template <class T>
Problem<T> problem_of(const Call& call, at::Tensor& out) {
  Problem<T> p{};
  p.images = call.x.size(0), p.groups = call.groups;
  p.inputs = call.x.size(1) / call.groups, p.outputs = out.size(1) / call.groups;
  p.x = call.x.const_data_ptr<T>(), p.size = call.size;
  p.bias = call.bias.defined() ? call.bias.const_data_ptr<T>() : nullptr;
  p.out = out.mutable_data_ptr<T>();
  p.out_channel = product(call.out_size), p.out_image = out.size(1) * p.out_channel;
  p.out_stride = {call.out_size[1] * call.out_size[2], call.out_size[2], 1};
  return p;
}

// Calls each(index) for all indices below `end`, the last dimension running fastest.
template <class Each>
void for_each_index(const Index& end, const Each& each) {
  for (Index i{}; i[0] < end[0]; ++i[0]) {
    for (i[1] = 0; i[1] < end[1]; ++i[1]) {
      for (i[2] = 0; i[2] < end[2]; ++i[2]) each(i);
    }
  }
}

template <class T>
void convolve(const Call& call, at::Tensor& out) {
  using A = Acc<T>;
  Problem<T> p = problem_of<T>(call, out);
  const at::Tensor w = call.w.to(c10::CppTypeToScalarType<A>::value).contiguous();
  p.weights = w.const_data_ptr<A>();
  p.grid = call.out_size, p.step = call.stride;
  for_each_index(call.kernel, [&](const Index& t) {
    Index offset;
    for (int d = 0; d < 3; ++d) offset[d] = t[d] * call.dilation[d] - call.padding[d];
    p.offsets.push_back(offset);
  });
  run(p);
}

// Outputs whose positions leave the same remainders by the stride meet the same taps, each a correlation of its own.
template <class T>
void convolve_transposed(const Call& call, at::Tensor& out) {
  using A = Acc<T>;
  Problem<T> p = problem_of<T>(call, out);
  const int64_t taps = product(call.kernel);
  // [groups, inputs, outputs, taps] -> [groups, outputs, inputs, taps]
  const at::Tensor w = call.w.to(c10::CppTypeToScalarType<A>::value)
                           .reshape({p.groups, p.inputs, p.outputs, taps})
                           .transpose(1, 2)
                           .contiguous();
  const Index out_stride = p.out_stride;
  T* const all = p.out;
  for_each_index(call.stride, [&](const Index& remainder) {
    p.offsets.clear();
    p.out = all;
    for (int d = 0; d < 3; ++d) {
      p.grid[d] = call.out_size[d] > remainder[d] ? ceil_div(call.out_size[d] - remainder[d], call.stride[d]) : 0;
      p.step[d] = 1;
      p.out += remainder[d] * out_stride[d];
      p.out_stride[d] = out_stride[d] * call.stride[d];
    }
    std::vector<int64_t> kept;
    int64_t tap = 0;
    for_each_index(call.kernel, [&](const Index& t) {
      Index offset;
      bool meets = true;
      for (int d = 0; d < 3; ++d) {
        const int64_t from = remainder[d] + call.padding[d] - t[d] * call.dilation[d];
        meets = meets && from % call.stride[d] == 0;
        offset[d] = from / call.stride[d];
      }
      if (meets) {
        p.offsets.push_back(offset);
        kept.push_back(tap);
      }
      ++tap;
    });
    const auto index = at::tensor(kept, at::kLong);
    const at::Tensor chosen = p.taps() == taps ? w : w.index_select(3, index);
    p.weights = chosen.const_data_ptr<A>();
    run(p);
  });
}

template <class T>
void compute(const Call& call, bool transposed, at::Tensor& out) {
  transposed ? convolve_transposed<T>(call, out) : convolve<T>(call, out);
}

Index spatial(at::IntArrayRef values, int64_t dims, int64_t absent) {
  Index result{absent, absent, absent};
  for (int64_t d = 0; d < dims; ++d) result[3 - dims + d] = values[d];
  return result;
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  const int64_t dims = x.dim() - 2;
  TORCH_CHECK(dims >= 1 && dims <= 3 && w.dim() == x.dim(), "convolution: expected an input of 3 to 5 dimensions and a "
              "weight of as many, got ", x.dim(), "-D and ", w.dim(), "-D");
  for (const auto& list : {stride, padding, dilation, output_padding}) {
    TORCH_CHECK(int64_t(list.size()) == dims, "convolution: expected ", dims, " values for each of stride, padding, "
                "dilation and output_padding");
  }
  TORCH_CHECK(groups > 0 && x.size(1) % groups == 0 && w.size(0) % groups == 0 &&
                  (transposed ? x.size(1) == w.size(0) : x.size(1) == w.size(1) * groups),
              "convolution: input ", x.sizes(), " and weight ", w.sizes(), " do not fit with groups=", groups);
  const int64_t channels = transposed ? w.size(1) * groups : w.size(0);
  TORCH_CHECK(w.scalar_type() == x.scalar_type() && (!bias || !bias->defined() || bias->scalar_type() == x.scalar_type()),
              "convolution: expected one dtype, got ", x.scalar_type(), " and ", w.scalar_type());
  TORCH_CHECK(!bias || !bias->defined() || (bias->dim() == 1 && bias->size(0) == channels), "convolution: expected a "
              "bias of ", channels, " elements");
  std::vector<int64_t> shape{x.size(0), channels};
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t span = dilation[d] * (w.size(d + 2) - 1) + 1;
    TORCH_CHECK(stride[d] > 0 && dilation[d] > 0 && padding[d] >= 0 && output_padding[d] >= 0 && w.size(d + 2) > 0,
                "convolution: stride, dilation and kernel sizes must be positive, paddings not negative");
    const int64_t size = transposed ? (x.size(d + 2) - 1) * stride[d] - 2 * padding[d] + span + output_padding[d]
                                    : (x.size(d + 2) + 2 * padding[d] - span + stride[d]) / stride[d];
    TORCH_CHECK(transposed ? size >= 0 : x.size(d + 2) + 2 * padding[d] >= span, "convolution: input ", x.sizes(),
                " is smaller than the kernel of weight ", w.sizes());
    shape.push_back(size);
  }
  at::Tensor out = at::empty(shape, x.options().memory_format(at::MemoryFormat::Contiguous));
  Call call{x.contiguous(), w, {}, spatial(x.sizes().slice(2), dims, 1), spatial(w.sizes().slice(2), dims, 1),
            spatial(stride, dims, 1), spatial(padding, dims, 0), spatial(dilation, dims, 1),
            spatial(out.sizes().slice(2), dims, 1), groups};
  if (bias && bias->defined()) call.bias = bias->contiguous();
  switch (x.scalar_type()) {
    case at::kFloat: compute<float>(call, transposed, out); break;
    case at::kDouble: compute<double>(call, transposed, out); break;
    case at::kBFloat16: compute<at::BFloat16>(call, transposed, out); break;
    case at::kHalf: compute<at::Half>(call, transposed, out); break;
    default:
      TORCH_CHECK(false, "bi_compile: convolution does not support ", x.scalar_type(),
                  "; supported dtypes: float32, float64, bfloat16, float16");
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) { m.impl("convolution", &convolution); }
