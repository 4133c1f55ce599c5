#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "matrix_unit.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mirnet_fast::cpu {
namespace {

#if defined(__x86_64__)
bool has_f16c() {
  // Older compilers do not know "f16c" in __builtin_cpu_supports.
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// Whether it has AVX512-BF16, and the build the kernels for that.
bool has_dots() {
#if defined(MIRNET_WITH_AVX512_BF16)
  constexpr unsigned kBfloat16 = 1u << 5;
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kBfloat16);
#else
  return false;
#endif
}
#endif

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c())
    return Isa::base;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return Isa::avx2;
  if (!has_dots()) return Isa::avx512;
  return has_tiles() ? Isa::amx : Isa::avx512_bf16;
#else
  return Isa::base;
#endif
}

Isa cap_from_environment() {
  const char* value = std::getenv("MIRNET_FAST_CPU_ISA");
  if (value == nullptr || *value == '\0') return Isa::avx512_bf16;
  std::string names;
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx}) {
    if (std::string(value) == name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + name(isa);
  }
  throw std::invalid_argument("MIRNET_FAST_CPU_ISA must be one of " + names + "; got '" +
                              std::string(value) + "'");
}

}  // namespace

Isa detected() {
  static const Isa isa = detect();
  return isa;
}

Isa active() {
  static const Isa isa = std::min(detected(), cap_from_environment());
  return isa;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "base";
  }
}

namespace {

// For mirnet_fast/_native.py: indices into its ISAS.
int64_t isa_detected() { return static_cast<int64_t>(detected()); }
int64_t isa_active() { return static_cast<int64_t>(active()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mirnet_fast_cpu, m) {
  m.def("isa_detected() -> int");
  m.def("isa_active() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa_detected", TORCH_BOX(&isa_detected));
  m.impl("isa_active", TORCH_BOX(&isa_active));
}

}  // namespace mirnet_fast::cpu
