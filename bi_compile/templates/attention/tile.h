// A tile: rows (queries, and for each the query heads of one group) that share the keys and values of one kv head, and
// the places where their blocks start. How rows are grouped into tiles and strips enters no row's bits.
#pragma once

#include "attention/careful.h"

namespace {

// The rows of a tile to be: first ... first + count - 1 of a kv head, in `order` if there is one.
struct Span {
  int64_t b, kv_head, first, count;
  const int64_t* order;
  bool one_split;  // whatever keys the rows see together, each sees so few that they are one split

  int64_t row(int64_t r) const { return order ? order[first + r] : first + r; }
};

// What one block needs, for the tiles of a thread one after the other. Products: of queries and keys, and of weights and
// values, one block at a time: `Chains` or one of its like.
template <class T, class Products>
struct Workspace {
  using A = Acc<T>;
  static constexpr int64_t kScores = Products::kStrip * kBlock;

  static size_t bytes(const Problem<T>& problem) { return Products::bytes(problem) + 2 * Arena::bytes<A>(kScores); }
  Workspace(const Problem<T>& problem, Arena& arena)
      : products(problem, arena), scores(arena.take<A>(kScores)), masks(arena.take<A>(kScores)) {}

  Products products;
  A *scores, *masks;
};

template <class T, class Products>
class Tile {
  using A = Acc<T>;
  using Query = typename Products::Query;
  static constexpr int64_t kStrip = Products::kStrip;

 public:
  static size_t bytes(const Problem<T>& problem, int64_t rows) {
    return Arena::bytes<Query>(Products::query_elements(problem, rows)) +
           2 * Arena::bytes<A>(state_size(problem, rows));
  }

  Tile(const Problem<T>& problem, Workspace<T, Products>& workspace, Arena& arena, const Span& span)
      : problem_(problem),
        work_(workspace),
        span_(span),
        b_(span.b),
        kv_head_(span.kv_head),
        rows_(span.count),
        begin_(range(0).begin) {
    queries_ = arena.take<Query>(Products::query_elements(problem, rows_));
    part = state_at(problem, rows_, arena.take<A>(state_size(problem, rows_)));
    total = state_at(problem, rows_, arena.take<A>(state_size(problem, rows_)));
    for (int64_t r = 0; r < rows_; ++r) {
      work_.products.set_query(queries_, r, rows_, problem.q_row(b_, head(r), query(r)));
      attended_ = std::max(attended_, range(r).end);
    }
  }

  static int64_t out_stride(const Problem<T>& problem) { return round_up(problem.value_size, kLanes); }
  static int64_t state_size(const Problem<T>& problem, int64_t rows) {
    return rows * out_stride(problem) + 2 * strips(rows) * kLanes;
  }
  static State<A> state_at(const Problem<T>& problem, int64_t rows, A* memory) {
    A* maximum = memory + rows * out_stride(problem);
    return {maximum, maximum + strips(rows) * kLanes, memory};
  }

  const Span& span() const { return span_; }

  // Asks for keys and values while it computes the block before them, in the order in which they are read: after a
  // block comes the same one of `next` or, if this tile is the last of its company, the one behind that; after the last
  // block of the last tile the first of `following`, if there is one.
  void read_ahead(const Tile& next, bool is_last, const Span* following) {
    next_ = &next, is_last_ = is_last, following_ = following;
  }

  // Splits of the row that has most.
  int64_t splits() const {
    return span_.one_split ? 1 : (attended_ - begin_ + BI_ATTENTION_KV_SPLIT - 1) / BI_ATTENTION_KV_SPLIT;
  }

  void clear(State<A> state) const {
    std::fill_n(state.out, rows_ * out_stride(problem_), A(0));
    std::fill_n(state.maximum, strips(rows_) * kLanes, -kInfinity<A>);
    std::fill_n(state.sum, strips(rows_) * kLanes, A(0));
  }

  // A block, counted within a split, into the split's state, which was cleared before its first. False if there is none.
  bool run_block(int64_t split, int64_t block, State<A> state) {
    if (span_.one_split && split > 0) return false;
    const int64_t begin = begin_ + split * BI_ATTENTION_KV_SPLIT, first = begin + block * kBlock;
    const int64_t end = span_.one_split ? attended_ : std::min<int64_t>(attended_, begin + BI_ATTENTION_KV_SPLIT);
    if (first >= end) return false;
    take_in(first, static_cast<int>(std::min<int64_t>(kBlock, end - first)), state);
    return true;
  }

  void merge(State<A> into, State<A> from) const {
    const int64_t stride = out_stride(problem_);
    for (int64_t r = 0; r < rows_; r += kStrip)
      merge_strip(strip_rows(r), stride, strip(into, r), strip(from, r));
  }

  // Divides, rounds and writes the rows' outputs and logsumexps.
  void finish(State<A> state) const {
    const int64_t size = problem_.value_size, stride = out_stride(problem_);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t slot = r / kStrip * kLanes + r % kStrip;
      const A sum = state.sum[slot], inverse = sum == 0 ? A(0) : 1 / sum;
      A* row = state.out + r * stride;
      // Adding 0 turns -0 into +0: a row would otherwise tell keys of weight 0 from no keys.
      using V = Vec<A>;
      const V factor = V::broadcast(inverse), zero = V::broadcast(0);
      bool nan = false;
      for (int64_t i = 0; i < stride; i += V::width) {
        const V x = V::load(row + i) * factor + zero;
        nan |= any(x.nan());
        x.store(row + i);
      }
      if (nan && sum == sum) {
        const std::vector<A> careful = careful_row<T, typename Products::Careful>(problem_, b_, head(r), query(r));
        for (int64_t d = 0; d < size; ++d) row[d] = careful[d] * inverse + A(0);
      }
      store_rounded(row, size, problem_.out_row(b_, head(r), query(r)));
      *problem_.lse_at(b_, head(r), query(r)) = logsumexp(state.maximum[slot], sum);
    }
  }

  State<A> part, total;

 private:
  static int64_t strips(int64_t rows) { return (rows + kStrip - 1) / kStrip; }
  int64_t head(int64_t r) const { return kv_head_ * problem_.group() + span_.row(r) % problem_.group(); }
  int64_t query(int64_t r) const { return span_.row(r) / problem_.group(); }
  Range range(int64_t r) const { return problem_.range(b_, head(r), query(r)); }
  int strip_rows(int64_t r) const { return static_cast<int>(std::min<int64_t>(kStrip, rows_ - r)); }
  State<A> strip(State<A> state, int64_t r) const {
    const int64_t slot = r / kStrip * kLanes;
    return {state.maximum + slot, state.sum + slot, state.out + r * out_stride(problem_)};
  }

  static A logsumexp(A maximum, A sum) {
    if (sum == 0) return -kInfinity<A>;
    if (sum != sum) return kNaN<A>;
    return static_cast<A>(maximum + log_positive(sum));
  }

  // What is read after this tile's block at `first`; empty if nothing is, or if it is not asked for.
  Block<T> read_after(int64_t first) const {
    if (next_ == nullptr) return {};
    const int64_t at = next_->begin_ + first - begin_ + (is_last_ ? kBlock : 0);
    if (at < next_->attended_) return problem_.block(next_->b_, next_->kv_head_, at, next_->attended_ - at);
    if (!is_last_ || following_ == nullptr) return {};
    const int64_t row = following_->row(0), group = problem_.group();
    const Range keys = problem_.range(following_->b, following_->kv_head * group + row % group, row / group);
    return problem_.block(following_->b, following_->kv_head, keys.begin, keys.end - keys.begin);
  }

  void take_in(int64_t first, int count, State<A> state) {
    work_.products.begin(problem_.block(b_, kv_head_, first, count), rows_, read_after(first));
    for (int64_t& offset : mask_offset_) offset = -1;
    for (int64_t r = 0; r < rows_; r += kStrip) {
      const int rows = strip_rows(r);
      int attended[kStrip], seen = 0;
      for (int i = 0; i < rows; ++i) {
        const Range keys = range(r + i);
        // A row whose keys begin later or are over only keeps the others company.
        attended[i] = keys.begin < first + count ? static_cast<int>(std::clamp<int64_t>(keys.end - first, 0, count)) : 0;
        seen = std::max(seen, attended[i]);
      }
      const A* mask[kStrip] = {};
      if (seen == 0 || !read_masks(first, count, r, rows, attended, mask)) continue;
      const State<A> now = strip(state, r);
      A alpha[kLanes];
      work_.products.score(queries_, r, rows, seen, work_.scores);
      softmax_block(rows, work_.scores, problem_.scale, problem_.softcap, mask, problem_.mask_lowest, attended, now.maximum,
                    now.sum, alpha);
      work_.products.accumulate(rows, seen, work_.scores, alpha, now.out);
    }
  }

  // Points mask[i] at what row r + i adds to its scores. False when -infinity masks the block for all of them:
  // leaving it out changes nothing.
  bool read_masks(int64_t block, int count, int64_t r, int rows, const int* attended, const A** mask) {
    bool needed = problem_.mask_kind == MaskKind::none;
    problem_.with_mask([&](const auto* entries) {
      const int64_t stride = problem_.mask_stride[3];
      for (int i = 0; i < rows; ++i) {
        if (attended[i] == 0) continue;
        const int64_t offset = problem_.mask_row(b_, head(r + i), query(r + i)) + block * stride;
        // Rows often share one mask: slot 0 is looked at first.
        const int slot = mask_offset_[0] == offset ? 0 : i;
        if (mask_offset_[slot] != offset) {
          mask_empty_[slot] = pack_mask(entries + offset, stride, count, work_.masks + slot * kBlock);
          mask_offset_[slot] = offset;
        }
        mask[i] = work_.masks + slot * kBlock;
        needed |= !mask_empty_[slot];
      }
    });
    return needed;
  }

  const Problem<T>& problem_;
  Workspace<T, Products>& work_;
  const Span& span_;
  const int64_t b_, kv_head_, rows_, begin_;
  const Tile* next_ = nullptr;
  bool is_last_ = false;
  const Span* following_ = nullptr;
  int64_t attended_ = 0;
  Query* queries_;
  int64_t mask_offset_[kStrip];
  bool mask_empty_[kStrip];
};

}  // namespace
