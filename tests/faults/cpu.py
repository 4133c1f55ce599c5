"""The C++ kernels."""

from .fault import Fault

FAULTS = [
    Fault(
        "stale weight",
        "packed weights are used after the weight has changed",
        "csrc/cpu/packed_weights.cpp",
        "return found->second.print == print ? found->second.weights : nullptr;",
        "return found->second.print.size() == print.size() ? found->second.weights : nullptr;",
        "tests/test_packed_weights.py",
    ),
    Fault(
        "remainder of threads",
        "rows that the number of threads does not divide are left out",
        "csrc/cpu/run.h",
        "end = count * (share + 1) / threads;",
        "end = begin + count / threads;",
        "tests/ops -k 'skff_select and (number_of_threads or float64)'",
    ),
    Fault(
        "NaN",
        "PReLU of the C++ kernels swallows a NaN",
        "csrc/cpu/simd/tile_io.h",
        "return x > V{} ? x : x * slope;",
        "return x > V{} ? x : (x <= V{} ? x * slope : V{});",
        "tests/ops -k 'residual_up_tail and special'",
    ),
    Fault(
        "distance 0",
        "a map's pixels that all lie at one place are taken for packed weights",
        "csrc/cpu/simd/gemm.h",
        "piece<A>(take, rows, a + i, 1, sk, tile.data + column, tile.ld, k,",
        "piece<A>(take, rows, a + i, 1, sk, tile.data + column, tile.ld ? tile.ld : take * kLanes<A>, k,",
        "tests/ops -k one_place",
    ),
    Fault(
        "row of a strip",
        "the spatial gate of a strip's rows is that of other rows",
        "csrc/cpu/simd/dau_attention.cpp",
        "const int64_t at = args.first_row + h;",
        "const int64_t at = h;",
        "tests/ops/test_dau_attention.py -k rows_over",
    ),
    Fault(
        "taps of a phase",
        "the matrix unit takes the two taps of a transposed convolution's odd rows the wrong way round",
        "csrc/cpu/simd/matrix/unit.h",
        "using OddAlong = Along<0, 2, 0>;",
        "using OddAlong = Along<0, 0, 2>;",
        "tests/test_matrix_unit.py -k 'test_contract and transposed'",
    ),
    Fault(
        "attention over its input",
        "a group of outputs overwrites the inputs of the next one",
        "csrc/cpu/simd/matrix/dau_attention.cpp",
        "const bool copy = args.out.data == args.r.data;",
        "const bool copy = false;",
        "tests/ops/every_op/test_products.py -k over_its_input",
    ),
    Fault(
        "order of a tile's outputs",
        "the weights for products of bfloat16 are packed with the outputs of a tile in reverse",
        "csrc/cpu/simd/matrix/convolution.cpp",
        "for (int64_t o = 0; o < kTileSide; ++o, to += 2)",
        "for (int64_t o = kTileSide - 1; o >= 0; --o, to += 2)",
        "tests/test_matrix_unit.py -k 'test_contract and conv1x1'",
    ),
    Fault(
        "special values",
        "a NaN reaches the outputs of the whole tile of a convolution",
        "csrc/cpu/simd/winograd/epilogue.h",
        "return has_nan(sum - sum);",
        "return false && has_nan(sum - sum);",
        "tests/ops/test_conv3x3.py tests/ops/test_conv_transpose3x3.py -k special",
    ),
]
