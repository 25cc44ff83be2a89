// The first k of a stable sort without sorting: a buffer of candidates that is cut back to the best k when full.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/row_view.h"

namespace {

template <class T>
constexpr bool kFloating = !std::is_integral_v<T>;

// Unsigned integers in the order of the elements.
template <class T>
using Key = std::conditional_t<kFloating<T> && !std::is_same_v<T, double>, uint32_t, uint64_t>;

// Larger comes first. NaN is greater than everything, the zeros are equal.
template <class T>
Key<T> key_of(T element, Key<T> flip) {
  constexpr Key<T> kSign = Key<T>(1) << (8 * sizeof(Key<T>) - 1);
  Key<T> key;
  if constexpr (kFloating<T>) {
    const Acc<T> x = static_cast<Acc<T>>(element) + Acc<T>(0);  // -0 becomes +0
    std::memcpy(&key, &x, sizeof(key));
    key = (key & kSign) ? ~key : key | kSign;
    if (x != x) key = ~Key<T>(0);
  } else {
    key = static_cast<Key<T>>(static_cast<int64_t>(element)) ^ kSign;
  }
  return key ^ flip;
}

template <class K>
struct Candidate {
  K key;
  int64_t index;

  // A total order: whatever sorts by it gives one result.
  bool operator<(const Candidate& other) const {
    return key != other.key ? key > other.key : index < other.index;
  }
};

// The k first candidates of a row, in order.
template <class T>
void select(const T* x, int64_t stride, int64_t n, int64_t k, bool largest, std::vector<Candidate<Key<T>>>& best) {
  using K = Key<T>;
  constexpr int64_t kStep = 128;
  const K flip = largest ? K(0) : ~K(0);
  const size_t capacity = 2 * static_cast<size_t>(k) + 256;
  best.clear();
  bool full = false;
  K worst = 0;  // of the k kept ones; a later element has to be better, since ties go to the lower index
  const auto cut = [&] {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end());
    best.resize(k);
    worst = best.back().key;
    full = true;
  };
  for (int64_t begin = 0; begin < n; begin += kStep) {
    const int64_t count = std::min(kStep, n - begin);
    K keys[kStep];
    K highest = 0;
    if (stride == 1) {
      for (int64_t j = 0; j < count; ++j) keys[j] = key_of(x[begin + j], flip);
    } else {
      for (int64_t j = 0; j < count; ++j) keys[j] = key_of(x[(begin + j) * stride], flip);
    }
    for (int64_t j = 0; j < count; ++j) highest = std::max(highest, keys[j]);
    if (full && highest <= worst) continue;
    for (int64_t j = 0; j < count; ++j) {
      if (full && keys[j] <= worst) continue;
      best.push_back({keys[j], begin + j});
      if (best.size() == capacity) cut();
    }
  }
  if (static_cast<int64_t>(best.size()) > k) cut();
  std::sort(best.begin(), best.end());
}

template <class T>
void select_rows(const at::Tensor& x, const DimFlags& along, int64_t k, bool largest, at::Tensor& values,
                 at::Tensor& indices) {
  const RowView view(x, along, &values);
  const Dim dim = view.reduced.empty() ? Dim{1, 0, 0} : view.reduced.back();
  const T* source = x.const_data_ptr<T>();
  T* value = values.mutable_data_ptr<T>();
  int64_t* index = indices.mutable_data_ptr<int64_t>();
  for_each_task(view.rows, view.n, [&](int64_t row) {
    static thread_local std::vector<Candidate<Key<T>>> best;
    const T* elements = source + offset(view.kept, row);
    select(elements, dim.stride, view.n, k, largest, best);
    const int64_t out = offset(view.kept, row, &Dim::out_stride);
    for (int64_t j = 0; j < k; ++j) {
      value[out + j * dim.out_stride] = elements[best[j].index * dim.stride];
      index[out + j * dim.out_stride] = best[j].index;
    }
  });
}

std::tuple<at::Tensor, at::Tensor> topk(const at::Tensor& x, int64_t k, int64_t dim, bool largest) {
  const DimFlags along = reduced_dims(x, {dim});
  dim = c10::maybe_wrap_dim(dim, x.dim());
  at::DimVector shape(x.sizes());
  TORCH_CHECK(k >= 0 && k <= (x.dim() == 0 ? 1 : shape[dim]), "selected index k out of range");
  if (x.dim() > 0) shape[dim] = k;
  const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
  at::Tensor values = at::empty(shape, options), indices = at::empty(shape, options.dtype(at::kLong));
  if (values.numel() == 0 || k == 0) return {values, indices};
  const auto run = [&](auto* type) {
    select_rows<std::remove_pointer_t<decltype(type)>>(x, along, k, largest, values, indices);
  };
  switch (x.scalar_type()) {
    case at::kLong: run(static_cast<int64_t*>(nullptr)); break;
    case at::kInt: run(static_cast<int32_t*>(nullptr)); break;
    case at::kShort: run(static_cast<int16_t*>(nullptr)); break;
    case at::kChar: run(static_cast<int8_t*>(nullptr)); break;
    case at::kByte: run(static_cast<uint8_t*>(nullptr)); break;
    default: for_dtype("topk", x.scalar_type(), run);
  }
  return {values, indices};
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) { m.impl("topk", &topk); }
