// Reductions over any dims of a tensor of any strides, each result by the tree of cpu/row_tree.h.
//
// An op is a recipe: what enters the tree, what becomes of its root. The recipe runs on rows (a row is contiguous,
// or gathered a span at a time) or on groups of neighbouring columns, with the same bits.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <string>
#include <tuple>

#include "cpu/row_tree.h"
#include "cpu/row_view.h"

namespace {

// One row. Results stand in every lane of one vector.
template <class T>
class Row {
 public:
  using A = Acc<T>;
  using V = Vec<A>;

  Row(const RowView& view, const T* x, int64_t row) : view_(view), x_(x + offset(view.kept, row)), row_(row) {}

  // element(x, 0) is what enters the tree in place of the vector x.
  template <class Tree, class Element>
  Group<A, 1> reduce(const Element& element) const {
    const A root = reduce_row<Tree, A>(view_.n, [&](int64_t begin, int64_t end) {
      if (view_.contiguous()) return span<Tree>(x_, begin, end, element);
      return span<Tree>(gathered(begin, end) - begin, begin, end, element);
    });
    return {{V(root)}};
  }

  void store(T* out, const Group<A, 1>& result) const { out[row_] = static_cast<T>(canonical(first<A>(result.v[0]))); }

  // The smallest index that is equal to the extremum, or NaN where that is NaN.
  int64_t find(A extremum) const {
    for (int64_t begin = 0; begin < view_.n; begin += kSpan) {
      const int64_t end = std::min(begin + kSpan, view_.n);
      const int64_t at = view_.contiguous() ? find(x_, begin, end, extremum)
                                            : find(gathered(begin, end) - begin, begin, end, extremum);
      if (at < end) return at;
    }
    return 0;
  }

 private:
  template <class Tree, class P, class Element>
  static A span(const P* p, int64_t begin, int64_t end, const Element& element) {
    return reduce_span<Tree, A>(begin, end,
                                [&](int64_t i, int64_t count) { return element(load(p + i, count), 0); });
  }

  template <class P>
  static int64_t find(const P* p, int64_t begin, int64_t end, A extremum) {
    const V wanted(extremum);
    int64_t i = begin;
    for (; i + kWidth<A> <= end; i += kWidth<A>) {
      const V x = load(p + i, kWidth<A>);
      if ((extremum == extremum ? x == wanted : x != x).zero_mask() != (1 << kWidth<A>) - 1) break;
    }
    while (i < end) {
      const A x = static_cast<A>(p[i]);
      if (x == extremum || (x != x && extremum != extremum)) break;
      ++i;
    }
    return i;
  }

  const A* gathered(int64_t begin, int64_t end) const {
    static thread_local std::vector<A> scratch(kSpan);
    gather(view_.reduced, x_, begin, end - begin, scratch.data());
    return scratch.data();
  }

  const RowView& view_;
  const T* x_;
  int64_t row_;
};

// A group of neighbouring columns, kColumnGroup vectors wide or, at the edge, less.
template <class T>
class Columns {
 public:
  using A = Acc<T>;
  using V = Vec<A>;
  using Results = Group<A, kColumnGroup>;
  static constexpr int64_t kWide = kColumnGroup * kWidth<A>;

  Columns(const RowView& view, const T* x, int64_t row, int64_t width)
      : view_(view), x_(x + offset(view.kept, row)), row_(row), width_(width) {}

  template <class Tree, class Element>
  Results reduce(const Element& element) const {
    const auto row_at = [&](int64_t i) { return at(i); };
    if (width_ == kWide) {
      return reduce_columns<Tree, A>(view_.n, row_at, [&](const T* row, int64_t k) {
        return element(load(row + k * kWidth<A>, kWidth<A>), k);
      });
    }
    return reduce_columns<Tree, A>(view_.n, row_at, [&](const T* row, int64_t k) {
      const int64_t count = std::clamp<int64_t>(width_ - k * kWidth<A>, 0, kWidth<A>);
      return count == 0 ? V(A(0)) : element(load(row + k * kWidth<A>, count), k);
    });
  }

  void store(T* out, const Results& results) const {
    for (int64_t k = 0; k * kWidth<A> < width_; ++k) {
      ::store(out + row_ + k * kWidth<A>, results.v[k], std::min(kWidth<A>, width_ - k * kWidth<A>));
    }
  }

 private:
  const T* at(int64_t i) const {
    return x_ + offset(view_.reduced, i);
  }

  const RowView& view_;
  const T* x_;
  int64_t row_;
  int64_t width_;
};

// Whether a recipe is compiled for columns too; where that is not worth the compiler's time, columns are gathered.
enum class Walks { kRows, kRowsAndColumns };

// recipe(row or columns) for every result.
template <Walks kWalks, class T, class Recipe>
void for_each_result(const RowView& view, const T* x, const Recipe& recipe) {
  if (kWalks == Walks::kRows || view.contiguous() || !view.columns()) {
    // A few long rows are better shared inside.
    if (view.rows < at::get_num_threads() && view.n > 2 * kSpan) {
      for (int64_t row = 0; row < view.rows; ++row) recipe(Row<T>(view, x, row));
    } else {
      for_each_task(view.rows, view.n, [&](int64_t row) { recipe(Row<T>(view, x, row)); });
    }
    return;
  }
  if constexpr (kWalks == Walks::kRowsAndColumns) {
    const int64_t inner = view.kept.back().size;
    const int64_t groups = (inner + Columns<T>::kWide - 1) / Columns<T>::kWide;
    for_each_task(view.rows / inner * groups, view.n * Columns<T>::kWide, [&](int64_t task) {
      const int64_t column = task % groups * Columns<T>::kWide;
      recipe(Columns<T>(view, x, task / groups * inner + column, std::min(Columns<T>::kWide, inner - column)));
    });
  }
}

at::Tensor empty_result(const at::Tensor& x, const DimFlags& reduced, bool keepdim, at::ScalarType dtype) {
  c10::SmallVector<int64_t, 5> sizes;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (!reduced[d]) sizes.push_back(x.size(d));
    if (reduced[d] && keepdim) sizes.push_back(1);
  }
  return at::empty(sizes, at::TensorOptions().dtype(dtype).device(x.device()));
}

// recipe(columns or row, outputs) with kOutputs tensors of x's dtype.
template <int kOutputs, Walks kWalks = Walks::kRowsAndColumns, class Recipe>
std::array<at::Tensor, kOutputs> reduce(const char* op, const at::Tensor& x, at::IntArrayRef dims, bool keepdim,
                                        const Recipe& recipe) {
  const auto reduced = reduced_dims(x, dims);
  std::array<at::Tensor, kOutputs> outputs;
  for (auto& output : outputs) output = empty_result(x, reduced, keepdim, x.scalar_type());
  const RowView view(x, reduced);
  for_dtype(op, x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    std::array<T*, kOutputs> out;
    for (int i = 0; i < kOutputs; ++i) out[i] = outputs[i].template mutable_data_ptr<T>();
    for_each_result<kWalks>(view, x.const_data_ptr<T>(), [&](const auto& results) { recipe(results, out, view.n); });
  });
  return outputs;
}

void check_not_empty(const char* op, const at::Tensor& x, at::IntArrayRef dims) {
  if (x.numel() != 0) return;
  TORCH_CHECK_INDEX(!dims.empty(), op, "(): Expected reduction dim to be specified for input.numel() == 0. ",
                    "Specify the reduction dim with the 'dim' argument.");
  for (const int64_t given : dims) {
    const int64_t dim = c10::maybe_wrap_dim(given, x.dim());
    TORCH_CHECK_INDEX(x.size(dim) != 0, op, "(): Expected reduction dim ", dim, " to have non-zero size.");
  }
}

const auto kElement = [](const auto& x, int64_t) { return x; };

template <class Tree, Walks kWalks = Walks::kRowsAndColumns>
at::Tensor plain(const char* op, const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return reduce<1, kWalks>(op, x, dims, keepdim, [](const auto& row, auto out, int64_t) {
    row.store(out[0], row.template reduce<Tree>(kElement));
  })[0];
}

at::Tensor sum(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return plain<Sum>("sum", x, dims, keepdim);
}

at::Tensor prod(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return plain<Product, Walks::kRows>("prod", x, dims, keepdim);
}

at::Tensor amax(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  check_not_empty("amax", x, dims);
  return plain<Maximum>("amax", x, dims, keepdim);
}

at::Tensor amin(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  check_not_empty("amin", x, dims);
  return plain<Minimum>("amin", x, dims, keepdim);
}

template <class Results>
auto mean_of(const Results& row, int64_t n) {
  using V = typename Results::V;
  using A = typename Results::A;
  const V length(static_cast<A>(n));
  return row.template reduce<Sum>(kElement).map([&](const V& sum, int64_t) { return sum / length; });
}

template <class Results, class Mean>
auto variance_of(const Results& row, const Mean& mean, int64_t n, double correction) {
  using V = typename Results::V;
  using A = typename Results::A;
  const V freedom(static_cast<A>(std::max(0.0, static_cast<double>(n) - correction)));
  return row
      .template reduce<Sum>([&](const V& x, int64_t k) {
        const V d = x - mean.v[k];
        return d * d;
      })
      .map([&](const V& sum, int64_t) { return sum / freedom; });
}

at::Tensor mean(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return reduce<1>("mean", x, dims, keepdim, [](const auto& row, auto out, int64_t n) {
    row.store(out[0], mean_of(row, n));
  })[0];
}

std::tuple<at::Tensor, at::Tensor> var_mean(const at::Tensor& x, at::IntArrayRef dims, double correction,
                                            bool keepdim) {
  const auto results = reduce<2>("var_mean", x, dims, keepdim, [=](const auto& row, auto out, int64_t n) {
    const auto mean = mean_of(row, n);
    row.store(out[0], variance_of(row, mean, n, correction));
    row.store(out[1], mean);
  });
  return {results[0], results[1]};
}

at::Tensor var(const at::Tensor& x, at::IntArrayRef dims, double correction, bool keepdim) {
  return std::get<0>(var_mean(x, dims, correction, keepdim));
}

at::Tensor norm_2(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return reduce<1>("norm", x, dims, keepdim, [](const auto& row, auto out, int64_t) {
    using V = typename std::decay_t<decltype(row)>::V;
    const auto squares = row.template reduce<Sum>([](const V& v, int64_t) { return v * v; });
    row.store(out[0], squares.map([](const V& v, int64_t) { return v.sqrt(); }));
  })[0];
}

at::Tensor norm(const at::Tensor& x, double ord, at::IntArrayRef dims, bool keepdim) {
  if (ord < 0 || std::isinf(ord)) check_not_empty("norm", x, dims);
  if (ord == 2) return norm_2(x, dims, keepdim);
  return reduce<1, Walks::kRows>("norm", x, dims, keepdim, [=](const auto& row, auto out, int64_t) {
    using V = typename std::decay_t<decltype(row)>::V;
    using A = typename std::decay_t<decltype(row)>::A;
    const auto magnitude = [](const V& v, int64_t) { return v.abs(); };
    if (ord == kInfinity<double>) {
      row.store(out[0], row.template reduce<Maximum>(magnitude));
    } else if (ord == -kInfinity<double>) {
      row.store(out[0], row.template reduce<Minimum>(magnitude));
    } else if (ord == 0) {
      const auto nonzero = [](const V& v, int64_t) { return V::blendv(V(A(0)), V(A(1)), v != V(A(0))); };
      row.store(out[0], row.template reduce<Sum>(nonzero));
    } else if (ord == 1) {
      row.store(out[0], row.template reduce<Sum>(magnitude));
    } else {
      const V power(static_cast<A>(ord)), root(static_cast<A>(1 / ord));
      const auto powers = row.template reduce<Sum>([&](const V& v, int64_t) { return v.abs().pow(power); });
      row.store(out[0], powers.map([&](const V& v, int64_t) { return v.pow(root); }));
    }
  })[0];
}

at::Tensor logsumexp(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return reduce<1>("logsumexp", x, dims, keepdim, [](const auto& row, auto out, int64_t) {
    using V = typename std::decay_t<decltype(row)>::V;
    using A = typename std::decay_t<decltype(row)>::A;
    // An infinite maximum would make inf - inf of itself; the sum is then inf or 0 without any shift.
    const auto shift = row.template reduce<Maximum>(kElement).map([](const V& maximum, int64_t) {
      return V::blendv(maximum, V(A(0)), maximum.abs() == V(kInfinity<A>));
    });
    const auto sum = row.template reduce<Sum>([&](const V& v, int64_t k) { return (v - shift.v[k]).exp(); });
    row.store(out[0], sum.map([&](const V& v, int64_t k) { return v.log() + shift.v[k]; }));
  })[0];
}

template <class Tree>
at::Tensor index_of(const char* op, const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  check_not_empty(op, x, dims);
  const auto reduced = reduced_dims(x, dims);
  at::Tensor out = empty_result(x, reduced, keepdim, at::kLong);
  int64_t* indices = out.mutable_data_ptr<int64_t>();
  const RowView view(x, reduced);
  for_dtype(op, x.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* data = x.const_data_ptr<T>();
    for_each_task(view.rows, view.n, [&](int64_t row) {
      const Row<T> elements(view, data, row);
      indices[row] = elements.find(first<Acc<T>>(elements.template reduce<Tree>(kElement).v[0]));
    });
  });
  return out;
}

at::Tensor argmax(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return index_of<Maximum>("argmax", x, dims, keepdim);
}

at::Tensor argmin(const at::Tensor& x, at::IntArrayRef dims, bool keepdim) {
  return index_of<Minimum>("argmin", x, dims, keepdim);
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("sum", &sum);
  m.impl("mean", &mean);
  m.impl("prod", &prod);
  m.impl("amax", &amax);
  m.impl("amin", &amin);
  m.impl("argmax", &argmax);
  m.impl("argmin", &argmin);
  m.impl("var", &var);
  m.impl("var_mean", &var_mean);
  m.impl("norm", &norm);
  m.impl("logsumexp", &logsumexp);
}
