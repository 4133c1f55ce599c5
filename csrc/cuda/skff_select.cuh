// What the forward and the backward of skff_select share: how threads lie over pixels, the sums of
// the branches over them, the small layers.
//
// A thread keeps its 16 bytes of channels, and with them its shares of the branches in registers,
// and walks along a row: of up to four branches it loads several pixels of each, as
// `loads_in_flight` says, before it uses the first; of more, of one branch after the other.
#pragma once

#include "../common/skff_arguments.h"
#include "../common/softmax.h"
#include "launch.cuh"
#include "small_layers.cuh"

namespace mirnet_fast::cuda::skff {

constexpr const char* kOp = "skff_select";
constexpr int kThreads = 256;
constexpr int kListed = 16;  // branches among a kernel's arguments
// Blocks of all images together that walk over pixels: two on each multiprocessor of a large GPU,
// as many as it holds of three branches'. More would only leave more partial sums to add.
constexpr int64_t kPrograms = 264;

// Pixels of every branch that a thread loads at once: as many as two blocks' registers hold.
constexpr int loads_in_flight(int branches, bool with_grad) {
  return (branches > 2 ? 2 : 4) / (with_grad ? 2 : 1);
}

// How a block's threads lie over 16-byte pieces of channels and pixels of one image.
struct Walk {
  int width, per_row, steps, programs, channel_blocks;
  int vectors;  // of a block: pieces of channels side by side
};

template <int InFlight>
Walk walk_over(const Tensor& map, int V) {
  Walk walk{};
  const int64_t vectors = map.size(1) / V;
  walk.channel_blocks = int(ceil_div(vectors, kThreads));
  walk.vectors = int(ceil_div(vectors, walk.channel_blocks));
  walk.width = int(map.size(3));
  walk.per_row = int(ceil_div(walk.width, kThreads / walk.vectors * InFlight));
  const int64_t steps = map.size(2) * walk.per_row;
  MIRNET_CHECK(steps < int64_t(1) << 31, kOp, ": maps of 2**31 rows or more");
  walk.steps = int(steps);
  walk.programs = int(std::min(steps, std::max<int64_t>(1, kPrograms / map.size(0))));
  return walk;
}

inline int64_t blocks_of(const Walk& walk, int64_t images) {
  return images * walk.programs * walk.channel_blocks;
}

// Where a thread stands in its block's walk.
template <int V>
struct Walker {
  int n, program, c, slot, slots;
  bool active;

  MIRNET_DEVICE Walker(const Walk& walk, int channels) {
    const int block = blockIdx.x / walk.channel_blocks;
    n = block / walk.programs;
    program = block % walk.programs;
    slots = kThreads / walk.vectors;
    slot = threadIdx.x / walk.vectors;
    c = (blockIdx.x % walk.channel_blocks * walk.vectors + threadIdx.x % walk.vectors) * V;
    active = slot < slots && c < channels;
  }
};

template <class T>
MIRNET_DEVICE void mark_global(const Map<T>& map) {
  points_to_global(map.data);
}

// What a kernel takes for each branch, of any number of them: up to kListed among its arguments,
// more in a table on the device.
template <class Item>
struct List {
  Item few[kListed];
  const Item* table;  // null where `few` has all

  MIRNET_DEVICE Item operator[](int i) const {
    const Item item = table ? Item(table[i]) : Item(few[i]);
    mark_global(item);
    return item;
  }
};

template <class Item, int B>
using ForEach = std::conditional_t<B == 0, List<Item>, Item[B ? B : 1]>;

template <class Item>
struct TablePart {
  Item items[kListed];
  Item* to;
  int count;
};

template <class Item>
__global__ void __launch_bounds__(32) table_kernel(TablePart<Item> a) {
  if (int(threadIdx.x) < a.count) a.to[threadIdx.x] = a.items[threadIdx.x];
}

// Fills a kernel's arguments with what it takes for each branch; lives until the kernel is
// launched.
class Tables {
 public:
  Tables(const LaunchContext& context, const Tensor& first) : context_(context), first_(first) {}

  template <class Item, size_t B>
  void list(Item (&to)[B], const std::vector<Item>& items) {
    std::copy(items.begin(), items.end(), to);
  }

  template <class Item>
  void list(List<Item>& to, const std::vector<Item>& items) {
    const int count = int(items.size());
    to.table = nullptr;
    if (count <= kListed) return list(to.few, items);
    kept_.push_back(scratch(first_, {int64_t(count * sizeof(Item))}, ScalarType::Byte));
    Item* const table = static_cast<Item*>(kept_.back().data_ptr());
    for (int begin = 0; begin < count; begin += kListed) {
      TablePart<Item> part{};
      part.to = table + begin;
      part.count = std::min(kListed, count - begin);
      std::copy_n(items.begin() + begin, part.count, part.items);
      context_.launch(error_context(kOp, first_), table_kernel<Item>, 1, 32, 0, part);
    }
    to.table = table;
  }

 private:
  const LaunchContext& context_;
  const Tensor& first_;
  std::vector<Tensor> kept_;
};

// ---- the sums over the pixels -----------------------------------------------------------------

template <class T, int B>
struct PoolArgs {
  ForEach<Map<const T>, B> maps;
  Map<const T> grad;
  float* sums;  // (N, programs, 1, C), with a gradient (N, programs, 1 + B, C)
  Walk walk;
  int channels, branches;
};

template <class T, int V, int B, bool WithGrad, int InFlight>
__global__ void __launch_bounds__(kThreads, 2) pool_kernel(PoolArgs<T, B> a) {
  const Walker<V> me(a.walk, a.channels);
  const int branches = B ? B : a.branches;
  float* const kept = reinterpret_cast<float*>(shared_memory());  // (slots, vectors V)
  const int row = a.walk.vectors * V;
  // A row of sums at a time where the number of branches is not known: they stay in registers.
  constexpr int kRows = B && WithGrad ? 1 + B : 1;
  const int rows = WithGrad ? 1 + branches : 1;
  for (int first = 0; first < rows; first += kRows) {
    float total[kRows][V] = {};
    for (int step = me.program; me.active && step < a.walk.steps; step += a.walk.programs) {
      const int h = step / a.walk.per_row;
      const int w = step % a.walk.per_row * me.slots * InFlight + me.slot;
      const auto inside = [&](int u) { return w + u * me.slots < a.walk.width; };
      Pack<T, V> raw[InFlight][B ? B : 1], given[InFlight];
      const bool multiplied = WithGrad && (B > 0 || first > 0);
      if (multiplied) {
#pragma unroll
        for (int u = 0; u < InFlight; ++u)
          if (inside(u)) given[u] = fetch<V>(a.grad.at(me.n, h, w + u * me.slots) + me.c);
      }
      const auto request = [&](int b, int place) {
#pragma unroll
        for (int u = 0; u < InFlight; ++u)
          if (inside(u)) raw[u][place] = fetch<V>(a.maps[b].at(me.n, h, w + u * me.slots) + me.c);
      };
      const auto add = [&](int b, int place) {
#pragma unroll
        for (int u = 0; u < InFlight; ++u) {
          if (!inside(u)) continue;
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const float value = to_float(raw[u][place].value[j]);
            if (first == 0) total[0][j] += value;
            if (multiplied) total[B ? 1 + b : 0][j] += value * to_float(given[u].value[j]);
          }
        }
      };
      if constexpr (B > 0) {
#pragma unroll
        for (int b = 0; b < B; ++b) request(b, b);
#pragma unroll
        for (int b = 0; b < B; ++b) add(b, b);
      } else {
        // Row 0 is of all branches, another of one.
        const int begin = first > 0 ? first - 1 : 0, end = first > 0 ? first : branches;
        for (int b = begin; b < end; ++b) {
          request(b, 0);
          add(b, 0);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (me.active) {
        float* const mine = kept + me.slot * row + threadIdx.x % a.walk.vectors * V;
#pragma unroll
        for (int j = 0; j < V; ++j) mine[j] = total[r][j];
      }
      sync_threads();
      const int begin = blockIdx.x % a.walk.channel_blocks * row;
      for (int i = threadIdx.x; i < row && begin + i < a.channels; i += kThreads) {
        float sum = 0;
        for (int slot = 0; slot < me.slots; ++slot) sum += kept[slot * row + i];
        a.sums[((int64_t(me.n) * a.walk.programs + me.program) * rows + first + r) * a.channels +
               begin + i] = sum;
      }
      sync_threads();
    }
  }
}

// ---- the small layers ------------------------------------------------------------------------

template <class T>
struct Select {
  const T *weight, *bias;  // bias: or null
};

template <class T>
MIRNET_DEVICE void mark_global(const Select<T>& layer) {
  points_to_global(layer.weight);
  if (layer.bias) points_to_global(layer.bias);
}

template <class T>
struct AttendArgs {
  const float* sums;
  const T *reduce_weight, *reduce_bias, *slope;
  List<Select<T>> select;
  float* attention;  // (N, B, C)
  int branches, channels, squeezed, slopes, programs;
  float pixels;
};

// What the reduce layer gives before and after its activation; a NaN goes through.
template <class F>
MIRNET_DEVICE F activated(F before, F slope, bool relu) {
  if (relu) return before <= 0 ? F(0) : before;
  return before > 0 ? before : slope * before;
}

template <class T, class F>
MIRNET_DEVICE F slope_of(const AttendArgs<T>& a, int d) {
  return a.slope ? F(to_float(a.slope[a.slopes > 1 ? d : 0])) : F(0);
}

// The shares (B, C). All threads of the block call: a logit each, then a channel's softmax, after
// which only the thread that made them, number c % kSmallThreads, sees the shares of channel c.
template <class T, class F>
MIRNET_DEVICE void select_layers(const AttendArgs<T>& a, const F* after, F* shares) {
  for (int i = threadIdx.x; i < a.branches * a.channels; i += kSmallThreads) {
    const int c = i % a.channels;
    const Select<T> layer = a.select[i / a.channels];
    F logit = layer.bias ? F(to_float(layer.bias[c])) : F(0);
    for (int d = 0; d < a.squeezed; ++d)
      logit += F(to_float(layer.weight[int64_t(c) * a.squeezed + d])) * after[d];
    shares[i] = logit;
  }
  sync_threads();
  for (int c = threadIdx.x; c < a.channels; c += kSmallThreads)
    softmax(shares + c, a.branches, a.channels);
}

// ---- tensors ---------------------------------------------------------------------------------

// Kept alive while kernels read them.
struct DenseWeights {
  std::vector<Tensor> kept;

  template <class T>
  const T* data(const Tensor& t) {
    kept.push_back(dense(t));
    return static_cast<const T*>(kept.back().data_ptr());
  }

  template <class T>
  AttendArgs<T> args(const SkffWeights& w, const Tensor& first, const Tensor& sums,
                     Tables& tables) {
    AttendArgs<T> a{};
    a.sums = static_cast<const float*>(sums.data_ptr());
    a.reduce_weight = data<T>(w.reduce);
    a.reduce_bias = w.reduce_bias ? data<T>(*w.reduce_bias) : nullptr;
    a.slope = w.slope ? data<T>(*w.slope) : nullptr;
    a.slopes = w.slope ? int(w.slope->numel()) : 0;
    std::vector<Select<T>> select;
    for (size_t b = 0; b < w.select.size(); ++b)
      select.push_back(
          {data<T>(w.select[b]), w.select_biases.empty() ? nullptr : data<T>(w.select_biases[b])});
    tables.list(a.select, select);
    a.branches = int(w.select.size());
    a.channels = int(first.size(1));
    a.squeezed = int(w.reduce.size(0));
    a.programs = int(sums.size(1));
    a.pixels = float(first.size(2) * first.size(3));
    return a;
  }
};

inline std::vector<Tensor> maps_in(const std::vector<Tensor>& branches) {
  std::vector<Tensor> maps;
  for (const Tensor& branch : branches) maps.push_back(map_in(branch));
  return maps;
}

inline bool all_wide(const std::vector<Tensor>& maps) {
  for (const Tensor& map : maps)
    if (!wide({&map})) return false;
  return true;
}

// f(Width<V>, Width<B>), B being 0 for more than four branches.
template <class T, class F>
void by_width(bool aligned, size_t branches, F f) {
  const auto with_branches = [&](auto width) {
    switch (branches) {
      case 1:
        return f(width, Width<1>{});
      case 2:
        return f(width, Width<2>{});
      case 3:
        return f(width, Width<3>{});
      case 4:
        return f(width, Width<4>{});
      default:
        return f(width, Width<0>{});
    }
  };
  if (aligned)
    with_branches(Width<kWide<T>>{});
  else
    f(Width<1>{}, Width<0>{});
}

template <class T>
std::vector<Map<T>> maps_of(const std::vector<Tensor>& tensors) {
  std::vector<Map<T>> maps;
  for (const Tensor& tensor : tensors) maps.push_back(map_of<T>(tensor));
  return maps;
}

// (N, programs, C) sums over the pixels; with a gradient (N, programs, (1 + B) C).
template <class T, bool WithGrad>
Tensor pool(const LaunchContext& context, Tables& tables, const std::vector<Tensor>& maps,
            const Tensor* grad) {
  const Tensor& first = maps[0];
  const int64_t n = first.size(0), channels = first.size(1);
  OptionalTensor sums;
  by_width<T>(
      all_wide(maps) && (!WithGrad || wide({grad})), maps.size(), [&](auto width, auto count) {
        constexpr int V = decltype(width)::value, B = decltype(count)::value;
        constexpr int kInFlight = loads_in_flight(B, WithGrad);
        PoolArgs<T, B> args{};
        tables.list(args.maps, maps_of<const T>(maps));
        if (WithGrad) args.grad = map_of<const T>(*grad);
        args.walk = walk_over<kInFlight>(first, V);
        args.channels = int(channels);
        args.branches = int(maps.size());
        const int64_t rows = WithGrad ? 1 + int64_t(maps.size()) : 1;
        sums = scratch(first, {n, args.walk.programs, rows * channels});
        args.sums = static_cast<float*>(sums->data_ptr());
        context.launch(error_context(kOp, first), pool_kernel<T, V, B, WithGrad, kInFlight>,
                       blocks_of(args.walk, n), kThreads, kThreads * V * sizeof(float), args);
      });
  return few_sums(error_context(kOp, first), context, *sums);
}

}  // namespace mirnet_fast::cuda::skff
