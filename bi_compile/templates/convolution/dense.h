// Many output channels read the same window: positions are the columns of a product of matrices, packed from the planes
// a block at a time, output channels its rows, read where they lie.
#pragma once

#include <ATen/Parallel.h>

#include "convolution/chain.h"
#include "convolution/planes.h"

namespace {

// Neighbouring positions that lie side by side, at most one vector of them.
struct Piece {
  int64_t source, column, count;
};

// Outputs of one channel that lie `stride` apart.
struct Target {
  int64_t out, stride, column, count;
};

// One panel of columns: positions [first, first + count) of the images of a block, image after image.
template <class T>
struct Panel {
  std::vector<Piece> pieces;
  std::vector<Target> targets;
  int64_t count, vectors;

  // `image` is the distance of images in the planes.
  Panel(const Problem<T>& p, const Planes& planes, int64_t image, int64_t first, int64_t count) : count(count) {
    using A = Acc<T>;
    vectors = ceil_div(count, Fma<A>::kWidth);
    // Positions that are contiguous in the planes, or in the output.
    int64_t row = p.grid[2];
    if (planes.cells[2] == p.grid[2]) row *= p.grid[1] * (planes.cells[1] == p.grid[1] ? p.grid[0] : 1);
    const int64_t out_row = p.dense_out() ? p.positions() : p.grid[2];
    for (int64_t column = 0; column < count;) {
      const int64_t n = (first + column) / p.positions(), o = (first + column) % p.positions();
      const int64_t length = std::min({count - column, row - o % row, kWidth<A>});
      const int64_t d = o / p.grid[2] / p.grid[1], h = o / p.grid[2] % p.grid[1];
      pieces.push_back({n * image + planes.row(d, h) + o % p.grid[2], column, length});
      column += length;
    }
    for (int64_t column = 0; column < count;) {
      const int64_t n = (first + column) / p.positions(), o = (first + column) % p.positions();
      const int64_t length = std::min(count - column, out_row - o % out_row);
      const int64_t d = o / p.grid[2] / p.grid[1], h = o / p.grid[2] % p.grid[1], w = o % p.grid[2];
      const int64_t out = n * p.out_image + d * p.out_stride[0] + h * p.out_stride[1] + w * p.out_stride[2];
      targets.push_back({out, p.out_stride[2], column, length});
      column += length;
    }
  }

  // columns[step * kColumns + column] of all steps; a step may write over the beginning of the next.
  void pack(const Acc<T>* planes, const std::vector<int64_t>& steps, Acc<T>* columns) const {
    using A = Acc<T>;
    for (const int64_t step : steps) {
      for (const Piece& piece : pieces) {
        load(planes + step + piece.source, piece.count).store(columns + piece.column);
      }
      columns += kColumns<A>;
    }
  }

  void write(const Acc<T>* sums, const T* bias, T* out) const {
    if (targets.size() == 1 && targets[0].stride == 1) return finish(sums, bias, count, out + targets[0].out);
    T rounded[kColumns<Acc<T>>];
    finish(sums, bias, count, rounded);
    for (const Target& target : targets) {
      T* to = out + target.out;
      for (int64_t j = 0; j < target.count; ++j) to[j * target.stride] = rounded[target.column + j];
    }
  }
};

// Rows [first, first + count) of a group times the packed panels.
template <class T>
void dense_rows(const Problem<T>& p, int64_t group, int64_t first, int64_t count, const std::vector<Panel<T>>& panels,
                const Acc<T>* columns, T* out) {
  using A = Acc<T>;
  constexpr int64_t kTile = kTileRows * kColumns<A>;
  const int64_t length = p.length(), chunks = std::max<int64_t>(1, ceil_div(length, kChunk));
  const int64_t height = ceil_div(count, kTileRows), width = static_cast<int64_t>(panels.size());
  A* levels = workspace<A>(1, counter_levels(chunks) * width * kTile);
  for (int64_t place = 0; place < height; ++place) {
    // Tiles of nearly equal height: a tile of one row would wait for its own sums.
    const int64_t begin = place * count / height, tile_rows = (place + 1) * count / height - begin;
    const int64_t channel = group * p.outputs + first + begin;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const bool last = chunk + 1 == chunks;
      const int64_t start = chunk * kChunk, steps = std::min(kChunk, length - start);
      for (int64_t j = 0; j < width; ++j) {
        alignas(64) A sums[kTile];
        chain_tile_of<A>(tile_rows, panels[j].vectors)(p.weights + channel * length + start, length,
                                                       columns + (j * length + start) * kColumns<A>, steps, sums);
        const auto slot = [&](int64_t level) { return levels + (level * width + j) * kTile; };
        const int64_t level = combine(sums, tile_rows * kColumns<A>, chunk, last, slot);
        if (!last) {
          std::copy(sums, sums + tile_rows * kColumns<A>, slot(level));
          continue;
        }
        for (int64_t i = 0; i < tile_rows; ++i) {
          panels[j].write(sums + i * kColumns<A>, p.bias ? p.bias + channel + i : nullptr,
                          out + (channel + i) * p.out_channel);
        }
      }
    }
  }
}

// Images [0, images) whose planes are given: channels `plane` apart, images `image`.
template <class T>
void dense_block(const Problem<T>& p, const Planes& planes, const Acc<T>* data, int64_t plane, int64_t image,
                 int64_t images, T* out) {
  using A = Acc<T>;
  constexpr int64_t kBytes = 1 << 20, kMostPanels = 16;
  const int64_t length = p.length(), threads = at::get_num_threads();
  const int64_t positions = images * p.positions(), panels = ceil_div(positions, kColumns<A>);
  const int64_t fitting = kBytes / (std::max<int64_t>(1, length) * kColumns<A> * int64_t(sizeof(A)));
  const int64_t block = std::clamp<int64_t>(std::min(fitting, ceil_div(panels, threads)), 1, kMostPanels);
  const int64_t blocks = ceil_div(panels, block);
  // A few pieces of work for each thread; those that share their columns come one after the other.
  const int64_t wanted = threads == 1 ? 1 : ceil_div(4 * threads, p.groups * blocks);
  const int64_t parts = std::min(wanted, ceil_div(p.outputs, 2 * kTileRows));
  std::vector<int64_t> steps;
  for (int64_t c = 0; c < p.inputs; ++c) {
    for (const int64_t tap : planes.taps) steps.push_back(c * plane + tap);
  }
  const int64_t work = block * kColumns<A> * std::max<int64_t>(1, length) * ceil_div(p.outputs, parts);
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / work);
  at::parallel_for(0, p.groups * blocks * parts, grain, [&](int64_t begin, int64_t end) {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    A* columns = workspace<A>(0, block * length * kColumns<A> + kWidth<A>);
    std::vector<Panel<T>> packed;
    int64_t packed_task = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / parts / blocks, part = task % parts;
      if (task / parts != packed_task) {
        packed_task = task / parts;
        packed.clear();
        const int64_t first = packed_task % blocks * block * kColumns<A>;
        const int64_t last = std::min(positions, first + block * kColumns<A>);
        for (int64_t at = first; at < last; at += kColumns<A>) {
          packed.emplace_back(p, planes, image, at, std::min(kColumns<A>, last - at));
          packed.back().pack(data + group * p.inputs * plane, steps,
                             columns + (int64_t(packed.size()) - 1) * length * kColumns<A>);
        }
      }
      const int64_t from = part * p.outputs / parts, to = (part + 1) * p.outputs / parts;
      dense_rows(p, group, from, to - from, packed, columns, out);
    }
  });
}

template <class T>
void dense(const Problem<T>& p) {
  using A = Acc<T>;
  const Planes planes(p);
  const int64_t channels = p.groups * p.inputs, channel = product(p.size);
  if constexpr (std::is_same_v<T, A>) {
    if (planes.trivial(p)) return dense_block(p, planes, p.x, channel, channels * channel, p.images, p.out);
  }
  // As many images at a time as stay in the caches.
  constexpr int64_t kBytes = 4 << 20;
  const int64_t plane = planes.size(), image = channels * plane;
  const int64_t together =
      std::clamp<int64_t>(kBytes / std::max<int64_t>(1, image * int64_t(sizeof(A))), 1, p.images);
  A* data = workspace<A>(2, together * image + kWidth<A>);
  for (int64_t n = 0; n < p.images; n += together) {
    const int64_t images = std::min(together, p.images - n);
    at::parallel_for(0, images * channels, std::max<int64_t>(1, (1 << 15) / (plane + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) planes.fill(p, p.x + (n * channels + c) * channel, data + c * plane);
    });
    dense_block(p, planes, data, plane, image, images, p.out + n * p.out_image);
  }
}

}  // namespace
