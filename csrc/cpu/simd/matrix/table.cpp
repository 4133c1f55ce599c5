// The loops of this instruction set, for matrix_unit.h.
#include "unit.h"

namespace mirnet_fast::cpu::MIRNET_ISA {

int64_t packed_values(const MatrixPackArgs&);
void pack(const MatrixPackArgs&, int64_t begin, int64_t end);
void convolution(const MatrixConvArgs&, int64_t begin, int64_t end);
void up_project(const UpArgs&, int64_t begin, int64_t end);
void up_tail(const UpArgs&, int64_t begin, int64_t end);
void up_tail_of_conv(const MatrixUpArgs&, int64_t begin, int64_t end);
void down_tail(const DownArgs&, int64_t begin, int64_t end);
void dau_apply(const DauArgs&, int64_t begin, int64_t end);

extern const MatrixKernels matrix_kernels;
const MatrixKernels matrix_kernels{kHasTiles, packed_values,   pack,      convolution, up_project,
                                   up_tail,   up_tail_of_conv, down_tail, dau_apply};

}  // namespace mirnet_fast::cpu::MIRNET_ISA
