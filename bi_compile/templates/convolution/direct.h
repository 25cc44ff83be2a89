// Few output channels read a short window, as in depthwise convolutions: each channel is computed from its planes,
// vectors of positions in the order of the planes.
#pragma once

#include <ATen/Parallel.h>

#include "convolution/chain.h"
#include "convolution/planes.h"

namespace {

constexpr int kDirectVectors = 8;

// sums of `Vectors` vectors of positions from `plane` on.
template <class A, int Vectors>
void chain_positions(const A* plane, const int64_t* steps, int64_t length, const A* weights, A* sums) {
  using F = Fma<A>;
  using V = typename F::V;
  V sum[Vectors];
  for (int j = 0; j < Vectors; ++j) sum[j] = F::zero();
  for (int64_t k = 0; k < length; ++k) {
    const V weight = F::broadcast(weights[k]);
    const A* at = plane + steps[k];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) sum[j] = F::fma(weight, F::load(at + j * F::kWidth), sum[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < Vectors; ++j) F::store(sums + j * F::kWidth, sum[j]);
}

template <class A>
using ChainPositions = void (*)(const A*, const int64_t*, int64_t, const A*, A*);

template <class A, int... Vectors>
ChainPositions<A> chain_positions_of(int64_t vectors, std::integer_sequence<int, Vectors...>) {
  static constexpr ChainPositions<A> kernels[] = {&chain_positions<A, Vectors + 1>...};
  return kernels[vectors - 1];
}

// The kernel for 1 <= vectors <= kDirectVectors.
template <class A>
ChainPositions<A> chain_positions_of(int64_t vectors) {
  return chain_positions_of<A>(vectors, std::make_integer_sequence<int, kDirectVectors>());
}

// Whether the sum is one chain and the channels of a group are too few to share packed columns.
template <class T>
bool is_direct(const Problem<T>& p) {
  return p.groups > 1 && p.outputs <= 4 && p.length() <= kChunk;
}

template <class T>
void direct_group(const Problem<T>& p, const Planes& planes, const std::vector<int64_t>& steps, int64_t image,
                  int64_t group) {
  using A = Acc<T>;
  const int64_t size = planes.template pitch<A>(), channel = product(p.size), width = Fma<A>::kWidth;
  const int64_t positions = planes.row(p.grid[0] - 1, p.grid[1] - 1) + p.grid[2];
  A* data = workspace<A>(0, (p.inputs + 1) * size);
  A* sums = workspace<A>(1, ceil_div(positions, width) * width);
  for (int64_t c = 0; c < p.inputs; ++c) {
    planes.fill(p, p.x + ((image * p.groups + group) * p.inputs + c) * channel, data + c * size);
  }
  for (int64_t m = group * p.outputs; m < (group + 1) * p.outputs; ++m) {
    const A* weights = p.weights + m * p.length();
    for (int64_t o = 0; o < positions; o += kDirectVectors * width) {
      const int64_t vectors = std::min<int64_t>(kDirectVectors, ceil_div(positions - o, width));
      chain_positions_of<A>(vectors)(data + o, steps.data(), p.length(), weights, sums + o);
    }
    T* out = p.out + image * p.out_image + m * p.out_channel;
    const T* bias = p.bias ? p.bias + m : nullptr;
    for (int64_t d = 0; d < p.grid[0]; ++d) {
      for (int64_t h = 0; h < p.grid[1]; ++h) {
        const A* row = sums + planes.row(d, h);
        T* to = out + d * p.out_stride[0] + h * p.out_stride[1];
        if (p.out_stride[2] == 1) {
          finish(row, bias, p.grid[2], to);
          continue;
        }
        for (int64_t w = 0; w < p.grid[2]; ++w) finish(row + w, bias, 1, to + w * p.out_stride[2]);
      }
    }
  }
}

template <class T>
void direct(const Problem<T>& p) {
  using A = Acc<T>;
  const Planes planes(p);
  std::vector<int64_t> steps;
  for (int64_t c = 0; c < p.inputs; ++c) {
    for (const int64_t tap : planes.taps) steps.push_back(c * planes.template pitch<A>() + tap);
  }
  const int64_t work = p.outputs * p.positions() * (p.length() + 1);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / work);
  at::parallel_for(0, p.images * p.groups, grain, [&](int64_t begin, int64_t end) {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    for (int64_t task = begin; task < end; ++task) direct_group(p, planes, steps, task / p.groups, task % p.groups);
  });
}

}  // namespace
