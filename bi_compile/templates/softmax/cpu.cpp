// softmax and log_softmax over one dim of a tensor of any strides, sums by the tree of cpu/row_tree.h.
//
// A row is read as contiguous memory, or gathered; neighbouring rows that lie side by side go through vectors
// across them. All three have the same bits: an exponential is the same function of x - m wherever it is taken.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>

#include "cpu/row_tree.h"
#include "cpu/row_view.h"

namespace {

// The exponentials of a row are kept where they will be divided: in the output if it is wide enough.
template <bool kLog, class T, class P>
void softmax_row(const P* x, int64_t n, T* out, Acc<T>* exponentials) {
  using A = Acc<T>;
  using V = Vec<A>;
  // The sign of a zero maximum and a NaN that is passed over do not matter: the sum below meets the NaN itself.
  const V maximum(largest<A>(n, [&](int64_t i, int64_t count) { return load(x + i, count); }));
  const V sum(reduce_row<Sum, A>(n, [&](int64_t begin, int64_t end) {
    return reduce_span<Sum, A>(begin, end, [&](int64_t i, int64_t count) {
      const V e = (load(x + i, count) - maximum).exp();
      if constexpr (!kLog) e.store(exponentials + i, static_cast<int>(count));
      return e;
    });
  }));
  if (first<A>(sum) != first<A>(sum)) {
    // Every element of such a row is NaN, and no element of any other is.
    std::fill(out, out + n, static_cast<T>(kNaN<A>));
    return;
  }
  const V log_sum = kLog ? sum.log() : sum;
  const V reciprocal = V(A(1)) / sum;
  const auto finish = [&](int64_t i, int64_t count) {
    const V y = kLog ? (load(x + i, count) - maximum) - log_sum
                     : divide(load(exponentials + i, count), sum, reciprocal);
    store_canonical(out + i, y, count);
  };
  int64_t i = 0;
  for (; i + kWidth<A> <= n; i += kWidth<A>) finish(i, kWidth<A>);
  if (i < n) finish(i, n - i);
}

constexpr int64_t kTile = kColumnGroup;  // vectors side by side

// width neighbouring rows whose elements i lie at x + i * stride and out + i * out_stride. The exponentials are kept,
// kTile vectors for each i; kLog, which subtracts from x itself, keeps nothing.
template <bool kLog, class T>
void softmax_columns(const T* x, T* out, const Dim& dim, int64_t width, Acc<T>* kept) {
  using A = Acc<T>;
  using V = Vec<A>;
  const int64_t vectors = (width + kWidth<A> - 1) / kWidth<A>;
  const auto element = [&](const T* row, int64_t k) {
    return load(row + k * kWidth<A>, std::min(width - k * kWidth<A>, kWidth<A>));
  };
  const auto row_at = [&](int64_t i) { return x + i * dim.stride; };
  const auto kept_at = [&](int64_t i) { return kept + i * kTile * kWidth<A>; };
  const V nothing(A(0));
  const auto maximum = reduce_columns<Maximum, A>(
      dim.size, row_at, [&](const T* row, int64_t k) { return k < vectors ? element(row, k) : nothing; });
  const auto exponential = [&](const T* row, int64_t k) { return (element(row, k) - maximum.v[k]).exp(); };
  Group<A, kTile> sum;
  if constexpr (kLog) {
    sum = reduce_columns<Sum, A>(
        dim.size, row_at, [&](const T* row, int64_t k) { return k < vectors ? exponential(row, k) : nothing; });
  } else {
    for (int64_t i = 0; i < dim.size; ++i) {
      for (int64_t k = 0; k < vectors; ++k) exponential(row_at(i), k).store(kept_at(i) + k * kWidth<A>);
    }
    sum = reduce_columns<Sum, A>(dim.size, kept_at, [&](const A* row, int64_t k) {
      return k < vectors ? V::loadu(row + k * kWidth<A>) : nothing;
    });
  }
  const auto last = sum.map([](const V& s, int64_t) { return kLog ? s.log() : V(A(1)) / s; });
  for (int64_t i = 0; i < dim.size; ++i) {
    for (int64_t k = 0; k < vectors; ++k) {
      const V y = kLog ? (element(row_at(i), k) - maximum.v[k]) - last.v[k]
                       : divide(V::loadu(kept_at(i) + k * kWidth<A>), sum.v[k], last.v[k]);
      store(out + i * dim.out_stride + k * kWidth<A>, y, std::min(width - k * kWidth<A>, kWidth<A>));
    }
  }
}

template <bool kLog, class T>
void softmax_rows(const RowView& view, const T* x, T* out) {
  using A = Acc<T>;
  const Dim dim = view.reduced.empty() ? Dim{1, 1, 1} : view.reduced[0];
  const bool dense = dim.stride == 1 && dim.out_stride == 1;
  if (!dense && view.columns()) {
    constexpr int64_t wide = kTile * kWidth<A>;
    const int64_t inner = view.kept.back().size;
    const int64_t groups = (inner + wide - 1) / wide;
    const int64_t grain = std::max<int64_t>(1, kGrain / 4 / (view.n * wide));
    at::parallel_for(0, view.rows / inner * groups, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<A[]> kept(kLog ? nullptr : new A[view.n * wide]);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column = task % groups * wide;
        const int64_t row = task / groups * inner + column;
        softmax_columns<kLog>(x + offset(view.kept, row), out + offset(view.kept, row, &Dim::out_stride), dim,
                              std::min(wide, inner - column), kept.get());
      }
    });
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrain / 4 / std::max<int64_t>(1, view.n));
  at::parallel_for(0, view.rows, grain, [&](int64_t begin, int64_t end) {
    const bool in_place = std::is_same_v<T, A> && dense;
    const std::unique_ptr<A[]> exponentials(in_place || kLog ? nullptr : new A[view.n]);
    const std::unique_ptr<A[]> elements(dense ? nullptr : new A[view.n]);
    const std::unique_ptr<T[]> results(dense ? nullptr : new T[view.n]);
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + offset(view.kept, row);
      T* to = out + offset(view.kept, row, &Dim::out_stride);
      if (dense) {
        A* scratch = exponentials.get();
        if constexpr (std::is_same_v<T, A>) scratch = to;
        softmax_row<kLog>(from, view.n, to, scratch);
      } else {
        gather(view.reduced, from, 0, view.n, elements.get());
        softmax_row<kLog>(elements.get(), view.n, results.get(), exponentials.get());
        for (int64_t i = 0; i < view.n; ++i) to[i * dim.out_stride] = results[i];
      }
    }
  });
}

template <bool kLog>
at::Tensor softmax_over(const char* op, const at::Tensor& x, int64_t dim) {
  const auto reduced = reduced_dims(x, {dim});
  at::Tensor out = at::empty(x.sizes(), at::TensorOptions().dtype(x.dtype()).device(x.device()));
  const RowView view(x, reduced, &out);
  for_dtype(op, x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (x.numel() > 0) softmax_rows<kLog>(view, x.const_data_ptr<T>(), out.mutable_data_ptr<T>());
  });
  return out;
}

at::Tensor softmax(const at::Tensor& x, int64_t dim) { return softmax_over<false>("softmax", x, dim); }

at::Tensor log_softmax(const at::Tensor& x, int64_t dim) { return softmax_over<true>("log_softmax", x, dim); }

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("softmax", &softmax);
  m.impl("log_softmax", &log_softmax);
}
