// Scratch memory of one thread.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace {

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

}  // namespace
