"""What the tests of the ops draw, and how they run an op."""

import mmap

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_map

from mirnet_fast import _native

LAYOUTS = ("nchw", "channels_last", "sliced", "every_second", "expanded", "transposed")
GRADIENTS = ("dense", "other_layout", "expanded", "sliced", "narrowed")
# Every layout of the maps once, every layout of the gradient at least once.
LAYOUT_PAIRS = (
    ("nchw", "expanded"),
    ("channels_last", "dense"),
    ("sliced", "sliced"),
    ("every_second", "other_layout"),
    ("expanded", "dense"),
    ("transposed", "narrowed"),
)

FLOATS = (torch.float32, torch.bfloat16, torch.float64)  # of the CPU
GPU_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

needs_kernels = pytest.mark.skipif(
    _native.cpu_library_error() is not None,
    reason=f"the C++ kernels are not there: {_native.cpu_library_error()}",
)


def lay_out(value, layout):
    """The same values in another memory layout; "expanded" repeats the first image instead."""
    if layout == "nchw":
        return value.contiguous()
    if layout == "channels_last":
        return value.contiguous(memory_format=torch.channels_last)
    n, c, h, w = value.shape
    if layout == "expanded":
        return value[:1].expand(n, c, h, w)
    if layout == "transposed":
        return value.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        big = value.new_full((n, c + 5, h + 2, w + 3), float("nan"))
        big = big.contiguous(memory_format=torch.channels_last)
        view = big[:, 2 : c + 2, 1 : h + 1, 2 : w + 2]
    else:
        view = value.new_full((n, c, h, 2 * w), float("nan"))[..., ::2]
    return view.copy_(value)


class Values:
    """Draws the arguments of a case: feature maps in a layout, weights as they come."""

    def __init__(self, dtype=torch.float64, layout="nchw", seed=0, device="cpu"):
        self.dtype, self.layout, self.device = dtype, layout, device
        self.generator = torch.Generator().manual_seed(seed)

    def weight(self, *shape):
        fan_in = max(1, torch.Size(shape[1:]).numel())
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu") / fan_in**0.5
        return value.to(self.device, self.dtype)

    def map(self, *shape):
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64, device="cpu")
        return lay_out(value.to(self.device, self.dtype), self.layout)


def tensors(args):
    return [value for value in tree_flatten(args)[0] if isinstance(value, torch.Tensor)]


def on_tensors(function, args):
    return tree_map(lambda v: function(v) if isinstance(v, torch.Tensor) else v, args)


def run(function, args, make_grad):
    """[output, gradient of every tensor]."""
    args = on_tensors(lambda t: t.detach().requires_grad_(), args)
    output = function(*args)
    return [output.detach(), *torch.autograd.grad(output, tensors(args), make_grad(output))]


def gradient_maker(kind, dtype):
    def make(output):
        generator = torch.Generator().manual_seed(7)
        value = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu")
        value = value.to(output.device, dtype)
        if kind == "expanded":
            return output.new_ones(()).expand(output.shape)
        if kind == "sliced":
            return lay_out(value, "sliced").to(output.dtype)
        if kind == "narrowed":  # as the backward of torch.cat gives it
            return torch.cat([value, value, value], dim=1).narrow(1, value.shape[1], value.shape[1])
        dense = value.contiguous(memory_format=torch.channels_last)
        return (value.contiguous() if kind == "other_layout" else dense).to(output.dtype)

    return make


def is_map(value):
    """Whether it is a feature map, of the cases whose maps are larger than any weight."""
    return value.dim() == 4 and value.shape[2] > 5


def far_apart(maps):
    """The same maps of three images, the last more than 2**31 values away; what lies between takes no memory.

    The distance between two images fits 32 bits, which a product of it with an image's number does not.
    """
    apart = 2**30 + 8
    values = 2 * apart + sum(m[0].numel() for m in maps)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python does not name
    if maps[0].is_cuda:
        room = maps[0].new_empty(values)
    else:
        room = torch.frombuffer(mmap.mmap(-1, values * maps[0].itemsize, flags=flags), dtype=maps[0].dtype)
    result, first = [], 0
    for m in maps:
        _, c, h, w = m.shape
        result.append(room.as_strided(m.shape, (apart, 1, w * c, c), first).copy_(m))
        first += c * h * w
    return result


def check_sums(sums, x):
    """Of a few dozen pixels at a time in the kernels' precision, then in float64."""
    error = (sums - x.double().sum((2, 3))).abs()
    eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps  # bfloat16 is added in float32
    assert (error <= 4 * eps * x.double().abs().sum((2, 3))).all()


def with_threads(call, counts=(1, 2, 3)):
    """[what the call gives] with so many threads of PyTorch."""
    before = torch.get_num_threads()
    results = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results


def check_same(results):
    """That all of them, lists of tensors, have the same bits as the first."""
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def check_large_means(op, make):
    """Of an op that takes means over the pixels: their sums exceed float16, the means do not."""
    args = on_tensors(lambda t: t + 600 if is_map(t) else t, make(op.values(torch.float16)))
    op.check_contract(args, gradient_maker("dense", torch.float16), draws=1)
