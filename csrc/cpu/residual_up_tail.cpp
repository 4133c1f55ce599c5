// residual_up_tail on the CPU: bilinear tables and packed weights for simd/residual_up_tail.cpp.
#include "convolution.h"
#include "tail_sums.h"
#include "tap_tables.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "residual_up_tail";

// What a forward needs beside the large map, for the result's rows from first_row on.
template <class T>
struct Forward {
  using A = Acc<T>;
  TapTable rows, cols;
  TailOperands<T> operands;
  Block<A> projected;
  UpArgs args{};

  Forward(const Tensor& out, const Tensor& bottom, const TailWeights& w, int64_t first_row,
          const MatrixKernels* kernels)
      : rows(bilinear_taps(bottom.size(2))),
        cols(bilinear_taps(bottom.size(3))),
        operands(w, false, kernels) {
    args.bottom = map_of(bottom);
    args.out = map_of(out);
    args.rows = rows.view();
    args.cols = cols.view();
    operands.give_to(args);
    const Map& small = args.bottom;
    // An enlarged row reads the small row it lies in and one neighbour.
    const int64_t last_row = first_row + args.out.h;
    args.first_row = first_row;
    args.projected_first = std::max<int64_t>(first_row / 2 - 1, 0);
    args.projected_rows = std::min(last_row / 2 + 1, small.h) - args.projected_first;
    projected = Block<A>(small.n * args.projected_rows * small.w * args.out.c);
    args.projected = projected.get();
    run(kernels ? kernels->up_project : MIRNET_KERNEL(up_project, T), args,
        small.n * args.projected_rows, small.w * small.c);
  }
};

// `out` for rows of the result from first_row on.
void check_rows_of(const Tensor& out, const Tensor& bottom, const TailWeights& w,
                   int64_t first_row) {
  check_map(kOp, "out", out);
  const int64_t height = 2 * bottom.size(2);
  check(kOp, "out", out, {bottom.size(0), w.top.size(0), out.size(2), 2 * bottom.size(3)}, bottom);
  MIRNET_CHECK(first_row >= 0 && first_row + out.size(2) <= height, kOp,
               ": the rows from first_row on must lie inside the result's ", height,
               "; got first_row = ", first_row, " and ", out.size(2), " rows");
}

}  // namespace

// The rows of the result from first_row on, as many as top and out have.
void residual_up_tail_rows(Tensor out, Tensor top, Tensor bottom, Tensor slope, Tensor top_weight,
                           OptionalTensor top_bias, Tensor bottom_weight,
                           OptionalTensor bottom_bias, int64_t first_row) {
  const TailWeights weights{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_map(kOp, "top", top);
  check_map(kOp, "bottom", bottom);
  const int64_t C = top.size(1);
  check_tail(kOp, weights, C, bottom.size(1), top);
  check(kOp, "bottom", bottom, shape_of(bottom), top);
  check_rows_of(out, bottom, weights, first_row);
  check(kOp, "top", top, {bottom.size(0), C, out.size(2), out.size(3)}, bottom);
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const MatrixKernels* kernels = matrix_for(top, bottom, out);
    Forward<T> forward(out, bottom, weights, first_row, kernels);
    forward.args.top = map_of(top);
    run(kernels ? kernels->up_tail : MIRNET_KERNEL(up_tail, T), forward.args,
        out.size(0) * out.size(2), out.size(3) * C);
  });
}

// The same with top = conv_transpose3x3(x, conv_weight, conv_bias), which is never there as a
// whole. x has the rows of the small map from first_row / 2 on that the output's rows need. sums:
// (N, D), for the sums of out over its pixels.
void residual_up_tail_of_conv(Tensor out, Tensor x, Tensor conv_weight, OptionalTensor conv_bias,
                              Tensor bottom, Tensor slope, Tensor top_weight,
                              OptionalTensor top_bias, Tensor bottom_weight,
                              OptionalTensor bottom_bias, int64_t first_row, OptionalTensor sums) {
  const TailWeights weights{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_input(kOp, x);
  check_map(kOp, "bottom", bottom);
  const int64_t C = check_weight(kOp, x, conv_weight, 0);
  check_tail(kOp, weights, C, bottom.size(1), x);
  check(kOp, "bottom", bottom, shape_of(bottom), x);
  check_rows_of(out, bottom, weights, first_row);
  check_channels_last(kOp, "out", out);
  const int64_t rows = out.size(2) / 2, width = bottom.size(3);
  check(kOp, "x", x, {bottom.size(0), x.size(1), x.size(2), width}, bottom);
  MIRNET_CHECK(out.size(2) % 2 == 0 && first_row % 2 == 0 && rows <= x.size(2), kOp,
               ": out must be rows that x's ", x.size(2),
               " rows become; got first_row = ", first_row, " and ", out.size(2), " rows");
  if (conv_bias) check(kOp, "conv_bias", *conv_bias, {C}, x);
  if (sums) check_sums(kOp, "sums", *sums, out.size(0), out.size(1));

  if (const MatrixKernels* kernels = matrix_for(x, bottom, out)) {
    Forward<bf16> forward(out, bottom, weights, first_row, kernels);
    GroupedSums grouped(sums, out.size(0), out.size(2), out.size(1));
    MatrixUpArgs args{};
    args.tail = forward.args;
    args.tail.sums = grouped.parts();
    args.x = map_of(x);
    args.channels = C;
    matrix_up_tail(*kernels, args, conv_weight, conv_bias, slope);
    return grouped.finish();
  }
  ConvArgs maps{};
  maps.in = map_of(x);
  maps.out = first_phase(out, C);
  by_stored(x, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Forward<T> forward(out, bottom, weights, first_row, nullptr);
    forward.args.slope = nullptr;
    const Convolution<T> conv(maps, MIRNET_KERNEL(conv_transpose3x3_pack, T), conv_weight, false,
                              conv_bias, slope, true);
    GroupedSums grouped(sums, out.size(0), sum_groups(tiles_of(maps)), out.size(1));
    const ConvTailArgs args{conv.args, forward.args, grouped.parts()};
    run(MIRNET_KERNEL(conv_transpose3x3_tail, T), args, maps.out.n * conv.args.blocks,
        conv.args.block_tiles * 64 * std::max(x.size(1), C));
    grouped.finish();
  });
}

Tensor residual_up_tail(Tensor top, Tensor bottom, Tensor slope, Tensor top_weight,
                        OptionalTensor top_bias, Tensor bottom_weight, OptionalTensor bottom_bias) {
  check_up_tail(kOp, top, bottom, {slope, top_weight, top_bias, bottom_weight, bottom_bias});
  Tensor out = empty_like(top, {top.size(0), top_weight.size(0), top.size(2), top.size(3)});
  residual_up_tail_rows(out, top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias,
                        0);
  return out;
}

std::vector<Tensor> residual_up_tail_backward(Tensor grad, Tensor top, Tensor bottom, Tensor slope,
                                              Tensor top_weight, OptionalTensor top_bias,
                                              Tensor bottom_weight, OptionalTensor bottom_bias) {
  const TailWeights weights{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_up_tail(kOp, top, bottom, weights);
  const int64_t C = top.size(1), E = bottom.size(1), D = top_weight.size(0);
  check(kOp, "grad", grad, {top.size(0), D, top.size(2), top.size(3)}, top);
  const TapTable rows_back = transposed(bilinear_taps(bottom.size(2)), bottom.size(2));
  const TapTable cols_back = transposed(bilinear_taps(bottom.size(3)), bottom.size(3));
  TailBackward<UpArgs> backward(grad, top, bottom);
  UpArgs& args = backward.args;
  std::vector<Tensor> gradients;
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    args.rows_back = rows_back.view();
    args.cols_back = cols_back.view();
    const TailOperands<T> operands(weights, true);
    operands.give_to(args);

    const int64_t ld = MIRNET_KERNEL(padded, A)(C), lde = MIRNET_KERNEL(padded, A)(E);
    args.chunks = matrix_chunks_of(args.top);
    const int64_t chunks = args.top.n * args.chunks.per_image;
    Vector<double> sums(chunks * (D + C));
    Vector<A> top_sums(chunks * D * ld);
    args.sums = sums.data();
    args.top_sums = top_sums.data();
    run(MIRNET_KERNEL(up_tail_backward_large, T), args, chunks, args.chunks.rows * args.top.w * C);

    args.small_chunks = matrix_chunks_of(args.bottom);
    const int64_t small_chunks = args.bottom.n * args.small_chunks.per_image;
    Vector<A> bottom_sums(small_chunks * D * lde);
    args.bottom_sums = bottom_sums.data();
    run(MIRNET_KERNEL(up_tail_backward_small, T), args, small_chunks,
        args.small_chunks.rows * args.bottom.w * E);

    gradients = tail_gradients<T>(
        backward.top_grad, backward.bottom_grad, weights, {sums.data(), chunks, D + C, D, C},
        {sums.data(), chunks, D + C, 0, D}, matrix_total(top_sums, chunks, D * ld, 0, D, C, ld),
        matrix_total(bottom_sums, small_chunks, D * lde, 0, D, E, lde));
  });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  MIRNET_IMPL(residual_up_tail);
  MIRNET_IMPL(residual_up_tail_rows);
  MIRNET_IMPL(residual_up_tail_of_conv);
  MIRNET_IMPL(residual_up_tail_backward);
}

}  // namespace mirnet_fast::cpu
