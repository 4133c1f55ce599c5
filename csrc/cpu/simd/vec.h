// Vectors of the accumulation type by the compiler's vector extension, so that one source serves
// every instruction set; loads and stores convert from and to the storage type.
#pragma once

#include "loops.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kMaxVectors = 4;  // a GEMM panel: 6 x 4 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kMaxVectors = 2;  // 6 x 2 accumulators of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kMaxVectors = 2;
#endif

template <class A>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int kLanes = kVectorBytes / sizeof(A);

// How much of a vector an access touches: all of it, or its first `count` lanes.
struct AllLanes {};
struct FirstLanes {
  int64_t count;
};

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline void from_acc(float x, float* out) { *out = x; }
inline void from_acc(double x, double* out) { *out = x; }
inline void from_acc(float x, bf16* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  // Round to nearest even; a NaN stays one.
  out->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class A>
inline Vec<A> splat(A x) {
  return Vec<A>{} + x;
}

inline Vec<float> load(const float* p, AllLanes) {
  return *reinterpret_cast<const VecOf<float>::unaligned*>(p);
}
inline Vec<double> load(const double* p, AllLanes) {
  return *reinterpret_cast<const VecOf<double>::unaligned*>(p);
}
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t HalfBitsUnaligned
    __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
typedef uint32_t WordBits __attribute__((vector_size(kVectorBytes)));

inline Vec<float> load(const bf16* p, AllLanes) {
  HalfBits half = *reinterpret_cast<const HalfBitsUnaligned*>(p);
  return (Vec<float>)(__builtin_convertvector(half, WordBits) << 16);
}
template <class T>
inline Vec<Acc<T>> load(const T* p, FirstLanes part) {
  Vec<Acc<T>> v{};
  for (int64_t i = 0; i < part.count; ++i) v[i] = to_acc(p[i]);
  return v;
}

inline void store(float* p, Vec<float> v, AllLanes) {
  *reinterpret_cast<VecOf<float>::unaligned*>(p) = v;
}
inline void store(double* p, Vec<double> v, AllLanes) {
  *reinterpret_cast<VecOf<double>::unaligned*>(p) = v;
}
inline void store(bf16* p, Vec<float> v, AllLanes) {
  WordBits bits = (WordBits)v;
  WordBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  WordBits nan = (WordBits)(v != v);
  rounded = (nan & 0x7fc0) | (~nan & rounded);
  *reinterpret_cast<HalfBitsUnaligned*>(p) = __builtin_convertvector(rounded, HalfBits);
}
template <class T>
inline void store(T* p, Vec<Acc<T>> v, FirstLanes part) {
  for (int64_t i = 0; i < part.count; ++i) from_acc(v[i], p + i);
}

// f(c, AllLanes or FirstLanes) for the vectors that cover `count` values.
template <class A, class F>
inline __attribute__((always_inline)) void lanes(int64_t count, F f) {
  int64_t c = 0;
  for (; c + kLanes<A> <= count; c += kLanes<A>) f(c, AllLanes{});
  if (c < count) f(c, FirstLanes{count - c});
}

// Lane i of the result is lane from(i) of a, or lane from(i) - kLanes of b.
template <class A, class F>
inline __attribute__((always_inline)) Vec<A> shuffled(Vec<A> a, Vec<A> b, F from) {
#if defined(__clang__)
  Vec<A> result;
  for (int i = 0; i < kLanes<A>; ++i)
    result[i] = from(i) < kLanes<A> ? a[from(i)] : b[from(i) - kLanes<A>];
  return result;
#else
  typename VecOf<A>::mask index{};
  for (int i = 0; i < kLanes<A>; ++i) index[i] = from(i);
  return __builtin_shuffle(a, b, index);
#endif
}

template <class A>
inline A sum_of(Vec<A> v) {
#pragma GCC unroll 8
  for (int by = kLanes<A> / 2; by > 0; by /= 2)
    v += shuffled<A>(v, v, [=](int i) { return (i + by) % kLanes<A>; });
  return v[0];
}

// v[0] = the kLanes values that op gives over each of the kLanes vectors v[0], v[1], ...: a tree
// that halves the number of vectors at each step costs a fraction of reducing them one by one.
template <class A, int Width = kLanes<A>, class Op>
inline __attribute__((always_inline)) void reduce_each(Vec<A>* v, Op op) {
  if constexpr (Width > 1) {
    // Every vector holds kLanes / Width pieces of Width lanes, each piece a partial result.
    constexpr int kHalf = Width / 2;
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      const Vec<A> a = v[2 * i], b = v[2 * i + 1];
      v[i] = op(shuffled<A>(a, b, [](int l) { return l / kHalf * Width + l % kHalf; }),
                shuffled<A>(a, b, [](int l) { return l / kHalf * Width + kHalf + l % kHalf; }));
    }
    reduce_each<A, kHalf>(v, op);
  }
}

// The square matrix of kLanes vectors, transposed in place: at each step the off-diagonal blocks of
// `By` lanes change places.
template <class A, int By = 1>
inline __attribute__((always_inline)) void transpose(Vec<A>* v) {
  if constexpr (By < kLanes<A>) {
    constexpr int kAll = kLanes<A>;
#pragma GCC unroll 16
    for (int i = 0; i < kAll; ++i)
      if (!(i & By)) {
        const Vec<A> a = v[i], b = v[i + By];
        v[i] = shuffled<A>(a, b, [](int l) { return l & By ? kAll + l - By : l; });
        v[i + By] = shuffled<A>(a, b, [](int l) { return l & By ? kAll + l : l + By; });
      }
    transpose<A, 2 * By>(v);
  }
}

// v[i][j] = from[j * step + i], a square of kLanes values each way.
template <class A, class T>
inline __attribute__((always_inline)) void load_transposed(const T* from, int64_t step, Vec<A>* v) {
  for (int64_t j = 0; j < kLanes<A>; ++j) v[j] = load(from + j * step, AllLanes{});
  transpose<A>(v);
}

template <class A>
inline Vec<A> select(typename VecOf<A>::mask condition, Vec<A> yes, Vec<A> no) {
  return condition ? yes : no;
}

// Whether a lane holds a NaN.
inline __attribute__((always_inline)) bool has_nan(Vec<float> v) {
#if defined(__AVX512F__)
  constexpr int kUnordered = 3, kUsualRounding = 4;
  return __builtin_ia32_cmpps512_mask(v, v, kUnordered, -1, kUsualRounding) != 0;
#elif defined(__AVX__)
  return __builtin_ia32_movmskps256((Vec<float>)(v != v)) != 0;
#elif defined(__SSE__)
  return __builtin_ia32_movmskps((Vec<float>)(v != v)) != 0;
#else
  const Vec<float> other = select<float>(v == v, Vec<float>{}, splat<float>(1));
  return sum_of<float>(other) > 0;
#endif
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
