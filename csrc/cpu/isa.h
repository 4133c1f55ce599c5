// Which instruction set the loops of csrc/cpu/simd run with.
#pragma once

namespace mirnet_fast::cpu {

// Ordered: each one includes what stands before it.
enum class Isa { base, avx2, avx512, avx512_bf16, amx };

// The best one that this processor and operating system run.
Isa detected();

// detected(), or less if the environment variable MIRNET_FAST_CPU_ISA, read once, names less;
// without it no more than avx512_bf16, as the kernels on AMX were never measured. Throws
// std::invalid_argument if the variable has another value.
Isa active();

const char* name(Isa isa);

}  // namespace mirnet_fast::cpu
