"""Flags of the compilers and of the linker."""

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
COMMON_FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi"
GLUE_FLAGS = f"{COMMON_FLAGS} -O2 {STABLE_ABI}"
# NaN and infinity must survive, so nothing that -ffast-math would add beyond these three.
LOOP_MATH = "-fno-math-errno -fno-trapping-math -ffp-contract=fast"
LOOP_FLAGS = f"{COMMON_FLAGS} -O3 -fopenmp-simd {LOOP_MATH}"
ISA_FLAGS = {
    "base": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c",
}
# Of the loops on units for products of bfloat16, each in a namespace of its own, beside those of AVX-512.
_DOTS = f"{ISA_FLAGS['avx512']} -mavx512bf16"
MATRIX_FLAGS = {"avx512_bf16": _DOTS, "amx": f"{_DOTS} -mamx-tile -mamx-bf16"}
CUDA_FLAGS = (
    "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra -Xfatbin -compress-all "
    f"-DUSE_CUDA {STABLE_ABI}"
)
# Nothing of the libraries is for others: torch gets the kernels from their initialisers.
LIBRARY_LINK_FLAGS = "-Wl,--version-script=csrc/exports.map -Wl,-z,defs"
