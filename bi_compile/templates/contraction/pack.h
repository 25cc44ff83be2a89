// Copies of one chunk of an operand in the layout the chains read, from any strides.
#pragma once

#include <cstring>

#include "contraction/chain.h"
#include "contraction/transpose.h"

namespace {

// A matrix of which `along` runs along K and `across` from one row (or column) to the next.
template <class T>
struct Operand {
  const T* data;
  int64_t across;
  int64_t along;
  const T* at(int64_t line, int64_t k) const { return data + line * across + k * along; }
};

// Packed value number `step` of a line of `elements` elements, `along` apart.
template <class S, class T>
typename S::Packed packed(const T* line, int64_t along, int64_t step, int64_t elements) {
  if constexpr (S::kPerStep == 2) {
    const uint32_t even = 2 * step < elements ? line[2 * step * along].x : 0;
    const uint32_t odd = 2 * step + 1 < elements ? line[(2 * step + 1) * along].x : 0;
    return even | odd << 16;
  } else {
    const int64_t k = S::kSwapped ? step ^ 1 : step;
    return k < elements ? static_cast<typename S::Packed>(line[k * along]) : 0;
  }
}

// One line, its values `stride` apart in the packed layout.
template <class S, class T>
void pack_line(const T* line, int64_t along, int64_t elements, typename S::Packed* out, int64_t stride) {
  const int64_t steps = steps_of<S>(elements);
  for (int64_t step = 0; step < steps; ++step) out[step * stride] = packed<S>(line, along, step, elements);
}

// count lines to out[line * kRowStride + step].
template <class S, class T>
void pack_rows(const Operand<T>& source, int64_t count, int64_t elements, typename S::Packed* out) {
  for (int64_t row = 0; row < count; ++row, out += kRowStride<S>) {
    const T* line = source.at(row, 0);
    if (source.along != 1 || S::kSwapped) {
      pack_line<S>(line, source.along, elements, out, 1);
    } else if constexpr (sizeof(T) * S::kPerStep == sizeof(typename S::Packed)) {
      const int64_t steps = steps_of<S>(elements);
      for (int64_t step = elements / S::kPerStep; step < steps; ++step) out[step] = 0;
      std::memcpy(out, line, elements * sizeof(T));
    } else {
      constexpr int64_t kWidth = S::F::kWidth;
      int64_t k = 0;
      for (; k + kWidth <= elements; k += kWidth) load(line + k, kWidth).store(out + k);
      for (; k < steps_of<S>(elements); ++k) out[k] = packed<S>(line, 1, k, elements);
    }
  }
}

// count <= kColumns lines to out[step * kColumns + line]. What absent lines hold there does not matter: nothing reads
// the sums of absent columns.
template <class S, class T>
void pack_columns(const Operand<T>& source, int64_t count, int64_t elements, typename S::Packed* out) {
  const int64_t steps = steps_of<S>(elements);
  int64_t done = 0;  // steps packed for all lines
#if defined(BI_ISA_AVX512)
  if constexpr (sizeof(typename S::Packed) == 4) {
    if (source.along == 1) {
      const int64_t whole = count / 16 * 16, rest = count - whole;
      for (int64_t line = 0; line < whole; line += 16) {
        transpose_columns<S>(source.at(line, 0), source.across, elements, out + line);
      }
      if (rest == 0) return;
      T lines[16 * kChunk];
      for (int64_t line = 0; line < rest; ++line) {
        std::memcpy(static_cast<void*>(lines + line * kChunk), source.at(whole + line, 0), elements * sizeof(T));
      }
      return transpose_columns<S>(lines, kChunk, elements, out + whole);
    }
  }
  if (count == kColumns<S> && source.across == 1) {
    done = interleave_columns<S>(source.data, source.along, elements, out);
  }
#endif
  for (int64_t line = 0; line < count; ++line) {
    for (int64_t step = done; step < steps; ++step) {
      out[step * kColumns<S> + line] = packed<S>(source.at(line, 0), source.along, step, elements);
    }
  }
}

}  // namespace
