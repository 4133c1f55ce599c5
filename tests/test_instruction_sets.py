"""Every instruction set that this machine runs, on the numerics of every op."""

import os
import subprocess
import sys

import pytest

from mirnet_fast import _native

from .cases import first_of

INFO = _native.build_info()
SETS = ("base", "avx2", "avx512")
# The reference must do with the same instructions: without FMA every product is rounded twice.
TORCH = {
    "base": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {},
}


# The best one of this machine is that of all other tests.
@pytest.mark.parametrize("part", first_of([("base", "some"), *((isa, "all") for isa in SETS)]))
def test_numerics(part):
    isa, cases = part
    if not INFO["compiled"]:
        pytest.skip(f"no C++ kernels: {INFO['reason']}")
    if isa not in INFO["isa_compiled"]:
        pytest.skip(f"{isa} is not compiled on this machine")
    if _native.ISAS.index(isa) > _native.ISAS.index(INFO["isa_detected"]):
        pytest.skip(f"this processor has {INFO['isa_detected']} at most, not {isa}")
    # Two layouts of each case: the lanes past the last channel, and the transposing loads.
    tests = "(test_contract or (test_float64 and dense and (channels_last or nchw)))"
    tests += " and not Triton and not Cuda"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops"]
    command += ["tests/test_packed_weights.py", "-k", tests, "-m", "" if cases == "all" else "not exhaustive"]
    # The reference's order of sums, its error and with it the bound, depends on the number of threads.
    # They must not spin: beside another process that takes ten times as long.
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    environment = os.environ | {"MIRNET_FAST_CPU_ISA": isa} | threads | TORCH[isa]
    environment.pop("PYTEST_XDIST_WORKER", None)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout
