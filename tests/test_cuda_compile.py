"""Every CUDA kernel, compiled by nvcc for real GPUs: fits, spills nothing, uses what the chip has."""

import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mirnet_fast import _native
from mirnet_fast.ops import OPS

from .audit import cuda as audit
from .cases import exhaustive

pytestmark = pytest.mark.xdist_group("nvcc")  # what one process looks at, another would again
ONE = ["sm_90"]
DEFAULT = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_100"]


@pytest.fixture(scope="module")
def toolkit():
    if why := audit.missing():
        pytest.skip(why)


@pytest.fixture(scope="module", params=["9.0", pytest.param("", marks=exhaustive, id="all")])
def result(toolkit, request):
    return audit.audit(architectures=request.param)


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_wrong(op, result):
    rows, info = result
    rows = [row for row in rows if row["op"] == op]
    budget = audit.BUDGET.load().get(audit.version(info))
    found = [text for row in rows for text in audit.problems(row, budget)]
    assert not found, "\n".join(found)
    assert {row["arch"] for row in rows} == {a for a in info["cuda_architectures"] if a.startswith("sm_")}


def test_nothing_is_lacking(result):
    rows, info = result
    assert info["cuda_architectures"] in (ONE, DEFAULT) or not info["nvcc"].startswith("13.0")
    assert audit.lacking(rows, info["cuda_architectures"]) == []


def test_the_budget_is_recorded(result):
    rows, info = result
    budget = audit.BUDGET.load().get(audit.version(info))
    if budget is None:
        pytest.skip(f"no budget for {audit.version(info)}: python -m tests.audit.cuda --write records one")
    absent = [row for row in rows if row["arch"] not in budget.get(audit.label(row), {})]
    assert not absent, "python -m tests.audit.cuda --write"
    gone = set(budget) - {audit.label(row) for row in rows}
    assert not gone, "python -m tests.audit.cuda --write"


def test_the_library_has_only_symbols_of_the_stable_abi(result):
    assert audit.foreign_symbols(audit.LIBRARY) == []


def test_the_library_needs_the_cuda_part_of_torch(result):
    needed = [line for line in audit.run("readelf", "-d", audit.LIBRARY).splitlines() if "NEEDED" in line]
    assert any("[libtorch_cuda.so]" in line for line in needed)
    assert not any("python" in line or "cudart" in line for line in needed)
    assert "PATH" not in audit.run("readelf", "-d", audit.LIBRARY)


def test_what_is_compiled_is_not_compiled_again(result):
    _, info = result
    objects = audit.objects_of(info)
    before = [path.stat().st_mtime_ns for path in objects]
    audit.build("9.0" if info["cuda_architectures"] == ONE else "")
    assert before == [path.stat().st_mtime_ns for path in objects]


@pytest.mark.skipif(torch.version.cuda is not None, reason="test_build.py loads it as it is")
def test_torch_gets_every_kernel_from_the_library(result):
    # With an empty library in place of torch's, which none of this calls.
    code = """
        import ctypes, sys, torch
        from mirnet_fast import ops
        ctypes.CDLL(sys.argv[2], ctypes.RTLD_GLOBAL)
        torch.ops.load_library(sys.argv[1])
        names = [name + end for name in ops.OPS for end in ("", "_backward")]
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        print([name for name in names if not has(f"mirnet_fast_cuda::{name}", "CUDA")])
    """
    stub = audit.NINJA / "stub" / "libtorch_cuda.so"
    command = [sys.executable, "-c", textwrap.dedent(code), audit.LIBRARY, stub]
    done = subprocess.run(command, cwd=audit.ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_the_library_is_no_error_of_the_import_where_torch_has_no_cuda(result):
    told, exception = _native._load(audit.LIBRARY, "CUDA kernels", "cuda")
    assert "libtorch_cuda.so: cannot open shared object file" in told
    assert isinstance(exception, OSError)


ROW = {
    "op": "dau_attention",
    "kernel": "apply_kernel<half, 128, true>",
    "arch": "sm_90",
    "arguments": {"T": "half", "N": "128", "Aligned": "true"},
    "registers": 120,
    "shared": 0,
    "stack": 0,
    "spills": 0,
    "tensor_cores": 64,
    "loads_128": 4,
    "instructions": 1000,
}
RECORDED = {"dau_attention apply_kernel<half, 128, true>": {"sm_90": [120, 0]}}


def test_a_good_row_has_no_problems():
    assert audit.problems(ROW, RECORDED) == []
    assert audit.problems(ROW | {"registers": 128}, RECORDED) == []
    assert audit.problems(ROW | {"registers": 255, "shared": 1}, None) == []
    of_float32 = {"arguments": {"T": "float", "N": "64", "Aligned": "false"}, "tensor_cores": 0}
    assert audit.problems(ROW | of_float32 | {"loads_128": 0}, RECORDED) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stack": 8}, "a stack of 8 bytes"),
        ({"spills": 3}, "3 local loads and stores"),
        ({"tensor_cores": 0}, "no tensor cores"),
        ({"arguments": {"T": "float", "N": "64", "Aligned": "false"}}, "which is TF32"),
        ({"kernel": "pool_kernel<half, 8>"}, "not among PRODUCTS"),
        ({"loads_128": 0}, "no loads of 16 bytes"),
        ({"loads_128": 0, "tensor_cores": 0, "arguments": {"In": "float", "V": "4"}}, "no loads of 16 bytes"),
        ({"registers": 129}, "129 registers; the budget records 120"),
        ({"shared": 1}, "1 bytes of shared memory; the budget records 0"),
    ],
)
def test_a_bad_row_is_found(change, message):
    found = audit.problems(ROW | change, RECORDED)
    assert message in found[0]


def test_a_kernel_or_architecture_that_is_gone_is_found():
    rows = [ROW | {"kernel": f"{name}<half>"} for name in audit.PRODUCTS - {"up_kernel"}]
    assert audit.lacking(rows, ["sm_90", "compute_120"]) == [
        "up_kernel: it is among PRODUCTS and not compiled"
    ]
    rows.append(ROW | {"kernel": "up_kernel<half>"})
    rows.append(rows[-1] | {"arch": "sm_80"})
    found = audit.lacking(rows, ["sm_80", "sm_90"])
    assert len(found) == len(audit.PRODUCTS) - 1
    assert "dau_attention apply_kernel<half>: not compiled for sm_80" in found


def test_names_are_shortened():
    name = (
        "void mirnet_fast::cuda::resample_kernel<8, true, __half, mirnet_fast::BlurAxis, "
        "mirnet_fast::cuda::PreluBefore<__nv_bfloat16> >(mirnet_fast::cuda::ResampleArgs<__half>)"
    )
    kernel = audit.short(name)
    assert kernel == "resample_kernel<8, true, half, BlurAxis, PreluBefore<bf16>>"
    parameters = {"resample_kernel": [["V"], ["V", "Transposed", "In", "Axis", "Before"]]}
    assert audit.arguments(kernel, parameters) == {
        "V": "8",
        "Transposed": "true",
        "In": "half",
        "Axis": "BlurAxis",
        "Before": "PreluBefore<bf16>",
    }
    anonymous = "void mirnet_fast::cuda::(anonymous namespace)::f<float>(float)"
    assert audit.short(anonymous) == "f<float>"


def test_foreign_symbols_are_found():
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    found = audit.foreign_symbols(Path(torch.__file__).parent / "lib" / "libc10.so")
    assert any(name.startswith("_ZN3c10") for name in found)
    assert not any(name.startswith("malloc") for name in found)


def test_spills_tensor_cores_and_loads_of_real_code_are_seen(toolkit, tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(
        textwrap.dedent("""
            #include "csrc/cuda/device.cuh"
            namespace mirnet_fast::cuda {
            template <class T, int V>
            __global__ void copy_kernel(const T* from, T* to) {
              float value[V];
              load<V>(value, from + threadIdx.x * V);
              store<V>(to + threadIdx.x * V, value);
            }
            template __global__ void copy_kernel<half, 8>(const half*, half*);
            template __global__ void copy_kernel<half, 1>(const half*, half*);

            __global__ void product_kernel(float* to) {
              uint32_t a[4];
              load_matrices(a, shared_memory());
              float d[4] = {};
              multiply<half>(d, a, a[0], a[1]);
              *to = d[0];
            }
            __global__ void spilling_kernel(float* at, int step) {
              float value[128];
            #pragma unroll
              for (int i = 0; i < 128; ++i) value[i] = at[i * step];
              sync_threads();
            #pragma unroll
              for (int i = 0; i < 128; ++i) at[i * step + 1] = value[i] * value[127 - i];
            }
            }  // namespace mirnet_fast::cuda
        """)
    )
    cubin = tmp_path / "planted.1.sm_80.cubin"
    command = f"{audit.plan().nvcc.command} -std=c++17 -maxrregcount 32 -arch sm_80 -cubin"
    audit.run(*shlex.split(command), f"-I{audit.ROOT}", source, "-o", cubin)

    def row(part):
        (found,) = [row for name, row in audit.examined(cubin).items() if part in name]
        return found

    assert row("copy_kernelI6__halfLi8E")["loads_128"] == 1
    assert row("copy_kernelI6__halfLi1E")["loads_128"] == 0
    assert row("product_kernel")["tensor_cores"] == 1
    spilling = row("spilling_kernel")
    assert spilling["registers"] == 32
    assert spilling["stack"] > 0 and spilling["spills"] > 0
    assert all(
        row(part)["stack"] == row(part)["spills"] == 0 for part in ("copy_kernelI6__halfLi8E", "product")
    )
