// skff_select on the CPU: the loops of simd/skff_select.cpp, and between them the logits, which are
// a few thousand multiplications an image, in double.
#include "../common/skff_arguments.h"
#include "../common/softmax.h"
#include "run.h"
#include "sums.h"
#include "tensors.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kOp = "skff_select";

using Doubles = Vector<double>;

// The squeeze and the selection of one image, with what the backward needs of them.
struct Selector {
  int64_t branches, channels, squeezed;
  Doubles reduce, reduce_bias, slope;
  Vector<Doubles> select, select_bias;

  struct Image {
    const double* pooled;
    Doubles before, after, attention;  // the activation's input and output, (B, C)
  };

  double slope_at(int64_t k) const { return slope[slope.size() == 1 ? 0 : k]; }

  Image operator()(const double* pooled) const {
    Image image{pooled, Doubles(squeezed), Doubles(squeezed), Doubles(branches * channels)};
    for (int64_t k = 0; k < squeezed; ++k) {
      double sum = reduce_bias.empty() ? 0 : reduce_bias[k];
      for (int64_t c = 0; c < channels; ++c) sum += reduce[k * channels + c] * pooled[c];
      image.before[k] = sum;
      image.after[k] = sum > 0 ? sum : slope.empty() ? (sum <= 0 ? 0 : sum) : slope_at(k) * sum;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t b = 0; b < branches; ++b) {
        double& logit = image.attention[b * channels + c];
        logit = select_bias.empty() ? 0 : select_bias[b][c];
        for (int64_t k = 0; k < squeezed; ++k)
          logit += select[b][c * squeezed + k] * image.after[k];
      }
      softmax(&image.attention[c], int(branches), int(channels));
    }
    return image;
  }
};

template <class T>
Selector selector(const std::vector<Tensor>& branches, const SkffWeights& w) {
  Selector s{int64_t(branches.size()),
             branches[0].size(1),
             w.reduce.size(0),
             values<T, double>(w.reduce),
             {},
             {},
             {},
             {}};
  if (w.reduce_bias) s.reduce_bias = values<T, double>(*w.reduce_bias);
  if (w.slope) s.slope = values<T, double>(*w.slope);
  for (const Tensor& weight : w.select) s.select.push_back(values<T, double>(weight));
  for (const Tensor& bias : w.select_biases) s.select_bias.push_back(values<T, double>(bias));
  return s;
}

std::vector<Map> maps_of(const std::vector<Tensor>& tensors) {
  std::vector<Map> maps;
  for (const Tensor& tensor : tensors) maps.push_back(map_of(tensor));
  return maps;
}

// (N, C) sums of the branches over the pixels.
template <class T>
Doubles pool(const std::vector<Map>& inputs) {
  const Map& first = inputs[0];
  SkffArgs args{};
  args.branches = int64_t(inputs.size());
  args.inputs = inputs.data();
  args.chunks = chunks_of(first, kChunkPixels);
  const int64_t chunks = first.n * args.chunks.per_image;
  Doubles sums(chunks * first.c);
  args.sums = sums.data();
  run(MIRNET_KERNEL(skff_pool, T), args, chunks,
      args.chunks.rows * first.w * args.branches * first.c);
  return totals(sums, args.chunks.per_image, first.n, first.c);
}

}  // namespace

// (N, C), float64: the sum of the branches over the pixels.
Tensor skff_pool(std::vector<Tensor> branches) {
  check_branches(kOp, branches);
  const Tensor& first = branches[0];
  Tensor result = torch::stable::empty({first.size(0), first.size(1)}, ScalarType::Double,
                                       std::nullopt, first.device(), std::nullopt, std::nullopt);
  by_dtype(kOp, first, [&](auto tag) {
    const Doubles sums = pool<typename decltype(tag)::type>(maps_of(branches));
    std::copy(sums.begin(), sums.end(), static_cast<double*>(result.data_ptr()));
  });
  return result;
}

// given: sums (N, C), which together are the branches' sum over `pixels` pixels of an image of
// which these may be a band of rows; none: they are taken of the branches.
void skff_select_into(Tensor out, std::vector<Tensor> branches, Tensor reduce_weight,
                      OptionalTensor reduce_bias, OptionalTensor slope,
                      std::vector<Tensor> select_weights, std::vector<Tensor> select_biases,
                      std::optional<std::vector<Tensor>> given, int64_t pixels) {
  const SkffWeights weights{reduce_weight, reduce_bias, slope, select_weights, select_biases};
  check_skff(kOp, branches, weights);
  check(kOp, "out", out, shape_of(branches[0]), branches[0]);
  const std::vector<Tensor> sums = given.value_or(std::vector<Tensor>());
  for (const Tensor& part : sums) check_sums(kOp, "sums", part, out.size(0), out.size(1));
  MIRNET_CHECK(sums.empty() || pixels > 0, kOp, ": pixels must be those of the sums; got ", pixels);
  by_dtype(kOp, out, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    const Selector select = selector<T>(branches, weights);
    const std::vector<Map> inputs = maps_of(branches);
    const Map& first = inputs[0];
    const int64_t count = select.branches * first.c;

    SkffArgs args{};
    args.branches = select.branches;
    args.inputs = inputs.data();
    args.out = map_of(out);
    Doubles pooled = sums.empty() ? pool<T>(inputs) : values<double>(sums[0]);
    for (size_t part = 1; part < sums.size(); ++part) {
      const auto* more = static_cast<const double*>(sums[part].data_ptr());
      for (double& value : pooled) value += *more++;
    }
    for (double& value : pooled) value /= double(sums.empty() ? first.h * first.w : pixels);
    Vector<A> attention(first.n * count);
    for (int64_t n = 0; n < first.n; ++n) {
      const Selector::Image image = select(&pooled[n * first.c]);
      std::copy(image.attention.begin(), image.attention.end(), &attention[n * count]);
    }
    args.attention = attention.data();
    run(MIRNET_KERNEL(skff_combine, T), args, first.n * first.h, first.w * count);
  });
}

Tensor skff_select(std::vector<Tensor> branches, Tensor reduce_weight, OptionalTensor reduce_bias,
                   OptionalTensor slope, std::vector<Tensor> select_weights,
                   std::vector<Tensor> select_biases) {
  check_branches(kOp, branches);
  Tensor out = empty_like(branches[0], shape_of(branches[0]));
  skff_select_into(out, branches, reduce_weight, reduce_bias, slope, select_weights, select_biases,
                   std::nullopt, 0);
  return out;
}

std::vector<Tensor> skff_select_backward(Tensor grad, std::vector<Tensor> branches,
                                         Tensor reduce_weight, OptionalTensor reduce_bias,
                                         OptionalTensor slope, std::vector<Tensor> select_weights,
                                         std::vector<Tensor> select_biases) {
  const SkffWeights weights{reduce_weight, reduce_bias, slope, select_weights, select_biases};
  check_skff(kOp, branches, weights);
  check(kOp, "grad", grad, shape_of(branches[0]), branches[0]);
  std::vector<Tensor> gradients;
  for (const Tensor& branch : branches) gradients.push_back(empty_like(branch, shape_of(branch)));
  by_dtype(kOp, grad, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Acc<T>;
    const Selector select = selector<T>(branches, weights);
    const std::vector<Map> inputs = maps_of(branches), input_grads = maps_of(gradients);
    const Map& first = inputs[0];
    const int64_t B = select.branches, C = first.c, D = select.squeezed;
    const double pixels = double(first.h * first.w);

    SkffArgs args{};
    args.branches = B;
    args.inputs = inputs.data();
    args.input_grads = input_grads.data();
    args.grad = map_of(grad);
    args.chunks = chunks_of(first, kChunkPixels);
    const int64_t chunks = first.n * args.chunks.per_image;
    Doubles sums(chunks * (1 + B) * C);
    args.sums = sums.data();
    run(MIRNET_KERNEL(skff_pool_backward, T), args, chunks,
        args.chunks.rows * first.w * (1 + B) * C);

    const Doubles total = totals(sums, args.chunks.per_image, first.n, (1 + B) * C);
    Vector<A> attention(first.n * B * C), shift(first.n * C);
    Doubles reduce_grad(D * C), reduce_bias_grad(D), slope_grad(select.slope.size());
    Vector<Doubles> select_grad(B, Doubles(C * D)), select_bias_grad(B, Doubles(C));
    for (int64_t n = 0; n < first.n; ++n) {
      Doubles pooled(&total[n * (1 + B) * C], &total[n * (1 + B) * C] + C);
      for (double& value : pooled) value /= pixels;
      const double* attention_grad = &total[(n * (1 + B) + 1) * C];
      const Selector::Image image = select(pooled.data());
      std::copy(image.attention.begin(), image.attention.end(), &attention[n * B * C]);
      Doubles after_grad(D);
      for (int64_t c = 0; c < C; ++c) {
        double mean = 0;
        for (int64_t b = 0; b < B; ++b)
          mean += image.attention[b * C + c] * attention_grad[b * C + c];
        for (int64_t b = 0; b < B; ++b) {
          const double logit_grad = image.attention[b * C + c] * (attention_grad[b * C + c] - mean);
          select_bias_grad[b][c] += logit_grad;
          for (int64_t k = 0; k < D; ++k) {
            select_grad[b][c * D + k] += logit_grad * image.after[k];
            after_grad[k] += logit_grad * select.select[b][c * D + k];
          }
        }
      }
      Doubles pooled_grad(C);
      for (int64_t k = 0; k < D; ++k) {
        double before_grad = after_grad[k];
        if (!(image.before[k] > 0)) {
          if (select.slope.empty()) {
            if (image.before[k] <= 0) before_grad = 0;
          } else {
            slope_grad[select.slope.size() == 1 ? 0 : k] += image.before[k] * after_grad[k];
            before_grad *= select.slope_at(k);
          }
        }
        reduce_bias_grad[k] += before_grad;
        for (int64_t c = 0; c < C; ++c) {
          reduce_grad[k * C + c] += before_grad * pooled[c];
          pooled_grad[c] += before_grad * select.reduce[k * C + c];
        }
      }
      for (int64_t c = 0; c < C; ++c) shift[n * C + c] = A(pooled_grad[c] / pixels);
    }
    args.attention = attention.data();
    args.shift = shift.data();
    run(MIRNET_KERNEL(skff_combine_backward, T), args, first.n * first.h, first.w * B * C);

    gradients.push_back(tensor_of<T>(reduce_weight, reduce_grad));
    if (reduce_bias) gradients.push_back(tensor_of<T>(*reduce_bias, reduce_bias_grad));
    if (slope) gradients.push_back(tensor_of<T>(*slope, slope_grad));
    for (int64_t b = 0; b < B; ++b)
      gradients.push_back(tensor_of<T>(select_weights[b], select_grad[b]));
    for (size_t b = 0; b < select_biases.size(); ++b)
      gradients.push_back(tensor_of<T>(select_biases[b], select_bias_grad[b]));
  });
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CPU, m) {
  MIRNET_IMPL(skff_select);
  MIRNET_IMPL(skff_select_into);
  MIRNET_IMPL(skff_pool);
  MIRNET_IMPL(skff_select_backward);
}

}  // namespace mirnet_fast::cpu
