// bf16 products by AMX, in the order "tiles". Queries and weights are 16 rows of 64 bytes, keys and values pairs of
// elements: those of a key side by side, those of two keys interleaved.
//
// Few queries read a block once: then its keys are the rows, where they lie, and queries the pairs.
#pragma once

#include "attention/bf16_steps.h"
#include "cpu/tile_unit.h"

#if defined(BI_TILES)

namespace {

constexpr int kSide = 16;  // of a tile: rows, and pairs in a row

class Bf16Tiles {
 public:
  using Careful = CarefulBf16Steps;
  using Unit = TileUnit;
  static constexpr int64_t kStrip = kSide;

  using Query = Bf16;
  static int64_t query_elements(const Problem<Bf16>& problem, int64_t rows) {
    return round_up(rows, kSide) * padded(problem.size);
  }
  static size_t bytes(const Problem<Bf16>& problem) {
    return Arena::bytes<Bf16>(padded(problem.size) * kBlock) +
           Arena::bytes<uint32_t>(kBlock / 2 * padded(problem.value_size)) + Arena::bytes<float>(kBlock * kSide) +
           Arena::bytes<Bf16>(kSide * kBlock);
  }

  Bf16Tiles(const Problem<Bf16>& problem, Arena& arena)
      : problem_(problem),
        size_(padded(problem.size)),
        value_size_(padded(problem.value_size)),
        out_stride_(round_up(problem.value_size, kLanes)) {
    keys_ = arena.take<Bf16>(size_ * kBlock);
    values_ = arena.take<uint32_t>(kBlock / 2 * value_size_);
    sums_ = arena.take<float>(kBlock * kSide);
    weights_ = arena.take<Bf16>(kSide * kBlock);
  }

  // Elements past the end are zeros. Rows past the end are whatever they were: nobody reads their sums.
  void set_query(Bf16* queries, int64_t r, int64_t rows, const Bf16* query) const {
    const int64_t stride = problem_.q_stride[3];
    if (!one_strip(rows)) return copy_padded(query, stride, queries + r * size_);
    uint32_t* pairs = reinterpret_cast<uint32_t*>(queries) + r;
    int64_t d = 0;
    for (; stride == 1 && d + 2 <= problem_.size; d += 2) std::memcpy(pairs + d / 2 * kSide, query + d, kPair);
    for (; d < size_; ++d) queries[(d / 2 * kSide + r) * 2 + d % 2] = d < problem_.size ? query[d * stride] : Bf16(0.0f);
  }

  void begin(const Block<Bf16>& block, int64_t rows, const Block<Bf16>&) {
    block_ = block, rows_ = rows;
    keys_packed_ = values_packed_ = false;
  }

  void score(const Bf16* queries, int64_t r, int rows, int seen, float* scores) {
    if (one_strip(rows_)) return score_keys(queries, rows, seen, scores);
    if (!keys_packed_) pack_keys_in_pairs();
    keys_packed_ = true;
    const char* q = reinterpret_cast<const char*>(queries + r * size_);
    const char* keys = reinterpret_cast<const char*>(keys_);
    for (int at = 0; at < seen; at += 2 * kSide) {
      zero_tile<0>(), zero_tile<1>();
      for (int64_t d = 0; d < size_; d += kStep) {
        const char* pairs = keys + (d / 2 * kBlock + at) * kPair;
        load_tile<4>(q + d * kElement, size_ * kElement);
        load_tile<6>(pairs, kBlock * kPair);
        multiply_tiles<0, 4, 6>();
        load_tile<7>(pairs + kSide * kPair, kBlock * kPair);
        multiply_tiles<1, 4, 7>();
      }
      store_tile<0>(scores + at, kBlock * sizeof(float));
      store_tile<1>(scores + at + kSide, kBlock * sizeof(float));
    }
  }

  void accumulate(int rows, int seen, const float* weights, const float* alpha, float* out) {
    // First, so that they have been written when a tile reads them.
    for (int i = 0; i < rows; ++i) round_weights(weights + i * kBlock, weights_ + i * kBlock);
    if (!values_packed_) pack_values_in_pairs();
    values_packed_ = true;
    const char* p = reinterpret_cast<const char*>(weights_);
    const char* values = reinterpret_cast<const char*>(values_);
    const bool both = seen > kStep;
    load_tile<4>(p, kBlock * kElement);
    if (both) load_tile<5>(p + kStep * kElement, kBlock * kElement);
    for (int64_t at = 0; at < out_stride_; at += 2 * kSide) {
      const bool wide = at + kSide < out_stride_;
      const char* pairs = values + at * kPair;
      zero_tile<0>(), zero_tile<1>();
      load_tile<6>(pairs, value_size_ * kPair);
      multiply_tiles<0, 4, 6>();
      load_tile<7>(pairs + kSide * kPair, value_size_ * kPair);
      multiply_tiles<1, 4, 7>();
      if (both) {
        load_tile<6>(pairs + kSide * value_size_ * kPair, value_size_ * kPair);
        multiply_tiles<0, 5, 6>();
        load_tile<7>(pairs + (kSide * value_size_ + kSide) * kPair, value_size_ * kPair);
        multiply_tiles<1, 5, 7>();
      }
      constexpr int kWide = 2 * kSide;
      store_tile<0>(sums_, kWide * sizeof(float));
      store_tile<1>(sums_ + kSide, kWide * sizeof(float));
      using V = Vec<float>;
      for (int i = 0; i < rows; ++i) {
        const V factor = V::broadcast(alpha[i]);
        float* row = out + i * out_stride_ + at;
        fma(V::load(row), factor, V::load(sums_ + i * kWide)).store(row);
        if (wide) fma(V::load(row + kSide), factor, V::load(sums_ + i * kWide + kSide)).store(row + kSide);
      }
    }
  }

 private:
  static constexpr int64_t kElement = sizeof(Bf16), kPair = 2 * kElement;

  static int64_t padded(int64_t size) { return round_up(size, kStep); }
  static bool one_strip(int64_t rows) { return rows <= kSide; }

  static void copy(const Bf16* from, int64_t stride, int64_t size, Bf16* to) {
    if (stride == 1) {
      std::memcpy(static_cast<void*>(to), from, size * kElement);
    } else {
      for (int64_t d = 0; d < size; ++d) to[d] = from[d * stride];
    }
  }

  // A query or a key, with zeros behind it.
  void copy_padded(const Bf16* from, int64_t stride, Bf16* to) const {
    copy(from, stride, problem_.size, to);
    std::memset(static_cast<void*>(to + problem_.size), 0, (size_ - problem_.size) * kElement);
  }

  // Sixteen keys at a time are the rows, and the scores come out transposed.
  void score_keys(const Bf16* queries, int rows, int seen, float* scores) {
    const int64_t stride = problem_.k_stride[2], element = problem_.k_stride[3];
    const char* keys = reinterpret_cast<const char*>(block_.keys);
    int64_t bytes = stride * kElement;
    if (element != 1 || size_ != problem_.size || block_.count < kBlock) {
      bytes = size_ * kElement;
      for (int j = 0; j < block_.count; ++j) copy_padded(block_.keys + j * stride, element, keys_ + j * size_);
      std::memset(static_cast<void*>(keys_ + block_.count * size_), 0, (kBlock - block_.count) * bytes);
      keys = reinterpret_cast<const char*>(keys_);
    }
    const char* q = reinterpret_cast<const char*>(queries);
    const int64_t sixteen = kSide * bytes;
    // Four sums at once: the unit takes a new product long before the last one's sum is there.
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    for (int64_t d = 0; d < size_; d += kStep) {
      const char* at = keys + d * kElement;
      load_tile<7>(q + d * kSide * kElement, kSide * kPair);
      load_tile<4>(at, bytes);
      multiply_tiles<0, 4, 7>();
      load_tile<5>(at + sixteen, bytes);
      multiply_tiles<1, 5, 7>();
      if (seen <= 2 * kSide) continue;
      load_tile<6>(at + 2 * sixteen, bytes);
      multiply_tiles<2, 6, 7>();
      load_tile<4>(at + 3 * sixteen, bytes);
      multiply_tiles<3, 4, 7>();
    }
    constexpr int64_t kRow = kSide * sizeof(float);
    store_tile<0>(sums_, kRow);
    store_tile<1>(sums_ + kSide * kSide, kRow);
    store_tile<2>(sums_ + 2 * kSide * kSide, kRow);
    store_tile<3>(sums_ + 3 * kSide * kSide, kRow);
    for (int first = 0; first < seen; first += kSide) {
      const EvenKeys key(reinterpret_cast<const char*>(sums_ + first * kSide), kRow);
      const auto turn = [&](auto quads) {
        __m512 row[4 * quads];
        transpose_16_keys<quads>(key, 0, row);
        for (int i = 0; i < rows; ++i) _mm512_storeu_ps(scores + i * kBlock + first, row[i]);
      };
      rows <= 4 ? turn(std::integral_constant<int, 1>()) : turn(std::integral_constant<int, 4>());
    }
  }

  // keys_[pair of elements][key]
  void pack_keys_in_pairs() {
    const int64_t stride = problem_.k_stride[2], element = problem_.k_stride[3];
    float* to = reinterpret_cast<float*>(keys_);
    for (int first = 0; first < kBlock; first += kLanes) {
      const int present = std::clamp(block_.count - first, 0, kLanes);
      int64_t unit = 0;
      if (element == 1 && present > 0) {
        const char* key[kLanes];
        point_at_keys(block_.keys + first * stride, stride, present, key);
        unit = for_each_unit<4>(key, 0, problem_.size / 2, [&](int64_t at, __m512 x) {
          _mm512_storeu_ps(to + at * kBlock + first, x);
        });
        unit = for_each_unit<1>(key, unit, problem_.size / 2, [&](int64_t at, __m512 x) {
          _mm512_storeu_ps(to + at * kBlock + first, x);
        });
      }
      for (int64_t d = 2 * unit; d < size_; ++d) {
        for (int j = 0; j < kLanes; ++j) {
          const bool there = j < present && d < problem_.size;
          keys_[(d / 2 * kBlock + first + j) * 2 + d % 2] =
              there ? block_.keys[(first + j) * stride + d * element] : Bf16(0.0f);
        }
      }
    }
  }

  // values_[pair of keys][element], those of two keys interleaved.
  void pack_values_in_pairs() {
    const int64_t stride = problem_.v_stride[2], element = problem_.v_stride[3], size = problem_.value_size;
    const __m512i low = interleaved(0), high = interleaved(16);
    for (int key = 0; key < static_cast<int>(round_up(block_.count, kStep)); key += 2) {
      const Bf16 *even = block_.values + key * stride, *odd = even + stride;
      uint32_t* to = values_ + key / 2 * value_size_;
      const auto pack = [&](int64_t d, __m512i x, __m512i y) {
        _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(x, low, y));
        _mm512_storeu_si512(to + d + kSide, _mm512_permutex2var_epi16(x, high, y));
      };
      int64_t d = 0;
      if (element == 1 && key + 1 < block_.count)
        for (; d + kStep <= size; d += kStep) pack(d, _mm512_loadu_si512(even + d), _mm512_loadu_si512(odd + d));
      for (; d < value_size_; d += kStep)
        pack(d, elements(even + d * element, element, key < block_.count ? size - d : 0),
             elements(odd + d * element, element, key + 1 < block_.count ? size - d : 0));
    }
  }

  // Element first + i of both operands at 2i and 2i + 1.
  static __m512i interleaved(int first) {
    alignas(64) uint16_t index[kStep];
    for (int i = 0; i < kSide; ++i) index[2 * i] = first + i, index[2 * i + 1] = kStep + first + i;
    return _mm512_load_si512(index);
  }

  // `count` elements, at most kStep of them, and zeros.
  static __m512i elements(const Bf16* from, int64_t stride, int64_t count) {
    const __mmask32 there = count >= kStep ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
    if (stride == 1 || there == 0) return _mm512_maskz_loadu_epi16(there, from);
    alignas(64) Bf16 copied[kStep];
    copy(from, stride, std::min<int64_t>(count, kStep), copied);
    return _mm512_maskz_loadu_epi16(there, copied);
  }

  // As rounded_weight, of a block.
  static void round_weights(const float* from, Bf16* to) {
    for (int j = 0; j < kBlock; j += kLanes) {
      const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(from + j));
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i moved = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), _mm512_cvtepi32_epi16(_mm512_srli_epi32(moved, 16)));
    }
  }

  const Problem<Bf16>& problem_;
  const int64_t size_, value_size_, out_stride_;
  Bf16 *keys_, *weights_;
  uint32_t* values_;
  float* sums_;
  Block<Bf16> block_;
  int64_t rows_ = 0;
  bool keys_packed_, values_packed_;
};

}  // namespace

#endif
