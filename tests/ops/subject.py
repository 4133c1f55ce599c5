"""What the tests of the ops take as `op`: an op on the kernels of a backend."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

import mirnet_fast
from mirnet_fast import backends, ops, reference

from .. import emulation
from ..tolerance import assert_contract, distance, moved
from .common import Values, on_tensors, run, tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def _triton():
    """By the interpreter or on a GPU."""
    if "triton" in backends._UNAVAILABLE:
        pytest.skip(f"no Triton here: {backends._UNAVAILABLE['triton']}")
    with mirnet_fast.use_backend("triton"), torch.device(DEVICE):
        yield


@contextlib.contextmanager
def _cuda():
    """On a GPU or, without one, emulated."""
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


@dataclass(frozen=True)
class Backend:
    """Whose kernels run inside `kernels()`, which skips the test where they cannot."""

    name: str
    kernels: Callable
    device: str
    # Of the arguments, where a test says nothing else.
    dtype: torch.dtype
    layout: str
    marks: tuple = ()


CPU = Backend("cpu", lambda: mirnet_fast.use_backend("cpu"), "cpu", torch.float64, "nchw")
TRITON = Backend("triton", _triton, DEVICE, torch.float32, "channels_last", (pytest.mark.untraced,))
CUDA = Backend("cuda", _cuda, DEVICE, torch.float32, "channels_last")


@dataclass(frozen=True)
class Op:
    """An op and what it is tried on: `cases` are {name: function of Values that gives the arguments}.

    `cases["tiny"]` is small enough for gradcheck, and names every optional argument;
    `cases["pixels"]`, not among `any_case`, has few channels and many pixels.
    """

    name: str
    cases: dict
    cuda_cases: dict = field(default_factory=dict)  # of the CUDA kernels alone
    deep: Callable | None = None  # of a product of matrices: a case of few pixels and so many channels
    residual: int | None = None  # the argument that the backward does not take
    into: bool = False  # whether inference gives it a map to write into
    sums: str | None = None  # the argument that takes the sums of what it writes, for skff_select
    widest: bool = False  # whether the output has the widest dtype of the maps, under autocast too
    orders_infinities: bool = True
    # Results, the output being 0:
    meets_padding: tuple = ()  # where the reference multiplies special values by zeros beyond the border
    rounded_twice: tuple = ()  # that pass through memory in their dtype
    products: bool = False  # whether maps in bfloat16 are multiplied as such, where the processor can

    def on(self, *chosen):
        """Of a test that takes `op`: this one, on each of these backends."""
        return subjects([self], chosen)


def subjects(chosen_ops, chosen_backends):
    """The mark of a test that takes `op`, which tests/cases.py makes into cases."""
    return pytest.mark.subjects(*[Subject(op, backend) for backend in chosen_backends for op in chosen_ops])


@dataclass(frozen=True)
class Subject:
    op: Op
    backend: Backend

    def __str__(self):
        return f"{self.backend.name.capitalize()}-{self.name}"

    def __getattr__(self, name):
        return getattr(self.op, name)

    @property
    def marks(self):
        return self.backend.marks

    @property
    def cases(self):
        return self.op.cases | (self.op.cuda_cases if self.backend is CUDA else {})

    @property
    def fast(self):
        return getattr(ops, self.name)

    @property
    def reference(self):
        return getattr(reference, self.name)

    @property
    def namespace(self):
        return getattr(torch.ops, f"mirnet_fast_{self.backend.name}")

    @property
    def overload(self):
        return getattr(self.namespace, self.name).default

    @property
    def backward_overload(self):
        return getattr(self.namespace, f"{self.name}_backward").default

    @property
    def into_overload(self):
        return getattr(self.namespace, f"{self.name}_into").default

    def values(self, dtype=None, layout=None):
        return Values(dtype or self.backend.dtype, layout or self.backend.layout, device=self.backend.device)

    def arguments(self, case, dtype=None, layout=None):
        return self.cases[case](self.values(dtype, layout))

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

    def check_close(self, args, call=lambda op, *args: op(*args), **bounds):
        """That the op does as its reference where it is called so: the output and every gradient."""
        fast = run(lambda *values: call(self.fast, *values), args, torch.ones_like)
        expected = run(lambda *values: call(self.reference, *values), args, torch.ones_like)
        for a, b in zip(fast, expected, strict=True):
            torch.testing.assert_close(a, b, **bounds)
