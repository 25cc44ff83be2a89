// Many output channels read the same window: positions are the columns of a product of matrices, packed from the planes
// a block at a time, output channels its rows, read where they lie.
#pragma once

#include <ATen/Parallel.h>

#include "convolution/chain.h"
#include "convolution/planes.h"

namespace {

// Neighbouring positions that lie side by side in the planes, at most one vector of them, and where they are packed.
struct Piece {
  int64_t source, column, count;

  template <class A>
  Vec<A> read(const A* from) const {
#if defined(BI_ISA_AVX512)
    if constexpr (std::is_same_v<A, float>) {
      return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from + source);
    }
#endif
    return load(from + source, count);
  }
};

// Outputs of one channel that lie `stride` apart.
struct Target {
  int64_t out, stride, column, count;
};

// Calls each(column, length, offset in planes or output) for runs of positions [first, first + count) of the images
// that stay within rows of `row` positions and within `most`.
template <class T, class Each>
void for_each_run(const Problem<T>& p, int64_t first, int64_t count, int64_t row, int64_t most, const Each& each) {
  for (int64_t column = 0; column < count;) {
    const int64_t n = (first + column) / p.positions(), o = (first + column) % p.positions();
    const int64_t length = std::min({count - column, row - o % row, most});
    each(column, length, n, Index{o / p.grid[2] / p.grid[1], o / p.grid[2] % p.grid[1], o % p.grid[2]});
    column += length;
  }
}

// One panel of columns: positions [first, first + count) of the images of a block, image after image.
template <class T>
struct Panel {
  std::vector<Target> targets;
  int64_t count, vectors;

  Panel(const Problem<T>& p, int64_t first, int64_t count)
      : count(count), vectors(ceil_div(count, Fma<Acc<T>>::kWidth)) {
    const int64_t row = p.dense_out() ? p.positions() : p.grid[2];
    for_each_run(p, first, count, row, count, [&](int64_t column, int64_t length, int64_t n, const Index& o) {
      int64_t out = n * p.out_image;
      for (int d = 0; d < 3; ++d) out += o[d] * p.out_stride[d];
      targets.push_back({out, p.out_stride[2], column, length});
    });
  }

  // Whether the panel is whole vectors that lie in one piece in the output.
  bool whole() const {
    return targets.size() == 1 && targets[0].stride == 1 && count == vectors * Fma<Acc<T>>::kWidth;
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

// From one packed panel to the next: the last piece of a panel is a whole vector, whatever its count.
template <class A>
int64_t panel_pitch(int64_t length) {
  return length * kColumns<A> + kWidth<A>;
}

// Appends a panel and its pieces; images are `image` apart in the planes.
template <class T>
void add_panel(const Problem<T>& p, const Planes& planes, int64_t image, int64_t first, int64_t count,
               std::vector<Panel<T>>& panels, std::vector<Piece>& pieces) {
  const int64_t at = int64_t(panels.size()) * panel_pitch<Acc<T>>(p.length());
  panels.emplace_back(p, first, count);
  int64_t row = p.grid[2];
  if (planes.cells[2] == p.grid[2]) row *= p.grid[1] * (planes.cells[1] == p.grid[1] ? p.grid[0] : 1);
  for_each_run(p, first, count, row, kWidth<Acc<T>>, [&](int64_t column, int64_t length, int64_t n, const Index& o) {
    pieces.push_back({n * image + planes.row(o[0], o[1]) + o[2], at + column, length});
  });
}

// columns[step * kColumns + column] of all panels at once, in the order of the planes. Pieces are written as whole
// vectors: what is behind a piece is written over by the next piece, or by the next step.
template <class A>
void pack(const A* planes, const std::vector<int64_t>& steps, const std::vector<Piece>& pieces, A* columns) {
  for (const int64_t step : steps) {
    for (const Piece& piece : pieces) piece.read(planes + step).store(columns + piece.column);
    columns += kColumns<A>;
  }
}

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
        Output<A> output;
        if constexpr (kTilesFinish<A> && std::is_same_v<T, A>) {
          if (chunks == 1 && panels[j].whole()) {
            output = {out + panels[j].targets[0].out + channel * p.out_channel, p.out_channel,
                      p.bias ? p.bias + channel : nullptr};
          }
        }
        const A* rows = p.weights + channel * length + start;
        const A* next = last ? p.weights + (channel + tile_rows) * length : rows + kChunk;
        chain_tile_of<A>(tile_rows, panels[j].vectors)(rows, length, columns + j * panel_pitch<A>(length) + start * kColumns<A>,
                                                       steps, j == 0 ? next : nullptr, sums, output);
        if (output.data) continue;
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
  constexpr int64_t kBytes = 384 << 10, kMostPanels = 16;
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
    A* columns = workspace<A>(0, block * panel_pitch<A>(length));
    std::vector<Panel<T>> packed;
    std::vector<Piece> pieces;
    int64_t packed_task = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / parts / blocks, part = task % parts;
      if (task / parts != packed_task) {
        packed_task = task / parts;
        packed.clear();
        pieces.clear();
        const int64_t first = packed_task % blocks * block * kColumns<A>;
        const int64_t last = std::min(positions, first + block * kColumns<A>);
        for (int64_t at = first; at < last; at += kColumns<A>) {
          add_panel(p, planes, image, at, std::min(kColumns<A>, last - at), packed, pieces);
        }
        pack(data + group * p.inputs * plane, steps, pieces, columns);
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
  const int64_t plane = planes.template pitch<A>(), image = channels * plane;
  const int64_t together =
      std::clamp<int64_t>(kBytes / std::max<int64_t>(1, image * int64_t(sizeof(A))), 1, p.images);
  A* data = workspace<A>(2, together * image);
  for (int64_t n = 0; n < p.images; n += together) {
    const int64_t images = std::min(together, p.images - n);
    at::parallel_for(0, images * channels, std::max<int64_t>(1, (1 << 15) / (plane + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) planes.fill(p, p.x + (n * channels + c) * channel, data + c * plane);
    });
    dense_block(p, planes, data, plane, image, images, p.out + n * p.out_image);
  }
}

}  // namespace
