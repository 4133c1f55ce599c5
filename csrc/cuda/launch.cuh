// From tensors to the kernels' arguments, and launches.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <type_traits>

#include "../common/arguments.h"
#include "device.cuh"

// The emulated kernels are the CPU's.
#if defined(MIRNET_EMULATED)
#define MIRNET_DISPATCH CPU
#else
#define MIRNET_DISPATCH CUDA
#endif

namespace mirnet_fast {

inline void check_device(const char* op, const char* name, const Tensor& tensor,
                         const Tensor& first) {
#if defined(MIRNET_EMULATED)
  (void)op, (void)name, (void)tensor, (void)first;
#else
  MIRNET_CHECK(tensor.is_cuda() && tensor.get_device_index() == first.get_device_index(), op, ": ",
               name, " must be on the first argument's GPU, ", first.get_device_index());
#endif
}

}  // namespace mirnet_fast

namespace mirnet_fast::cuda {

#if defined(MIRNET_EMULATED)
using emulation::DeviceGuard, emulation::get_current_cuda_stream;
#else
using torch::stable::accelerator::DeviceGuard;
constexpr auto get_current_cuda_stream = aoti_torch_get_current_cuda_stream;
#endif

// f(Tag<T>) for the storage type of the tensor.
template <class F>
void by_dtype(const char* op, const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return f(Tag<half>{});
    case ScalarType::BFloat16:
      return f(Tag<bf16>{});
    case ScalarType::Float:
      return f(Tag<float>{});
    default:
      MIRNET_CHECK(false, op, ": dtype must be float16, bfloat16 or float32");
  }
}

template <int V>
struct Width {
  static constexpr int value = V;
};

// f(Width<N>{}, aligned) for a product's tile: Few outputs, or with 16-bit values and aligned maps
// twice as many where there are `many`.
template <class T, int Few, class F>
void by_outputs(bool aligned, bool many, F f) {
  if (!aligned)
    f(Width<Few>{}, std::false_type{});
  else if (sizeof(T) == 4 || !many)
    f(Width<Few>{}, std::true_type{});
  else if constexpr (sizeof(T) == 2)
    f(Width<2 * Few>{}, std::true_type{});
}

// ---- feature maps ----------------------------------------------------------------------------

// (N, C, H, W) whose channels are consecutive; strides in values.
template <class T>
struct Map {
  T* data;
  int64_t stride_n, stride_h, stride_w;

  MIRNET_DEVICE T* at(int n, int h, int w) const {
    return data + n * stride_n + h * stride_h + w * stride_w;
  }
};

// The tensor with consecutive channels: itself where it has them, else its one conversion.
inline Tensor map_in(const Tensor& x) {
  if (x.stride(1) == 1 || x.size(1) == 1) return x;
  return torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}

template <class T>
Map<T> map_of(const Tensor& x) {
  return {static_cast<T*>(x.data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}

// An uninitialised channels_last map for a kernel to write.
inline Tensor map_out(const Tensor& like, const Shape& shape,
                      std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::empty(shape, dtype ? *dtype : like.scalar_type(), std::nullopt,
                              like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// `out` in the memory format that the op promises for an input x: the rule of
// mirnet_fast/ops/_registration.py.
inline Tensor laid_out_like(const Tensor& out, const Tensor& x) {
  using torch::headeronly::MemoryFormat;
  const bool channels_last = x.dim() == 4 && x.stride(1) == 1 && x.stride(3) != 1;
  return torch::stable::contiguous(
      out, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// A weight as kernels read it: its values in order.
inline Tensor dense(const Tensor& t) { return torch::stable::contiguous(t); }

// The same of a weight or bias that may be absent, kept alive while kernels read it.
class Dense {
 public:
  explicit Dense(const OptionalTensor& t) {
    if (t) tensor_ = dense(*t);
  }

  const Tensor& tensor() const { return *tensor_; }

  // Null where there is none.
  template <class T>
  const T* data() const {
    return tensor_ ? static_cast<const T*>(tensor_->data_ptr()) : nullptr;
  }

 private:
  OptionalTensor tensor_;
};

// Summed over these dimensions, in float64 unless `dtype` says otherwise; torch adds in the same
// order every time.
inline Tensor summed(const Tensor& t, std::initializer_list<int64_t> dimensions,
                     ScalarType dtype = ScalarType::Double) {
  const Shape list(dimensions);
  return torch::stable::sum(t, torch::headeronly::IntHeaderOnlyArrayRef(list.data(), list.size()),
                            false, dtype);
}

// Uninitialised room for intermediate results.
inline Tensor scratch(const Tensor& like, const Shape& shape,
                      ScalarType dtype = ScalarType::Float) {
  return torch::stable::empty(shape, dtype, std::nullopt, like.device());
}

// A sum as the gradient of this weight or bias.
inline Tensor gradient_of(const Tensor& weight, const Tensor& sum) {
  const Tensor typed = torch::stable::to(sum, weight.scalar_type());
  return laid_out_like(torch::stable::reshape(typed, weight.sizes()), weight);
}

inline bool aligned_data(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
}

// Whether every access of 16 bytes along the channels of these maps is aligned.
inline bool wide(std::initializer_list<const Tensor*> maps) {
  for (const Tensor* t : maps) {
    const int64_t values = 16 / t->element_size();
    const bool aligned = reinterpret_cast<uintptr_t>(t->data_ptr()) % 16 == 0;
    if (!aligned || t->size(1) % values || t->stride(0) % values || t->stride(2) % values ||
        t->stride(3) % values)
      return false;
  }
  return true;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of `threads` for a row of so many values, which kernels number in 32 bits.
inline int64_t row_blocks(const std::string& what, int64_t values, int threads) {
  MIRNET_CHECK(values < (int64_t(1) << 31) - threads, what, ": a row of ", values,
               " accesses, 2**31 or more");
  return ceil_div(values, threads);
}

// ---- launches --------------------------------------------------------------------------------

// Shared memory that a block may have on every GPU: of sm_86 and sm_89, the smallest.
constexpr size_t kSharedLimit = 99 * 1024;

// The device of a tensor and the current stream of that device, while it lives.
class LaunchContext {
 public:
  explicit LaunchContext(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // kernel<<<unsigned(blocks), threads, shared bytes>>>(args), blocks along x; `what` names op and
  // shapes in an error.
  template <class... Params, class... Args>
  void launch(const std::string& what, void (*kernel)(Params...), int64_t blocks, int threads,
              size_t shared, const Args&... args) const {
    MIRNET_CHECK(blocks < int64_t(1) << 31, what, ": needs ", blocks, " blocks, 2**31 or more");
    MIRNET_CHECK(shared <= kSharedLimit, what, ": so many channels need ", shared,
                 " bytes of shared memory a block, and there are ", kSharedLimit);
    if (blocks == 0) return;
    cudaError_t error = cudaSuccess;
    if (shared > 48 * 1024)
      error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (error == cudaSuccess) {
      const cudaLaunchConfig_t config{
          dim3(unsigned(blocks)), dim3(unsigned(threads)), shared, stream_, nullptr, 0};
      error = cudaLaunchKernelEx(&config, kernel, args...);
    }
    MIRNET_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
  }

 private:
  DeviceGuard guard_;
  cudaStream_t stream_;
};

// What an error says first: the op and the shape of its first argument.
inline std::string error_context(const char* op, const Tensor& first) {
  return std::string(op) + " on " + text(shape_of(first));
}

}  // namespace mirnet_fast::cuda
