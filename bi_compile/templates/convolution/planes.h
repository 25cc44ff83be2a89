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

  // 16 cells of a row: where they are read, and which of the 32 elements there lie inside of x.
  struct RowVector {
    int64_t from;
    uint16_t low, high;
  };
  std::vector<RowVector> row_vectors;  // of all remainders

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
    for (const int remainder : kept[2]) {
      for (int64_t i = 0; i < cells[2]; i += 16) {
        const int64_t from = low[2] + remainder + i * step[2];
        const int64_t begin = std::clamp<int64_t>(-from, 0, 32);
        const int64_t end = std::clamp<int64_t>(p.size[2] - from, begin, 32);
        const uint32_t inside = static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << begin));
        row_vectors.push_back({from, static_cast<uint16_t>(inside), static_cast<uint16_t>(inside >> 16)});
      }
    }
  }

  // Elements from one plane to the next, with the room behind it.
  template <class A>
  int64_t pitch() const {
    return int64_t(kept[0].size() * kept[1].size() * kept[2].size()) * product(cells) + kWidth<A>;
  }
  int64_t row(int64_t d, int64_t h) const { return (d * cells[1] + h) * cells[2]; }

  // Whether a plane is the channel as it lies in memory.
  template <class T>
  bool trivial(const Problem<T>& p) const {
    return std::is_same_v<T, Acc<T>> && low == Index{} && step == Index{1, 1, 1} && cells == p.size;
  }

  // One channel of x to a plane.
  template <class T>
  void fill(const Problem<T>& p, const T* channel, Acc<T>* out) const {
    for (const int rd : kept[0]) {
      for (const int rh : kept[1]) {
        const RowVector* vectors = row_vectors.data();
        for (const int rw : kept[2]) {
          for (int64_t id = 0; id < cells[0]; ++id) {
            const int64_t d = low[0] + rd + id * step[0];
            for (int64_t ih = 0; ih < cells[1]; ++ih, out += cells[2]) {
              const int64_t h = low[1] + rh + ih * step[1];
              const bool inside = d >= 0 && d < p.size[0] && h >= 0 && h < p.size[1];
              fill_row(channel + (d * p.size[1] + h) * p.size[2], inside ? p.size[2] : 0, low[2] + rw, vectors, out);
            }
          }
          vectors += ceil_div(cells[2], 16);
        }
      }
    }
  }

 private:
  // Cells of one remainder of a row of `width` elements; `first` is the coordinate of the first. Less than
  // a vector is written behind the last cell: rows are filled in the order of memory, and planes have room behind.
  template <class T>
  void fill_row(const T* row, int64_t width, int64_t first, const RowVector* vectors, Acc<T>* out) const {
    using A = Acc<T>;
    const int64_t s = step[2];
    if (width == 0) return std::fill(out, out + cells[2], A(0));
#if defined(BI_ISA_AVX512)
    if constexpr (std::is_same_v<T, float>) {
      if (s == 1) {
        for (int64_t i = 0; i < cells[2]; i += 16, ++vectors) {
          _mm512_storeu_ps(out + i, _mm512_maskz_loadu_ps(vectors->low, row + vectors->from));
        }
        return;
      }
      if (s == 2) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        for (int64_t i = 0; i < cells[2]; i += 16, ++vectors) {
          const __m512 low = _mm512_maskz_loadu_ps(vectors->low, row + vectors->from);
          const __m512 high = _mm512_maskz_loadu_ps(vectors->high, row + vectors->from + 16);
          _mm512_storeu_ps(out + i, _mm512_permutex2var_ps(low, even, high));
        }
        return;
      }
    }
#endif
    for (int64_t i = 0; i < cells[2]; i += kWidth<A>) {
      const int64_t at = first + i * s;  // the coordinate of cell i
      const int64_t count = std::min(kWidth<A>, cells[2] - i);
      if (s == 1 && at >= 0 && at + kWidth<A> <= width) {
        load(row + at, kWidth<A>).store(out + i);
        continue;
      }
      for (int64_t j = 0; j < count; ++j) {
        const int64_t w = at + j * s;
        out[i + j] = w >= 0 && w < width ? static_cast<A>(row[w]) : A(0);
      }
    }
  }

};

}  // namespace
