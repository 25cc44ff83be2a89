// Memory of large results, kept for the next ones.
//
// The system clears each page of a new block when it is first written, which takes as long as a cheap op on the same
// memory. The C library returns freed blocks of this size to the system, so that a result joined of all samples would
// pay for its pages at every call, where the small results of single samples do not.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstring>
#include <mutex>
#include <vector>

namespace bi_compile {

class KeptMemory final : public c10::Allocator {
 public:
  static constexpr size_t worth_keeping = size_t{128} << 10;
  static constexpr size_t most_kept = size_t{64} << 20;

  // Never destroyed: tensors may outlive all static objects.
  static KeptMemory& instance() {
    static auto* const memory = new KeptMemory;
    return *memory;
  }

  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(take(bytes));
    return {block->data, block, &release, c10::Device(c10::DeviceType::CPU)};
  }

  int64_t kept_bytes() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return static_cast<int64_t>(bytes());
  }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    std::memcpy(target, source, bytes);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  // The smallest kept block that holds so many bytes, and not twice as many; else a new one.
  Block take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      auto found = kept_.end();
      for (auto block = kept_.begin(); block != kept_.end(); ++block) {
        const bool fits = block->bytes >= bytes && block->bytes / 2 <= bytes;
        if (fits && (found == kept_.end() || block->bytes < found->bytes)) found = block;
      }
      if (found != kept_.end()) {
        const Block block = *found;
        kept_.erase(found);
        return block;
      }
    }
    return {c10::alloc_cpu(bytes), bytes};
  }

  static void release(void* context) {
    const auto* block = static_cast<Block*>(context);
    instance().keep(*block);
    delete block;
  }

  // The oldest blocks go where there would be too many bytes.
  void keep(const Block& block) {
    std::vector<Block> too_many;
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      kept_.push_back(block);
      while (bytes() > most_kept) {
        too_many.push_back(kept_.front());
        kept_.erase(kept_.begin());
      }
    }
    for (const Block& each : too_many) c10::free_cpu(each.data);
  }

  size_t bytes() const {
    size_t sum = 0;
    for (const Block& block : kept_) sum += block.bytes;
    return sum;
  }

  std::mutex mutex_;
  std::vector<Block> kept_;  // oldest first
};

}  // namespace bi_compile
