"""What is asked of every fused op; a test file names its op and its cases and inherits the rest."""

import importlib
import mmap
import sys
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import mirnet_fast
from mirnet_fast import _native, backends, ops, reference

from .. import emulation
from ..cases import each, first_of, pairwise
from ..tolerance import assert_contract, distance, moved

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

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
DEVICE_FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # of a GPU
SPECIAL = (float("nan"), float("inf"), -float("inf"))
PIXELS = ("middle", "first")  # where a special value stands; the first is what padding of tables points to

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


@needs_kernels
class WritesInto:
    """Of the ops that inference gives a map to write into."""

    @property
    def into(self):
        return getattr(torch.ops.mirnet_fast_cpu, f"{self.op}_into").default

    @each(layout=[layout for layout in LAYOUTS if layout != "expanded"], dtype=FLOATS)
    def test_into_a_map_of_any_strides(self, any_case, layout, dtype):
        args = self.direct(self.cases[any_case](Values(dtype)))
        expected = self.fast(*args)
        out = Values(dtype, layout).map(*expected.shape)
        self.into(out, *args)
        # Another order of sums where the layout makes other tiles.
        torch.testing.assert_close(out, expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)

    def test_into_opcheck(self):
        args = self.direct(self.cases["tiny"](Values(torch.float32)))
        torch.library.opcheck(self.into, (torch.zeros_like(self.fast(*args)), *args))

    def test_into_a_map_that_does_not_fit(self):
        args = self.direct(self.cases["tiny"](Values(torch.float32)))
        right = self.fast(*args)
        for wrong in (right[:, :-1], right[:1], right.double()):
            with pytest.raises(RuntimeError, match=f"{self.op}: out must have"):
                self.into(wrong.clone(), *args)


class LeavesSums(WritesInto):
    """Of those that also leave the sums of what they write for skff_select."""

    sums = "sums"  # the argument

    @each(layout=["channels_last", "sliced"], dtype=FLOATS)
    def test_sums(self, any_case, layout, dtype):
        args = self.direct(self.cases[any_case](Values(dtype)))
        out = Values(dtype, layout).map(*self.fast(*args).shape)
        sums = torch.full(out.shape[:2], float("nan"), dtype=torch.float64)
        self.into(out, *args, **{self.sums: sums})
        check_sums(sums, out)

    def test_sums_opcheck(self):
        args = self.direct(self.cases["tiny"](Values(torch.float32)))
        out = self.fast(*args)
        sums = {self.sums: torch.zeros(out.shape[:2], dtype=torch.float64)}
        torch.library.opcheck(self.into, (torch.zeros_like(out), *args), sums)

    def test_sums_that_do_not_fit(self):
        args = self.direct(self.cases["tiny"](Values(torch.float32)))
        out = self.fast(*args)
        right = torch.zeros(out.shape[:2], dtype=torch.float64)
        for wrong in (right[:, :-1].contiguous(), right.float(), right.T.contiguous().T):
            with pytest.raises(RuntimeError, match=f"{self.op}: {self.sums} must be contiguous float64"):
                self.into(out, *args, **{self.sums: wrong})


def check_sums(sums, x):
    """Of a few dozen pixels at a time in the kernels' precision, then in float64."""
    error = (sums - x.double().sum((2, 3))).abs()
    eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps  # bfloat16 is added in float32
    assert (error <= 4 * eps * x.double().abs().sum((2, 3))).all()


def check_special_values(test, clean, cases):
    """A special value in each tensor in turn ends where the reference's does; each takes the next case.

    From the first pixel of a map nowhere else, and everywhere but in `test.meets_padding`, where the
    reference multiplies it by zeros beyond the border.
    """
    dtype = tensors(clean)[0].dtype
    count = len(tensors(clean))
    for place in range(count + 1):
        special, pixel = cases[place % len(cases)]
        args = on_tensors(torch.clone, clean)
        output_grad = gradient_maker("dense", dtype)(test.fast(*args))
        value = [*tensors(args), output_grad][place]
        # In a window's middle, where no zero of the padding meets it: libraries differ there.
        at = (-1, 3, 4, 5) if value.shape[-1] > 5 else tuple(size // 2 for size in value.shape)
        if pixel == "first" and is_map(value):
            at = (*at[:2], 0, 0)
        value[at] = special
        fasts = run(test.fast, args, lambda _, g=output_grad: g)
        exact = on_tensors(torch.Tensor.double, args)
        oracles = run(test.reference, exact, lambda _, g=output_grad: g.double())
        assert not all(oracle.isfinite().all() for oracle in oracles)
        for i, (fast, expected) in enumerate(zip(fasts, oracles, strict=True)):
            where = f"special value in tensor {place}, result {i}"
            if pixel == "first" and i in test.meets_padding:
                assert (fast.isfinite() | ~expected.isfinite()).all(), where
                continue
            assert torch.equal(fast.isfinite(), expected.isfinite()), where
            if test.orders_infinities:
                assert torch.equal(fast.isnan(), expected.isnan()), where


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


def check_images_far_apart(test, args):
    """What comes of an image does not depend on where it lies: no offset of it is of 32 bits."""

    def three(value):
        images = torch.cat([value, value])[:3]
        return images.contiguous(memory_format=torch.channels_last)

    args = on_tensors(lambda t: three(t) if is_map(t) else t, args)
    maps = [t for t in tensors(args) if is_map(t)]
    moved = dict(zip(map(id, maps), far_apart(maps), strict=True))
    grad = gradient_maker("dense", maps[0].dtype)(test.fast(*args))
    [moved_grad] = far_apart([grad])
    expected = run(test.fast, args, lambda _: grad)
    actual = run(test.fast, on_tensors(lambda t: moved.get(id(t), t), args), lambda _: moved_grad)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


class OpCase:
    """Subclasses set `op` and `cases`: {name: function of Values that gives the arguments}.

    `cases["tiny"]` is small enough for gradcheck, and names every optional argument;
    `cases["pixels"]`, not among `any_case`, has few channels and many pixels.
    """

    op = None
    cases = {}
    backend = None
    residual = None  # the argument that the backward does not take
    meets_padding = ()  # results, the output being 0

    @property
    def fast(self):
        return getattr(ops, self.op)

    @property
    def reference(self):
        return getattr(reference, self.op)

    @property
    def namespace(self):
        return getattr(torch.ops, f"mirnet_fast_{self.backend}")

    @property
    def overload(self):
        return getattr(self.namespace, self.op).default

    @property
    def backward_overload(self):
        return getattr(self.namespace, f"{self.op}_backward").default

    def direct(self, args):
        """The arguments of the registered op: the public function's, lists for tuples."""
        return tuple(list(a) if isinstance(a, (list, tuple)) else a for a in args)

    def direct_backward(self, args):
        """The arguments of the registered backward."""
        kept = [a for i, a in enumerate(self.direct(args)) if i != self.residual]
        return torch.ones_like(self.fast(*args)), *kept

    def check_contract(self, args, make_grad, draws):
        dtype = tensors(args)[0].dtype
        generator = torch.Generator().manual_seed(11)
        nearby = [on_tensors(lambda t: moved(t, generator, ulps=2).to(dtype), args) for _ in range(draws)]

        def oracle(values):
            return run(self.reference, on_tensors(lambda t: t.double(), values), make_grad)

        nearby = [args, *nearby]
        oracles = [oracle(values) for values in nearby]
        lows = [run(self.reference, values, make_grad) for values in nearby]
        moved_oracles = [oracle(on_tensors(lambda t: moved(t, generator), args)) for _ in range(draws)]
        for i, value in enumerate(run(self.fast, args, make_grad)):
            assert value.dtype == dtype
            name = "output" if i == 0 else f"gradient {i - 1}"

            errors = [distance(low[i], exact[i]) for low, exact in zip(lows, oracles, strict=True)]
            assert_contract(name, value, oracles[0][i], errors, [m[i] for m in moved_oracles])


class OpTests(OpCase):
    """What is asked of the C++ kernels of an op."""

    backend = "cpu"
    orders_infinities = True
    rounded_twice = ()  # results, the output being 0, that pass through memory in their dtype

    @pytest.fixture(autouse=True)
    def on_the_cpu_kernels(self):
        with mirnet_fast.use_backend("cpu"):
            yield

    @pairwise(layout=LAYOUTS, gradient=GRADIENTS)
    def test_float64(self, any_case, layout, gradient):
        args = self.cases[any_case](Values(torch.float64, layout))
        make_grad = gradient_maker(gradient, torch.float64)
        results = zip(run(self.fast, args, make_grad), run(self.reference, args, make_grad), strict=True)
        for fast, expected in results:
            scale = expected.norm().clamp_min(1e-3)
            assert (fast - expected).norm() <= 1e-11 * scale

    @each(layouts=LAYOUT_PAIRS, dtype=FLOATS[:2])
    def test_contract(self, any_case, layouts, dtype):
        layout, gradient = layouts
        args = self.cases[any_case](Values(dtype, layout))
        self.check_contract(args, gradient_maker(gradient, dtype), draws=3)

    @pytest.mark.parametrize("dtype", first_of(FLOATS[:2]))
    def test_contract_over_many_pixels(self, dtype):
        # Here a sum over the pixels in one float32 would round more than the reference's.
        args = self.cases["pixels"](Values(dtype, "channels_last"))
        self.check_contract(args, gradient_maker("dense", dtype), draws=1)

    @each(layouts=LAYOUT_PAIRS)
    def test_bfloat16_is_float32_rounded_once(self, any_case, layouts):
        layout, gradient = layouts
        args = self.cases[any_case](Values(torch.bfloat16, layout))
        output_grad = gradient_maker(gradient, torch.bfloat16)(self.fast(*args))
        low = run(self.fast, args, lambda _: output_grad)
        single = run(self.fast, on_tensors(torch.Tensor.float, args), lambda _: output_grad.float())
        for i, (rounded, value) in enumerate(zip(low, single, strict=True)):
            if i in self.rounded_twice:
                continue
            nearest = (value.bfloat16() - value).abs()
            # The order of float32 sums may differ between the dtypes.
            allowed = nearest + 1e-5 * value.abs().clamp_min(1e-2 * value.abs().mean())
            assert ((rounded - value).abs() <= allowed).all()

    def test_gradcheck(self):
        args = on_tensors(lambda t: t.detach().requires_grad_(), self.cases["tiny"](Values()))
        flat, spec = tree_flatten(args)

        def function(*values):
            values = iter(values)
            filled = [next(values) if isinstance(v, torch.Tensor) else v for v in flat]
            return self.fast(*tree_unflatten(filled, spec))

        assert gradcheck(function, tuple(tensors(args)), fast_mode=False)

    @pytest.mark.parametrize("layout", first_of(("sliced", "nchw", "channels_last")))
    def test_opcheck(self, layout):
        args = self.cases["tiny"](Values(torch.float32, layout))
        torch.library.opcheck(self.overload, self.direct(args))
        torch.library.opcheck(self.backward_overload, self.direct_backward(args))
        args = on_tensors(lambda t: t.detach().requires_grad_(), args)
        torch.library.opcheck(self.overload, self.direct(args))

    @pytest.mark.parametrize("layout", LAYOUTS[:2])
    def test_strides_of_the_output_follow_the_input(self, layout):
        output = self.fast(*self.cases["plain"](Values(torch.float32, layout)))
        wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert output.is_contiguous(memory_format=wanted)

    def test_empty_batch(self):
        args = self.cases["plain"](Values())
        args = on_tensors(lambda t: t[:0] if is_map(t) else t, args)
        values = run(self.fast, args, torch.ones_like)
        assert values[0].shape[0] == 0
        assert all(torch.all(v == 0) for v in values if v.numel())

    def test_pixels_that_lie_at_one_place(self):
        # A row's distance from pixel to pixel is 0, which no loop may take for "packed".
        args = self.cases["plain"](Values(torch.float32, "channels_last"))
        args = on_tensors(lambda t: t[..., :1].expand(t.shape) if is_map(t) else t, args)
        self.check_contract(args, gradient_maker("dense", torch.float32), draws=1)

    @each(special=SPECIAL, pixel=PIXELS, dtype=FLOATS[:2])
    def test_special_values_go_through(self, special, pixel, dtype):
        clean = self.cases["plain"](Values(dtype, "channels_last"))
        check_special_values(self, clean, [(special, pixel)])

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_images_far_apart(self, dtype):
        check_images_far_apart(self, self.cases["plain"](Values(dtype, "channels_last")))

    def test_only_some_inputs_want_gradients(self):
        args = self.cases["plain"](Values())
        flat, spec = tree_flatten(args)
        for place, value in enumerate(flat):
            if not isinstance(value, torch.Tensor):
                continue
            leaf = value.detach().requires_grad_()
            results = []
            for function in (self.fast, self.reference):
                # Not a leaf where the op gets it, and the only one that wants a gradient.
                changed = [*flat[:place], 2 * leaf, *flat[place + 1 :]]
                output = function(*tree_unflatten(changed, spec))
                results += torch.autograd.grad(output.square().sum(), leaf)
            torch.testing.assert_close(*results)
        assert not self.fast(*args).requires_grad

    def test_backward_keeps_nothing_but_inputs(self):
        args = on_tensors(lambda t: t.detach().requires_grad_(), self.cases["plain"](Values()))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            self.fast(*args)
        inputs = {t.data_ptr() for t in tensors(args)}
        assert kept
        assert {t.data_ptr() for t in kept} <= inputs

    def test_double_backward_says_what_to_do(self):
        args = on_tensors(lambda t: t.detach().requires_grad_(), self.cases["plain"](Values()))
        first = tensors(args)[0]
        (gradient,) = torch.autograd.grad(self.fast(*args).square().sum(), first, create_graph=True)
        with pytest.raises(NotImplementedError, match=rf"{self.op}: .*double backward.*reference"):
            gradient.sum().backward()

    @each(dynamic=[False, True], backend=["aot_eager", "inductor"])
    def test_compile(self, dynamic, backend):
        torch.compiler.reset()
        compiled = torch.compile(self.fast, fullgraph=True, dynamic=dynamic, backend=backend)
        for name in ("plain", "larger") if dynamic else ("plain",):
            args = self.cases[name](Values(torch.float32, "channels_last"))
            pairs = zip(
                run(compiled, args, torch.ones_like), run(self.fast, args, torch.ones_like), strict=True
            )
            for actual, expected in pairs:
                assert torch.equal(actual, expected)
                assert actual.stride() == expected.stride()

    @pytest.mark.parametrize("strict", [False, True])
    def test_export(self, strict):
        op = self.fast

        class Network(torch.nn.Module):
            def forward(self, *values):
                return op(*values)

        def of_any_size(value):
            is_map = isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[3] > 5
            return dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO) if is_map else None

        args = tuple(self.cases["plain"](Values(torch.float32)))
        sizes = tree_map(of_any_size, args)
        program = torch.export.export(Network(), args, dynamic_shapes={"values": sizes}, strict=strict)
        assert f"mirnet_fast_cpu.{self.op}" in str(program.graph)
        larger = on_tensors(lambda t: t.repeat(2, 1, 3, 2) if of_any_size(t) else t, args)
        for values in (args, larger):
            assert torch.equal(program.module()(*values), self.fast(*values))

    def test_threads(self):
        args = self.cases["larger"](Values(torch.float32, "channels_last"))
        expected = run(self.fast, args, torch.ones_like)
        results = []
        workers = [
            threading.Thread(target=lambda: results.append(run(self.fast, args, torch.ones_like)))
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(results) == 4
        for result in results:
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))

    def test_result_does_not_depend_on_the_number_of_threads(self):
        args = self.cases["larger"](Values(torch.float32, "channels_last"))
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(run(self.fast, args, torch.ones_like))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))

    def test_autocast(self):
        args = self.cases["plain"](Values(torch.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.fast(*args)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, self.fast(*on_tensors(torch.Tensor.bfloat16, args)))

    def test_autocast_to_float16(self):
        args = self.cases["plain"](Values(torch.float32))
        oracle = self.reference(*on_tensors(torch.Tensor.double, args))
        with mirnet_fast.use_backend(None), torch.autocast("cpu", dtype=torch.float16):
            output, published = self.fast(*args), self.reference(*args)
        assert output.dtype == published.dtype
        assert distance(output, oracle) <= 2 * distance(published, oracle)

    def test_float16_has_no_kernels(self):
        args = self.cases["plain"](Values(torch.float16))
        with pytest.raises(backends.BackendError, match=rf"{self.op}: .*'cpu'.*float16"):
            self.fast(*args)
        with mirnet_fast.use_backend(None):
            assert self.fast(*args).dtype == torch.float16

    def test_mixed_dtypes_and_devices(self):
        args = self.cases["plain"](Values(torch.float32))
        flat, spec = tree_flatten(args)
        places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)][1:]
        for place in places:
            for change, error in ((torch.Tensor.double, TypeError), (lambda t: t.to("meta"), ValueError)):
                changed = list(flat)
                changed[place] = change(flat[place])
                with pytest.raises(error, match=rf"^{self.op}: .* must be .* got "):
                    self.fast(*tree_unflatten(changed, spec))

    def test_wrong_tensors_reach_no_loop(self):
        args = self.direct(self.cases["tiny"](Values(torch.float32)))
        changes = (lambda t: t[None], lambda t: torch.cat([t, t, t]), lambda t: t[:0], torch.Tensor.double)
        calls = ((self.overload, args), (self.backward_overload, self.direct_backward(args)))
        for call, values in calls:
            flat, spec = tree_flatten(values)
            places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
            for place in places:
                # A first map that is alone may have any batch and dtype.
                alone = len(places) == 1
                for change in changes[:1] if alone else changes:
                    changed = [*flat[:place], change(flat[place]), *flat[place + 1 :]]
                    with pytest.raises(RuntimeError, match=f"{self.op}: "):
                        call(*tree_unflatten(changed, spec))

    def test_wrong_shapes_are_named(self):
        args = self.cases["plain"](Values(torch.float32))
        flat, spec = tree_flatten(args)
        for place, value in enumerate(flat):
            if isinstance(value, torch.Tensor):
                changed = [*flat[:place], value.unsqueeze(0), *flat[place + 1 :]]
                with pytest.raises(ValueError, match=rf"^{self.op}: \w.* must .*; got "):
                    self.fast(*tree_unflatten(changed, spec))

    def test_integers_are_refused(self):
        args = on_tensors(lambda t: t.long(), self.cases["plain"](Values()))
        with pytest.raises(TypeError, match=rf"^{self.op}: .* floating point; got torch.int64"):
            self.fast(*args)


class DeviceTests(OpCase):
    """What is asked of the kernels of an op for GPUs, on one or by a stand-in."""

    orders_infinities = True

    def values(self, dtype=torch.float32, layout="channels_last"):
        return Values(dtype, layout, device=DEVICE)

    @each(dtype=DEVICE_FLOATS)
    def test_contract(self, any_case, dtype):
        self.check_contract(self.cases[any_case](self.values(dtype)), gradient_maker("dense", dtype), draws=2)

    @pytest.mark.parametrize(("layout", "gradient"), LAYOUT_PAIRS)
    def test_layouts(self, layout, gradient):
        args = self.cases["plain"](self.values(torch.float32, layout))
        self.check_contract(args, gradient_maker(gradient, torch.float32), draws=1)

    def test_opcheck(self):
        args = self.cases["tiny"](self.values())
        torch.library.opcheck(self.overload, self.direct(args))
        torch.library.opcheck(self.backward_overload, self.direct_backward(args))
        args = on_tensors(lambda t: t.detach().requires_grad_(), args)
        torch.library.opcheck(self.overload, self.direct(args))

    @pytest.mark.parametrize("layout", first_of(LAYOUTS, 3))
    def test_strides_of_the_output_are_those_of_the_fake(self, layout):
        args = self.direct(self.cases["plain"](self.values(torch.float32, layout)))
        with FakeTensorMode() as mode:
            fake = on_tensors(mode.from_tensor, args)
            promised = [self.overload(*fake), *self.backward_overload(*self.direct_backward(fake))]
        kept = [self.overload(*args), *self.backward_overload(*self.direct_backward(args))]
        assert [t.stride() for t in kept] == [t.stride() for t in promised]

    def test_empty_batch(self):
        args = self.cases["plain"](self.values())
        args = on_tensors(lambda t: t[:0] if is_map(t) else t, args)
        values = run(self.fast, args, torch.ones_like)
        assert values[0].shape[0] == 0
        assert all(torch.all(v == 0) for v in values if v.numel())

    # The three together: each special value in each tensor.
    @pytest.mark.parametrize("first", first_of(range(3)))
    def test_special_values_go_through(self, first):
        cases = [(SPECIAL[i % 3], PIXELS[i % 2]) for i in range(first, first + 6)]
        check_special_values(self, self.cases["plain"](self.values()), cases)

    def check_large_means(self, make):
        """Of an op that takes means over the pixels: their sums exceed float16, the means do not."""
        args = on_tensors(lambda t: t + 600 if is_map(t) else t, make(self.values(torch.float16)))
        self.check_contract(args, gradient_maker("dense", torch.float16), draws=1)

    @pytest.mark.parametrize("dtype", first_of((torch.float16, torch.float32, torch.bfloat16)))
    def test_images_far_apart(self, dtype):
        check_images_far_apart(self, self.cases["plain"](self.values(dtype)))

    def test_compile(self):
        torch.compiler.reset()
        compiled = torch.compile(self.fast, fullgraph=True, backend="aot_eager")
        args = self.cases["plain"](self.values())
        pairs = zip(run(compiled, args, torch.ones_like), run(self.fast, args, torch.ones_like), strict=True)
        for actual, expected in pairs:
            assert torch.equal(actual, expected)
            assert actual.stride() == expected.stride()

    def test_float64_has_no_kernels(self):
        with pytest.raises(backends.BackendError, match=rf"{self.op}: .*'{self.backend}'.*float64"):
            self.fast(*self.cases["plain"](self.values(torch.float64)))

    def test_the_same_every_time(self):
        args = self.cases["plain"](self.values())
        results = [run(self.fast, args, torch.ones_like) for _ in range(3)]
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


class TritonTests(DeviceTests):
    """What is asked of the Triton kernels of an op, by the interpreter or on a GPU."""

    backend = "triton"
    pytestmark = pytest.mark.untraced

    @pytest.fixture(autouse=True)
    def on_the_triton_kernels(self):
        if "triton" in backends._UNAVAILABLE:
            pytest.skip(f"no Triton here: {backends._UNAVAILABLE['triton']}")
        with mirnet_fast.use_backend("triton"), torch.device(DEVICE):
            yield

    def test_wide_offsets(self, monkeypatch):
        # As for an image of 2**31 values and more.
        args = self.cases["plain"](self.values())
        expected = run(self.fast, args, torch.ones_like)
        common = importlib.import_module("mirnet_fast.kernels._common")
        asked = []
        wide = common.tl.int64
        for name, module in list(sys.modules.items()):
            if name.startswith("mirnet_fast.kernels.") and hasattr(module, "offset_type"):
                monkeypatch.setattr(module, "offset_type", lambda *maps: asked.append(maps) or wide)
        actual = run(self.fast, args, torch.ones_like)
        assert len(asked) >= 2
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


class CudaTests(DeviceTests):
    """What is asked of the CUDA kernels of an op, on a GPU or, without one, emulated."""

    backend = "cuda"

    @pytest.fixture(autouse=True)
    def on_the_cuda_kernels(self):
        if DEVICE == "cuda":
            if "cuda" in backends._UNAVAILABLE:
                pytest.skip(f"no CUDA kernels here: {backends._UNAVAILABLE['cuda']}")
            with mirnet_fast.use_backend("cuda"), torch.device(DEVICE):
                yield
        else:
            if reason := emulation.missing():
                pytest.skip(f"no emulated GPU here: {reason}")
            with emulation.emulated_gpu():
                yield

    @pytest.mark.parametrize("dtype", first_of((torch.bfloat16, torch.float32)))
    def test_contract_over_many_pixels(self, dtype):
        def fewer(value):
            height, width = value.shape[2] // 4, value.shape[3] // 4
            return value[:, :, :height, :width]

        args = self.cases["pixels"](self.values(dtype))
        if DEVICE != "cuda":  # the emulated one takes minutes for all of them
            args = on_tensors(lambda t: fewer(t) if t.dim() == 4 and t.shape[3] >= 64 else t, args)
        self.check_contract(args, gradient_maker("dense", dtype), draws=1)

    @pytest.mark.parametrize("order", ["forward", "backward", "1"])
    def test_threads_in_another_order(self, order, monkeypatch):
        # Of the emulated GPU: a result that depends on it lacks a barrier.
        args = self.cases["plain"](self.values())
        expected = run(self.fast, args, torch.ones_like)
        monkeypatch.setenv("MIRNET_EMULATED_ORDER", order)
        actual = run(self.fast, args, torch.ones_like)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


class CudaProductTests(CudaTests):
    """Of the ops that multiply matrices, whose operands come through shared memory in chunks of channels.

    `deep(channels)` is a case of few pixels.
    """

    CHUNK = 32  # channels of 16 bits

    @pytest.mark.parametrize("chunks", range(1, 10))
    def test_chunks(self, chunks):
        # A missing barrier or wait shows in the chunks that share a buffer, or only in the last one.
        args = self.deep(chunks * self.CHUNK)(self.values(torch.float16))
        self.check_contract(args, gradient_maker("dense", torch.float16), draws=1)

    def test_no_bank_conflicts(self):
        if DEVICE == "cuda":
            pytest.skip("the emulated GPU counts them")
        before = emulation.bank_conflicts()
        run(self.fast, self.deep(2 * self.CHUNK)(self.values(torch.float16)), torch.ones_like)
        assert emulation.bank_conflicts() == before
