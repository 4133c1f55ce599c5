// Runs a loop: the one of the instruction set in use, in parallel.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <vector>

#include "isa.h"
#include "simd/loops.h"

namespace mirnet_fast::cpu {

// The function `fn<T>` of the instruction set in use.
#if defined(__x86_64__)
#define MIRNET_KERNEL(fn, ...)                       \
  (active() >= Isa::avx512 ? avx512::fn<__VA_ARGS__> \
   : active() == Isa::avx2 ? avx2::fn<__VA_ARGS__>   \
                           : base::fn<__VA_ARGS__>)
#else
#define MIRNET_KERNEL(fn, ...) base::fn<__VA_ARGS__>
#endif

// kernel(args, begin, end) over [0, count), in parallel from about 16,000 values up. Every thread
// has a share, of which it takes a piece at a time, and then helps with the others: no two
// processors are equally fast all the time.
template <class Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t count,
         int64_t values_each) {
  if (count == 0) return;
  constexpr int64_t kPieces = 16;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(values_each, 1));
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), (count + grain - 1) / grain);
  if (threads == 1) return kernel(args, 0, count);
  std::vector<std::atomic<int64_t>> taken(threads);
  std::vector<std::exception_ptr> failures(
      threads);  // torch would hand on no more than that there was one
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) try {
        for (int64_t i = 0; i < threads; ++i) {
          const int64_t share = (thread + i) % threads;
          const int64_t begin = count * share / threads, end = count * (share + 1) / threads;
          const int64_t piece = std::max<int64_t>(1, (end - begin) / kPieces);
          for (int64_t at; (at = begin + piece * taken[share]++) < end;)
            kernel(args, at, std::min(at + piece, end));
        }
      } catch (...) {
        failures[thread] = std::current_exception();
      }
  });
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace mirnet_fast::cpu
