// Memory of the kernels. None of it is taken for granted: what can't be had is an error that names
// the op and the bytes, and nothing is lost but the call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../common/check.h"

namespace mirnet_fast::cpu {

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(int64_t bytes)
      : text_("out of memory: " + std::to_string(bytes) + " bytes were asked for") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// Fresh memory comes a page at a time, each with an interrupt and a clearing: for a feature map
// that costs more than writing it. Large pages make it a few hundred times fewer.
inline void advise_large_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLarge = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLarge - 1) / kLarge * kLarge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLarge * kLarge;
  // Advice only: where the system does not take it, nothing is lost.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) {}
  T* allocate(size_t count) {
    void* memory = std::malloc(count * sizeof(T));
    if (memory == nullptr) throw OutOfMemory(int64_t(count * sizeof(T)));
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { std::free(memory); }
  bool operator==(const Allocator&) const { return true; }
  bool operator!=(const Allocator&) const { return false; }
};

template <class T>
using Vector = std::vector<T, Allocator<T>>;

// Of numbers, uninitialised, from the beginning of a cache line on.
template <class T>
class Block {
 public:
  Block() = default;
  explicit Block(int64_t count) {
    constexpr size_t kLine = 64;
    const size_t bytes = (size_t(count) * sizeof(T) / kLine + 1) * kLine;
    memory_.reset(static_cast<T*>(std::aligned_alloc(kLine, bytes)));
    if (memory_ == nullptr) throw OutOfMemory(int64_t(bytes));
  }
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

// The op F, an error of memory with its name.
template <auto F, const char* const* Name>
struct Named;
template <class R, class... Args, R (*F)(Args...), const char* const* Name>
struct Named<F, Name> {
  static R call(Args... args) {
    try {
      return F(std::move(args)...);
    } catch (const std::bad_alloc& error) {
      fail(*Name, ": ", error.what());
    }
  }
};

// Inside STABLE_TORCH_LIBRARY_IMPL(..., m): the function of this name is the op's kernel.
#define MIRNET_IMPL(name) m.impl(#name, TORCH_BOX((&Named<&name, &kOp>::call)))

}  // namespace mirnet_fast::cpu
