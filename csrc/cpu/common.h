// What the op files share: the way from tensors to the loops' arguments and back.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../shared/check.h"
#include "isa.h"
#include "memory.h"
#include "simd/kernels.h"

namespace mirnet_fast::cpu {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// The function `fn<T>` of the instruction set in use.
#if defined(__x86_64__)
#define MIRNET_KERNEL(fn, ...)                       \
  (active() == Isa::avx512 ? avx512::fn<__VA_ARGS__> \
   : active() == Isa::avx2 ? avx2::fn<__VA_ARGS__>   \
                           : base::fn<__VA_ARGS__>)
#else
#define MIRNET_KERNEL(fn, ...) base::fn<__VA_ARGS__>
#endif

template <class T>
struct Tag {
  using type = T;
};

// f(Tag<T>) for the storage type of the tensor.
template <class F>
void by_dtype(const char* op, const Tensor& tensor, F f) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(Tag<float>{});
    case ScalarType::Double:
      return f(Tag<double>{});
    case ScalarType::BFloat16:
      return f(Tag<bf16>{});
    default:
      MIRNET_CHECK(false, op, ": dtype must be float32, bfloat16 or float64");
  }
}

inline std::string text(const Shape& shape) {
  std::string result = "(";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + ")";
}

inline Shape shape_of(const Tensor& tensor) {
  return Shape(tensor.sizes().begin(), tensor.sizes().end());
}

inline Shape strides_of(const Tensor& tensor) {
  return Shape(tensor.strides().begin(), tensor.strides().end());
}

// A CPU tensor of this shape and of the dtype of `first`.
inline void check(const char* op, const char* name, const Tensor& tensor, const Shape& shape,
                  const Tensor& first) {
  MIRNET_CHECK(shape_of(tensor) == shape, op, ": ", name, " must have shape ", text(shape),
               "; got ", text(shape_of(tensor)));
  MIRNET_CHECK(tensor.scalar_type() == first.scalar_type(), op, ": ", name,
               " must have the dtype of the first argument");
  MIRNET_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
}

inline void check_map(const char* op, const char* name, const Tensor& tensor) {
  MIRNET_CHECK(tensor.dim() == 4 && tensor.size(1) > 0 && tensor.size(2) > 0 && tensor.size(3) > 0,
               op, ": ", name, " must be (N, C, H, W) with C, H, W >= 1; got ",
               text(shape_of(tensor)));
  MIRNET_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
}

// 1x1 convolution weight (rows, columns, 1, 1) and its optional bias (rows).
inline void check_conv(const char* op, const char* name, const Tensor& weight,
                       const OptionalTensor& bias, int64_t rows, int64_t columns,
                       const Tensor& first) {
  check(op, name, weight, {rows, columns, 1, 1}, first);
  if (bias) check(op, name, *bias, {rows}, first);
}

// (N, C) sums of a map over its pixels.
inline void check_sums(const char* op, const char* name, const Tensor& sums, int64_t images,
                       int64_t channels) {
  const Shape shape = {images, channels};
  MIRNET_CHECK(sums.scalar_type() == torch::headeronly::ScalarType::Double && sums.is_cpu() &&
                   sums.is_contiguous() && shape_of(sums) == shape,
               op, ": ", name, " must be contiguous float64 of shape ", text(shape));
}

// A producer's statistics of x: each pixel's maximum and mean over the channels, and the sum of
// each image's channels.
inline void check_statistics(const char* op, const Tensor& x, int64_t channels,
                             const OptionalTensor& pooled, const OptionalTensor& sums) {
  MIRNET_CHECK(pooled.has_value() == sums.has_value(), op,
               ": pooled and sums go together; only one was given");
  if (!pooled) return;
  check(op, "pooled", *pooled, {x.size(0), 2, x.size(2), x.size(3)}, x);
  MIRNET_CHECK(x.size(3) == 1 || pooled->stride(3) == 1, op, ": pooled's rows must be contiguous");
  check_sums(op, "sums", *sums, x.size(0), channels);
}

inline Map map_of(const Tensor& t) {
  return {t.data_ptr(), t.size(0),   t.size(1),   t.size(2),  t.size(3),
          t.stride(0),  t.stride(1), t.stride(2), t.stride(3)};
}

// Fresh memory comes a page at a time, each with an interrupt and a clearing: for a feature map
// that costs more than writing it. Asking for large pages makes it a few hundred times fewer.
inline void ask_for_large_pages(void* data, int64_t bytes) {
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

// Uninitialised, of the dtype of `like`.
inline Tensor empty(const Tensor& like, const Shape& shape, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  int64_t bytes = like.element_size();
  for (const int64_t size : shape) bytes *= size;
  try {
    Tensor result =
        torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                             channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    ask_for_large_pages(result.data_ptr(), bytes);
    return result;
  } catch (const std::exception&) {  // torch's reason is lost on the way
    throw OutOfMemory(bytes);
  }
}

// In the memory format of `like`: the rule of mirnet_fast/ops/_registration.py.
inline Tensor empty_like(const Tensor& like, const Shape& shape) {
  return empty(like, shape, like.dim() == 4 && like.stride(1) == 1 && like.stride(3) != 1);
}

// f(offset, i) for the elements of a small tensor in order. What torch is asked for, it is asked
// once: the answer takes longer than an element.
template <class F>
void each_element(const Tensor& t, F f) {
  const int64_t count = t.numel();
  if (t.is_contiguous()) {
    for (int64_t i = 0; i < count; ++i) f(i, i);
    return;
  }
  const Shape sizes = shape_of(t), strides = strides_of(t);
  for (int64_t i = 0; i < count; ++i) {
    int64_t offset = 0, rest = i;
    for (size_t d = sizes.size(); d-- > 0; rest /= sizes[d]) offset += rest % sizes[d] * strides[d];
    f(offset, i);
  }
}

template <class T>
struct Scalar {
  using type = T;
};
template <>
struct Scalar<bf16> {
  using type = torch::headeronly::BFloat16;
};

// The values of a small tensor (weights, biases), in order; `spare` more zeros at the end.
template <class T, class A = Acc<T>>
Vector<A> values(const Tensor& t, int64_t spare = 0) {
  Vector<A> result(t.numel() + spare);
  const auto* data = static_cast<const typename Scalar<T>::type*>(t.data_ptr());
  each_element(t, [&](int64_t offset, int64_t i) { result[i] = A(data[offset]); });
  return result;
}

// A tensor like `like` with these values.
template <class T, class V>
Tensor tensor_of(const Tensor& like, const Vector<V>& contents) {
  Tensor result = empty_like(like, shape_of(like));
  auto* data = static_cast<typename Scalar<T>::type*>(result.data_ptr());
  each_element(result, [&](int64_t offset, int64_t i) {
    data[offset] = typename Scalar<T>::type(Acc<T>(contents[i]));
  });
  return result;
}

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

// The values of a weight in order: where they lie if they lie so.
template <class T>
class Ordered {
 public:
  using A = Acc<T>;
  explicit Ordered(const Tensor& t) {
    if constexpr (std::is_same_v<T, A>) {
      tensor_ = torch::stable::contiguous(t);
      data_ = static_cast<const A*>(tensor_.data_ptr());
    } else {
      copied_ = values<T>(t);
      data_ = copied_.data();
    }
  }
  Ordered(const Ordered&) = delete;
  const A* data() const { return data_; }

 private:
  Tensor tensor_;
  Vector<A> copied_;
  const A* data_ = nullptr;
};

// How many values a packed (n, k) weight has.
template <class A>
int64_t packed_count(int64_t n, int64_t k) {
  return MIRNET_KERNEL(padded, A)(n) * k;
}

// weight[n * stride_n + k * stride_k], times scale[k] if there is one, in the panels of the
// instruction set in use.
template <class A>
void pack_to(A* out, const A* weight, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k,
             const A* scale = nullptr) {
  const int64_t columns = MIRNET_KERNEL(padded, A)(n), panel = MIRNET_KERNEL(panel_columns, A)();
  const PackArgs args{weight, stride_n, stride_k, n, k, scale, out};
  run(MIRNET_KERNEL(pack, A), args, (columns + panel - 1) / panel, panel * k);
}

template <class A>
Block<A> packed(const A* weight, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k) {
  Block<A> result(packed_count<A>(n, k));  // not zeroed: all of it is written
  pack_to(result.get(), weight, stride_n, stride_k, n, k);
  return result;
}

// result[i * stride + j] += scale(chunk, j) * the sums' [chunk * step + i * ld + j], for a (rows,
// columns) matrix and every chunk in order.
template <class A, class F>
void add_matrices(const A* sums, int64_t chunks, int64_t step, int64_t rows, int64_t columns,
                  int64_t ld, double* result, int64_t stride, F scale) {
  torch::stable::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < columns; ++j)
          result[i * stride + j] += scale(chunk, j) * double(sums[chunk * step + i * ld + j]);
  });
}

// (N, columns) totals of the sums (N * groups, columns), in order.
inline Vector<double> totals(const Vector<double>& sums, int64_t groups, int64_t images,
                             int64_t columns) {
  Vector<double> result(images * columns);
  for (int64_t group = 0; group < images * groups; ++group)
    for (int64_t i = 0; i < columns; ++i)
      result[group / groups * columns + i] += sums[group * columns + i];
  return result;
}

// What a kernel that runs in groups of pixels adds to a map's sums: (N * groups, C) zeros for it,
// whose totals go to `sums`.
class GroupedSums {
 public:
  GroupedSums(const OptionalTensor& sums, int64_t images, int64_t groups, int64_t channels)
      : sums_(sums ? static_cast<double*>(sums->data_ptr()) : nullptr),
        images_(images),
        groups_(groups),
        channels_(channels),
        parts_(sums ? images * groups * channels : 0) {}

  double* parts() { return sums_ == nullptr ? nullptr : parts_.data(); }

  void finish() const {
    if (sums_ == nullptr) return;
    const Vector<double> all = totals(parts_, groups_, images_, channels_);
    std::copy(all.begin(), all.end(), sums_);
  }

 private:
  double* sums_;
  int64_t images_, groups_, channels_;
  Vector<double> parts_;
};

// Chunks of about `pixels` pixels, at most `limit` in all images together if that is above 0.
inline Chunks chunks_of(const Map& map, int64_t pixels, int64_t limit = 0) {
  int64_t rows = std::max<int64_t>(1, pixels / map.w);
  if (limit > 0) {
    const int64_t per_image = std::max<int64_t>(1, limit / std::max<int64_t>(map.n, 1));
    rows = std::max(rows, (map.h + per_image - 1) / per_image);
  }
  rows = std::min(rows, map.h);
  return {(map.h + rows - 1) / rows, rows};
}

// For sums of pixels.
constexpr int64_t kChunkPixels = 512;

// For sums of outer products, which keep a matrix a chunk: as few as keep some threads busy.
inline Chunks matrix_chunks_of(const Map& map) {
  constexpr int64_t kSome = 8, kMost = 32, kFewPixels = 256, kManyPixels = 2048;
  return chunks_of(map, std::clamp(map.h * map.w / kSome, kFewPixels, kManyPixels), kMost);
}

}  // namespace mirnet_fast::cpu
