// blur_pool on the CPU: tensors in, sparse filter tables, loops of simd/blur_pool.cpp.
#include "run.h"
#include "tap_tables.h"
#include "tensors.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "blur_pool";

struct Blur {
  TapTable rows, cols;
  Shape shape;  // of the output

  Blur(const Tensor& x, int64_t filt_size, const std::string& pad_type, int64_t stride,
       int64_t pad_off) {
    check_map(kOp, "x", x);
    rows = blur_taps(x.size(2), filt_size, pad_type, stride, pad_off);
    cols = blur_taps(x.size(3), filt_size, pad_type, stride, pad_off);
    shape = {x.size(0), x.size(1), int64_t(rows.start.size()) - 1, int64_t(cols.start.size()) - 1};
  }
};

void resampled(const Tensor& in, const Tensor& out, const TapTable& rows, const TapTable& cols) {
  const BlurPoolArgs args{map_of(in), map_of(out), rows.view(), cols.view()};
  by_dtype(kOp, in, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run(MIRNET_KERNEL(blur_pool_rows, T), args, args.out.n * args.out.h, args.out.w * args.out.c);
  });
}

}  // namespace

Tensor blur_pool(Tensor x, int64_t filt_size, std::string pad_type, int64_t stride,
                 int64_t pad_off) {
  const Blur blur(x, filt_size, pad_type, stride, pad_off);
  Tensor out = empty_like(x, blur.shape);
  resampled(x, out, blur.rows, blur.cols);
  return out;
}

std::vector<Tensor> blur_pool_backward(Tensor grad, Tensor x, int64_t filt_size,
                                       std::string pad_type, int64_t stride, int64_t pad_off) {
  const Blur blur(x, filt_size, pad_type, stride, pad_off);
  check(kOp, "grad", grad, blur.shape, x);
  Tensor x_grad = empty_like(x, shape_of(x));
  resampled(grad, x_grad, transposed(blur.rows, x.size(2)), transposed(blur.cols, x.size(3)));
  return {x_grad};
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  MIRNET_IMPL(blur_pool);
  MIRNET_IMPL(blur_pool_backward);
}

}  // namespace mirnet_fast::cpu
