// skff_select: global means of the branches' sum, the small layers and the softmax over the
// branches, the weighted sum. Floor: 2B + 1 maps; the backward reads B + 1 and writes B.
//
// pool_kernel reads all branches once and leaves partial sums, in a fixed order; attend_kernel, one
// block an image, adds them and does the small layers: of a few hundred kilobytes, not worth a
// map's launch; combine_kernel reads the branches again. A thread keeps its 16 bytes of channels,
// and with them its shares of the branches in registers, and walks along a row: of up to four
// branches, several pixels of each, as `ahead` says, are asked for before the first is used; of
// more, of one branch after the other.
#include "../shared/softmax.h"
#include "common.cuh"
#include "small_layers.cuh"

namespace mirnet_fast::cuda {

namespace {

constexpr const char* kOp = "skff_select";
constexpr int kThreads = 256;
constexpr int kListed = 16;  // branches among a kernel's arguments
// Blocks of all images together that walk over pixels: four on each multiprocessor of a large GPU.
constexpr int64_t kPrograms = 528;

// Pixels of every branch that a thread asks for at once: as many as two blocks' registers hold.
constexpr int ahead(int branches, bool with_grad) {
  return (branches > 2 ? 2 : 4) / (with_grad ? 2 : 1);
}

// How a block's threads lie over 16-byte pieces of channels and pixels of one image.
struct Walk {
  int width, per_row, steps, programs, channel_blocks;
  int vectors;  // of a block: pieces of channels side by side
};

template <int Ahead>
Walk walk_over(const Tensor& map, int V) {
  Walk walk{};
  const int64_t vectors = map.size(1) / V;
  walk.channel_blocks = int(ceil_div(vectors, kThreads));
  walk.vectors = int(ceil_div(vectors, walk.channel_blocks));
  walk.width = int(map.size(3));
  walk.per_row = int(ceil_div(walk.width, kThreads / walk.vectors * Ahead));
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
  Tables(const Place& place, const Tensor& first) : place_(place), first_(first) {}

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
      place_.launch(told(kOp, first_), table_kernel<Item>, 1, 32, 0, part);
    }
    to.table = table;
  }

 private:
  const Place& place_;
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

template <class T, int V, int B, bool WithGrad, int Ahead>
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
      const int w = step % a.walk.per_row * me.slots * Ahead + me.slot;
      const auto inside = [&](int u) { return w + u * me.slots < a.walk.width; };
      Pack<T, V> raw[Ahead][B ? B : 1], given[Ahead];
      const bool multiplied = WithGrad && (B > 0 || first > 0);
      if (multiplied) {
#pragma unroll
        for (int u = 0; u < Ahead; ++u)
          if (inside(u)) given[u] = fetch<V>(a.grad.at(me.n, h, w + u * me.slots) + me.c);
      }
      const auto ask = [&](int b, int place) {
#pragma unroll
        for (int u = 0; u < Ahead; ++u)
          if (inside(u)) raw[u][place] = fetch<V>(a.maps[b].at(me.n, h, w + u * me.slots) + me.c);
      };
      const auto add = [&](int b, int place) {
#pragma unroll
        for (int u = 0; u < Ahead; ++u) {
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
        for (int b = 0; b < B; ++b) ask(b, b);
#pragma unroll
        for (int b = 0; b < B; ++b) add(b, b);
      } else {
        // Row 0 is of all branches, another of one.
        const int begin = first > 0 ? first - 1 : 0, end = first > 0 ? first : branches;
        for (int b = begin; b < end; ++b) {
          ask(b, 0);
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

// The shares of channel c, (B) at distance `channels`.
template <class T, class F>
MIRNET_DEVICE void select_layers(const AttendArgs<T>& a, const F* after, int c, F* shares) {
  for (int b = 0; b < a.branches; ++b) {
    const Select<T> layer = a.select[b];
    F logit = layer.bias ? F(to_float(layer.bias[c])) : F(0);
    for (int d = 0; d < a.squeezed; ++d)
      logit += F(to_float(layer.weight[int64_t(c) * a.squeezed + d])) * after[d];
    shares[int64_t(b) * a.channels] = logit;
  }
  softmax(shares, a.branches, a.channels);
}

template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1) attend_kernel(AttendArgs<T> a) {
  float* const room = reinterpret_cast<float*>(shared_memory());  // (threads), (C), (d)
  float* const means = room + kSmallThreads;
  float* const z = means + a.channels;
  const int n = blockIdx.x;
  add_programs(a.sums + int64_t(n) * a.programs * a.channels, a.programs, a.channels, a.channels,
               room, means, 1 / a.pixels);
  small_layer(a.reduce_weight, a.reduce_bias, means, a.squeezed, a.channels, z);
  for (int d = threadIdx.x; d < a.squeezed; d += kSmallThreads)
    z[d] = activated(z[d], slope_of<T, float>(a, d), a.slope == nullptr);
  sync_threads();
  for (int c = threadIdx.x; c < a.channels; c += kSmallThreads)
    select_layers(a, z, c, a.attention + int64_t(n) * a.branches * a.channels + c);
}

// In float64: differences of shares cancel, and it is a few thousand numbers.
template <class T>
struct AttendBackwardArgs {
  AttendArgs<T> forward;  // sums (N, programs, 1 + B, C); attention is written for spread_kernel
  double *means, *after, *before_grad, *slope_grad,
      *logit_grad;  // (N, C), (N, d) thrice, (N, B, C)
  double* shares;   // (N, B, C)
  float* shift;     // (N, C): what every pixel gets
};

template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1)
    attend_backward_kernel(AttendBackwardArgs<T> b) {
  const AttendArgs<T>& a = b.forward;
  double* const room = reinterpret_cast<double*>(shared_memory());  // (threads), (d)
  double* const z = room + kSmallThreads;
  const int n = blockIdx.x, C = a.channels, D = a.squeezed, rows = 1 + a.branches;
  const float* const sums = a.sums + int64_t(n) * a.programs * rows * C;
  double* const means = b.means + int64_t(n) * C;
  double* const shares = b.shares + int64_t(n) * a.branches * C;
  double* const grads = b.logit_grad + int64_t(n) * a.branches * C;
  double* const after = b.after + int64_t(n) * D;
  double* const before_grad = b.before_grad + int64_t(n) * D;
  add_programs(sums, a.programs, int64_t(rows) * C, C, room, means, 1.0 / a.pixels);
  for (int i = 0; i < a.branches; ++i)
    add_programs(sums + int64_t(1 + i) * C, a.programs, int64_t(rows) * C, C, room,
                 grads + int64_t(i) * C, 1.0);
  small_layer(a.reduce_weight, a.reduce_bias, means, a.squeezed, a.channels, z);
  for (int d = threadIdx.x; d < D; d += kSmallThreads)
    after[d] = activated(z[d], slope_of<T, double>(a, d), a.slope == nullptr);
  sync_threads();
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    select_layers(a, after, c, shares + c);
    double mean = 0;
    for (int i = 0; i < a.branches; ++i)
      mean += shares[int64_t(i) * C + c] * grads[int64_t(i) * C + c];
    for (int i = 0; i < a.branches; ++i) {
      const int64_t at = int64_t(i) * C + c;
      grads[at] = shares[at] * (grads[at] - mean);
      a.attention[int64_t(n) * a.branches * C + at] = float(shares[at]);
    }
  }
  sync_threads();
  for (int d = warp(); d < D; d += kSmallThreads / 32) {
    double sum = 0;
    for (int i = 0; i < a.branches; ++i) {
      const T* const weight = a.select[i].weight;
      for (int c = lane(); c < C; c += 32)
        sum += grads[int64_t(i) * C + c] * to_float(weight[int64_t(c) * D + d]);
    }
    sum = sum_of_warp(sum);
    if (lane() == 0) {
      const bool relu = a.slope == nullptr;
      const double through =
          relu ? (z[d] <= 0 ? 0 : 1) : (z[d] > 0 ? 1 : slope_of<T, double>(a, d));
      before_grad[d] = through == 0 && relu ? 0 : through * sum;
      b.slope_grad[int64_t(n) * D + d] = z[d] > 0 ? 0 : z[d] * sum;
    }
  }
  sync_threads();
  for (int c = threadIdx.x; c < C; c += kSmallThreads) {
    double sum = 0;
    for (int d = 0; d < D; ++d)
      sum += before_grad[d] * to_float(a.reduce_weight[int64_t(d) * C + c]);
    b.shift[int64_t(n) * C + c] = float(sum / a.pixels);
  }
}

// ---- the weighted sum, and its gradient -------------------------------------------------------

template <class T, int B>
struct CombineArgs {
  ForEach<Map<const T>, B> maps;
  Map<T> out;
  const float* attention;
  Walk walk;
  int channels, branches;
};

template <class T, int V, int B, int Ahead>
__global__ void __launch_bounds__(kThreads, B == 4 ? 1 : 2) combine_kernel(CombineArgs<T, B> a) {
  const Walker<V> me(a.walk, a.channels);
  if (!me.active) return;
  const int branches = B ? B : a.branches;
  const float* const shares = a.attention + int64_t(me.n) * branches * a.channels + me.c;
  float share[B ? B : 1][V];
  const auto take_share = [&](int b, int place) {
#pragma unroll
    for (int j = 0; j < V; ++j) share[place][j] = shares[int64_t(b) * a.channels + j];
  };
  if constexpr (B > 0) {
#pragma unroll
    for (int b = 0; b < B; ++b) take_share(b, b);
  }
  for (int step = me.program; step < a.walk.steps; step += a.walk.programs) {
    const int h = step / a.walk.per_row;
    const int w = step % a.walk.per_row * me.slots * Ahead + me.slot;
    const auto inside = [&](int u) { return w + u * me.slots < a.walk.width; };
    const auto at = [&](int b, int u) { return a.maps[b].at(me.n, h, w + u * me.slots) + me.c; };
    if constexpr (B > 0) {
      Pack<T, V> raw[Ahead][B];
#pragma unroll
      for (int u = 0; u < Ahead; ++u)
#pragma unroll
        for (int b = 0; b < B; ++b)
          if (inside(u)) raw[u][b] = fetch<V>(at(b, u));
#pragma unroll
      for (int u = 0; u < Ahead; ++u) {
        float total[V] = {};
#pragma unroll
        for (int b = 0; b < B; ++b)
#pragma unroll
          for (int j = 0; j < V; ++j) total[j] += share[b][j] * to_float(raw[u][b].value[j]);
        if (inside(u)) store<V>(a.out.at(me.n, h, w + u * me.slots) + me.c, total);
      }
    } else {
      for (int u = 0; u < Ahead && inside(u); ++u) {
        float total[V] = {};
        for (int b = 0; b < branches; ++b) {
          const Pack<T, V> raw = fetch<V>(at(b, u));
          take_share(b, 0);
#pragma unroll
          for (int j = 0; j < V; ++j) total[j] += share[0][j] * to_float(raw.value[j]);
        }
        store<V>(a.out.at(me.n, h, w + u * me.slots) + me.c, total);
      }
    }
  }
}

template <class T, int B>
struct SpreadArgs {
  Map<const T> grad;
  ForEach<Map<T>, B> outs;
  const float *attention, *shift;
  Walk walk;
  int channels, branches;
};

template <class T, int V, int B, int Ahead>
__global__ void __launch_bounds__(kThreads, 2) spread_kernel(SpreadArgs<T, B> a) {
  const Walker<V> me(a.walk, a.channels);
  if (!me.active) return;
  const int branches = B ? B : a.branches;
  const float* const shares = a.attention + int64_t(me.n) * branches * a.channels + me.c;
  float share[B ? B : 1][V], shift[V];
  const auto take_share = [&](int b, int place) {
#pragma unroll
    for (int j = 0; j < V; ++j) share[place][j] = shares[int64_t(b) * a.channels + j];
  };
#pragma unroll
  for (int j = 0; j < V; ++j) shift[j] = a.shift[int64_t(me.n) * a.channels + me.c + j];
  if constexpr (B > 0) {
#pragma unroll
    for (int b = 0; b < B; ++b) take_share(b, b);
  }
  for (int step = me.program; step < a.walk.steps; step += a.walk.programs) {
    const int h = step / a.walk.per_row;
    const int w = step % a.walk.per_row * me.slots * Ahead + me.slot;
    const auto inside = [&](int u) { return w + u * me.slots < a.walk.width; };
    Pack<T, V> given[Ahead];
#pragma unroll
    for (int u = 0; u < Ahead; ++u)
      if (inside(u)) given[u] = fetch<V>(a.grad.at(me.n, h, w + u * me.slots) + me.c);
    const auto write = [&](int b, int place) {
#pragma unroll
      for (int u = 0; u < Ahead; ++u) {
        if (!inside(u)) continue;
        float value[V];
#pragma unroll
        for (int j = 0; j < V; ++j)
          value[j] = share[place][j] * to_float(given[u].value[j]) + shift[j];
        store<V>(a.outs[b].at(me.n, h, w + u * me.slots) + me.c, value);
      }
    };
    if constexpr (B > 0) {
#pragma unroll
      for (int b = 0; b < B; ++b) write(b, b);
    } else {
      for (int b = 0; b < branches; ++b) {
        take_share(b, 0);
        write(b, 0);
      }
    }
  }
}

// ---- tensors ---------------------------------------------------------------------------------

struct Weights {
  const Tensor& reduce;
  const OptionalTensor &reduce_bias, &slope;
  const std::vector<Tensor>&select, &select_biases;
};

void check_all(const std::vector<Tensor>& branches, const Weights& w) {
  const size_t count = branches.size();
  MIRNET_CHECK(count >= 1, kOp, ": branches must hold at least one tensor; got none");
  const Tensor& first = branches[0];
  check_map(kOp, "branches[0]", first);
  for (const Tensor& branch : branches) check(kOp, "branches", branch, shape_of(first), first);
  MIRNET_CHECK(w.reduce.dim() == 4, kOp, ": reduce_weight must be (d, C, 1, 1)");
  const int64_t channels = first.size(1), squeezed = w.reduce.size(0);
  check_conv(kOp, "reduce_weight or reduce_bias", w.reduce, w.reduce_bias, squeezed, channels,
             first);
  if (w.slope) check(kOp, "slope", *w.slope, {w.slope->numel() == 1 ? 1 : squeezed}, first);
  MIRNET_CHECK(w.select.size() == count, kOp, ": select_weights must hold ", count,
               " tensors; got ", w.select.size());
  MIRNET_CHECK(w.select_biases.empty() || w.select_biases.size() == count, kOp,
               ": select_biases must hold none or ", count, " tensors; got ",
               w.select_biases.size());
  for (const Tensor& weight : w.select)
    check(kOp, "select_weights", weight, {channels, squeezed, 1, 1}, first);
  for (const Tensor& bias : w.select_biases) check(kOp, "select_biases", bias, {channels}, first);
}

// Kept alive while kernels read them.
struct DenseWeights {
  std::vector<Tensor> kept;

  template <class T>
  const T* data(const Tensor& t) {
    kept.push_back(dense(t));
    return static_cast<const T*>(kept.back().data_ptr());
  }

  template <class T>
  AttendArgs<T> args(const Weights& w, const Tensor& first, const Tensor& sums, Tables& tables) {
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

std::vector<Tensor> maps_in(const std::vector<Tensor>& branches) {
  std::vector<Tensor> maps;
  for (const Tensor& branch : branches) maps.push_back(map_in(branch));
  return maps;
}

bool all_wide(const std::vector<Tensor>& maps) {
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
Tensor pool(const Place& place, Tables& tables, const std::vector<Tensor>& maps,
            const Tensor* grad) {
  const Tensor& first = maps[0];
  const int64_t n = first.size(0), channels = first.size(1);
  OptionalTensor sums;
  by_width<T>(all_wide(maps) && (!WithGrad || wide({grad})), maps.size(),
              [&](auto width, auto count) {
                constexpr int V = decltype(width)::value, B = decltype(count)::value;
                constexpr int kAhead = ahead(B, WithGrad);
                PoolArgs<T, B> args{};
                tables.list(args.maps, maps_of<const T>(maps));
                if (WithGrad) args.grad = map_of<const T>(*grad);
                args.walk = walk_over<kAhead>(first, V);
                args.channels = int(channels);
                args.branches = int(maps.size());
                const int64_t rows = WithGrad ? 1 + int64_t(maps.size()) : 1;
                sums = scratch(first, {n, args.walk.programs, rows * channels});
                args.sums = static_cast<float*>(sums->data_ptr());
                place.launch(told(kOp, first), pool_kernel<T, V, B, WithGrad, kAhead>,
                             blocks_of(args.walk, n), kThreads, kThreads * V * sizeof(float), args);
              });
  return few_sums(told(kOp, first), place, *sums);
}

}  // namespace

Tensor skff_select(std::vector<Tensor> branches, Tensor reduce_weight, OptionalTensor reduce_bias,
                   OptionalTensor slope, std::vector<Tensor> select_weights,
                   std::vector<Tensor> select_biases) {
  const Weights w{reduce_weight, reduce_bias, slope, select_weights, select_biases};
  check_all(branches, w);
  const Tensor& first = branches[0];
  const Place place(first);
  const Tensor out = map_out(first, shape_of(first));
  if (out.numel() == 0) return laid_out_like(out, first);
  const std::vector<Tensor> maps = maps_in(branches);
  const Tensor attention = scratch(first, {first.size(0), int64_t(maps.size()), first.size(1)});
  by_dtype(kOp, first, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Tables tables(place, first);
    const Tensor sums = pool<T, false>(place, tables, maps, nullptr);
    DenseWeights weights;
    AttendArgs<T> attend = weights.args<T>(w, first, sums, tables);
    attend.attention = static_cast<float*>(attention.data_ptr());
    const size_t shared = (kSmallThreads + attend.channels + attend.squeezed) * sizeof(float);
    place.launch(told(kOp, first), attend_kernel<T>, first.size(0), kSmallThreads, shared, attend);
    by_width<T>(all_wide(maps) && wide({&out}), maps.size(), [&](auto width, auto count) {
      constexpr int V = decltype(width)::value, B = decltype(count)::value;
      constexpr int kAhead = ahead(B, false);
      const Walk walk = walk_over<kAhead>(first, V);
      CombineArgs<T, B> args{};
      tables.list(args.maps, maps_of<const T>(maps));
      args.out = map_of<T>(out);
      args.attention = attend.attention;
      args.walk = walk;
      args.channels = attend.channels;
      args.branches = attend.branches;
      place.launch(told(kOp, first), combine_kernel<T, V, B, kAhead>,
                   blocks_of(walk, first.size(0)), kThreads, 0, args);
    });
  });
  return laid_out_like(out, first);
}

std::vector<Tensor> skff_select_backward(Tensor grad, std::vector<Tensor> branches,
                                         Tensor reduce_weight, OptionalTensor reduce_bias,
                                         OptionalTensor slope, std::vector<Tensor> select_weights,
                                         std::vector<Tensor> select_biases) {
  const Weights w{reduce_weight, reduce_bias, slope, select_weights, select_biases};
  check_all(branches, w);
  const Tensor& first = branches[0];
  check(kOp, "grad", grad, shape_of(first), first);
  const Place place(first);
  const int64_t n = first.size(0), C = first.size(1), D = reduce_weight.size(0),
                B = int64_t(branches.size());
  std::vector<Tensor> outs;
  for (int64_t b = 0; b < B; ++b) outs.push_back(map_out(first, shape_of(first)));
  const auto doubles = [&](const Shape& shape) {
    return scratch(first, shape, ScalarType::Double);
  };
  const Tensor means = doubles({n, C}), after = doubles({n, D}), before_grad = doubles({n, D});
  const Tensor slope_grad = doubles({n, D}), logit_grad = doubles({n, B * C}),
               shares = doubles({n, B, C});
  const Tensor shift = scratch(first, {n, C}), attention = scratch(first, {n, B, C});
  if (n > 0) {
    const std::vector<Tensor> maps = maps_in(branches);
    const Tensor given = map_in(grad);
    by_dtype(kOp, first, [&](auto tag) {
      using T = typename decltype(tag)::type;
      Tables tables(place, first);
      const Tensor sums = pool<T, true>(place, tables, maps, &given);
      DenseWeights weights;
      AttendBackwardArgs<T> small{
          weights.args<T>(w, first, sums, tables),     static_cast<double*>(means.data_ptr()),
          static_cast<double*>(after.data_ptr()),      static_cast<double*>(before_grad.data_ptr()),
          static_cast<double*>(slope_grad.data_ptr()), static_cast<double*>(logit_grad.data_ptr()),
          static_cast<double*>(shares.data_ptr()),     static_cast<float*>(shift.data_ptr())};
      small.forward.attention = static_cast<float*>(attention.data_ptr());
      place.launch(told(kOp, first), attend_backward_kernel<T>, n, kSmallThreads,
                   (kSmallThreads + D) * sizeof(double), small);
      by_width<T>(all_wide(outs) && wide({&given}), outs.size(), [&](auto width, auto count) {
        constexpr int V = decltype(width)::value, kCount = decltype(count)::value, kAhead = 4;
        SpreadArgs<T, kCount> args{};
        args.grad = map_of<const T>(given);
        tables.list(args.outs, maps_of<T>(outs));
        args.attention = small.forward.attention;
        args.shift = small.shift;
        args.walk = walk_over<kAhead>(first, V);
        args.channels = int(C);
        args.branches = int(B);
        place.launch(told(kOp, first), spread_kernel<T, V, kCount, kAhead>, blocks_of(args.walk, n),
                     kThreads, 0, args);
      });
    });
  }
  std::vector<Tensor> gradients;
  for (int64_t b = 0; b < B; ++b) gradients.push_back(laid_out_like(outs[b], branches[b]));
  gradients.push_back(products(kOp, place, before_grad, 0, means, reduce_weight));
  if (reduce_bias) gradients.push_back(gradient_of(*reduce_bias, summed(before_grad, {0})));
  if (slope)
    gradients.push_back(gradient_of(
        *slope, slope->numel() == 1 ? summed(slope_grad, {0, 1}) : summed(slope_grad, {0})));
  for (int64_t b = 0; b < B; ++b)
    gradients.push_back(products(kOp, place, logit_grad, b * C, after, select_weights[b]));
  for (int64_t b = 0; b < int64_t(select_biases.size()); ++b) {
    Tensor whole = logit_grad;
    gradients.push_back(
        gradient_of(select_biases[b], summed(torch::stable::narrow(whole, 1, b * C, C), {0})));
  }
  return gradients;
}

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cuda, MIRNET_DISPATCH, m) {
  m.impl("skff_select", TORCH_BOX(&skff_select));
  m.impl("skff_select_backward", TORCH_BOX(&skff_select_backward));
}

}  // namespace mirnet_fast::cuda
