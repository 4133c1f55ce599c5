// residual_down_tail on the CPU: filter tables and packed weights for simd/residual_down_tail.cpp.
#include "tail_sums.h"
#include "tap_tables.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "residual_down_tail";

TapTable taps(int64_t size) { return blur_taps(size, 3, "reflect", 2, 0); }

}  // namespace

// out may be rows of the result, the first of them that of row first_row of top, which then has the
// row above that and the one below the last too. sums: (N, D), for the sums of out over its pixels.
void residual_down_tail_into(Tensor out, Tensor top, Tensor bottom, Tensor slope, Tensor top_weight,
                             OptionalTensor top_bias, Tensor bottom_weight,
                             OptionalTensor bottom_bias, OptionalTensor sums, int64_t first_row) {
  const TailWeights weights{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_down_tail(kOp, top, bottom, weights);
  const int64_t D = top_weight.size(0);
  Shape shape = down_tail_shape(top, D);
  check_map(kOp, "out", out);
  MIRNET_CHECK(first_row >= 0 && first_row % 2 == 0 && first_row / 2 + out.size(2) <= shape[2], kOp,
               ": the rows from first_row, an even one, on must lie inside top's ", top.size(2),
               "; got first_row = ", first_row, " and ", out.size(2), " rows of half of them");
  shape[2] = out.size(2);
  check(kOp, "out", out, shape, top);
  const TapTable rows = taps(top.size(2)), cols = taps(top.size(3));
  if (sums) check_sums(kOp, "sums", *sums, out.size(0), D);
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    DownArgs args{};
    args.top = map_of(top);
    args.bottom = map_of(bottom);
    args.out = map_of(out);
    args.rows = rows.view();
    args.rows.start += first_row / 2;
    args.cols = cols.view();
    const MatrixKernels* kernels = matrix_for(top, bottom, out);
    const TailOperands<T> operands(weights, false, kernels);
    operands.give_to(args);
    GroupedSums grouped(sums, args.out.n, args.out.h, D);
    args.out_sums = grouped.parts();
    run(kernels ? kernels->down_tail : MIRNET_KERNEL(down_tail, T), args, args.out.n * args.out.h,
        args.out.w * D);
    grouped.finish();
  });
}

Tensor residual_down_tail(Tensor top, Tensor bottom, Tensor slope, Tensor top_weight,
                          OptionalTensor top_bias, Tensor bottom_weight,
                          OptionalTensor bottom_bias) {
  check_down_tail(kOp, top, bottom, {slope, top_weight, top_bias, bottom_weight, bottom_bias});
  Tensor out = empty_like(top, down_tail_shape(top, top_weight.size(0)));
  residual_down_tail_into(out, top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias,
                          std::nullopt, 0);
  return out;
}

std::vector<Tensor> residual_down_tail_backward(Tensor grad, Tensor top, Tensor bottom,
                                                Tensor slope, Tensor top_weight,
                                                OptionalTensor top_bias, Tensor bottom_weight,
                                                OptionalTensor bottom_bias) {
  const TailWeights weights{slope, top_weight, top_bias, bottom_weight, bottom_bias};
  check_down_tail(kOp, top, bottom, weights);
  const TapTable rows = taps(top.size(2)), cols = taps(top.size(3));
  const TapTable rows_back = transposed(rows, top.size(2)),
                 cols_back = transposed(cols, top.size(3));
  const int64_t C = top.size(1), D = top_weight.size(0);
  check(kOp, "grad", grad, down_tail_shape(top, top_weight.size(0)), top);
  TailBackward<DownArgs> backward(grad, top, bottom);
  DownArgs& args = backward.args;
  std::vector<Tensor> gradients;
  by_dtype(kOp, top, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    args.rows = rows.view();
    args.cols = cols.view();
    args.rows_back = rows_back.view();
    args.cols_back = cols_back.view();
    const TailOperands<T> operands(weights, true);
    operands.give_to(args);

    const Map& small = args.grad;
    const int64_t ld = MIRNET_KERNEL(padded, A)(C);
    const int64_t half_map = small.n * small.h * small.w * C;
    const Block<A> small_top(half_map), small_bottom(half_map);
    args.small_top = small_top.get();
    args.small_bottom = small_bottom.get();
    args.chunks = matrix_chunks_of(small);
    const int64_t chunks = small.n * args.chunks.per_image;
    Vector<double> sums(chunks * D);
    Vector<A> weight_sums(chunks * 2 * D * ld);
    args.sums = sums.data();
    args.weight_sums = weight_sums.data();
    run(MIRNET_KERNEL(down_tail_backward_small, T), args, chunks, args.chunks.rows * small.w * D);

    args.big_chunks = chunks_of(args.top, kChunkPixels);
    const int64_t big_chunks = args.top.n * args.big_chunks.per_image;
    Vector<double> slope_sums(big_chunks * C);
    args.slope_sums = slope_sums.data();
    run(MIRNET_KERNEL(down_tail_backward_large, T), args, big_chunks,
        args.big_chunks.rows * args.top.w * C);

    gradients = tail_gradients<T>(
        backward.top_grad, backward.bottom_grad, weights, {slope_sums.data(), big_chunks, C, 0, C},
        {sums.data(), chunks, D, 0, D}, matrix_total(weight_sums, chunks, 2 * D * ld, 0, D, C, ld),
        matrix_total(weight_sums, chunks, 2 * D * ld, D * ld, D, C, ld));
  });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  MIRNET_IMPL(residual_down_tail);
  MIRNET_IMPL(residual_down_tail_into);
  MIRNET_IMPL(residual_down_tail_backward);
}

}  // namespace mirnet_fast::cpu
