// A tile: rows (queries, and for each the query heads of one group) that share the keys and values of one kv head, and
// the places where their blocks start. How rows are grouped into tiles and strips enters no row's bits.
#pragma once

#include <cstdlib>
#include <memory>

#include "attention/careful.h"

namespace {

constexpr int64_t kMaxTileRows = 32 * kRows;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory of one thread, kept between calls.
class Arena {
 public:
  void reset(size_t bytes) {
    if (bytes > capacity_) {
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
      capacity_ = memory_ ? bytes : 0;
      if (!memory_) throw std::bad_alloc();
    }
    used_ = 0;
  }
  template <class A>
  A* take(int64_t count) {
    A* p = reinterpret_cast<A*>(memory_.get() + used_);
    used_ += bytes<A>(count);
    return p;
  }
  template <class A>
  static size_t bytes(int64_t count) {
    return round_up(count * static_cast<int64_t>(sizeof(A)), 64);
  }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t capacity_ = 0, used_ = 0;
};

// The rows of a tile to be: first ... first + count - 1 of a kv head, in `order` if there is one.
struct Span {
  int64_t b, kv_head, first, count;
  const int64_t* order;
  bool one_split;  // whatever keys the rows see together, each sees so few that they are one split

  int64_t row(int64_t r) const { return order ? order[first + r] : first + r; }
};

template <class T>
class Tile {
  using A = Acc<T>;

 public:
  Tile(const Problem<T>& problem, Arena& arena, const Span& span)
      : problem_(problem), span_(span), b_(span.b), kv_head_(span.kv_head), rows_(span.count), begin_(range(0).begin) {
    const int64_t rows = rows_;
    const int64_t size = round_up(problem.size, kLanes), values = out_stride(problem);
    arena.reset(Arena::bytes<A>(rows * size) + Arena::bytes<A>(size * kBlock) + Arena::bytes<A>(kBlock * values) +
                2 * Arena::bytes<A>(kRows * kBlock) + 2 * Arena::bytes<A>(state_size(problem, rows)));
    q_ = arena.take<A>(rows * size);
    packed_keys_ = arena.take<A>(size * kBlock);
    packed_values_ = arena.take<A>(kBlock * values);
    scores_ = arena.take<A>(kRows * kBlock);
    masks_ = arena.take<A>(kRows * kBlock);
    part = state_at(problem, rows, arena.take<A>(state_size(problem, rows)));
    total = state_at(problem, rows, arena.take<A>(state_size(problem, rows)));
    for (int64_t r = 0; r < rows; ++r) {
      copy_widened(problem.q_row(b_, head(r), query(r)), problem.q_stride[3], problem.size, q_ + r * size, size);
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

  // Splits of the row that has most.
  int64_t splits() const {
    return span_.one_split ? 1 : (attended_ - begin_ + BI_ATTENTION_KV_SPLIT - 1) / BI_ATTENTION_KV_SPLIT;
  }

  void clear(State<A> state) const {
    std::fill_n(state.out, rows_ * out_stride(problem_), A(0));
    std::fill_n(state.maximum, strips(rows_) * kLanes, -kInfinity<A>);
    std::fill_n(state.sum, strips(rows_) * kLanes, A(0));
  }

  // All blocks of one split into a cleared state.
  void run_split(int64_t split, State<A> state) {
    const int64_t begin = begin_ + split * BI_ATTENTION_KV_SPLIT;
    if (span_.one_split && split > 0) return;
    const int64_t end = span_.one_split ? attended_ : std::min<int64_t>(attended_, begin + BI_ATTENTION_KV_SPLIT);
    for (int64_t block = begin; block < end; block += kBlock)
      run_block(block, static_cast<int>(std::min<int64_t>(kBlock, end - block)), state);
  }

  void merge(State<A> into, State<A> from) const {
    const int64_t stride = out_stride(problem_);
    for (int64_t r = 0; r < rows_; r += kRows)
      merge_strip(strip_rows(r), stride, strip(into, r), strip(from, r));
  }

  // Divides, rounds and writes the rows' outputs and logsumexps.
  void finish(State<A> state) const {
    const int64_t size = problem_.value_size, stride = out_stride(problem_);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t slot = r / kRows * kLanes + r % kRows;
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
        const std::vector<A> careful = careful_row(problem_, b_, head(r), query(r));
        for (int64_t d = 0; d < size; ++d) row[d] = careful[d] * inverse + A(0);
      }
      store_rounded(row, size, problem_.out_row(b_, head(r), query(r)));
      *problem_.lse_at(b_, head(r), query(r)) = logsumexp(state.maximum[slot], sum);
    }
  }

  State<A> part, total;

 private:
  static int64_t strips(int64_t rows) { return (rows + kRows - 1) / kRows; }
  int64_t head(int64_t r) const { return kv_head_ * problem_.group() + span_.row(r) % problem_.group(); }
  int64_t query(int64_t r) const { return span_.row(r) / problem_.group(); }
  Range range(int64_t r) const { return problem_.range(b_, head(r), query(r)); }
  int strip_rows(int64_t r) const { return static_cast<int>(std::min<int64_t>(kRows, rows_ - r)); }
  State<A> strip(State<A> state, int64_t r) const {
    const int64_t slot = r / kRows * kLanes;
    return {state.maximum + slot, state.sum + slot, state.out + r * out_stride(problem_)};
  }

  static A logsumexp(A maximum, A sum) {
    if (sum == 0) return -kInfinity<A>;
    if (sum != sum) return kNaN<A>;
    return static_cast<A>(maximum + log_positive(sum));
  }

  struct Block {
    int64_t first;
    int count;
    const T *keys, *values;
    bool keys_packed = false, values_packed = false;
  };

  void run_block(int64_t first, int count, State<A> state) {
    Block block{first, count, problem_.k_head(b_, kv_head_) + first * problem_.k_stride[2],
                problem_.v_head(b_, kv_head_) + first * problem_.v_stride[2]};
    for (int64_t& offset : mask_offset_) offset = -1;
    for (int64_t r = 0; r < rows_; r += kRows) {
      const int rows = strip_rows(r);
      int attended[kRows], seen = 0;
      for (int i = 0; i < rows; ++i) {
        const Range keys = range(r + i);
        attended[i] = static_cast<int>(std::clamp<int64_t>(keys.end - first, 0, count));
        // A row whose keys begin later only keeps the others company: its mask makes this block a no-op.
        if (keys.begin < first + count) seen = std::max(seen, attended[i]);
      }
      const A* mask[kRows] = {};
      if (seen == 0 || !read_masks(first, count, r, rows, mask)) continue;
      const State<A> now = strip(state, r);
      A alpha[kLanes];
      score(block, r, rows, seen);
      softmax_block(rows, scores_, problem_.scale, problem_.softcap, mask, problem_.mask_lowest, attended, now.maximum,
                    now.sum, alpha);
      accumulate(block, rows, seen, alpha, now.out);
    }
  }

  // scores_ of one strip against the first `seen` keys of a block.
  void score(Block& block, int64_t r, int rows, int seen) {
    const int64_t size = round_up(problem_.size, kLanes), stride = problem_.k_stride[2], element = problem_.k_stride[3];
#if defined(BI_ISA_AVX512)
    if constexpr (sizeof(A) == 4) {
      if (rows_ == 1 && element == 1) {
        const Ahead next = ahead(block, block.keys, problem_.k_stride, problem_.size);
        return score_one_query(q_, block.keys, stride, seen, problem_.size, scores_, next);
      }
    }
#endif
    if (!block.keys_packed) pack_keys(block.keys, stride, element, block.count, problem_.size, packed_keys_);
    block.keys_packed = true;
    score_block(rows, q_ + r * size, size, packed_keys_, seen, problem_.size, scores_);
  }

  // What the first `seen` values of a block add to a strip whose weights are in scores_.
  void accumulate(Block& block, int rows, int seen, const A* alpha, A* out) {
    const int64_t size = problem_.value_size, stride = problem_.v_stride[2], element = problem_.v_stride[3];
    const int64_t padded = out_stride(problem_);
    // Copied when not in rows, or when several strips would widen them.
    if (element == 1 && (sizeof(T) == sizeof(A) || rows_ <= 2 * kRows)) {
      const Ahead next = ahead(block, block.values, problem_.v_stride, size);
      return accumulate_block(rows, scores_, alpha, block.values, stride, seen, size, out, padded, next);
    }
    for (int j = 0; !block.values_packed && j < block.count; ++j)
      copy_widened(block.values + j * stride, element, size, packed_values_ + j * padded, padded);
    block.values_packed = true;
    accumulate_block<A, A>(rows, scores_, alpha, packed_values_, padded, seen, size, out, padded, Ahead());
  }

  // The keys or values of the block after this one, if they are read only once.
  Ahead ahead(const Block& block, const T* rows, const int64_t (&strides)[4], int64_t size) const {
    if (rows_ > kRows || strides[3] != 1) return {};
    constexpr int64_t bytes = sizeof(T);
    const int left = static_cast<int>(std::clamp<int64_t>(attended_ - block.first - kBlock, 0, kBlock));
    return {reinterpret_cast<const char*>(rows + kBlock * strides[2]), strides[2] * bytes, size * bytes, left};
  }

  // Points mask[i] at what row r + i adds to its scores. False when -infinity masks the block for all of them:
  // leaving it out changes nothing.
  bool read_masks(int64_t block, int count, int64_t r, int rows, const A** mask) {
    bool needed = problem_.mask_kind == MaskKind::none;
    problem_.with_mask([&](const auto* entries) {
      const int64_t stride = problem_.mask_stride[3];
      for (int i = 0; i < rows; ++i) {
        const int64_t offset = problem_.mask_row(b_, head(r + i), query(r + i)) + block * stride;
        // Rows often share one mask: slot 0 is looked at first.
        const int slot = mask_offset_[0] == offset ? 0 : i;
        if (mask_offset_[slot] != offset) {
          mask_empty_[slot] = pack_mask(entries + offset, stride, count, masks_ + slot * kBlock);
          mask_offset_[slot] = offset;
        }
        mask[i] = masks_ + slot * kBlock;
        needed |= !mask_empty_[slot];
      }
    });
    return needed;
  }

  const Problem<T>& problem_;
  const Span span_;
  const int64_t b_, kv_head_, rows_, begin_;
  int64_t attended_ = 0;
  A *q_, *packed_keys_, *packed_values_, *scores_, *masks_;
  int64_t mask_offset_[kRows];
  bool mask_empty_[kRows];
};

}  // namespace
