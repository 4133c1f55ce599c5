// residual_up_tail: the small map is projected before it is enlarged, in float32; a block of the
// large map's PReLU is multiplied by its 1x1 weight, and what the projection becomes there is
// added. With the transposed convolution that makes the large map, a block of one phase of it goes
// no further than the cache.
#include "unit.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

namespace {

// The projection on the way to one row of the result: enlarged along the columns' axis, at the
// small map's columns [first - 1, last + 1).
class ProjectedRow {
 public:
  ProjectedRow(const UpArgs& args, int64_t columns)
      : args_(args), ld_(pad<float>(args.out.c)), line_((columns + 2) * ld_) {}

  void fill(int64_t n, int64_t row, int64_t first, int64_t last) {
    const int64_t near = row / 2, other = row % 2 == 0 ? near - 1 : near + 1;
    const float *a = row_of(n, near), *b = row_of(n, other);
    const int64_t outputs = args_.out.c;
    first_ = first - 1;
    for (int64_t w = first_; w <= last; ++w) {
      const int64_t at = inside(w, 0, args_.bottom.w) * outputs;
      lanes<float>(outputs, [&](int64_t c, auto span) {
        store(line_ + (w - first_) * ld_ + c,
              0.75f * load(a + at + c, span) + 0.25f * load(b + at + c, span), AllLanes{});
      });
    }
  }

  // At a column of the result.
  Vec<float> at(int64_t column, int64_t c) const {
    const float* near = line_ + (column / 2 - first_) * ld_ + c;
    const float* other = column % 2 == 0 ? near - ld_ : near + ld_;
    return 0.75f * load(near, AllLanes{}) + 0.25f * load(other, AllLanes{});
  }

 private:
  // The small map's row or column, or the nearest one that there is.
  static int64_t inside(int64_t index, int64_t first, int64_t count) {
    return index < first ? first : least(index, first + count - 1);
  }
  const float* row_of(int64_t n, int64_t row) const {
    const int64_t rows = args_.projected_rows, first = args_.projected_first;
    const int64_t at = n * rows + inside(row, first, rows) - first;
    return static_cast<const float*>(args_.projected) + at * args_.bottom.w * args_.out.c;
  }

  const UpArgs& args_;
  int64_t ld_, first_ = 0;
  Buffer<float> line_;
};

// Pixels of row h of the result, `step` columns apart from `column` on, from those of the large
// map; total: (D), to which they are added, or null.
inline void tail_out(const UpArgs& args, const Pixels& top, int64_t inputs, int64_t n, int64_t h,
                     int64_t column, int64_t step, int64_t count, const ProjectedRow& projected,
                     float* sums, double* total) {
  const bf16* packed = static_cast<const bf16*>(args.packed_top);
  const float* bias = static_cast<const float*>(args.bias);
  bf16* out = address<bf16>(args.out, n, h, column);
  groups(args.out.c, [&](int64_t first, int64_t channels) {
    block_sums({top, 1, 1, inputs, packed + first * inputs}, count, channels, sums);
    put_block(out + first, step * args.out.sw, count, channels,
              total == nullptr ? nullptr : total + first, [&](int64_t i, int64_t c, auto span) {
                const Vec<float> y = load(sums + i * kMatrixOutputs + c, AllLanes{}) +
                                     projected.at(column + i * step, first + c);
                return bias == nullptr ? y : y + load(bias + first + c, span);
              });
  });
}

}  // namespace

// projected = bottom times packed_bottom; rows [begin, end) of N * projected rows.
void up_project(const UpArgs& args, int64_t begin, int64_t end) {
  const Unit unit;
  const Map& bottom = args.bottom;
  const int64_t inputs = whole(bottom.c, kMatrixInputs), outputs = args.out.c;
  const bf16* packed = static_cast<const bf16*>(args.packed_bottom);
  Buffer<bf16> buffer(buffer_values(bottom.c));
  Buffer<float> sums(kBlock * kMatrixOutputs);
  for (int64_t row = begin; row < end; ++row)
    blocks(bottom.w, [&](int64_t w, int64_t count) {
      const int64_t h = args.projected_first + row % args.projected_rows;
      const Pixels x = pixels_of(bottom, row / args.projected_rows, h, w, count, 1, 1, buffer);
      float* out = static_cast<float*>(args.projected) + (row * bottom.w + w) * outputs;
      groups(outputs, [&](int64_t column, int64_t channels) {
        block_sums({x, 1, 1, inputs, packed + column * inputs}, count, channels, sums);
        for (int64_t i = 0; i < count; ++i)
          lanes<float>(channels, [&](int64_t c, auto span) {
            store(out + i * outputs + column + c, load(sums + i * kMatrixOutputs + c, AllLanes{}),
                  span);
          });
      });
    });
}

// Rows [begin, end) of N * top's rows.
void up_tail(const UpArgs& args, int64_t begin, int64_t end) {
  const Unit unit;
  const Map& top = args.top;
  const int64_t inputs = whole(top.c, kMatrixInputs);
  const float* slope = static_cast<const float*>(args.slope);
  Buffer<bf16> buffer(buffer_values(top.c));
  Buffer<float> sums(kBlock * kMatrixOutputs);
  ProjectedRow projected(args, kBlock / 2 + 1);
  for (int64_t row = begin; row < end; ++row)
    blocks(args.out.w, [&](int64_t w, int64_t count) {
      const int64_t n = row / top.h, h = row % top.h;
      projected.fill(n, args.first_row + h, w / 2, (w + count - 1) / 2 + 1);
      Pixels x = pixels_of(top, n, h, w, count, 1, 1, buffer, true);
      for (int64_t i = 0; i < count; ++i)
        lanes<float>(top.c, [&](int64_t c, auto span) {
          bf16* at = buffer + i * inputs + c;
          put(at, prelu(load(at, span), load(slope + c, AllLanes{})), span);
        });
      tail_out(args, x, inputs, n, h, w, 1, count, projected, sums, nullptr);
    });
}

// Rows [begin, end) of N * x's rows that the result's pairs of rows lie in. tail.sums: (N * the
// result's rows, D) of zeros, to which its pixels are added, or null.
void up_tail_of_conv(const MatrixUpArgs& args, int64_t begin, int64_t end) {
  const Unit unit;
  const UpArgs& tail = args.tail;
  const int64_t inputs = whole(args.x.c, kMatrixInputs), rows_of_x = tail.out.h / 2;
  const int64_t channels = args.channels, ld = whole(channels, kMatrixInputs);
  Buffer<bf16> buffer(buffer_values(args.x.c, 2, 2)), top(kBlock * ld);
  Buffer<float> sums(kBlock * kMatrixOutputs);
  ProjectedRow projected(tail, kBlock);
  zero<bf16>(top, kBlock * ld);  // behind the channels it stays so
  const auto block_of = [&](int64_t n, int64_t h, int64_t w, int64_t count, int64_t phase) {
    const int64_t down = 1 + phase / 2, across = 1 + phase % 2;
    const Pixels x = pixels_of(args.x, n, h, w, count, down, across, buffer);
    const bf16* packed = args.packed + (phase == 0 ? 0 : args.phase_end[phase - 1]);
    groups(channels, [&](int64_t column, int64_t some) {
      block_sums({x, int(down), int(across), inputs, packed + down * across * column * inputs},
                 count, some, sums);
      put_block(top + column, ld, count, some, nullptr, [&](int64_t i, int64_t c, auto) {
        Vec<float> y = load(sums + i * kMatrixOutputs + c, AllLanes{});
        if (args.bias != nullptr) y += load(args.bias + column + c, AllLanes{});
        return prelu(y, load(args.slope + column + c, AllLanes{}));
      });
    });
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / rows_of_x, h = row % rows_of_x;
    for (int64_t lower = 0; lower < 2; ++lower) {
      const int64_t y = 2 * h + lower;
      double* total =
          tail.sums == nullptr ? nullptr : tail.sums + (n * tail.out.h + y) * tail.out.c;
      blocks(args.x.w, [&](int64_t w, int64_t count) {
        projected.fill(n, tail.first_row + y, w, w + count);
        for (int64_t right = 0; right < 2; ++right) {
          block_of(n, h, w, count, 2 * lower + right);
          tail_out(tail, {top, 0, ld}, ld, n, y, 2 * w + right, 2, count, projected, sums, total);
        }
      });
    }
  }
}

}  // namespace mirnet_fast::cpu::MIRNET_ISA
