// Copies of the channels of an image in which every tap reads neighbouring positions side by side.
//
// A plane holds the padding as zeros. Coordinates that leave the same remainder by the step lie together, so position o
// of a tap is at tap + position(o), whatever the step: cells of a row are contiguous, and rows have one pitch.
#pragma once

#include <algorithm>

#include "convolution/problem.h"

namespace {

struct Planes {
  Index low{};                           // the first coordinate
  std::array<std::vector<int>, 3> kept;  // the remainders that some tap reads
  Index cells{};                         // coordinates of one remainder
  Index step{};
  std::vector<int64_t> taps;             // offsets in a plane

  template <class T>
  explicit Planes(const Problem<T>& p) : step(p.step) {
    for (int d = 0; d < 3; ++d) {
      low[d] = 0;
      for (const Index& offset : p.offsets) low[d] = std::min(low[d], offset[d]);
      std::vector<bool> used(step[d]);
      cells[d] = p.grid[d];
      for (const Index& offset : p.offsets) {
        used[(offset[d] - low[d]) % step[d]] = true;
        cells[d] = std::max(cells[d], (offset[d] - low[d]) / step[d] + p.grid[d]);
      }
      for (int64_t r = 0; r < step[d]; ++r) {
        if (used[r]) kept[d].push_back(static_cast<int>(r));
      }
    }
    for (const Index& offset : p.offsets) {
      int64_t block = 0, cell = 0;
      for (int d = 0; d < 3; ++d) {
        const int64_t from = offset[d] - low[d];
        const auto& k = kept[d];
        block = block * int64_t(k.size()) + (std::lower_bound(k.begin(), k.end(), from % step[d]) - k.begin());
        cell = cell * cells[d] + from / step[d];
      }
      taps.push_back(block * product(cells) + cell);
    }
  }

  int64_t size() const {
    return int64_t(kept[0].size()) * int64_t(kept[1].size()) * int64_t(kept[2].size()) * product(cells);
  }
  int64_t row(int64_t d, int64_t h) const { return (d * cells[1] + h) * cells[2]; }

  // Whether a plane is the channel as it lies in memory.
  template <class T>
  bool trivial(const Problem<T>& p) const {
    return std::is_same_v<T, Acc<T>> && low == Index{} && step == Index{1, 1, 1} && cells == p.size;
  }

  // One channel of x to out[size()].
  template <class T>
  void fill(const Problem<T>& p, const T* channel, Acc<T>* out) const {
    for (const int rd : kept[0]) {
      for (const int rh : kept[1]) {
        for (const int rw : kept[2]) {
          for (int64_t id = 0; id < cells[0]; ++id) {
            const int64_t d = low[0] + rd + id * step[0];
            for (int64_t ih = 0; ih < cells[1]; ++ih, out += cells[2]) {
              const int64_t h = low[1] + rh + ih * step[1];
              const bool inside = d >= 0 && d < p.size[0] && h >= 0 && h < p.size[1];
              fill_row(channel + (d * p.size[1] + h) * p.size[2], inside ? p.size[2] : 0, low[2] + rw, out);
            }
          }
        }
      }
    }
  }

 private:
  // Cells of one remainder of a row of `width` elements; `first` is the coordinate of the first.
  template <class T>
  void fill_row(const T* row, int64_t width, int64_t first, Acc<T>* out) const {
    using A = Acc<T>;
    const int64_t s = step[2];
    const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(0, -first), s), 0, cells[2]);
    const int64_t end = std::clamp<int64_t>(width > first ? ceil_div(width - first, s) : 0, begin, cells[2]);
    for (int64_t i = 0; i < begin; ++i) out[i] = 0;
    if (s == 1) {
      const T* source = row + first + begin;
      for (int64_t i = begin; i < end; i += kWidth<A>, source += kWidth<A>) {
        const int64_t count = std::min(kWidth<A>, end - i);
        const Vec<A> value = load(source, count);
        count == kWidth<A> ? value.store(out + i) : value.store(out + i, count);
      }
    } else {
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<A>(row[first + i * s]);
    }
    for (int64_t i = end; i < cells[2]; ++i) out[i] = 0;
  }
};

}  // namespace
