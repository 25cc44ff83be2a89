// Which elements form a row: the reduced and the kept dimensions of a tensor, coalesced.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <bitset>

#include "cpu/row_vector.h"

namespace {

struct Dim {
  int64_t size;
  int64_t stride;
  int64_t out_stride;
};

using Dims = c10::SmallVector<Dim, 5>;
using DimFlags = std::bitset<64>;

// Neighbouring dimensions that can be walked as one are; the order of elements stays row-major.
inline void append(Dims& dims, Dim dim) {
  if (dim.size == 1) return;
  if (!dims.empty()) {
    Dim& outer = dims.back();
    if (outer.stride == dim.stride * dim.size && outer.out_stride == dim.out_stride * dim.size) {
      outer = {outer.size * dim.size, dim.stride, dim.out_stride};
      return;
    }
  }
  dims.push_back(dim);
}

inline int64_t count(const Dims& dims) {
  int64_t n = 1;
  for (const Dim& dim : dims) n *= dim.size;
  return n;
}

inline int64_t offset(const Dims& dims, int64_t index, int64_t Dim::*stride = &Dim::stride) {
  if (dims.size() == 1) return index * (dims[0].*stride);
  int64_t at = 0;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    at += index % dim->size * ((*dim).*stride);
    index /= dim->size;
  }
  return at;
}

// The reduced dims as flags; an empty list means all. Messages are those of eager.
inline DimFlags reduced_dims(const at::Tensor& x, at::IntArrayRef dims) {
  DimFlags reduced;
  if (dims.empty()) reduced.set();
  for (const int64_t given : dims) {
    const int64_t dim = c10::maybe_wrap_dim(given, x.dim());
    if (x.dim() == 0) continue;
    TORCH_CHECK(!reduced[dim], "dim ", dim, " appears multiple times in the list of dims");
    reduced.set(dim);
  }
  return reduced;
}

struct RowView {
  Dims reduced;
  Dims kept;
  int64_t n;     // elements of a row
  int64_t rows;  // rows, in row-major order of the kept dims

  // out, when given, has x's shape and is walked along with it.
  RowView(const at::Tensor& x, const DimFlags& is_reduced, const at::Tensor* out = nullptr) {
    int64_t kept_stride = 1;
    for (int64_t d = 0; d < x.dim(); ++d) kept_stride *= is_reduced[d] ? 1 : x.size(d);
    for (int64_t d = 0; d < x.dim(); ++d) {
      if (!is_reduced[d]) kept_stride /= std::max<int64_t>(x.size(d), 1);
      const int64_t out_stride = out ? out->stride(d) : is_reduced[d] ? 0 : kept_stride;
      // With no output of their own the reduced dims coalesce by x's strides alone.
      append(is_reduced[d] ? reduced : kept, {x.size(d), x.stride(d), out_stride});
    }
    n = count(reduced);
    rows = count(kept);
  }

  // A row is contiguous memory.
  bool contiguous() const { return n <= 1 || (reduced.size() == 1 && reduced[0].stride == 1); }
  // Neighbouring rows lie side by side, so that vectors can span them.
  bool columns() const {
    return !kept.empty() && kept.back().stride == 1 && kept.back().out_stride == 1 && kept.back().size > 1;
  }
};

// Elements [begin, begin + count) of the row at x, widened, to dst.
template <class T>
void gather(const Dims& reduced, const T* x, int64_t begin, int64_t count, Acc<T>* dst) {
  using A = Acc<T>;
  const Dim inner = reduced.empty() ? Dim{1, 0, 0} : reduced.back();
  while (count > 0) {
    const T* segment = x + offset(reduced, begin);
    const int64_t length = std::min(count, inner.size - begin % inner.size);
    if (inner.stride == 1) {
      for (int64_t j = 0; j < length; j += kWidth<A>) {
        const int64_t m = std::min(kWidth<A>, length - j);
        load(segment + j, m).store(dst + j, static_cast<int>(m));
      }
    } else {
      for (int64_t j = 0; j < length; ++j) dst[j] = static_cast<A>(segment[j * inner.stride]);
    }
    dst += length;
    begin += length;
    count -= length;
  }
}

// Work that is worth a thread, in elements.
constexpr int64_t kGrain = 32768;

// Tasks of `elements` elements each over the threads.
template <class F>
void for_each_task(int64_t tasks, int64_t elements, const F& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) body(t);
  });
}

// Calls body with a null pointer of the C++ type of dtype.
template <class F>
auto for_dtype(const char* op, at::ScalarType dtype, const F& body) {
  switch (dtype) {
    case at::kFloat: return body(static_cast<float*>(nullptr));
    case at::kDouble: return body(static_cast<double*>(nullptr));
    case at::kBFloat16: return body(static_cast<at::BFloat16*>(nullptr));
    case at::kHalf: return body(static_cast<at::Half*>(nullptr));
    default:
      TORCH_CHECK(false, "bi_compile: ", op, " does not support ", dtype,
                  "; supported dtypes: float32, float64, bfloat16, float16");
  }
}

}  // namespace
