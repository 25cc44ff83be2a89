// Tiles that walk their keys together, a block at a time. In which order blocks of different rows are computed enters
// no row's bits.
#pragma once

#include "attention/tile.h"

namespace {

template <class T, class Products>
class Walk {
  using Work = Workspace<T, Products>;

 public:
  using Tile = ::Tile<T, Products>;

  // following: the span that is read after these, if there is one.
  Walk(const Problem<T>& problem, Arena& arena, const Span* spans, int64_t count, const Span* following)
      : work_(problem, with_room(arena, problem, spans, count)) {
    tiles.reserve(count);
    for (int64_t i = 0; i < count; ++i) tiles.emplace_back(problem, work_, arena, spans[i]);
    for (int64_t i = 0; i < count && problem.is_far(); ++i)
      tiles[i].read_ahead(tiles[(i + 1) % count], i + 1 == count, following);
  }

  // All blocks of one split of every tile; state_of(tile) is where they go.
  template <class F>
  void run_split(int64_t split, F state_of) {
    for (Tile& tile : tiles) tile.clear(state_of(tile));
    bool more = true;
    for (int64_t block = 0; more; ++block) {
      more = false;
      for (Tile& tile : tiles) more |= tile.run_block(split, block, state_of(tile));
    }
  }

  // Of the tile that has most.
  int64_t splits() const {
    int64_t most = 0;
    for (const Tile& tile : tiles) most = std::max(most, tile.splits());
    return most;
  }

  std::vector<Tile> tiles;

 private:
  static Arena& with_room(Arena& arena, const Problem<T>& problem, const Span* spans, int64_t count) {
    size_t bytes = Work::bytes(problem);
    for (int64_t i = 0; i < count; ++i) bytes += Tile::bytes(problem, spans[i].count);
    arena.reset(bytes);
    return arena;
  }

  Work work_;
};

}  // namespace
