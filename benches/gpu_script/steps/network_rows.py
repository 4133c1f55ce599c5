"""Times of the network and of its training, beside PyTorch's own."""

import functools

import bench_network
import bench_training
import harness
import torch
from rows import shape

from . import ON_GPU
from .cases import run_cases
from .timing import made, row_of


def times():
    """Largest value first: what the network's targets are about."""
    names = {
        "eager channels_last": bench_network.eager_channels_last,
        "eager NCHW": bench_network.eager,
        "mirnet_fast": bench_network.fast,
        bench_network.OP_BY_OP: bench_network.op_by_op,
    }
    small, *others = bench_network.sizes()
    cases = [(small, torch.float32)]
    if ON_GPU:
        names[bench_network.BY_TRITON] = bench_network.by_triton
        cases = [(size, torch.float16) for size in (small, *others)]
        cases += [(others[0], torch.bfloat16), (small, torch.float32)]
    run_cases(_of_network(names, size, dtype) for size, dtype in cases)


def compiled(mode, size):
    size, dtype = tuple(map(int, size.split("x"))), torch.float16
    if not ON_GPU:
        size, dtype = bench_network.sizes()[0], torch.float32
    names = {
        "eager channels_last": bench_network.eager_channels_last,
        "mirnet_fast": bench_network.fast,
        f"torch.compile {mode}": functools.partial(bench_network.compiled, mode),
    }
    if ON_GPU:
        names[bench_network.BY_TRITON] = bench_network.by_triton
    run_cases([_of_network(names, size, dtype)])


def _of_network(names, size, dtype):
    """The Case of a row of the network, of {name: variant of bench_network}."""
    bench_network.VARIANTS |= names
    described = "network", size, dtype, harness.FORWARD
    makes = {name: made(bench_network.prepare, name, size, dtype) for name in names}
    return row_of(f"network {shape(size)} {dtype}", makes, described)


def training(*which):
    names = {"eager channels_last": bench_training.eager_channels_last, "mirnet_fast": bench_training.fast}
    names |= {"torch.compile": bench_training.compiled} if which else {"eager NCHW": bench_training.eager}
    bench_training.VARIANTS |= names
    makes = {name: made(bench_training.prepare, name, bench_training.SIZE) for name in names}
    described = "training", bench_training.SIZE, bench_training.DTYPE, "step"
    run_cases([row_of("training step", makes, described)])
