"""The emulated GPU of tests/emulation: it shows the faults that a GPU has, and lays fragments out alike."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import emulation

pytestmark = pytest.mark.skipif(emulation.missing() is not None, reason=emulation.missing() or "")

REVERSE, REVERSE_UNSAFE, COPY, COPY_UNSAFE, PIPELINED, PIPELINED_UNSAFE, STUCK, FORGOTTEN = range(8)
THREADS = 64


@pytest.fixture(scope="module")
def probe():
    source = Path(emulation.__file__).with_name("probe.cpp")
    path = emulation.build([source], "libprobe.so", emulation.BUILD / "probe")
    library = ctypes.CDLL(str(path))
    library.conflicts.restype = ctypes.c_long
    library.launch.restype = ctypes.c_char_p
    return library


def pointer(t):
    return ctypes.c_void_p(t.data_ptr())


def run(probe, which, values=THREADS):
    given, result = torch.randn(values), torch.zeros(values)
    probe.probe(which, THREADS, pointer(given), pointer(result))
    return given, result


@pytest.mark.parametrize("order", ["forward", "backward", "7"])
def test_a_missing_barrier_shows(probe, monkeypatch, order):
    monkeypatch.setenv("MIRNET_EMULATED_ORDER", order)
    given, result = run(probe, REVERSE)
    assert torch.equal(result, given.flip(0))
    given, result = run(probe, REVERSE_UNSAFE)
    # Half of the values are not there yet, whichever half.
    assert result.isnan().sum() >= THREADS // 4


def test_a_copy_is_not_there_before_it_is_waited_for(probe, monkeypatch):
    monkeypatch.setenv("MIRNET_EMULATED_ORDER", "forward")
    given, result = run(probe, COPY, 4 * THREADS)
    expected = given.view(THREADS, 4).clone()
    expected[5] = 0  # outside
    assert torch.equal(result.view(THREADS, 4), expected)
    _, result = run(probe, COPY_UNSAFE, 4 * THREADS)
    assert result.isnan().all()
    monkeypatch.setenv("MIRNET_EMULATED_ORDER", "7")
    assert 0 < run(probe, COPY_UNSAFE, 4 * THREADS)[1].isnan().sum() < 4 * THREADS


@pytest.mark.parametrize("order", ["forward", "backward", "7", "8"])
def test_a_buffer_overwritten_while_it_is_read_shows(probe, monkeypatch, order):
    monkeypatch.setenv("MIRNET_EMULATED_ORDER", order)
    given, result = run(probe, PIPELINED, 16 * THREADS)
    expected = given.view(4, THREADS, 4).flip(1)
    assert torch.equal(result.view(4, THREADS, 4), expected)
    given, result = run(probe, PIPELINED_UNSAFE, 16 * THREADS)
    expected = given.view(4, THREADS, 4).flip(1)
    # A copy that lands as late as may be never meets a reader.
    assert torch.equal(result.view(4, THREADS, 4), expected) == (order == "forward")


# Of four matrices of eight rows, each of which has to be there in one go.
@pytest.mark.parametrize(("apart", "waits"), [(16, 0), (80, 0), (144, 0), (32, 4), (64, 12), (128, 28)])
def test_bank_conflicts_are_counted(probe, apart, waits):
    assert probe.conflicts(apart) == waits


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((True, True, 1024, 0), "done"),
        ((True, True, 64 * 1024, 64 * 1024), "done"),
        ((True, True, 64 * 1024, 63 * 1024), "more shared memory than the kernel was allowed"),
        ((True, True, 64 * 1024, 0), "more shared memory than the kernel was allowed"),
        ((True, False, 1024, 0), "not on the current stream"),
        ((False, False, 1024, 0), "not on the current stream"),
    ],
)
def test_launches_are_refused_as_by_a_gpu(probe, arguments, told):
    probe.launch(True, True, 1024, 1024)  # so that nothing is allowed by an earlier one
    assert told in probe.launch(*arguments).decode()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (f"probe({STUCK}, {THREADS}, None, None)", "a barrier that only some threads reach"),
        (f"probe({FORGOTTEN}, 32, zeros, None)", "copies that nobody waited for"),
        ("probe(0, 40, None, None)", "threads must be whole warps"),
        ("too_much()", "more shared memory than the chip has"),
    ],
)
def test_faults_end_with_a_message(probe, call, message):
    code = (
        f"import ctypes, torch; library = ctypes.CDLL({probe._name!r});"
        "room = ctypes.create_string_buffer(64);"
        "zeros = ctypes.c_void_p(-(-ctypes.addressof(room) // 16) * 16);"
        f"library.{call}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode < 0
    assert "emulated GPU: " in done.stderr and message in done.stderr


@pytest.mark.parametrize("transposed", range(4))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_products_of_warps(probe, dtype, transposed):
    a, b = torch.randn(16, 32).to(dtype).float(), torch.randn(32, 32).to(dtype).float()
    result = torch.zeros(16, 32)
    which = [torch.float16, torch.bfloat16, torch.float32].index(dtype)
    probe.product(which, transposed, pointer(a), pointer(b), pointer(result))
    torch.testing.assert_close(result, a @ b.T, rtol=1e-5, atol=1e-5)
