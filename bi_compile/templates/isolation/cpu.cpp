// The loop over the samples: an op called once for each, its results put in place while they are in the cache.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>

#include "isolation/kept.h"

namespace {

using at::Tensor;
using bi_compile::KeptMemory;

// Libraries choose their loops by the alignment of the memory: every part gets that of the allocator.
Tensor as_new(const Tensor& part) {
  const bool aligned = reinterpret_cast<uintptr_t>(part.const_data_ptr()) % c10::gAlignment == 0;
  return part.is_contiguous() && aligned ? part : part.clone(at::MemoryFormat::Contiguous);
}

// One tensor of a call: what every sample gets there.
struct Source {
  Tensor whole;
  size_t argument;
  bool in_list;
  int64_t dim, rows;
  std::optional<at::ScalarType> dtype;

  Tensor part(int64_t sample) const {
    const Tensor own = as_new(dim < 0 ? whole : whole.narrow(dim, sample * rows, rows));
    return dtype ? own.to(*dtype) : own;
  }
};

std::vector<Tensor> call(const c10::OperatorHandle& op, c10::Stack stack, const std::vector<Source>& sources,
                         int64_t sample) {
  for (const Source& source : sources) {
    c10::IValue& argument = stack[source.argument];
    if (!source.in_list) {
      argument = source.part(sample);
      continue;
    }
    if (argument.isNone()) argument = c10::List<Tensor>();
    argument.toTensorList().push_back(source.part(sample));
  }
  op.callBoxed(stack);
  std::vector<Tensor> results;
  for (const c10::IValue& result : stack) {
    if (result.isTensor()) {
      results.push_back(result.toTensor());
    } else {
      for (const Tensor& item : result.toTensorVector()) results.push_back(item);
    }
  }
  return results;
}

Tensor room_for(const Tensor& result, int64_t samples, int64_t dim) {
  std::vector<int64_t> shape = result.sizes().vec();
  shape[dim] *= samples;
  if (result.nbytes() * static_cast<size_t>(samples) < KeptMemory::worth_keeping) {
    return at::empty(shape, result.options());
  }
  const c10::DispatchKeySet keys(c10::DispatchKey::CPU);
  return at::detail::empty_generic(shape, &KeptMemory::instance(), keys, result.scalar_type(), std::nullopt);
}

// By all threads: a result lies in the caches of those that computed it, and its place in new memory, which the
// first write of each page makes.
void copy_bytes(const Tensor& from, const Tensor& to) {
  constexpr int64_t worth_a_thread = 32 * 1024;
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(to.mutable_data_ptr());
  at::parallel_for(0, static_cast<int64_t>(from.nbytes()), worth_a_thread, [&](int64_t begin, int64_t end) {
    std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
  });
}

void put(const Tensor& result, const Tensor& place) {
  TORCH_CHECK(result.sizes() == place.sizes(), "isolated: one sample's result is ", result.sizes(), ", another's ",
              place.sizes());
  const bool as_it_is = result.is_contiguous() && place.is_contiguous() && !result.is_conj() && !result.is_neg();
  if (as_it_is && result.nbytes() > 0) {
    copy_bytes(result, place);
  } else {
    place.copy_(result);
  }
}

std::vector<Tensor> isolated_calls(at::TensorList tensors, const std::string& name, const std::string& overload,
                                   const c10::List<c10::IValue>& arguments, at::IntArrayRef slots, at::IntArrayRef dims,
                                   at::IntArrayRef rows, const c10::List<c10::IValue>& dtypes, int64_t samples,
                                   at::IntArrayRef results) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
  const c10::Stack stack(arguments.begin(), arguments.end());
  std::vector<Source> sources;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto argument = static_cast<size_t>(slots[i]);
    const bool in_list = op.schema().arguments()[argument].type()->kind() == c10::TypeKind::ListType;
    sources.push_back({tensors[i], argument, in_list, dims[i], rows[i],
                       dtypes.get(i).toOptional<at::ScalarType>()});
  }
  std::vector<Tensor> joined;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const std::vector<Tensor> own = call(op, stack, sources, sample);
    for (size_t i = 0; i < own.size(); ++i) {
      if (sample == 0) joined.push_back(room_for(own[i], samples, results[i]));
      const int64_t length = joined[i].size(results[i]) / samples;
      put(own[i], joined[i].narrow(results[i], sample * length, length));
    }
  }
  return joined;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bi_compile, m) {
  m.def(
      "isolated_calls(Tensor[] tensors, str name, str overload, Any[] arguments, int[] slots, int[] dims, int[] rows, "
      "Any[] dtypes, int samples, int[] results) -> Tensor[]",
      &isolated_calls);
  m.def("isolated_memory() -> int", []() { return KeptMemory::instance().kept_bytes(); });
}
