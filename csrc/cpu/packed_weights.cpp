#include "packed_weights.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

#include "run.h"

namespace mirnet_fast::cpu {

namespace {

constexpr const char* kVariable = "MIRNET_FAST_PACKED_MB";

// The packed weights take four to five times the memory of the weights. They are kept for a
// convolution of few multiply-adds: beside many, packing does not count, and a large image's maps
// take memory enough.
constexpr int64_t kFewProducts = int64_t(1) << 28;
constexpr int64_t kLine = 64;

// Where the weight lies and how, its packing, which stands for op and instruction set, and which
// form that packs.
using Key = std::tuple<const void*, Shape, Shape, const void*, int64_t>;
using Fingerprint = Vector<uint64_t>;

class Kept {
 public:
  // Null if there are none of these values.
  PackedWeights find(const Key& key, const Fingerprint& print) {
    const std::lock_guard<std::mutex> guard(mutex_);
    ++clock_;
    const auto found = entries_.find(key);
    if (found == entries_.end()) return nullptr;
    found->second.last_use = clock_;
    return found->second.print == print ? found->second.weights : nullptr;
  }

  // Whether there is room for so many bytes more. What was not used for a few forwards makes room,
  // but nothing else: networks that take turns would keep nothing for each other.
  bool has_room(int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    constexpr uint64_t kFewForwards = 1000;
    for (auto i = entries_.begin(); bytes_ + bytes > limit_ && i != entries_.end();)
      i = clock_ - i->second.last_use > kFewForwards ? erase(i) : std::next(i);
    return bytes_ + bytes <= limit_;
  }

  void add(const Key& key, Fingerprint print, PackedWeights weights, int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto old = entries_.find(key);
    if (old != entries_.end()) erase(old);
    entries_[key] = {std::move(print), std::move(weights), bytes, clock_};
    bytes_ += bytes;
  }

  void clear() {
    const std::lock_guard<std::mutex> guard(mutex_);
    entries_.clear();
    bytes_ = 0;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  int64_t bytes() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    Fingerprint print;
    PackedWeights weights;
    int64_t bytes;
    uint64_t last_use;
  };

  static int64_t limit_from_environment() {
    const char* value = std::getenv(kVariable);
    if (value == nullptr || *value == '\0') return int64_t(1) << 30;
    char* end;
    const long long megabytes = std::strtoll(value, &end, 10);
    MIRNET_CHECK(*end == '\0' && megabytes >= 0 && megabytes < (1 << 30), kVariable,
                 " must be a number of megabytes, 0 or more; got '", value, "'");
    return megabytes << 20;
  }

  std::map<Key, Entry>::iterator erase(std::map<Key, Entry>::iterator i) {
    bytes_ -= i->second.bytes;
    return entries_.erase(i);
  }

  std::mutex mutex_;
  std::map<Key, Entry> entries_;
  const int64_t limit_ = limit_from_environment();
  int64_t bytes_ = 0;
  uint64_t clock_ = 0;
};

// Never destroyed: threads may still compute when the process ends.
Kept& kept() {
  static Kept* const all = new Kept;
#if defined(__unix__) || defined(__APPLE__)
  // A child that was forked while another thread held it would wait for ever.
  static const int at_fork =
      pthread_atfork([] { all->lock(); }, [] { all->unlock(); }, [] { all->unlock(); });
  (void)at_fork;
#endif
  return *all;
}

// Whether its elements, in whatever order, are all that lies from its first one to its last.
bool fills_its_memory(const Tensor& weight) {
  int64_t span = 1;
  for (int64_t d = 0; d < weight.dim(); ++d) span += (weight.size(d) - 1) * weight.stride(d);
  return span == weight.numel();
}

template <class T>
Fingerprint fingerprint_of(const Tensor& weight) {
  const int64_t count = weight.numel();
  Fingerprint print((count + kFingerprintValues - 1) / kFingerprintValues);
  const FingerprintArgs args{weight.data_ptr(), count, print.data()};
  run(MIRNET_KERNEL(fingerprint, T), args, int64_t(print.size()), kFingerprintValues);
  return print;
}

// Memory of the calling thread for the packed weights of one convolution: fresh pages would cost
// more than packing does.
float* memory_of_thread(size_t count) {
  static thread_local Vector<float> memory;
  constexpr size_t kSpare = kLine / sizeof(float);
  if (memory.size() < count + kSpare) {
    memory = {};
    memory.resize(count + kSpare);
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (kSpare - address / sizeof(float) % kSpare) % kSpare;
}

}  // namespace

template <class T>
PackedWeights kept_or_packed(const Tensor& weight, const void* packing, int64_t form, int64_t count,
                             bool keep, const std::function<void(float*)>& pack_to) {
  const auto once = [&] {
    float* const packed = memory_of_thread(count);
    pack_to(packed);
    return PackedWeights(PackedWeights(), packed);
  };
  if (!keep || !fills_its_memory(weight)) return once();

  const Key key{weight.data_ptr(), shape_of(weight), strides_of(weight), packing, form};
  Fingerprint print = fingerprint_of<T>(weight);
  if (PackedWeights found = kept().find(key, print)) return found;
  const int64_t bytes = (count * int64_t(sizeof(float)) + kLine - 1) / kLine * kLine;
  if (!kept().has_room(bytes)) return once();
  auto* memory = static_cast<float*>(std::aligned_alloc(kLine, bytes));
  if (memory == nullptr) return once();
  advise_large_pages(memory, bytes);
  const PackedWeights result(memory, [memory](const float*) { std::free(memory); });
  pack_to(memory);
  // Not if another thread changed the weight meanwhile.
  if (fingerprint_of<T>(weight) == print) kept().add(key, std::move(print), result, bytes);
  return result;
}

template <class T>
PackedWeights pack_for(Packing packing, const Tensor& weight, bool outputs_first,
                       int64_t tile_columns, int64_t tiles, bool keep) {
  ConvPackArgs args{};
  args.outputs = weight.size(outputs_first ? 0 : 1);
  args.inputs = weight.size(outputs_first ? 1 : 0);
  args.output_stride = 9 * (outputs_first ? args.inputs : 1);
  args.input_stride = 9 * (outputs_first ? 1 : args.outputs);
  args.tile_columns = tile_columns;
  // The four phases of conv_transpose3x3 have as many weights as a tile of 4 x 4 outputs has
  // points.
  const int64_t points = tile_points(tile_columns);
  const int64_t count = points * args.inputs * grouped(args.outputs);
  const int64_t panel = MIRNET_KERNEL(panel_columns, float)();
  const int64_t panels = (grouped(args.outputs) + panel - 1) / panel;
  const int64_t chunks = (args.inputs + kPackInputs - 1) / kPackInputs;
  const auto pack_to = [&](float* packed) {
    const Tensor ordered = torch::stable::contiguous(weight);
    args.weight = ordered.data_ptr();
    args.packed = packed;
    run(packing, args, panels * chunks, points * panel * kPackInputs);
  };
  return kept_or_packed<T>(weight, reinterpret_cast<const void*>(packing), tile_columns, count,
                           keep && tiles * count <= kFewProducts, pack_to);
}

template PackedWeights kept_or_packed<bf16>(const Tensor&, const void*, int64_t, int64_t, bool,
                                            const std::function<void(float*)>&);
template PackedWeights pack_for<float>(Packing, const Tensor&, bool, int64_t, int64_t, bool);
template PackedWeights pack_for<bf16>(Packing, const Tensor&, bool, int64_t, int64_t, bool);

int64_t packed_weights_bytes() { return kept().bytes(); }

void release_packed_weights() { kept().clear(); }

STABLE_TORCH_LIBRARY_IMPL(mirnet_fast_cpu, CompositeExplicitAutograd, m) {
  m.impl("packed_weights_bytes", TORCH_BOX(&packed_weights_bytes));
  m.impl("release_packed_weights", TORCH_BOX(&release_packed_weights));
}

}  // namespace mirnet_fast::cpu
