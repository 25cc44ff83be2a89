// What is computed: a correlation over a grid of positions. A convolution is one, a transposed convolution is one for
// each remainder of a position by the stride.
#pragma once

#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/row_vector.h"
#include "cpu/simd.h"

namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

using Index = std::array<int64_t, 3>;  // depth, height, width

inline int64_t product(const Index& i) { return i[0] * i[1] * i[2]; }

// out[n, m, o] = bias[m] + sum over (c, t) of weights[m, (c, t)] * x[n, group of m, c, o * step + offsets[t]],
// where x is zero outside of its size.
template <class T>
struct Problem {
  int64_t images, groups, inputs, outputs;  // channels of one group
  const T* x;                               // [images, groups * inputs, size], contiguous
  Index size;
  Index grid, step;
  std::vector<Index> offsets;  // of the taps, in the order of the sum
  const Acc<T>* weights;       // [groups * outputs, length()], contiguous
  const T* bias;               // null for none
  T* out;
  int64_t out_image, out_channel;  // strides
  Index out_stride;

  int64_t taps() const { return static_cast<int64_t>(offsets.size()); }
  int64_t length() const { return inputs * taps(); }
  int64_t positions() const { return product(grid); }
  bool dense_out() const {
    return out_stride[2] == 1 && out_stride[1] == grid[2] && out_stride[0] == grid[1] * grid[2];
  }
};

// Memory of one thread, kept between calls: fresh pages would cost more than a small convolution.
template <class P>
P* workspace(int slot, int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  static thread_local Buffer buffers[3];
  Buffer& buffer = buffers[slot];
  const size_t bytes = (count * sizeof(P) + 4095) / 4096 * 4096;
  if (bytes > buffer.bytes) {
    buffer.memory.reset();
    buffer.memory.reset(std::aligned_alloc(4096, bytes));
    TORCH_CHECK(buffer.memory, "bi_compile: out of memory for ", bytes, " bytes of scratch space");
    buffer.bytes = bytes;
  }
  return static_cast<P*>(buffer.memory.get());
}

}  // namespace
