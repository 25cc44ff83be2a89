// Reading keys, values, queries and masks of any dtype and strides into the layouts the micro-kernels want.
// Low precision is widened exactly: nothing here rounds.
#pragma once

#include "attention/transpose.h"

namespace {

constexpr int kBlock = BI_ATTENTION_KV_BLOCK;
static_assert(kBlock == 4 * kLanes, "the kernels hold a block of scores as four groups of sixteen lanes");

// A register of elements at p; those past the mask's lanes are zero and their memory is not touched.
template <class T>
BI_INLINE Vec<Acc<T>> load_widened(const T* p, typename Vec<Acc<T>>::Mask lanes, int count) {
  using A = Acc<T>;
  using V = Vec<A>;
  if constexpr (std::is_same_v<T, A>) {
    return V::load(p, lanes);
  } else {
#if defined(BI_ISA_AVX512)
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, p);
    if constexpr (std::is_same_v<T, c10::Half>) return {_mm512_cvtph_ps(half)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
#else
    T padded[V::width] = {};
    if (count < V::width) {
      std::memcpy(static_cast<void*>(padded), p, count * sizeof(T));
      p = padded;
    }
#if defined(BI_ISA_AVX2)
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (std::is_same_v<T, c10::Half>) return {_mm256_cvtph_ps(half)};
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
#else
    A wide[V::width];
    for (int i = 0; i < V::width; ++i) wide[i] = static_cast<A>(p[i]);
    return V::load(wide);
#endif
#endif
  }
}

// `size` elements `stride` apart, widened; to[size ... padded) becomes zero, padded being a multiple of kLanes.
template <class T, class A>
inline void copy_widened(const T* from, int64_t stride, int64_t size, A* to, int64_t padded) {
  constexpr int width = Vec<A>::width;
  if (stride == 1) {
    for (int64_t i = 0; i < padded; i += width) {
      const int count = static_cast<int>(std::clamp<int64_t>(size - i, 0, width));
      load_widened<T>(from + i, Vec<A>::first(count), count).store(to + i);
    }
  } else {
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<A>(from[i * stride]);
    for (int64_t i = size; i < padded; ++i) to[i] = 0;
  }
}

// Rows that will be read next. Few queries read a block once: where it comes from memory, asking for it, into the
// second-level cache, while the block before is computed hides some of the wait. Where it comes from a cache, asking
// takes more time than waiting. No result depends on it.
struct Ahead {
  const char* first = nullptr;
  int64_t stride = 0, bytes = 0;
  int rows = 0;

  BI_INLINE void touch(int row) const {
    if (row >= rows) return;
    const char* at = first + row * stride;
    for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(at + offset, 0, 2);
  }
};

// Keys 0 ... count-1, `stride` apart, each of `size` elements `element` apart, as columns of to[size][kBlock].
// Columns of absent keys up to the next multiple of 16 are zero, the rest is not written.
template <class T, class A>
inline void pack_keys(const T* keys, int64_t stride, int64_t element, int count, int64_t size, A* to) {
  for (int first = 0; first < count; first += kLanes) {
    const int present = std::min(kLanes, count - first);
    int64_t d = 0;
#if defined(BI_ISA_AVX512)
    if constexpr (sizeof(A) == 4) {
      const char* key[kLanes];
      point_at_keys(keys + first * stride, stride, present, key);
      const auto put = [&](int64_t at, __m512 x) { _mm512_storeu_ps(to + at * kBlock + first, x); };
      if (element == 1) d = for_each_element<T, 1>(key, for_each_element<T, 4>(key, 0, size, put), size, put);
    }
#endif
    for (; d < size; ++d) {
      A* column = to + d * kBlock + first;
      const T* key = keys + first * stride + d * element;
      for (int j = 0; j < present; ++j) column[j] = static_cast<A>(key[j * stride]);
      for (int j = present; j < kLanes; ++j) column[j] = 0;
    }
  }
}

// One row of a mask over a block of keys as numbers to add to the scores: True is 0 and False is -infinity.
// to[count ... kBlock) is zero. Returns whether every key is masked by -infinity.
template <class M, class A>
inline bool pack_mask(const M* mask, int64_t stride, int count, A* to) {
  if constexpr (std::is_same_v<M, bool>) {
    const auto pack = [&](auto step) {
      for (int j = 0; j < count; ++j) to[j] = mask[j * step] ? A(0) : -kInfinity<A>;
    };
    if (stride == 1) {
      pack(std::integral_constant<int64_t, 1>());  // so that vectors do it
    } else {
      pack(stride);
    }
    for (int j = count; j < kBlock; ++j) to[j] = 0;
  } else {
    copy_widened(mask, stride, count, to, kBlock);
  }
  using V = Vec<A>;
  int j = 0;
  for (const V none = V::broadcast(-kInfinity<A>); j + V::width <= count; j += V::width) {
    const V x = V::load(to + j);
    if (any(none.less(x)) || any(x.nan())) return false;
  }
  for (; j < count; ++j)
    if (to[j] != -kInfinity<A>) return false;
  return true;
}

// Keys begin ... end - 1.
struct Range {
  int64_t begin, end;
};

// From the first to the last key that a row of a mask does not mask; empty and at `keys` if it masks all.
template <class M, class A>
inline Range attended_range(const M* mask, int64_t stride, int64_t keys, A lowest) {
  const auto attended = [&](int64_t key) {
    const M entry = mask[key * stride];
    if constexpr (std::is_same_v<M, bool>) {
      return entry;
    } else {
      return !(static_cast<A>(entry) <= lowest);
    }
  };
  int64_t begin = 0, end = keys;
  while (begin < keys && !attended(begin)) ++begin;
  while (end > begin && !attended(end - 1)) --end;
  return {begin, end};
}

// `size` results rounded to T, to nearest even, once. Any NaN becomes one quiet NaN.
template <class T, class A>
inline void store_rounded(const A* from, int64_t size, T* to) {
  int64_t i = 0;
#if defined(BI_ISA_AVX512)
  if constexpr (!std::is_same_v<T, A>) {
    for (; i < size; i += 16) {
      const __mmask16 lanes = Vec<float>::first(static_cast<int>(std::min<int64_t>(16, size - i)));
      const __m512 x = _mm512_maskz_loadu_ps(lanes, from + i);
      const __m512 y = _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_ps(kNaN<float>));
      __m256i half;
      if constexpr (std::is_same_v<T, c10::Half>) {
        half = _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      } else {
        // Half of the last kept bit is added, less one when the kept part is even.
        const __m512i bits = _mm512_castps_si512(y);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i moved = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(moved, 16));
      }
      _mm256_mask_storeu_epi16(to + i, lanes, half);
    }
    return;
  }
#endif
  for (; i < size; ++i) to[i] = static_cast<T>(from[i] == from[i] ? from[i] : kNaN<A>);
}

}  // namespace
