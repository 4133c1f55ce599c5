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

bool ask_for_tiles() {
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

// The tests' emulation of a unit: the address of a MatrixKernels; 0 for none.
void lend_matrix_kernels(int64_t address) {
  lent = reinterpret_cast<const MatrixKernels*>(static_cast<uintptr_t>(address));
}

// Of a convolution's weight.
MatrixPackArgs pack_args(const Map& in, const Map& out, const Tensor& weight, bool outputs_first,
                         MatrixTaps taps) {
  const int64_t all = weight.size(2) * weight.size(3);
  MatrixPackArgs pack{};
  pack.outputs = out.c;
  pack.inputs = in.c;
  pack.output_stride = all * (outputs_first ? in.c : 1);
  pack.input_stride = all * (outputs_first ? 1 : out.c);
  pack.taps = taps;
  return pack;
}

void run_pack(const MatrixKernels& kernels, const MatrixPackArgs& args) {
  run(kernels.pack, args, (args.outputs + kMatrixOutputs - 1) / kMatrixOutputs,
      kernels.packed_values(args) * kMatrixOutputs / args.outputs);
}

// Packed forms of one weight, one after the other, which end where `ends` says. Whatever they are
// of, they take no more memory than the weights do, so that all can be kept.
PackedWeights packed_forms(const MatrixKernels& kernels, Vector<MatrixPackArgs> forms,
                           const Tensor& weight, bool keep, int64_t* ends) {
  int64_t count = 0;
  for (size_t i = 0; i < forms.size(); ++i) ends[i] = count += kernels.packed_values(forms[i]);
  const auto pack_to = [&](float* packed) {
    const Tensor ordered = torch::stable::contiguous(weight);
    for (size_t i = 0; i < forms.size(); ++i) {
      forms[i].weight = static_cast<const bf16*>(ordered.data_ptr());
      forms[i].packed = reinterpret_cast<bf16*>(packed) + (i == 0 ? 0 : ends[i - 1]);
      run_pack(kernels, forms[i]);
    }
  };
  const int64_t form = 16 * int64_t(forms.size()) + int64_t(forms[0].taps);
  return kept_or_packed<bf16>(weight, reinterpret_cast<const void*>(kernels.pack), form, count / 2,
                              keep, pack_to);
}

}  // namespace

bool has_tiles() {
  static const bool has = ask_for_tiles();
  return has;
}

const MatrixKernels* matrix_kernels() {
  if (const MatrixKernels* kernels = lent) return kernels;
#if defined(MIRNET_WITH_AMX)
  if (active() == Isa::amx) return &amx::matrix_kernels;
#endif
#if defined(MIRNET_WITH_AVX512_BF16)
  if (active() >= Isa::avx512_bf16) return &avx512_bf16::matrix_kernels;
#endif
  return nullptr;
}

Vector<float> per_output(const OptionalTensor& tensor, int64_t channels) {
  Vector<float> result;
  if (!tensor) return result;
  result = values<bf16>(*tensor);
  if (result.size() == 1) result.assign(channels, result[0]);
  result.resize((channels + kMatrixOutputs - 1) / kMatrixOutputs * kMatrixOutputs);
  return result;
}

int64_t panel_floats(const MatrixKernels& kernels, const MatrixWeight& weight) {
  MatrixPackArgs args{};
  args.outputs = weight.outputs;
  args.inputs = weight.inputs;
  args.taps = MatrixTaps::one;
  return kernels.packed_values(args) / 2;
}

void panels_to(float* out, const MatrixKernels& kernels, const MatrixWeight& weight,
               const float* scale) {
  run_pack(kernels, {weight.weight, weight.outputs, weight.inputs, weight.output_stride, 1,
                     MatrixTaps::one, scale, reinterpret_cast<bf16*>(out)});
}

void matrix_convolution(const MatrixKernels& kernels, MatrixConvArgs args, const Tensor& weight,
                        bool outputs_first, const OptionalTensor& bias, const OptionalTensor& slope,
                        const OptionalTensor& sums, bool keep_weights) {
  const int64_t C = args.out.c;
  int64_t end;
  const PackedWeights packed =
      packed_forms(kernels, {pack_args(args.in, args.out, weight, outputs_first, args.taps)},
                   weight, keep_weights, &end);
  const Vector<float> biases = per_output(bias, C), slopes = per_output(slope, C);
  args.packed = reinterpret_cast<const bf16*>(packed.get());
  args.bias = biases.empty() ? nullptr : biases.data();
  args.slope = slopes.empty() ? nullptr : slopes.data();
  GroupedSums grouped(sums, args.out.n, args.out.h, C);
  args.sums = grouped.parts();
  run(kernels.convolution, args, args.out.n * args.out.h, args.out.w * std::max(args.in.c, C));
  grouped.finish();
}

void matrix_transposed(const MatrixKernels& kernels, const Map& in, const Map& out,
                       const Tensor& weight, const OptionalTensor& bias) {
  for (int64_t phase = 0; phase < 4; ++phase) {
    MatrixConvArgs maps{};
    maps.in = in;
    maps.out = out;
    maps.out.data =
        static_cast<bf16*>(out.data) + phase / 2 * (out.sh / 2) + phase % 2 * (out.sw / 2);
    maps.taps = kPhases[phase];
    // The weights are trained: there would be no second time.
    matrix_convolution(kernels, maps, weight, false, bias, std::nullopt, std::nullopt, false);
  }
}

void matrix_up_tail(const MatrixKernels& kernels, MatrixUpArgs args, const Tensor& weight,
                    const OptionalTensor& bias, const Tensor& slope) {
  Map large = args.tail.out;
  large.c = args.channels;
  Vector<MatrixPackArgs> forms;
  for (const MatrixTaps taps : kPhases)
    forms.push_back(pack_args(args.x, large, weight, false, taps));
  const PackedWeights packed = packed_forms(kernels, forms, weight, true, args.phase_end);
  const Vector<float> biases = per_output(bias, args.channels),
                      slopes = per_output(slope, args.channels);
  args.packed = reinterpret_cast<const bf16*>(packed.get());
  args.bias = biases.empty() ? nullptr : biases.data();
  args.slope = slopes.data();
  run(kernels.up_tail_of_conv, args, args.tail.out.n * args.tail.out.h / 2,
      args.x.w * 4 * std::max(args.x.c, args.channels));
}

STABLE_TORCH_LIBRARY_FRAGMENT(mirnet_fast_cpu, m) {
  m.def("lend_matrix_kernels(int address) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CompositeExplicitAutograd, m) {
  m.impl("lend_matrix_kernels", TORCH_BOX(&lend_matrix_kernels));
}

}  // namespace mirnet_fast::cpu
