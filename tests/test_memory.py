"""Memory that can't be had is an error that says so, and the process goes on."""

import re
import subprocess
import sys

import pytest

from .ops.common import needs_kernels

# In a process of its own: the limit holds for all of it. Images grow until there is no memory left.
CODE = """
import resource, sys
import torch
import mirnet_fast

torch.set_num_threads(2)
network = mirnet_fast.MIRNet(n_feat=16, n_RRG=1, n_MSRB=1, height=2)
small = torch.rand(1, 3, 16, 16)
for _ in range(2):
    network(small).sum().backward()
    with torch.no_grad():
        network(small)
for megabytes in map(int, sys.argv[1:]):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    size = 16
    try:
        while True:
            size += size // 2 // 4 * 4
            with torch.no_grad():
                network(torch.rand(1, 3, size, size))
            network(torch.rand(1, 3, size, size)).sum().backward()
    except (RuntimeError, MemoryError) as error:
        print(size, " ".join(str(error).split()), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    network.zero_grad()
    with torch.no_grad():
        assert network(small).isfinite().all()
    network(small).sum().backward()
"""


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_training_that_needs_more_than_there_is():
    limits = [str(int(2 * 1.5**i)) for i in range(9)]
    done = subprocess.run([sys.executable, "-c", CODE, *limits], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(limits)
    ours = [line for line in lines if re.search(r"\d+ \w+: out of memory: \d+ bytes were asked for$", line)]
    # What PyTorch and oneDNN could not get themselves.
    theirs = [line for line in lines if re.search("DefaultCPUAllocator|primitive|memory|bad_alloc", line)]
    assert ours
    assert len({*ours, *theirs}) == len({*lines}), lines
