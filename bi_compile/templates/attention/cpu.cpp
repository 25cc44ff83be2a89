// attention on the CPU: see contract.py for the tree.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/bf16_tiles.h"
#include "attention/chains.h"
#include "attention/walk.h"

namespace {

// Rows of a tile: many, so that packing a block of keys is paid for; fewer when threads would be idle.
int64_t tile_rows(int64_t rows, int64_t groups, int threads, int64_t strip) {
  constexpr int64_t kMost = 192;
  const int64_t share = rows * groups / (4 * threads);
  return round_up(std::min(rows, std::clamp<int64_t>(share, 4 * strip, kMost)), strip);
}

// f(task) for every task, on as many threads as at::parallel_for would use. Unit: of the processor, set up for each.
template <class Unit, class F>
void for_each_task(int64_t tasks, int threads, F f) {
  if (threads == 1 || tasks <= 1) {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    const Unit unit;
    for (int64_t task = 0; task < tasks; ++task) f(task);
    return;
  }
  std::atomic<bool> failed = false;
#pragma omp parallel num_threads(threads)
  {
    const FloatingPointMode mode(FloatingPointMode::kKeep);
    const Unit unit;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) {
      try {
        f(task);
      } catch (...) {
        failed = true;
      }
    }
  }
  TORCH_CHECK(!failed, "attention: out of memory");
}

// All rows in spans of at most `height`. Rows may share one if their blocks start at the same places and either their
// splits do, too, or each of them has but one.
template <class T>
std::vector<Span> spans_of(const Problem<T>& problem, int64_t height, std::vector<int64_t>& order) {
  const int64_t group = problem.group(), rows = group * problem.queries;
  // One mask row for all of a sample; causality apart, which leaves some without a key.
  const bool one_mask_row = problem.range_stride[1] == 0 && problem.range_stride[2] == 0;
  const bool alike = problem.ranges.empty() || (one_mask_row && !problem.causal);
  if (!alike) order.resize(problem.batch * problem.kv_heads * rows);
  std::vector<Span> spans;
  int64_t* sorted = alike ? nullptr : order.data();
  for (int64_t b = 0; b < problem.batch; ++b) {
    for (int64_t kv_head = 0; kv_head < problem.kv_heads; ++kv_head) {
      const auto range = [&](int64_t r) { return problem.range(b, kv_head * group + r % group, r / group); };
      const auto is_short = [&](Range keys) { return keys.end - keys.begin <= BI_ATTENTION_KV_SPLIT; };
      // What the rows of a span have in common.
      const auto kind = [&](int64_t r) {
        const Range keys = range(r);
        return is_short(keys) ? keys.begin % kBlock : kBlock + keys.begin;
      };
      if (!alike) {
        std::iota(sorted, sorted + rows, 0);
        const auto before = [&](int64_t x, int64_t y) {
          return std::make_pair(kind(x), range(x).begin) < std::make_pair(kind(y), range(y).begin);
        };
        if (!std::is_sorted(sorted, sorted + rows, before)) std::stable_sort(sorted, sorted + rows, before);
      }
      for (int64_t first = 0, end; first < rows; first = end) {
        const int64_t most = std::min(rows, first + height);
        end = alike ? most : first + 1;
        while (end < most && kind(sorted[end]) == kind(sorted[first])) ++end;
        spans.push_back({b, kv_head, first, end - first, sorted, !alike && is_short(range(sorted[first]))});
      }
      if (!alike) sorted += rows;
    }
  }
  return spans;
}

// Spans whose tiles walk their keys together.
struct Company {
  int64_t first, count;
};

// Where the heads of a key lie side by side and few rows read them, those of a sample go together: reading one head's
// part of a page brings the next one's into the cache. As many as leave work for all threads and fit the cache.
template <class T>
std::vector<Company> companies_of(const Problem<T>& problem, const std::vector<Span>& spans, bool few_rows, int threads) {
  constexpr int64_t kCacheBytes = 512 << 10;
  const int64_t count = static_cast<int64_t>(spans.size());
  const int64_t block_bytes = kBlock * (problem.size + problem.value_size) * static_cast<int64_t>(sizeof(T));
  const bool neighbours = problem.k_stride[1] < problem.k_stride[2];
  const int64_t fitting = kCacheBytes / std::max<int64_t>(block_bytes, 1);
  const int64_t most = few_rows && neighbours ? std::min(count / threads, fitting) : 1;
  std::vector<Company> companies;
  for (int64_t first = 0, end; first < count; first = end) {
    end = first + 1;
    while (end < count && end - first < most && spans[end].b == spans[first].b) ++end;
    companies.push_back({first, end - first});
  }
  return companies;
}

template <class Products, class T>
void run(const Problem<T>& problem) {
  using A = Acc<T>;
  using Walk = Walk<T, Products>;
  using Tile = typename Walk::Tile;
  using Unit = typename Products::Unit;
  const int64_t rows = problem.group() * problem.queries, groups = problem.batch * problem.kv_heads;
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t height = tile_rows(rows, groups, threads, Products::kStrip), splits = problem.splits();
  std::vector<int64_t> order;
  const std::vector<Span> spans = spans_of(problem, height, order);
  const std::vector<Company> companies = companies_of(problem, spans, rows <= Products::kStrip, threads);
  const int64_t tasks = static_cast<int64_t>(companies.size());
  static thread_local Arena arena;

  const auto walk_of = [&](int64_t task) {
    const Company& company = companies[task];
    const int64_t end = company.first + company.count;
    const Span* following = end < static_cast<int64_t>(spans.size()) ? &spans[end] : nullptr;
    return Walk(problem, arena, &spans[company.first], company.count, following);
  };
  if (tasks >= threads || splits <= 1) {
    for_each_task<Unit>(tasks, threads, [&](int64_t task) {
      Walk walk = walk_of(task);
      const auto part = [](Tile& tile) { return tile.part; };
      walk.run_split(0, part);
      for (Tile& tile : walk.tiles) std::swap(tile.part, tile.total);
      for (int64_t split = 1; split < walk.splits(); ++split) {
        walk.run_split(split, part);
        for (Tile& tile : walk.tiles)
          if (split < tile.splits()) tile.merge(tile.total, tile.part);
      }
      for (Tile& tile : walk.tiles) tile.finish(tile.total);
    });
    return;
  }
  // Few rows and many keys: the splits of a tile run side by side and are merged in order, to the same bits.
  const int64_t size = round_up(Tile::state_size(problem, height), kLanes);
  Arena parts;
  parts.reset(Arena::bytes<A>(spans.size() * splits * size));
  A* memory = parts.take<A>(spans.size() * splits * size);
  const auto state_of = [&](const Tile& tile, int64_t split) {
    const int64_t at = (&tile.span() - spans.data()) * splits + split;
    return Tile::state_at(problem, tile.span().count, memory + at * size);
  };
  for_each_task<Unit>(tasks * splits, threads, [&](int64_t at) {
    Walk walk = walk_of(at / splits);
    walk.run_split(at % splits, [&](Tile& tile) { return state_of(tile, at % splits); });
  });
  for_each_task<Unit>(tasks, threads, [&](int64_t task) {
    Walk walk = walk_of(task);
    for (Tile& tile : walk.tiles) {
      const State<A> total = state_of(tile, 0);
      for (int64_t split = 1; split < splits; ++split) tile.merge(total, state_of(tile, split));
      tile.finish(total);
    }
  });
}

// The bits of bf16 products follow from the process's order alone, not from what computes it.
void run_in_order(const Problem<c10::BFloat16>& problem) {
  if (bf16_order() == Bf16Order::kPairs) return run<Chains<c10::BFloat16>>(problem);
#if defined(BI_TILES)
  if (may_use_tiles()) return run<Bf16Tiles>(problem);
#endif
  run<Bf16Steps>(problem);
}

template <class T>
void run_in_order(const Problem<T>& problem) {
  run<Chains<T>>(problem);
}

void copy_strides(const at::Tensor& x, int64_t (&strides)[4]) {
  for (int i = 0; i < 4; ++i) strides[i] = x.stride(i);
}

template <class T>
void set_mask(Problem<T>& problem, const at::Tensor& mask, const at::Tensor& expanded) {
  copy_strides(expanded, problem.mask_stride);
  problem.mask = mask.const_data_ptr();
  if (mask.scalar_type() == at::kBool) {
    problem.mask_kind = MaskKind::boolean;
    return;
  }
  const bool low = mask.scalar_type() == c10::CppTypeToScalarType<T>::value;
  problem.mask_kind = low && sizeof(T) < sizeof(Acc<T>) ? MaskKind::low : MaskKind::accumulator;
  if (low) problem.mask_lowest = static_cast<Acc<T>>(std::numeric_limits<T>::lowest());
}

template <class T>
std::tuple<at::Tensor, at::Tensor> attention_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                const std::optional<at::Tensor>& mask, bool causal, double scale,
                                                double softcap) {
  Problem<T> problem;
  problem.batch = q.size(0), problem.heads = q.size(1), problem.queries = q.size(2), problem.size = q.size(3);
  problem.kv_heads = k.size(1), problem.keys = k.size(2), problem.value_size = v.size(3);
  problem.q = q.const_data_ptr<T>(), problem.k = k.const_data_ptr<T>(), problem.v = v.const_data_ptr<T>();
  copy_strides(q, problem.q_stride);
  copy_strides(k, problem.k_stride);
  copy_strides(v, problem.v_stride);
  problem.causal = causal;
  problem.scale = static_cast<Acc<T>>(scale);
  problem.softcap = static_cast<Acc<T>>(softcap);
  const std::array<int64_t, 4> full = {problem.batch, problem.heads, problem.queries, problem.keys};
  if (mask) {
    set_mask(problem, *mask, mask->expand(full));
    problem.find_ranges();
  }
  const auto lse_dtype = c10::CppTypeToScalarType<Acc<T>>::value;
  at::Tensor out = at::empty({problem.batch, problem.queries, problem.heads, problem.value_size}, q.options());
  at::Tensor lse = at::empty({problem.batch, problem.heads, problem.queries}, q.options().dtype(lse_dtype));
  problem.out = out.mutable_data_ptr<T>();
  problem.lse = lse.mutable_data_ptr<Acc<T>>();
  if (lse.numel() > 0) run_in_order(problem);
  return {out.transpose(1, 2), lse};
}

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const std::optional<at::Tensor>& mask, bool is_causal, double scale,
                                             double softcap) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "attention: q, k and v have 4 dims, got ", q.sizes(), ", ",
              k.sizes(), " and ", v.sizes());
  TORCH_CHECK(q.size(0) == k.size(0) && k.size(0) == v.size(0) && k.size(1) == v.size(1) && k.size(2) == v.size(2) &&
                  q.size(3) == k.size(3) && (k.size(1) == q.size(1) || (k.size(1) > 0 && q.size(1) % k.size(1) == 0)),
              "attention: q [B,Hq,Lq,D], k [B,Hkv,Lk,D], v [B,Hkv,Lk,Dv] with Hq a multiple of Hkv, got ", q.sizes(),
              ", ", k.sizes(), " and ", v.sizes());
  const auto dtype = q.scalar_type();
  TORCH_CHECK(k.scalar_type() == dtype && v.scalar_type() == dtype, "attention: q, k and v have one dtype, got ", dtype,
              ", ", k.scalar_type(), " and ", v.scalar_type());
  if (mask) {
    const auto given = mask->scalar_type();
    TORCH_CHECK(given == at::kBool || given == dtype || (given == at::kFloat && dtype != at::kDouble),
                "attention: the mask is boolean, fp32 or of q's dtype, got ", given, " for ", dtype);
  }
  switch (dtype) {
    case at::kFloat: return attention_of<float>(q, k, v, mask, is_causal, scale, softcap);
    case at::kDouble: return attention_of<double>(q, k, v, mask, is_causal, scale, softcap);
    case at::kBFloat16: return attention_of<c10::BFloat16>(q, k, v, mask, is_causal, scale, softcap);
    case at::kHalf: return attention_of<c10::Half>(q, k, v, mask, is_causal, scale, softcap);
    default: TORCH_CHECK(false, "attention does not support ", dtype);
  }
}

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) { m.impl("attention", attention); }

}  // namespace
