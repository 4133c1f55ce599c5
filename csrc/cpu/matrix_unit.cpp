#include "matrix_unit.h"

#include <atomic>

#include "packed_weights.h"
#include "run.h"
#include "sums.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mirnet_fast::cpu {

namespace {

bool ask_for_matrix_unit() {
#if defined(MIRNET_WITH_AMX) && defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kTilesAndBfloat16 = 1u << 24 | 1u << 22;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kTilesAndBfloat16) != kTilesAndBfloat16) return false;
  constexpr long kAskForPermission = 0x1023, kTileData = 18;  // of Linux' asm/prctl.h
  return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::atomic<const MatrixKernels*> lent{nullptr};

// The tests' emulation of a matrix unit: the address of a MatrixKernels; 0 for none.
void lend_matrix_kernels(int64_t address) {
  lent = reinterpret_cast<const MatrixKernels*>(static_cast<uintptr_t>(address));
}

// One value a channel, in whole kMatrixOutputs; empty without a tensor.
Vector<float> per_output(const OptionalTensor& tensor, int64_t channels) {
  Vector<float> result;
  if (!tensor) return result;
  result = values<bf16>(*tensor);
  if (result.size() == 1) result.assign(channels, result[0]);
  result.resize((channels + kMatrixOutputs - 1) / kMatrixOutputs * kMatrixOutputs);
  return result;
}

}  // namespace

bool has_matrix_unit() {
  static const bool has = ask_for_matrix_unit();
  return has;
}

const MatrixKernels* matrix_kernels() {
  if (const MatrixKernels* kernels = lent) return kernels;
#if defined(MIRNET_WITH_AMX)
  if (active() == Isa::amx) return &amx::matrix_kernels;
#endif
  return nullptr;
}

void matrix_convolution(const MatrixKernels& kernels, MatrixConvArgs args, const Tensor& weight,
                        bool outputs_first, const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensor& sums, bool keep_weights) {
  const int64_t C = args.out.c, K = args.in.c, taps = weight.size(2) * weight.size(3);
  MatrixPackArgs pack{};
  pack.outputs = C;
  pack.inputs = K;
  pack.output_stride = taps * (outputs_first ? K : 1);
  pack.input_stride = taps * (outputs_first ? 1 : C);
  pack.taps = args.taps;
  const int64_t count = kernels.packed_values(pack);
  const auto pack_to = [&](float* packed) {
    const Tensor ordered = torch::stable::contiguous(weight);
    pack.weight = static_cast<const bf16*>(ordered.data_ptr());
    pack.packed = reinterpret_cast<bf16*>(packed);
    run(kernels.pack, pack, (C + kMatrixOutputs - 1) / kMatrixOutputs, taps * K * kMatrixOutputs);
  };
  // They take no more memory than the weights do, so that all are kept.
  const PackedWeights packed =
      kept_or_packed<bf16>(weight, reinterpret_cast<const void*>(kernels.pack), int64_t(args.taps),
                           count / 2, keep_weights, pack_to);
  const Vector<float> biases = per_output(bias, C), slopes = per_output(slope, C);
  args.packed = reinterpret_cast<const bf16*>(packed.get());
  args.bias = biases.empty() ? nullptr : biases.data();
  args.slope = slopes.empty() ? nullptr : slopes.data();
  GroupedSums grouped(sums, args.out.n, args.out.h, C);
  args.sums = grouped.parts();
  run(kernels.rows, args, args.out.n * args.out.h, args.out.w * std::max(K, C));
  grouped.finish();
}

STABLE_TORCH_LIBRARY_FRAGMENT(mirnet_fast_cpu, m) {
  m.def("lend_matrix_kernels(int address) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CompositeExplicitAutograd, m) {
  m.impl("lend_matrix_kernels", TORCH_BOX(&lend_matrix_kernels));
}

}  // namespace mirnet_fast::cpu
