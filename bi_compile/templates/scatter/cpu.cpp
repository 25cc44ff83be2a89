// Reductions into slots chosen by an index. A slot belongs to one thread, which walks its line in index order.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/WrapDimMinimal.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cpu/row_vector.h"
#include "scatter/lines.h"

namespace {

struct Sum {
  static constexpr double kIdentity = 0;
  template <class A>
  static A step(A state, A x) {
    return state + x;
  }
};

struct Product {
  static constexpr double kIdentity = 1;
  template <class A>
  static A step(A state, A x) {
    return state * x;
  }
};

// NaN wins; between the zeros the sign decides.
struct Maximum {
  static constexpr double kIdentity = -std::numeric_limits<double>::infinity();
  template <class A>
  static A step(A state, A x) {
    return state == state && (!(x <= state) || (x == state && std::signbit(state))) ? x : state;
  }
};

struct Minimum {
  static constexpr double kIdentity = std::numeric_limits<double>::infinity();
  template <class A>
  static A step(A state, A x) {
    return state == state && (!(x >= state) || (x == state && !std::signbit(state))) ? x : state;
  }
};

template <class T>
at::ScalarType wide() {
  return std::is_same_v<T, double> ? at::kDouble : at::kFloat;
}

// The states rounded once.
template <class T>
at::Tensor rounded(const at::Tensor& states, at::ScalarType dtype) {
  using A = Acc<T>;
  if constexpr (std::is_same_v<T, A>) return states;
  at::Tensor out = at::empty(states.sizes(), states.options().dtype(dtype));
  const A* from = states.const_data_ptr<A>();
  T* to = out.mutable_data_ptr<T>();
  at::parallel_for(0, out.numel(), 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kWidth<A>) {
      const int64_t count = std::min(kWidth<A>, end - i);
      store(to + i, load(from + i, count), count);
    }
  });
  return out;
}

// The chains of every slot: states holds x's elements, widened, and is overwritten.
template <class Chain, class T>
void reduce_into(at::Tensor& states, const Lines& lines, const int64_t* index, const T* src, bool include_self) {
  using A = Acc<T>;
  A* state = states.mutable_data_ptr<A>();
  if (!include_self) {
    lines.walk(index, [=](int64_t out, int64_t) { state[out] = static_cast<A>(Chain::kIdentity); });
  }
  lines.walk(index, [=](int64_t out, int64_t at) { state[out] = Chain::step(state[out], static_cast<A>(src[at])); });
  lines.walk(index, [=](int64_t out, int64_t) {
    if (state[out] != state[out]) state[out] = kNaN<A>;
  });
}

template <class A>
void divide_by_counts(at::Tensor& states, const Lines& lines, const int64_t* index, bool include_self) {
  const at::Tensor counts = at::zeros(states.sizes(), states.options().dtype(at::kLong));
  int64_t* count = counts.mutable_data_ptr<int64_t>();
  lines.walk(index, [=](int64_t out, int64_t) { ++count[out]; });
  A* state = states.mutable_data_ptr<A>();
  for (int64_t i = 0; i < states.numel(); ++i) {
    if (count[i] > 0) state[i] /= static_cast<A>(count[i] + (include_self ? 1 : 0));
  }
}

template <class T>
at::Tensor reduce_slots(const at::Tensor& x, int64_t dim, const at::Tensor& index, const at::Tensor& src,
                        const std::string& reduce, bool include_self) {
  at::Tensor states = x.to(wide<T>(), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
  if (index.numel() > 0) {
    const Lines lines(index, src, states, dim);
    const int64_t* i = index.const_data_ptr<int64_t>();
    const T* s = src.const_data_ptr<T>();
    if (reduce == "sum" || reduce == "mean") {
      reduce_into<Sum>(states, lines, i, s, include_self);
    } else if (reduce == "prod") {
      reduce_into<Product>(states, lines, i, s, include_self);
    } else if (reduce == "amax") {
      reduce_into<Maximum>(states, lines, i, s, include_self);
    } else if (reduce == "amin") {
      reduce_into<Minimum>(states, lines, i, s, include_self);
    } else {
      TORCH_CHECK(false, "scatter_reduce: reduce must be sum, prod, mean, amax or amin, but got ", reduce);
    }
    if (reduce == "mean") divide_by_counts<Acc<T>>(states, lines, i, include_self);
  }
  return rounded<T>(states, x.scalar_type());
}

at::Tensor reduce_by_index(const at::Tensor& x, int64_t dim, const at::Tensor& index, const at::Tensor& src,
                           const std::string& reduce, bool include_self) {
  TORCH_CHECK(x.scalar_type() == src.scalar_type(), "scatter_reduce: x is ", x.scalar_type(), ", src is ",
              src.scalar_type());
  const auto rank1 = [](const at::Tensor& t) { return t.dim() == 0 ? t.reshape({1}) : t; };
  const at::Tensor slots = rank1(x), chosen = rank1(index.to(at::kLong));
  at::Tensor used = rank1(src);
  dim = c10::maybe_wrap_dim(dim, x.dim());
  if (chosen.numel() > 0) {
    TORCH_CHECK(chosen.dim() == slots.dim() && chosen.dim() == used.dim(),
                "scatter_reduce: x, index and src need one number of dimensions");
    for (int64_t d = 0; d < chosen.dim(); ++d) {
      TORCH_CHECK(chosen.size(d) <= used.size(d) && (d == dim || chosen.size(d) <= slots.size(d)),
                  "scatter_reduce: index of sizes ", index.sizes(), " is larger than x of sizes ", x.sizes(),
                  " apart from dimension ", dim, " or than src of sizes ", src.sizes());
      used = used.narrow(d, 0, chosen.size(d));
    }
  }
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return reduce_slots<T>(slots, dim, chosen, used, reduce, include_self).view(x.sizes());
  };
  switch (x.scalar_type()) {
    case at::kFloat: return run(static_cast<float*>(nullptr));
    case at::kDouble: return run(static_cast<double*>(nullptr));
    case at::kBFloat16: return run(static_cast<at::BFloat16*>(nullptr));
    case at::kHalf: return run(static_cast<at::Half*>(nullptr));
    default: TORCH_CHECK(false, "bi_compile: scatter_reduce does not support ", x.scalar_type());
  }
}

// Masks as the positions of their true elements, one index for each of their dims.
std::vector<at::Tensor> without_masks(const at::Tensor& x, const c10::List<std::optional<at::Tensor>>& given) {
  std::vector<at::Tensor> indices;
  for (const auto& element : given) {
    const std::optional<at::Tensor> index = element;
    if (!index.has_value() || !index->defined()) {
      indices.emplace_back();
    } else if (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte) {
      for (int64_t d = 0; d < index->dim(); ++d) {
        const int64_t at = static_cast<int64_t>(indices.size()) + d;
        TORCH_CHECK_INDEX(at < x.dim() && index->size(d) == x.size(at), "The shape of the mask ", index->sizes(),
                          " at index ", d, " does not match the shape of the indexed tensor ", x.sizes(),
                          " at index ", at);
      }
      const at::Tensor places = index->nonzero();
      for (int64_t d = 0; d < index->dim(); ++d) indices.push_back(places.select(1, d));
    } else {
      indices.push_back(index->to(at::kLong));
    }
  }
  TORCH_CHECK_INDEX(static_cast<int64_t>(indices.size()) <= x.dim(), "too many indices for tensor of dimension ",
                    x.dim(), " (got ", indices.size(), ")");
  indices.resize(x.dim());
  return indices;
}

at::Tensor index_put_add(const at::Tensor& x, const c10::List<std::optional<at::Tensor>>& given,
                         const at::Tensor& values) {
  const std::vector<at::Tensor> indices = without_masks(x, given);
  // Indexed dims go first: a row of what is left is one slot for each of its columns.
  std::vector<int64_t> order, rest;
  for (int64_t d = 0; d < x.dim(); ++d) (indices[d].defined() ? order : rest).push_back(d);
  const int64_t indexed = static_cast<int64_t>(order.size());
  at::DimVector shape;  // of the broadcast indices
  for (const int64_t d : order) shape = at::DimVector(at::infer_size_dimvector(shape, indices[d].sizes()));
  const bool adjacent = indexed == 0 || order.back() - order.front() + 1 == indexed;
  order.insert(order.end(), rest.begin(), rest.end());
  const at::Tensor rows = x.permute(order);

  at::Tensor flat = at::zeros(shape, x.options().dtype(at::kLong));
  int64_t slots = 1, columns = 1;
  for (int64_t k = 0; k < indexed; ++k) {
    const int64_t size = rows.size(k);
    const at::Tensor index = indices[order[k]];
    if (index.numel() > 0) {
      const int64_t low = index.min().item<int64_t>(), high = index.max().item<int64_t>();
      TORCH_CHECK_INDEX(low >= -size && high < size, "index ", low < -size ? low : high,
                        " is out of bounds for dimension ", order[k], " with size ", size);
    }
    flat.mul_(size).add_(index.remainder(std::max<int64_t>(size, 1)));
    slots *= size;
  }
  for (const int64_t d : rest) columns *= x.size(d);

  // The shape indexing gives: the indices stand where they stood, or in front if a None parts them.
  const int64_t before = adjacent && indexed > 0 ? order.front() : 0, count = static_cast<int64_t>(shape.size());
  at::DimVector given_shape, to_front;
  for (int64_t k = 0; k < before; ++k) given_shape.push_back(x.size(rest[k]));
  given_shape.append(shape.begin(), shape.end());
  for (size_t k = before; k < rest.size(); ++k) given_shape.push_back(x.size(rest[k]));
  for (int64_t k = 0; k < count; ++k) to_front.push_back(before + k);
  for (int64_t k = 0; k < before; ++k) to_front.push_back(k);
  for (size_t k = before + count; k < given_shape.size(); ++k) to_front.push_back(static_cast<int64_t>(k));

  const at::Tensor src = values.expand(given_shape).permute(to_front).reshape({flat.numel(), columns});
  const at::Tensor index = flat.reshape({-1, 1}).expand({flat.numel(), columns});
  const at::Tensor sums = reduce_by_index(rows.reshape({slots, columns}), 0, index, src, "sum", true);
  std::vector<int64_t> back(order.size());
  for (size_t k = 0; k < order.size(); ++k) back[order[k]] = static_cast<int64_t>(k);
  return sums.view(rows.sizes()).permute(back).contiguous();
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("scatter_reduce", &reduce_by_index);
  m.impl("index_put_add", &index_put_add);
}
