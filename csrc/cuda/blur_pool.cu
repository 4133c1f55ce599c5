// blur_pool: the binomial filter and the down-sampling in one pass. Floor: 1 + 1/4 maps; backward
// as much.
//
// The network's case, three taps and stride 2: a thread blurs 16 bytes of channels down a strip of
// kStrip outputs of one column. Each input row is blurred along the row once and kept for the
// output below; its loads, six of 16 bytes an output, do not wait for one another. The columns that
// neighbouring outputs share come from the first-level cache: a tile staged in shared memory would
// cost a barrier and save nothing of the memory's traffic. Every other filter and the backward
// gather by resample.cuh.
#include "../common/blur_axis.h"
#include "resample.cuh"

namespace mirnet_fast::cuda {

namespace {

constexpr const char* kOp = "blur_pool";
constexpr int kThreads = 256;
constexpr int kStrip = 4;

template <class T>
struct Blur3Args {
  Map<const T> in;
  Map<T> out;
  BlurAxis rows, cols;
  int channels, chunks;  // chunks: blocks a strip
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) blur3_kernel(Blur3Args<T> a) {
  const int vectors = a.channels / V;
  const int strips = (a.rows.outputs + kStrip - 1) / kStrip;
  const int strip = blockIdx.x / a.chunks;
  const int i = blockIdx.x % a.chunks * kThreads + threadIdx.x;
  const int w = i / vectors;
  if (w >= a.cols.outputs) return;
  const int c = i % vectors * V;
  const int n = strip / strips, first = strip % strips * kStrip;
  const int left = padded_source(2 * w - a.cols.before, a.cols.inputs, a.cols.padding);
  const int middle = padded_source(2 * w - a.cols.before + 1, a.cols.inputs, a.cols.padding);
  const int right = padded_source(2 * w - a.cols.before + 2, a.cols.inputs, a.cols.padding);

  // One blurred pixel of the row at a padded position.
  const auto blurred = [&](int position, float (&to)[V]) {
    float l[V] = {}, m[V] = {}, r[V] = {};
    const int y = padded_source(position, a.rows.inputs, a.rows.padding);
    if (y >= 0) {
      if (left >= 0) load<V>(l, a.in.at(n, y, left) + c);
      if (middle >= 0) load<V>(m, a.in.at(n, y, middle) + c);
      if (right >= 0) load<V>(r, a.in.at(n, y, right) + c);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = 0.25f * l[j] + 0.5f * m[j] + 0.25f * r[j];
  };

  float above[V], middle_row[V], below[V];
  blurred(2 * first - a.rows.before, above);
#pragma unroll
  for (int s = 0; s < kStrip; ++s) {
    const int h = first + s;
    if (h >= a.rows.outputs) return;
    blurred(2 * h - a.rows.before + 1, middle_row);
    blurred(2 * h - a.rows.before + 2, below);
    float total[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      total[j] = 0.25f * above[j] + 0.5f * middle_row[j] + 0.25f * below[j];
      above[j] = below[j];
    }
    store<V>(a.out.at(n, h, w) + c, total);
  }
}

}  // namespace

Tensor blur_pool(Tensor x, int64_t filt_size, std::string pad_type, int64_t stride,
                 int64_t pad_off) {
  check_map(kOp, "x", x);
  const BlurAxis rows = blur_axis(x.size(2), filt_size, pad_type, stride, pad_off);
  const BlurAxis cols = blur_axis(x.size(3), filt_size, pad_type, stride, pad_off);
  const LaunchContext context(x);
  const Tensor in = map_in(x);
  const Tensor out = map_out(x, {x.size(0), x.size(1), rows.outputs, cols.outputs});
  const bool aligned = wide({&in, &out});
  by_dtype(kOp, x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (filt_size != 3 || stride != 2)
      return resample<false, T, T>(kOp, context, in, out, rows, cols);
    if (out.numel() == 0) return;
    const auto go = [&](auto width) {
      constexpr int V = decltype(width)::value;
      const int channels = int(x.size(1));
      const int64_t chunks =
          row_blocks(error_context(kOp, x), int64_t(cols.outputs) * (channels / V), kThreads);
      const int64_t blocks = x.size(0) * ceil_div(rows.outputs, kStrip) * chunks;
      const Blur3Args<T> args{map_of<const T>(in), map_of<T>(out), rows, cols, channels,
                              int(chunks)};
      context.launch(error_context(kOp, x), blur3_kernel<T, V>, blocks, kThreads, 0, args);
    };
    aligned ? go(Width<kWide<T>>{}) : go(Width<1>{});
  });
  return laid_out_like(out, x);
}

std::vector<Tensor> blur_pool_backward(Tensor grad, Tensor x, int64_t filt_size,
                                       std::string pad_type, int64_t stride, int64_t pad_off) {
  check_map(kOp, "x", x);
  const BlurAxis rows = blur_axis(x.size(2), filt_size, pad_type, stride, pad_off);
  const BlurAxis cols = blur_axis(x.size(3), filt_size, pad_type, stride, pad_off);
  check(kOp, "grad", grad, {x.size(0), x.size(1), rows.outputs, cols.outputs}, x);
  const LaunchContext context(x);
  const Tensor given = map_in(grad), out = map_out(x, shape_of(x));
  by_dtype(kOp, x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    resample<true, T, T>(kOp, context, given, out, rows, cols);
  });
  return {laid_out_like(out, x)};
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cuda, MIRNET_DISPATCH, m) {
  m.impl("blur_pool", TORCH_BOX(&blur_pool));
  m.impl("blur_pool_backward", TORCH_BOX(&blur_pool_backward));
}

}  // namespace mirnet_fast::cuda
