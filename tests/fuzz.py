"""Looks for wrong numbers and crashes with random calls; what fails is told by its seed.

    python -m tests.fuzz                      # 1000 of each kind, from seed 0
    python -m tests.fuzz ops --calls 20000    # ops between guard pages
    python -m tests.fuzz networks changes --first 5000
    MIRNET_FAST_CPU_ISA=base python -m tests.fuzz ops

Every seed is a call of an op, a network, or a network that is changed while it runs, against the
reference in float64. The calls are made in processes of their own, so that a crash is told too.
"""

import argparse
import os
import random
import subprocess
import sys

import torch

import mirnet_fast
from mirnet_fast import backends, ops, reference

from . import guarded
from .ops.common import on_tensors, tensors

# Of the norm: far above rounding, far below anything that is wrong.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float64: 1e-10}


class Wrong(AssertionError):
    """A result that is not the reference's."""


class Maker:
    """Random values of random shapes and layouts, between guard pages."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, share):
        return self.rng.random() < share

    def size(self, *usual):
        """One of these, or near one."""
        return max(1, self.rng.choice(usual) + self.rng.choice((-1, 0, 0, 0, 1)))

    def strides(self, shape, free, order=None):
        """Of a dense tensor with its axes in any order, some of them (if `free`) repeated or apart."""
        order = order or self.rng.sample(range(len(shape)), len(shape))
        strides, step = [0] * len(shape), 1
        for axis in order:
            if shape[axis] == 1:
                strides[axis] = self.rng.choice((0, 1, step, 7, 1_000_003))
            elif free and self.chance(0.15):
                strides[axis] = 0
            else:
                strides[axis] = step
                step = step * shape[axis] + (self.rng.randrange(4) if free and self.chance(0.3) else 0)
        return tuple(strides)

    def tensor(self, shape, dtype, scale=1.0, free=True, channels_inside=False):
        order = None
        if len(shape) == 4 and (channels_inside or self.chance(0.4)):
            order = (1, *self.rng.sample((0, 2, 3), 3))
        elif len(shape) == 4 and self.chance(0.5):
            order = (3, 2, 1, 0)
        value = guarded.strided(shape, self.strides(shape, free, order), dtype, self.chance(0.7))
        part = guarded.once(value)
        part.copy_(scale * torch.randn(part.shape, generator=self.generator, dtype=torch.float64))
        return value

    def weight(self, shape, dtype):
        return self.tensor(shape, dtype, scale=max(1, torch.Size(shape[1:]).numel()) ** -0.5)

    def maybe(self, shape, dtype):
        return self.weight(shape, dtype) if self.chance(0.5) else None

    def shape(self):
        batch = self.rng.choice((0, 1, 1, 2, 3))
        channels = self.size(1, 3, 8, 16, 20, 33, 64)
        return batch, channels, self.size(1, 2, 5, 8, 13, 24, 50), self.size(1, 2, 4, 7, 16, 31, 49)


def blur_pool(m, dtype):
    n, c, h, w = m.shape()
    taps, pad_type = m.rng.randint(1, 7), m.rng.choice(("reflect", "replicate", "zero"))
    h, w = h + taps, w + taps
    return m.tensor((n, c, h, w), dtype), taps, pad_type, m.rng.randint(1, 3), m.rng.randint(0, 1)


def dau_attention(m, dtype):
    n, c, h, w = m.shape()
    d, k = m.size(1, 2, 8), m.rng.choice((1, 3, 5, 7))
    r = m.tensor((n, c, h, w), dtype)
    x = m.tensor((n, c, h, w), dtype) if m.chance(0.7) else None
    weights = [m.weight((1, 2, k, k), dtype), m.weight((d, c, 1, 1), dtype), m.maybe((d,), dtype)]
    weights += [m.weight((c, d, 1, 1), dtype), m.maybe((c,), dtype)]
    return r, x, *weights, m.weight((c, 2 * c, 1, 1), dtype), m.maybe((c,), dtype)


def skff_select(m, dtype):
    shape, d, b = m.shape(), m.size(1, 2, 8), m.rng.randint(1, 6)
    c = shape[1]
    branches = [m.tensor(shape, dtype) for _ in range(b)]
    slope = m.tensor((m.rng.choice((1, d)),), dtype) if m.chance(0.7) else None
    biases = [m.weight((c,), dtype) for _ in range(b)] if m.chance(0.5) else []
    weights = [m.weight((c, d, 1, 1), dtype) for _ in range(b)]
    return branches, m.weight((d, c, 1, 1), dtype), m.maybe((d,), dtype), slope, weights, biases


def residual_down_tail(m, dtype):
    n, c, h, w = m.shape()
    shape, d = (n, c, h + 1, w + 1), m.size(1, 8, 40)
    weights = [m.weight((d, c, 1, 1), dtype), m.maybe((d,), dtype)]
    weights += [m.weight((d, c, 1, 1), dtype), m.maybe((d,), dtype)]
    return m.tensor(shape, dtype), m.tensor(shape, dtype), m.tensor((m.rng.choice((1, c)),), dtype), *weights


def residual_up_tail(m, dtype):
    n, c, h, w = m.shape()
    e, d = m.size(1, 8, 40), m.size(1, 4, 20)
    weights = [m.weight((d, c, 1, 1), dtype), m.maybe((d,), dtype)]
    weights += [m.weight((d, e, 1, 1), dtype), m.maybe((d,), dtype)]
    top, bottom = m.tensor((n, c, 2 * h, 2 * w), dtype), m.tensor((n, e, h, w), dtype)
    return top, bottom, m.tensor((m.rng.choice((1, c)),), dtype), *weights


def conv(m):
    """A convolution of the CPU engine, with what it must be."""
    n, c, h, w = m.shape()
    n, d = max(n, 1), m.size(1, 4, 16, 40)
    dtype = m.rng.choice((torch.float32, torch.bfloat16))
    kind = m.rng.choice(("conv3x3", "conv_transpose3x3", "conv1x1"))
    x = m.tensor((n, c, h, w), dtype, channels_inside=True)
    x = x if x.stride(1) == 1 or c == 1 else guarded.like(x.contiguous(memory_format=torch.channels_last))
    shape = {"conv3x3": (d, c, 3, 3), "conv_transpose3x3": (c, d, 3, 3), "conv1x1": (d, c, 1, 1)}[kind]
    weight, bias = m.weight(shape, dtype), m.maybe((d,), dtype)
    exact = x.double(), weight.double(), None if bias is None else bias.double()
    engine = torch.ops.mirnet_fast_cpu
    if kind == "conv_transpose3x3":
        oracle = torch.nn.functional.conv_transpose2d(*exact, stride=2, padding=1, output_padding=1)
        return kind, engine.conv_transpose3x3(x, weight, bias), oracle
    oracle = torch.nn.functional.conv2d(*exact, padding=shape[-1] // 2)
    if kind == "conv3x3":
        return kind, engine.conv3x3(x, weight, bias, None, None), oracle
    strides = m.strides(oracle.shape, False, (1, *m.rng.sample((0, 2, 3), 3)))
    out = guarded.strided(oracle.shape, strides, dtype, m.chance(0.7))
    if d > 1 and out.stride(1) != 1:
        out = guarded.like(x.new_empty(oracle.shape).contiguous(memory_format=torch.channels_last))
    engine.conv1x1_into(out, x, weight, bias, None)
    return kind, out, oracle


OPS = (blur_pool, dau_attention, skff_select, residual_down_tail, residual_up_tail)


def check(what, fast, oracle, dtype, terms=1):
    """terms: values that are added up for one of the result; their rounding stays where they cancel."""
    if fast.shape != oracle.shape:
        raise Wrong(f"{what}: shape {tuple(fast.shape)}, not {tuple(oracle.shape)}")
    scale = oracle.norm() + (terms * oracle.numel()) ** 0.5
    error = (fast.double() - oracle).norm()
    if not error <= TOLERANCE[dtype] * scale:
        raise Wrong(f"{what}: error {error:.2e} of {scale:.2e}")


def an_op(seed):
    """A call of an op with its backward."""
    m = Maker(seed)
    if m.chance(0.25):
        kind, out, oracle = conv(m)
        return check(kind, out, oracle, out.dtype)
    make = m.rng.choice(OPS)
    dtype = m.rng.choice((torch.float32, torch.float32, torch.bfloat16, torch.float64))
    args = make(m, dtype)
    # Not of a copy: gradients keep what lies between the pages.
    leaves = on_tensors(lambda t: t.detach().requires_grad_(), args)
    exact = on_tensors(lambda t: t.detach().double().requires_grad_(), args)
    op = getattr(ops, make.__name__)
    with mirnet_fast.use_backend("cpu"):
        out = op(*leaves)
        oracle = getattr(reference, make.__name__)(*exact)
        check(make.__name__, out.detach(), oracle.detach(), dtype)
        if not out.numel():
            return None
        grad = m.tensor(out.shape, dtype)
        fasts = torch.autograd.grad(out, tensors(leaves), grad)
    slows = torch.autograd.grad(oracle, tensors(exact), grad.double())
    for i, (fast, slow) in enumerate(zip(fasts, slows, strict=True)):
        check(f"{make.__name__}, gradient {i}", fast, slow, dtype, terms=grad.numel() / grad.shape[1])
    return None


def random_network(m):
    """(fast, slow, image): a random network with the same weights in float64, and an image."""
    height, width = m.rng.randint(1, 3), m.rng.randint(1, 3)
    arguments = {
        "n_feat": m.rng.choice((8, 8, 12, 16)),
        "kernel_size": m.rng.choice((1, 3, 3, 5)),
        "n_RRG": m.rng.randint(1, 2),
        "n_MSRB": m.rng.randint(1, 2),
        "height": height,
        "width": width,
        "bias": m.chance(0.5),
    }
    torch.manual_seed(m.rng.randrange(2**31))
    fast = mirnet_fast.MIRNet(**arguments)
    with torch.no_grad():
        for p in fast.parameters():  # gates and slopes of some size
            p.uniform_(-1, 1).mul_(p[0].numel() ** -0.5)
    slow = reference.MIRNet(**arguments).double()
    slow.load_state_dict(fast.state_dict())
    unit = 2 ** (height - 1)
    shape = m.rng.randint(1, 2), 3, unit * m.rng.randint(2, 8), unit * m.rng.randint(2, 8)
    return fast, slow, m.tensor(shape, torch.float32, free=False)


def check_network(m, what, fast, slow, x):
    mode = m.rng.choice((torch.no_grad, torch.inference_mode, torch.enable_grad))
    with mode():
        results = [fast(x).detach().clone() for _ in range(3)]  # from the second on the plan is there
    with torch.no_grad():
        residual = slow(x.double()) - x.double()
    for result in results:
        check(f"{what} {mode.__name__}", result.double() - x.double(), residual, torch.float32)


def a_network(seed):
    """Forward and backward of a random network."""
    m = Maker(seed)
    fast, slow, x = random_network(m)
    with mirnet_fast.use_winograd(m.chance(0.8)):
        check_network(m, f"network {tuple(x.shape)}", fast, slow, x)
        if m.chance(0.5):
            fast(x).square().mean().backward()
            slow(x.double()).square().mean().backward()
            for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
                if p.grad is None or q.grad is None:
                    if p.grad is not q.grad:
                        raise Wrong(f"{name} has a gradient in one network alone")
                    continue
                check(f"gradient of {name}", p.grad, q.grad, torch.float32)


def a_change(seed):
    """A network that is changed while it runs."""
    from .layer_changes import CHANGES, NETWORK_CHANGES  # what tests do to a layer by name

    m = Maker(seed)
    torch.manual_seed(seed)
    shape = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1, "height": 2}
    fast, slow = mirnet_fast.MIRNet(**shape), reference.MIRNet(**shape).double()
    slow.load_state_dict(fast.state_dict())
    x = m.tensor((1, 3, 16, 16), torch.float32, free=False)
    told = []
    for _ in range(3):
        check_network(m, f"after {told}", fast, slow, x)
        if m.chance(0.2):
            change = m.rng.choice([c for c in NETWORK_CHANGES if "norm" not in c.__name__])
            told.append(change.__name__)
            try:
                for network in (fast, slow):
                    change(network)
                slow.double()
                fast.float()
            except (AttributeError, IndexError, TypeError, ValueError):  # what it changes is gone
                return
        elif m.chance(0.2):
            weights = {name: v + 0.1 * torch.randn(v.shape, generator=m.generator, dtype=v.dtype)
                       for name, v in fast.state_dict().items() if not name.endswith("filt")}  # fmt: skip
            fast.load_state_dict(weights, strict=False)
            slow.load_state_dict(weights, strict=False)
            told.append("load_state_dict")
        else:
            names = [
                n for n, _ in fast.named_modules() if n and dict(slow.named_modules()).get(n) is not None
            ]
            change = m.rng.choice([c for c in CHANGES if "backward" not in c.__name__])
            name = m.rng.choice(names)
            layers = [dict(network.named_modules())[name] for network in (fast, slow)]
            if not hasattr(type(layers[0]), "forward") or isinstance(
                layers[0], (torch.nn.ModuleList, torch.nn.ModuleDict)
            ):
                continue
            if "selective_kernel" in name and name.count(".") == 5:  # takes a list
                continue
            told.append(f"{change.__name__} {name}")
            for network, layer in zip((fast, slow), layers, strict=True):
                change(network, layer)
    check_network(m, f"after {told}", fast, slow, x)


KINDS = {"ops": an_op, "networks": a_network, "changes": a_change}


def run(kind, seeds, told=lambda seed: None):
    """{seed: what is wrong} of these seeds."""
    found = {}
    for seed in seeds:
        told(seed)
        try:
            KINDS[kind](seed)
        except Exception as error:
            found[seed] = f"{type(error).__name__}: {error}"
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--calls", type=int, default=1000, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = options.kinds or list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    last = options.first + options.calls
    if options.here:
        found = run(kinds[0], range(options.first, last), lambda seed: print(seed, flush=True))
        for seed, what in found.items():
            print(f"{kinds[0]} {seed}: {what}", flush=True)
        return
    torch.set_num_threads(1)
    wrong = {}
    for kind in kinds:
        first, wrong[kind] = options.first, 0
        while first < last:
            command = [sys.executable, "-m", "tests.fuzz", "--here", kind, "--first", str(first)]
            done = subprocess.run(
                [*command, "--calls", str(min(500, last - first))],
                capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
            )  # fmt: skip
            lines = done.stdout.split("\n")
            for line in lines:
                if line.startswith(kind):
                    wrong[kind] += 1
                    print(line, flush=True)
            seeds = [int(line) for line in lines if line.isdigit()]
            if done.returncode:
                wrong[kind] += 1
                seed = seeds[-1] if seeds else first
                print(
                    f"{kind} {seed}: the process ended with {done.returncode}\n{done.stderr[-2000:]}",
                    flush=True,
                )
                first = seed + 1
            else:
                first = seeds[-1] + 1
        print(f"{kind}: {options.calls} calls on {isa()}, {wrong[kind]} wrong", flush=True)
    sys.exit(any(wrong.values()))


def isa():
    return backends._native.build_info().get("isa_active", "no kernels")


if __name__ == "__main__":
    main()
