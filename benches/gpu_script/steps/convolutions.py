"""What the network gains or loses by cuDNN for one kind of its convolutions."""

import functools
import json
import statistics

import bench_network as bench
import torch
from rows import make_row, shape

import mirnet_fast
from gpu_script.plan import SIZES
from mirnet_fast.engine.plan import Plan

from . import DEVICE, ON_GPU
from .cases import Case, run_cases
from .plans import as_on_a_gpu, convolutions_by, near
from .timing import made, times_on_gpu


def convolutions():
    """Of each kind of convolution at each size: the network with all by Triton, and with these by cuDNN."""
    dtype = torch.float16 if ON_GPU else torch.float32
    cases = []
    for size in [tuple(map(int, size.split("x"))) for size in SIZES] if ON_GPU else [(1, 8, 2, 4)]:
        whole = _Convolutions(size, dtype)
        for key in whole.keys:
            name = f"{key[0]} {key[1]} to {key[2]} of {shape(size)}"
            cases.append(Case(name, functools.partial(whole.measure, key), whole.base))
        cases.append(Case(f"choices of {shape(size)}", whole.choices, whole.base))
    run_cases(cases)


class _Convolutions:
    """The network at one size, its plans by who runs which convolutions.

    Attributes:
        keys: {(op, inputs, outputs): number of pixels} of its convolutions.
    """

    def __init__(self, size, dtype):
        self.size, self.dtype, self.chosen, self.keys = size, dtype, {}, {}
        torch.manual_seed(0)
        network = mirnet_fast.MIRNet() if ON_GPU else mirnet_fast.ResidualUpSample(size[1])
        self._network = network.eval().to(DEVICE, dtype)
        image = torch.rand(size, device=DEVICE).to(dtype)
        self._image = image.contiguous(memory_format=torch.channels_last)
        with as_on_a_gpu(), convolutions_by(self._note):
            Plan(self._network, self._image)

    def _note(self, op, inputs, outputs, pixels):
        self.keys[op, inputs, outputs] = pixels
        return "cudnn"

    def _by(self, choose):
        """The call of a plan in which choose((op, inputs, outputs)) runs a convolution; recorded already."""
        with (
            as_on_a_gpu(),
            convolutions_by(lambda *key: choose(key[:3])),
            mirnet_fast.use_backend("triton"),
        ):
            plan = Plan(self._network, self._image)

        def call():
            with as_on_a_gpu(), torch.inference_mode():
                return plan.run([self._image])

        for _ in range(3):
            call()
        return call

    @functools.cached_property
    def _all(self):
        return self._by(lambda key: "triton")

    def base(self):
        """Compiles."""
        self._all()

    def measure(self, key):
        """The row of one kind of convolution."""
        torch.backends.cudnn.benchmark = True
        other = self._by(lambda k: "cudnn" if k == key else "triton")
        near(self._all(), other(), 2e-2)
        times = times_on_gpu({"mirnet_fast": self._all, "cudnn": other}, 15)
        op, inputs, outputs = key
        n, _, height, width = self.size
        share = (self.keys[key] / (n * height * width)) ** 0.5
        size = (n, inputs, round(height * share), round(width * share))
        row = make_row(op, size, self.dtype, "in the network", times) | {"outputs": outputs}
        medians = {name: statistics.median(values) for name, values in times.items()}
        self.chosen[key] = "triton" if medians["mirnet_fast"] <= medians["cudnn"] else "cudnn"
        print(json.dumps(row), flush=True)

    def choices(self):
        """The row of the network as the measurements would have it, beside those without a choice."""
        torch.backends.cudnn.benchmark = True
        calls = {
            "mirnet_fast": self._by(lambda key: self.chosen.get(key, "triton")),
            "mirnet_fast triton": self._all,
            "mirnet_fast cudnn": self._by(lambda key: "cudnn"),
        }
        if ON_GPU:
            bench.VARIANTS["eager channels_last"] = bench.eager_channels_last
            arguments = self.size, self.dtype
            calls["eager channels_last"] = made(bench.prepare, "eager channels_last", *arguments)()
        row = make_row("network", self.size, self.dtype, "forward, as chosen", times_on_gpu(calls, 15))
        print(json.dumps(row), flush=True)
