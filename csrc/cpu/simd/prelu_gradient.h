// The backward of a PReLU, tile by tile.
#pragma once

#include "tile_reduce.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

// From `back`, the gradient of PReLU(x), a tile (count x ld): that of x, and to slope_sum what the
// tile adds to the slopes' gradient. buffer, spare: kTile x padded C.
template <class T>
inline void prelu_gradient(const Map& x_map, const Map& x_grad, const Acc<T>* slope, int64_t n,
                           int64_t h, int64_t w, int64_t count, const Acc<T>* back, int64_t ld,
                           double* slope_sum, Acc<T>* buffer, Acc<T>* spare) {
  using A = Acc<T>;
  const View<A> x = view_tile<T>(x_map, n, h, w, count, buffer);
  add_columns<A>(slope_sum, x_map.c, count, [&](int64_t i, int64_t c, auto span) {
    const Vec<A> value = load(x.data + i * x.ld + c, span);
    return select<A>(value > Vec<A>{}, Vec<A>{}, value * load(back + i * ld + c, AllLanes{}));
  });
  store_tile<T>(x_grad, n, h, w, count, spare, [&](int64_t i, int64_t c, auto span) {
    const Vec<A> g = load(back + i * ld + c, AllLanes{});
    return select<A>(load(x.data + i * x.ld + c, span) > Vec<A>{}, g,
                     g * load(slope + c, AllLanes{}));
  });
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
