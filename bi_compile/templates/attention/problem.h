// The operands of one call, as the kernels see them.
#pragma once

#include <vector>

#include "attention/softmax.h"

namespace {

enum class MaskKind { none, boolean, accumulator, low };

// Keys and values side by side in memory.
template <class T>
struct Block {
  int count = 0;
  const T *keys = nullptr, *values = nullptr;
};

// T: dtype of q, k, v and the output. Strides are in elements, in the order batch, head, position, element.
template <class T>
struct Problem {
  using A = Acc<T>;
  int64_t batch, heads, kv_heads, queries, keys, size, value_size;
  const T *q, *k, *v;
  int64_t q_stride[4], k_stride[4], v_stride[4];
  MaskKind mask_kind = MaskKind::none;
  const void* mask = nullptr;
  int64_t mask_stride[4] = {};
  A mask_lowest = std::numeric_limits<A>::lowest();  // of the mask's dtype
  bool causal;
  A scale, softcap;  // softcap of 0: none
  std::vector<Range> ranges;  // by mask row, see find_ranges; empty without a mask
  int64_t range_stride[3] = {};
  T* out;  // [batch, queries, heads, value_size]
  A* lse;  // [batch, heads, queries]

  int64_t group() const { return heads / kv_heads; }
  int64_t splits() const { return (keys + BI_ATTENTION_KV_SPLIT - 1) / BI_ATTENTION_KV_SPLIT; }
  // Keys and values come from memory, not from a cache.
  bool is_far() const {
    constexpr int64_t kFarBytes = 48 << 20;
    return batch * kv_heads * keys * (size + value_size) * static_cast<int64_t>(sizeof(T)) > kFarBytes;
  }
  // Keys that a query may see, masks apart: causal is aligned to the top left.
  int64_t attended(int64_t query) const { return causal ? std::min(keys, query + 1) : keys; }

  // The tree of a row starts at its first key that is not masked: masked keys before it are not there. A row that has
  // none starts at 0 and takes in all it may see.
  Range range(int64_t b, int64_t h, int64_t query) const {
    const int64_t most = attended(query);
    if (ranges.empty()) return {0, most};
    const Range seen = ranges[b * range_stride[0] + h * range_stride[1] + query * range_stride[2]];
    return seen.begin < most ? Range{seen.begin, std::min(seen.end, most)} : Range{0, most};
  }

  // Looks at every mask row once, however many rows of q share it.
  void find_ranges() {
    const int64_t extent[3] = {batch, heads, queries};
    int64_t count = 1, distinct[3];
    for (int i = 2; i >= 0; --i) {
      distinct[i] = mask_stride[i] == 0 ? std::min<int64_t>(extent[i], 1) : extent[i];
      range_stride[i] = mask_stride[i] == 0 ? 0 : count;
      count *= distinct[i];
    }
    ranges.resize(count);
    with_mask([&](const auto* entries) {
      Range* next = ranges.data();
      for (int64_t b = 0; b < distinct[0]; ++b)
        for (int64_t h = 0; h < distinct[1]; ++h)
          for (int64_t query = 0; query < distinct[2]; ++query)
            *next++ = attended_range(entries + mask_row(b, h, query), mask_stride[3], keys, mask_lowest);
    });
  }

  const T* q_row(int64_t b, int64_t h, int64_t query) const {
    return q + b * q_stride[0] + h * q_stride[1] + query * q_stride[2];
  }
  const T* k_head(int64_t b, int64_t kv_head) const { return k + b * k_stride[0] + kv_head * k_stride[1]; }
  const T* v_head(int64_t b, int64_t kv_head) const { return v + b * v_stride[0] + kv_head * v_stride[1]; }
  // As many of `present` keys from `first` on as are computed together.
  Block<T> block(int64_t b, int64_t kv_head, int64_t first, int64_t present) const {
    return {static_cast<int>(std::min<int64_t>(kBlock, present)), k_head(b, kv_head) + first * k_stride[2],
            v_head(b, kv_head) + first * v_stride[2]};
  }
  T* out_row(int64_t b, int64_t h, int64_t query) const {
    return out + ((b * queries + query) * heads + h) * value_size;
  }
  A* lse_at(int64_t b, int64_t h, int64_t query) const { return lse + (b * heads + h) * queries + query; }
  int64_t mask_row(int64_t b, int64_t h, int64_t query) const {
    return b * mask_stride[0] + h * mask_stride[1] + query * mask_stride[2];
  }

  // Calls f with the mask as a pointer of its own type.
  template <class F>
  BI_INLINE void with_mask(F f) const {
    switch (mask_kind) {
      case MaskKind::none: return;
      case MaskKind::boolean: return f(static_cast<const bool*>(mask));
      case MaskKind::accumulator: return f(static_cast<const A*>(mask));
      case MaskKind::low: return f(static_cast<const T*>(mask));
    }
  }
};

// Where products need no unit of the processor to be set up.
struct NoUnit {
  NoUnit() {}
};

}  // namespace
