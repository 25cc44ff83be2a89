// Which elements of a scatter meet: the lines along its dim, walked in index order.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace {

// A dim of the index with its strides in three tensors.
struct Dim3 {
  int64_t size;
  int64_t index;
  int64_t src;
  int64_t out;
};

using Dims3 = c10::SmallVector<Dim3, 5>;

inline void append(Dims3& dims, const Dim3& dim) {
  if (dim.size == 1) return;
  if (!dims.empty()) {
    Dim3& outer = dims.back();
    if (outer.index == dim.index * dim.size && outer.src == dim.src * dim.size && outer.out == dim.out * dim.size) {
      outer = {outer.size * dim.size, dim.index, dim.src, dim.out};
      return;
    }
  }
  dims.push_back(dim);
}

// Elements that reach one slot lie on one line along dim. Lines are grouped in panels: neighbouring lines side by
// side, walked together.
class Lines {
 public:
  // All of rank at least 1; index and src of the same sizes; out as large as the slots.
  Lines(const at::Tensor& index, const at::Tensor& src, const at::Tensor& out, int64_t dim)
      : along_{index.size(dim), index.stride(dim), src.stride(dim), out.stride(dim)}, slots_(out.size(dim)), dim_(dim) {
    Dims3 inner;
    for (int64_t d = 0; d < index.dim(); ++d) {
      if (d != dim) append(d < dim ? panels_ : inner, {index.size(d), index.stride(d), src.stride(d), out.stride(d)});
    }
    if (!inner.empty()) {
      side_ = inner.back();
      inner.pop_back();
    }
    for (const Dim3& d : inner) panels_.push_back(d);
    for (const Dim3& d : panels_) count_ *= d.size;
  }

  // body(place in out, place in src) for every element of the index; along a line in ascending order.
  template <class Body>
  void walk(const int64_t* index, const Body& body) const {
    // A panel wide enough to share is cut: its index is read again by each part.
    constexpr int64_t kPart = 256;
    const int64_t parts = (side_.size + kPart - 1) / kPart;
    const int64_t elements = std::max<int64_t>(1, along_.size * std::min(side_.size, kPart));
    at::parallel_for(0, count_ * parts, std::max<int64_t>(1, 32768 / elements), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task % parts * kPart;
        walk_part(index, task / parts, first, std::min(side_.size, first + kPart), body);
      }
    });
  }

 private:
  template <class Body>
  void walk_part(const int64_t* index, int64_t panel, int64_t first, int64_t last, const Body& body) const {
    int64_t out = 0, src = 0;
    for (auto d = panels_.rbegin(); d != panels_.rend(); ++d) {
      const int64_t at = panel % d->size;
      panel /= d->size;
      index += at * d->index;
      src += at * d->src;
      out += at * d->out;
    }
    if (side_.size == 1) {
      for (int64_t i = 0; i < along_.size; ++i) {
        body(out + slot(index[i * along_.index]) * along_.out, src + i * along_.src);
      }
      return;
    }
    for (int64_t i = 0; i < along_.size; ++i, index += along_.index, src += along_.src) {
      if (side_.index != 0) {
        for (int64_t c = first; c < last; ++c) {
          body(out + slot(index[c * side_.index]) * along_.out + c * side_.out, src + c * side_.src);
        }
        continue;
      }
      // One index for a whole row.
      const int64_t row = out + slot(*index) * along_.out;
      if (side_.out == 1 && side_.src == 1) {
        for (int64_t c = first; c < last; ++c) body(row + c, src + c);
      } else {
        for (int64_t c = first; c < last; ++c) body(row + c * side_.out, src + c * side_.src);
      }
    }
  }

  int64_t slot(int64_t index) const {
    TORCH_CHECK_INDEX(index >= 0 && index < slots_, "index ", index, " is out of bounds for dimension ", dim_,
                      " with size ", slots_);
    return index;
  }

  Dim3 along_;
  Dim3 side_{1, 0, 0, 0};
  Dims3 panels_;
  int64_t count_ = 1;
  int64_t slots_;
  int64_t dim_;
};

}  // namespace
