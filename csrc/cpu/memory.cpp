#include "memory.h"

namespace mirnet_fast::cpu {

// For the loops, which are compiled for several instruction sets and include no library.
[[noreturn]] void out_of_memory(int64_t bytes) { throw OutOfMemory(bytes); }

}  // namespace mirnet_fast::cpu
