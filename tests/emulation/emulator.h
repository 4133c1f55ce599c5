// A GPU's blocks, warps and barriers on the CPU, for csrc/cuda/device.cuh under MIRNET_EMULATED.
//
// Every thread of a block is a fiber. A warp's fibers take turns between its barriers, and warps
// take turns when they have to wait for one another, so that one may be as far ahead of the others
// as on a GPU. What a GPU leaves open, MIRNET_EMULATED_ORDER chooses:
//   forward      threads and warps in order; a copy_async lands when its group is waited for
//   backward     the last one first; a copy_async lands at once
//   a seed       in another order every time, a warp's turn ending early now and then; a copy_async
//                lands at a random moment between its start and its wait (the default, of seed 0)
// so that a missing barrier, a missing wait or a buffer overwritten too early gives another result
// in one of them. Shared memory is NaN before every block. A barrier that only some threads reach
// ends the process with a message. A launch is refused as a GPU would, or where it is not on the
// current stream of the tensors' device. Bank conflicts of ldmatrix are counted.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#undef __global__
#define __global__
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace mirnet_fast::emulation {

constexpr int kWarp = 32;

[[noreturn]] inline void die(const char* message) {
  std::fprintf(stderr, "emulated GPU: %s\n", message);
  std::abort();
}

#if !defined(__x86_64__)
#error "the emulated GPU switches fibers on x86-64 only"
#endif

// Leaves the present stack, noted in *from, for another. swapcontext would ask the kernel each
// time.
extern "C" void mirnet_emulation_switch(void** from, void* to);
asm(".text\n.weak mirnet_emulation_switch\n.type mirnet_emulation_switch,@function\n"
    "mirnet_emulation_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n.size mirnet_emulation_switch,.-mirnet_emulation_switch\n");

struct Copy {
  void* to;
  char bytes[16];
  int moment;  // it lands after so many barriers of its thread, when waited for at the latest
};
constexpr int kLanded = -1, kWhenWaitedFor = 1 << 30;

struct Thread {
  void* stack = nullptr;  // where it goes on
  uint3 index{};
  bool done = false;
  // The barrier that this thread waits at: it goes on when *waits_for is no longer `seen`.
  const uint64_t* waits_for = nullptr;
  uint64_t seen = 0;
  int turn = 0;  // of the exchange slots
  std::vector<std::vector<Copy>> groups{1};
};

struct Slot {
  alignas(16) char bytes[32];
};

struct Barrier {
  uint64_t generation = 0;
  int arrived = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Barrier> warps;
  std::vector<Slot> slots[2];
  Barrier all;
  std::vector<char> shared;
  char* shared_begin = nullptr;
  void* scheduler = nullptr;
  Thread* running = nullptr;
  std::function<void()> body;
  uint3 index{};
  dim3 grid{1, 1, 1}, size{1, 1, 1};
  enum { kForward, kBackward, kRandom } order = kRandom;
  std::mt19937 random;
};

inline thread_local Block* block = nullptr;

inline Thread& self() { return *block->running; }
inline int lane() { return int(self().index.x) % kWarp; }

inline void land(Copy& copy) {
  if (copy.moment == kLanded) return;
  std::memcpy(copy.to, copy.bytes, 16);
  copy.moment = kLanded;
}

inline void wait_at(Barrier& barrier, int members) {
  Thread& thread = self();
  for (auto& group : thread.groups)
    for (Copy& copy : group)
      if (copy.moment == 0)
        land(copy);
      else if (copy.moment != kLanded)
        --copy.moment;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  thread.waits_for = &barrier.generation;
  thread.seen = barrier.generation;
  mirnet_emulation_switch(&thread.stack, block->scheduler);
  thread.waits_for = nullptr;
}

inline void sync_threads() { wait_at(block->all, int(block->threads.size())); }
inline void sync_warp() { wait_at(block->warps[self().index.x / kWarp], kWarp); }
inline char* shared_memory() { return block->shared_begin; }

// Leaves a value for the warp and waits until all its lanes have; `of(lane)` then reads theirs.
template <class T>
class Exchange {
 public:
  explicit Exchange(const T& value) : turn_(self().turn) {
    static_assert(sizeof(T) <= sizeof(Slot));
    self().turn ^= 1;
    std::memcpy(slot(lane()), &value, sizeof(T));
    sync_warp();
  }
  T of(int other) const {
    T value;
    std::memcpy(&value, slot(other), sizeof(T));
    return value;
  }

 private:
  char* slot(int other) const {
    return block->slots[turn_][self().index.x / kWarp * kWarp + other].bytes;
  }
  int turn_;
};

template <class T>
T shuffle(T value, int from) {
  return Exchange<T>(value).of(from % kWarp);
}

inline void copy_async(void* to, const void* from, bool inside) {
  if (reinterpret_cast<uintptr_t>(to) % 16) die("copy_async to an address that 16 does not divide");
  if (inside && reinterpret_cast<uintptr_t>(from) % 16)
    die("copy_async from an address that 16 does not divide");
  Copy copy{to, {}, kWhenWaitedFor};
  if (inside) std::memcpy(copy.bytes, from, 16);
  // A third of the copies at once, a third at one of the next barriers, a third as late as may be.
  const unsigned drawn = block->order == Block::kRandom ? block->random() % 6 : 0;
  if (block->order == Block::kBackward || drawn >= 4)
    land(copy);
  else if (drawn >= 2)
    copy.moment = int(drawn) - 2;
  self().groups.back().push_back(copy);
}

inline void commit_copies() { self().groups.emplace_back(); }

inline void wait_for_copies(int pending) {
  auto& groups = self().groups;  // the last one is not committed yet
  while (int(groups.size()) - 1 > pending) {
    for (Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

// Accesses that ldmatrix has had to wait for because two rows of a matrix lie in the same banks.
inline std::atomic<long> bank_conflicts{0};

inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    die("a matrix row at an address that 16 does not divide");
  const Exchange<const void*> rows(row);
  const int g = lane() / 4, t = lane() % 4;
  if (lane() % 8 == 0) {  // the eight rows of one matrix, of all 32 banks
    int rows_in[8] = {};
    for (int j = 0; j < 8; ++j)
      ++rows_in[reinterpret_cast<uintptr_t>(rows.of(lane() + j)) / 16 % 8];
    bank_conflicts += *std::max_element(rows_in, rows_in + 8) - 1;
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 2; ++j) {
      const int r = transposed ? 2 * t + j : g, c = transposed ? g : 2 * t + j;
      uint16_t value;
      std::memcpy(&value, static_cast<const uint16_t*>(rows.of(8 * i + r)) + c, 2);
      to[i] = j ? to[i] | uint32_t(value) << 16 : value;
    }
  sync_warp();  // what is read here must not be overwritten by a lane that runs ahead
}

inline float as_float(uint16_t bits, const __half&) {
  return __half2float(__half(__half_raw{bits}));
}
inline float as_float(uint16_t bits, const __nv_bfloat16&) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Given {
    uint32_t v[6];
  };
  const Exchange<Given> given(Given{{a[0], a[1], a[2], a[3], b0, b1}});
  const int g = lane() / 4, t = lane() % 4;
  for (int k = 0; k < 16; ++k) {
    const int half = k / 8, owner = k % 8 / 2, shift = k % 2 * 16;
    const Given row = given.of(4 * g + owner);
    const float low = as_float(uint16_t(row.v[2 * half] >> shift), T());
    const float high = as_float(uint16_t(row.v[2 * half + 1] >> shift), T());
    for (int j = 0; j < 2; ++j) {
      const Given column = given.of(4 * (2 * t + j) + owner);
      const float b = as_float(uint16_t(column.v[4 + half] >> shift), T());
      d[j] += low * b;
      d[2 + j] += high * b;
    }
  }
}

// ---- running a grid --------------------------------------------------------------------------

inline void start() {
  Block& b = *block;
  b.body();
  Thread& thread = self();
  for (const auto& group : thread.groups)
    if (!group.empty()) die("a thread ended with copies that nobody waited for");
  thread.done = true;
  mirnet_emulation_switch(&thread.stack, b.scheduler);
}

// The fibers of one block, each until it waits or ends.
inline void run_block(Block& b, std::vector<char>& stacks, size_t stack) {
  static const float nan = [] {
    const uint32_t bits = 0x7fff7fffu;  // NaN in all three formats
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }();
  for (size_t i = 0; i + 4 <= b.shared.size(); i += 4) std::memcpy(&b.shared[i], &nan, 4);
  for (size_t i = 0; i < b.threads.size(); ++i) {
    Thread& t = b.threads[i];
    t.done = false;
    t.waits_for = nullptr;
    t.turn = 0;
    t.groups.assign(1, {});
    t.index = {unsigned(i), 0, 0};
#if defined(__SANITIZE_ADDRESS__)
    // Of the fiber that was here before: its first function never returned.
    __asan_unpoison_memory_region(stacks.data() + i * stack, stack);
#endif
    // As after a call: the address of `start` under six registers, the stack odd by eight.
    const uintptr_t top = reinterpret_cast<uintptr_t>(stacks.data() + (i + 1) * stack) / 16 * 16;
    void** frame = reinterpret_cast<void**>(top) - 8;
    std::fill(frame, frame + 8, nullptr);
    frame[6] = reinterpret_cast<void*>(&start);
    t.stack = frame;
  }
  b.all = {};
  for (Barrier& barrier : b.warps) barrier = {};
  std::vector<int> warps(b.warps.size()), lanes(kWarp);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  if (b.order == Block::kBackward) {
    std::reverse(warps.begin(), warps.end());
    std::reverse(lanes.begin(), lanes.end());
  }
  const bool random = b.order == Block::kRandom;
  for (size_t left = b.threads.size(); left > 0;) {
    if (random) std::shuffle(warps.begin(), warps.end(), b.random);
    bool moved = false;
    for (int w : warps) {
      // Until it has to wait for other warps, or at random for a while only.
      for (bool moves = true; moves && !(random && moved && b.random() % 8 == 0);) {
        moves = false;
        if (random) std::shuffle(lanes.begin(), lanes.end(), b.random);
        for (int l : lanes) {
          Thread& t = b.threads[w * kWarp + l];
          if (t.done || (t.waits_for && *t.waits_for == t.seen)) continue;
          moves = moved = true;
          b.running = &t;
          mirnet_emulation_switch(&b.scheduler, t.stack);
          if (t.done) --left;
        }
      }
    }
    if (!moved) die("a barrier that only some threads reach");
  }
}

template <class Body>
void run_grid(unsigned blocks, int threads, size_t shared, size_t shared_limit, Body body) {
  if (threads % kWarp || threads < kWarp || threads > 1024)
    die("threads must be whole warps, up to 1024");
  if (shared > shared_limit) die("more shared memory than the chip has");
  constexpr size_t kStack = size_t(1) << 16;
  static thread_local std::vector<char> stacks;
  // Not resized: that would copy old stacks, of which ASan still forbids parts.
  if (stacks.size() < threads * kStack) stacks = std::vector<char>(threads * kStack);
  Block b;
  b.threads.resize(threads);
  b.warps.resize(threads / kWarp);
  for (auto& slots : b.slots) slots.resize(threads);
  b.shared.resize(shared + 16);
  b.shared_begin =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(b.shared.data()) + 15) / 16 * 16);
  b.grid = dim3(blocks, 1, 1);
  b.size = dim3(unsigned(threads), 1, 1);
  b.body = body;
  const char* chosen = std::getenv("MIRNET_EMULATED_ORDER");
  const std::string name = chosen ? chosen : "0";
  if (name == "forward")
    b.order = Block::kForward;
  else if (name == "backward")
    b.order = Block::kBackward;
  else
    b.random.seed(unsigned(std::stoul(name)));
  Block* before = block;
  block = &b;
  for (unsigned x = 0; x < blocks; ++x) {
    b.index = {x, 0, 0};
    run_block(b, stacks, kStack);
  }
  block = before;
}

// ---- launches --------------------------------------------------------------------------------

// The stream that is current on the device that a guard has chosen: another one for every guard.
inline thread_local uintptr_t guards = 0, current = 0;

class DeviceGuard {
 public:
  explicit DeviceGuard(int) : before_(current) { current = ++guards; }
  ~DeviceGuard() { current = before_; }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  uintptr_t before_;
};

inline int get_current_cuda_stream(int, void** stream) {
  *stream = reinterpret_cast<void*>(current);
  return 0;
}

// What dynamic shared memory a kernel was allowed, above what every one may have.
inline thread_local std::pair<const void*, size_t> allowed{nullptr, 0};

template <class Kernel>
cudaError_t func_set_attribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  allowed = {reinterpret_cast<const void*>(kernel), size_t(bytes)};
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t launch_kernel_ex(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                             const Args&... args) {
  if (current == 0 || config->stream != reinterpret_cast<cudaStream_t>(current))
    return cudaErrorInvalidResourceHandle;
  const bool more = allowed.first == reinterpret_cast<const void*>(kernel);
  const size_t limit = std::max<size_t>(more ? allowed.second : 0, 48 * 1024);
  if (config->dynamicSmemBytes > limit) return cudaErrorInvalidValue;
  run_grid(config->gridDim.x, int(config->blockDim.x), config->dynamicSmemBytes, limit,
           [&] { kernel(args...); });
  return cudaSuccess;
}

inline const char* error_string(cudaError_t error) {
  return error == cudaErrorInvalidResourceHandle
             ? "emulated GPU: not on the current stream of the device"
             : "emulated GPU: more shared memory than the kernel was allowed";
}

}  // namespace mirnet_fast::emulation

// So that code which launches is compiled as it is for a GPU.
#define cudaFuncSetAttribute ::mirnet_fast::emulation::func_set_attribute
#define cudaLaunchKernelEx ::mirnet_fast::emulation::launch_kernel_ex
#define cudaGetErrorString ::mirnet_fast::emulation::error_string

// Since the library was loaded.
extern "C" __attribute__((weak, visibility("default"))) long mirnet_emulation_bank_conflicts() {
  return mirnet_fast::emulation::bank_conflicts;
}

// Which CUDA declares everywhere.
namespace mirnet_fast::cuda {
using std::max;
using std::min;
}  // namespace mirnet_fast::cuda

#define threadIdx (::mirnet_fast::emulation::self().index)
#define blockIdx (::mirnet_fast::emulation::block->index)
#define gridDim (::mirnet_fast::emulation::block->grid)
#define blockDim (::mirnet_fast::emulation::block->size)
