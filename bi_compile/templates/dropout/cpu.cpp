// Which elements survive dropout: noise from a counter, keyed by a seed and by the sample's own bits.
#include <ATen/ops/empty.h>
#include <ATen/ops/unsqueeze.h>
#include <torch/library.h>

#include <cmath>
#include <type_traits>

#include "cpu/row_view.h"

namespace {

constexpr uint64_t kWeyl = 0x9E3779B97F4A7C15;

inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, int16_t, std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

// The n elements of one sample.
template <class B>
void mask_sample(const B* bits, uint64_t seed, uint64_t lost, int64_t n, bool* kept) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += mix(static_cast<uint64_t>(static_cast<int64_t>(bits[i])) + static_cast<uint64_t>(i + 1) * kWeyl);
  }
  const uint64_t key = mix(seed + sum);
  for (int64_t i = 0; i < n; ++i) kept[i] = (mix(key + static_cast<uint64_t>(i + 1) * kWeyl) >> 32) >= lost;
}

at::Tensor dropout_mask(const at::Tensor& x, const at::Tensor& seed, double p, int64_t dim, int64_t rows) {
  TORCH_CHECK_VALUE(rows >= 0, "bi_compile: dropout_mask does not know where the batch is");
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "dropout probability has to be between 0 and 1, but got ", p);
  // Samples first, each in contiguous memory.
  const at::Tensor whole = rows == 0 ? x.unsqueeze(0) : x.unflatten(dim, {-1, rows}).movedim(dim, 0);
  const at::Tensor samples = whole.contiguous();
  at::Tensor kept = at::empty(samples.sizes(), x.options().dtype(at::kBool));
  if (x.numel() > 0) {
    const int64_t n = x.numel() / samples.size(0);
    const auto start = static_cast<uint64_t>(seed.const_data_ptr<int64_t>()[0]);
    const auto lost = static_cast<uint64_t>(std::nearbyint(p * 4294967296.0));
    bool* out = kept.mutable_data_ptr<bool>();
    for_dtype("dropout_mask", x.scalar_type(), [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const auto* bits = reinterpret_cast<const Bits<T>*>(samples.const_data_ptr<T>());
      for_each_task(samples.size(0), n, [&](int64_t s) { mask_sample(bits + s * n, start, lost, n, out + s * n); });
    });
  }
  return (rows == 0 ? kept.squeeze(0) : kept.movedim(0, dim).flatten(dim, dim + 1)).contiguous();
}

}  // namespace

TORCH_LIBRARY_IMPL(bi_compile, CPU, m) {
  m.impl("dropout_mask", &dropout_mask);
}
