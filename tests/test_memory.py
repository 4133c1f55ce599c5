"""What a forward holds; and memory that can't be had is an error that says so, and the process goes on."""

import os
import re
import subprocess
import sys
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mirnet_fast
from mirnet_fast import backends

from .ops.common import needs_kernels

# In a process of its own: the limit holds for all of it. One size, met before, as oneDNN calls a null pointer
# where it can't have the pages for a new kernel's code (seen in its 1x1 convolution's backward, torch 2.13).
CODE = """
import resource, sys
import torch
import mirnet_fast

torch.set_num_threads(2)
network = mirnet_fast.MIRNet(n_feat=16, n_RRG=1, n_MSRB=1, height=2)
x = torch.rand(1, 3, 64, 64)


def run():
    with torch.no_grad():
        assert network(x).isfinite().all()
    network(x).sum().backward()
    network.zero_grad()


for _ in range(3):
    run()
for kilobytes in map(int, sys.argv[1:]):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + kilobytes * 2**10, resource.RLIM_INFINITY))
    try:
        run()
        print("enough", flush=True)
    except (RuntimeError, MemoryError) as error:
        print(" ".join(str(error).split()), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run()
"""


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_training_that_needs_more_than_there_is():
    limits = [str(768 * i) for i in range(1, 13)]
    # What is freed goes back to the system, so that it has to be asked for again.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "16384",
        "MALLOC_TOP_PAD_": "0",
        "OMP_WAIT_POLICY": "passive",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, *limits], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    failed = [line for line in lines if line != "enough"]
    # Ours, or what PyTorch and oneDNN could not get themselves.
    known = r"\w+: out of memory: \d+ bytes were asked for$|DefaultCPUAllocator|primitive|bad_alloc"
    assert [line for line in failed if not re.search(known, line)] == []
    assert any("out of memory" in line for line in failed)


HUGE = """
import resource, sys
import torch
import mirnet_fast
from mirnet_fast import ops

resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.RLIM_INFINITY))
torch.set_num_threads(2)
size = 2**14
x = torch.ones(1, 1, 1, 1).expand(1, 64, size, size)  # takes no memory itself
small, w = torch.ones(1, 1, 1, 1).expand(1, 64, size // 2, size // 2), torch.ones(64, 64, 1, 1)
dau = [torch.ones(1, 2, 5, 5), w[:8], None, w[:, :8], None, torch.ones(64, 128, 1, 1), None]
slope = torch.ones(1)
calls = {
    "blur_pool": lambda: ops.blur_pool(x, stride=1),
    "dau_attention": lambda: ops.dau_attention(x, None, *dau),
    "skff_select": lambda: ops.skff_select([x], w[:8], None, slope, [w[:, :8]]),
    "residual_down_tail": lambda: ops.residual_down_tail(x, x, slope, w, None, w, None),
    "residual_up_tail": lambda: ops.residual_up_tail(x, small, slope, w, None, w, None),
    "conv3x3": lambda: torch.ops.mirnet_fast_cpu.conv3x3(
        torch.ones(1, 64, 1, 1).expand(1, 64, size, size), torch.ones(64, 64, 3, 3), None, None, None
    ),
}
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        print(error, flush=True)
"""


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_an_op_that_needs_more_than_there_is_names_itself_and_the_bytes():
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ["blur_pool", "dau_attention", "skff_select", "residual_down_tail", "residual_up_tail", "conv3x3"]
    sizes = [2**36, 2**36, 2**36, 2**34, 2**36, 2**36]
    told = [f"{n}: out of memory: {size} bytes were asked for" for n, size in zip(names, sizes, strict=True)]
    assert done.stdout.splitlines() == told


def storages(values):
    return [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


class Held(TorchDispatchMode):
    """The most bytes that were there at a time of what is made inside."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:  # whose stand-in forgets the layout
            result = torch.empty_like(result, memory_format=torch.channels_last)
        given = {storage._cdata for storage in storages((args, kwargs))}
        for storage in storages(result):
            if storage._cdata not in given:
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def gone(self, nbytes):
        self.now -= nbytes


def test_a_forward_on_a_gpu_holds_no_more_than_it_reads(monkeypatch):
    """On the path of tensors of a GPU, for which tensors without values stand in."""
    monkeypatch.delitem(backends._UNAVAILABLE, "triton", raising=False)
    monkeypatch.setitem(backends._DEVICES, "triton", ("meta",))
    network = mirnet_fast.MIRNet(n_RRG=2, n_MSRB=1).eval().to("meta", torch.float16)
    x = torch.empty(1, 3, 256, 256, dtype=torch.float16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Held() as held:
        network(x)
    # While the lowest stream is brought up to the first, in maps: the first stream, another that was brought
    # up, what the group adds at its end, two from the transposed convolution, the half that they come from,
    # the one that they become, and 1 1/2 of the other streams and what was halved already.
    assert held.peak <= 8 * x.new_empty(1, 64, 256, 256).nbytes
    assert held.now == 0
