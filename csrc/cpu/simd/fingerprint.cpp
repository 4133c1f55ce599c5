// Fingerprints of weights: 64 bits for each chunk of their values, by which packed weights are
// distinguished from those of other values. Every step is a bijection of the state for given values
// and of the values for a given state, so a change within one lane of one step is always seen;
// others are missed once in 2^64 times. The floor is reading the values.
#include "vec.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint64_t WordsUnaligned __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));

constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;

// The product alone moves nothing downwards: two flipped signs would cancel each other.
template <class W>
inline W mixed(W state, W values) {
  const W product = (state ^ values) * kFactor;
  return product ^ (product >> 32);
}

}  // namespace

// Chunks [begin, end).
template <class T>
void fingerprint(const FingerprintArgs& args, int64_t begin, int64_t end) {
  constexpr int kTogether = 8;  // a product's latency
  constexpr int64_t kAll = kVectorBytes / sizeof(T);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kFingerprintValues;
    const int64_t left = args.count - first;
    const int64_t count = left < kFingerprintValues ? left : kFingerprintValues;
    const T* values = static_cast<const T*>(args.values) + first;
    Words state[kTogether];
    for (int j = 0; j < kTogether; ++j) state[j] = Words{} + uint64_t(j + 1);
    int64_t i = 0;
    for (; i + kTogether * kAll <= count; i += kTogether * kAll)
      for (int j = 0; j < kTogether; ++j)
        state[j] =
            mixed<Words>(state[j], *reinterpret_cast<const WordsUnaligned*>(values + i + j * kAll));
    uint64_t result = uint64_t(count);
    for (int j = 0; j < kTogether; ++j)
      for (unsigned l = 0; l < sizeof(Words) / sizeof(uint64_t); ++l)
        result = mixed<uint64_t>(result, state[j][l]);
    for (; i < count; ++i) {
      uint32_t bits = 0;
      __builtin_memcpy(&bits, values + i, sizeof(T));
      result = mixed<uint64_t>(result, bits);
    }
    args.prints[chunk] = result;
  }
}

MIRNET_INSTANTIATE_STORED(fingerprint, FingerprintArgs)

}  // namespace mirnet_fast::cpu::MIRNET_ISA
