"""No registered op takes an argument that does not fit: every one of them, one argument at a time."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import mirnet_fast  # noqa: F401 (defines the ops)

from .cases import first_of
from .ops.common import needs_kernels
from .ops.subject import CPU, CUDA, TRITON

pytestmark = needs_kernels

N, C, D, E, H, W = 2, 8, 4, 16, 6, 4


def t(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def m(*shape):
    return t(*shape).contiguous(memory_format=torch.channels_last)


def sums(*shape):
    return torch.zeros(shape, dtype=torch.float64)


DAU = [t(1, 2, 5, 5), t(D, C, 1, 1), t(D), t(C, D, 1, 1), t(C), t(C, 2 * C, 1, 1), t(C)]
SKFF = [t(D, C, 1, 1), t(D), t(1), [t(C, D, 1, 1), t(C, D, 1, 1)], [t(C), t(C)]]
DOWN = [t(1), t(E, C, 1, 1), t(E), t(E, C, 1, 1), t(E)]
UP = [t(1), t(D, C, 1, 1), t(D), t(D, E, 1, 1), t(D)]
BLUR = [3, "reflect", 2, 0]
x, big, small = m(N, C, H, W), m(N, C, 2 * H, 2 * W), m(N, E, H, W)
lower, upper = m(N, E, H // 2, W // 2), m(N, D, 2 * H, 2 * W)

# Of the public ops, with their backward, on every backend; and those of the C++ kernels alone.
PUBLIC = {
    "blur_pool": (m(N, C, H // 2, W // 2), [x, *BLUR]),
    "dau_attention": (x, [x, x, *DAU]),
    "residual_down_tail": (lower, [x, x, *DOWN]),
    "residual_up_tail": (upper, [big, small, *UP]),
    "skff_select": (x, [[x, x], *SKFF]),
}
RESIDUAL = {"dau_attention": 1}  # which the backward does not take
OF_CPU = {
    "conv1x1_into": [m(N, E, H, W), x, t(E, C, 1, 1), t(E), t(E)],
    "conv3x3": [x, t(E, C, 3, 3), t(E), t(E), m(N, E, H, W)],
    "conv3x3_into": [
        m(N, E, H, W),
        x,
        t(E, C, 3, 3),
        t(E),
        t(E),
        m(N, E, H, W),
        t(N, 2, H, W),
        sums(N, E),
        0,
    ],
    "conv_transpose3x3": [x, t(C, E, 3, 3), t(E)],
    "dau_attention_into": [m(N, C, H, W), x, x, *DAU, t(N, 2, H, W), sums(N, C), sums(N, C), 0, H * W],
    "residual_down_tail_into": [lower, x, x, *DOWN, sums(N, E), 0],
    "residual_up_tail_rows": [upper, big, small, *UP, 0],
    "residual_up_tail_of_conv": [upper, x, t(C, C, 3, 3), t(C), small, *UP, 0, sums(N, D)],
    "skff_pool": [[x, x]],
    "skff_select_into": [m(N, C, H, W), [x, x], *SKFF, [sums(N, C), sums(N, C)], H * W],
}


def all_calls():
    for name, args in OF_CPU.items():
        yield CPU, name, args
    for name, (grad, args) in PUBLIC.items():
        kept = [a for i, a in enumerate(args) if i != RESIDUAL.get(name)]
        for backend in (CPU, TRITON, CUDA):
            yield backend, name, args
            yield backend, f"{name}_backward", [grad, *kept]


CALLS = [pytest.param(*call, id=f"{call[0].name}-{call[1]}") for call in all_calls()]


def places(args):
    """Paths to the tensors: an index, or two for one in a list."""
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            yield (i,)
        elif isinstance(arg, list):
            yield from ((i, j) for j in range(len(arg)))


def at(args, place):
    return args[place[0]] if len(place) == 1 else args[place[0]][place[1]]


def replaced(args, place, value):
    args = [list(a) if isinstance(a, list) else a for a in args]
    if len(place) == 1:
        args[place[0]] = value
    else:
        args[place[0]][place[1]] = value
    return args


def wrong(value):
    """{what is wrong: a tensor that an op must not take in place of this one}."""
    yield "meta", value.to("meta")
    yield "complex", value.to(torch.complex64)
    yield "integer", value.to(torch.int32)
    yield "another dtype", value.to(torch.float16)
    yield "one dimension more", value[None]
    yield "no dimensions", value.sum()
    for d in range(value.dim()):
        longer = list(value.shape)
        longer[d] += 1
        yield f"longer along {d}", value.new_zeros(longer)
        yield f"empty along {d}", value.narrow(d, 0, 0)
        if value.shape[d] > 1:
            yield f"shorter along {d}", value.narrow(d, 0, value.shape[d] - 1)


# {op: {place of a tensor: what is right there}}
ANY_SIZE = {f"{how} along {d}" for d in range(4) for how in ("longer", "shorter")} | {"empty along 0"}
FREE = {
    "blur_pool": {(0,): ANY_SIZE | {"meta", "another dtype"}},  # there is nothing that it must go with
    "blur_pool_backward": {(1,): {"shorter along 2", "shorter along 3"}},  # as large when halved
    "conv_transpose3x3": {(0,): ANY_SIZE - {"longer along 1", "shorter along 1"}},
    # The result is some rows of what these are the whole of.
    "conv3x3_into": {(1,): {"longer along 2"}},
    "dau_attention_into": {(10,): {"longer along 2"}},
    "residual_down_tail_into": {(0,): {"shorter along 2", "empty along 2"}},
    "residual_up_tail_rows": {(2,): {"longer along 2"}},
    "residual_up_tail_of_conv": {(1,): {"longer along 2"}, (4,): {"longer along 2"}},
}


def call(backend, name, args):
    return getattr(getattr(torch.ops, f"mirnet_fast_{backend.name}"), name)(*args)


def test_every_op_is_tried():
    """That takes a tensor."""
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("mirnet_fast_")]
    tried = {f"mirnet_fast_{backend.name}::{name}" for backend, name, _ in all_calls()}
    assert tried == {s.name for s in schemas if any("Tensor" in str(a.type) for a in s.arguments)}


@pytest.mark.parametrize(("backend", "name", "args"), CALLS)
def test_right(backend, name, args):
    with backend.kernels():
        call(backend, name, tree_map_only(torch.Tensor, torch.clone, args))
    call(backend, name, tree_map_only(torch.Tensor, lambda v: v.to("meta"), args))
    with FakeTensorMode() as mode:
        call(backend, name, tree_map_only(torch.Tensor, mode.from_tensor, args))


@pytest.mark.parametrize("mode", first_of(["real", "fake", "meta"], 2))
@pytest.mark.parametrize(("backend", "name", "args"), CALLS)
def test_wrong(backend, name, args, mode):
    taken, fake = [], FakeTensorMode()
    for place in places(args):
        for what, value in wrong(at(args, place)):
            if (mode == "meta" and what == "meta") or what in FREE.get(name, {}).get(place, ()):
                continue
            given = replaced(args, place, value)
            try:
                if mode == "fake":
                    with fake:
                        call(backend, name, tree_map_only(torch.Tensor, fake.from_tensor, given))
                elif mode == "meta":
                    call(backend, name, tree_map_only(torch.Tensor, lambda v: v.to("meta"), given))
                else:
                    with backend.kernels():
                        call(backend, name, given)
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                assert "csrc" not in str(error)
            else:
                taken.append(f"{place}: {what}")
    assert not taken
