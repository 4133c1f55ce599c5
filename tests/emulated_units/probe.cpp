// The loops on an emulated unit for products, for the library to be lent.
#include <new>

#include "../../csrc/cpu/simd/matrix/convolution.cpp"
#include "../../csrc/cpu/simd/matrix/dau_attention.cpp"
#include "../../csrc/cpu/simd/matrix/residual_down_tail.cpp"
#include "../../csrc/cpu/simd/matrix/residual_up_tail.cpp"
#include "../../csrc/cpu/simd/matrix/table.cpp"

namespace mirnet_fast::cpu {
[[noreturn]] void out_of_memory(int64_t) { throw std::bad_alloc(); }
}  // namespace mirnet_fast::cpu

extern "C" __attribute__((visibility("default"))) const void* emulated_matrix_kernels() {
  return &mirnet_fast::cpu::MIRNET_ISA::matrix_kernels;
}
