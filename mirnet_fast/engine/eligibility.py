"""Whether a fused module may compute what its layers would: the one place that decides.

A fused module does not call its layers. It reads their tensors, and takes for granted what they compute.
That is so for the layers that it was built of, and no longer for one that somebody wrapped, derived,
hooked, gave a `forward` or a computed weight, or changed the numbers of. Then the layers are called, by the
forward of mirnet_fast.reference.

A fused module has `_layers()`, the modules that it does not call, and `_published()`, which yields (a layer
or the name of an attribute, whether it is as taken for granted). Both are asked again only after something
in the module was replaced.
"""

import itertools
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .. import backends
from ..reference.filters import binomial_filter
from ..reference.modules import ChannelAttention, SpatialAttention

if TYPE_CHECKING:
    from .plan import Plan

ACCELERATED = "_mirnet_fast_original"  # the attribute of a module that accelerate() made ours

ACTIVATIONS = (nn.PReLU, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus)
ACTIVATIONS += (nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Identity)
_PADDINGS = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.ConstantPad2d)
_CLASSES = (*ACTIVATIONS, *_PADDINGS, nn.Conv2d, nn.ConvTranspose2d, nn.Upsample, nn.Sequential)
_CLASSES += (SpatialAttention, SpatialAttention.Gate, ChannelAttention)
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {cls: cls.forward for cls in _CLASSES}
_OURS = {}  # {class of this package: its forward}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE = ("_parameters", "_buffers", "_modules")
_STANDARD = frozenset(vars(nn.Module()))

_binomials = {}  # {(shape, dtype, device): filter}
_known = weakref.WeakKeyDictionary()  # {module: Snapshot}


class Part(nn.Module):
    """Of every module of this package; stands before the reference's class that it derives from."""

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("mirnet_fast.modules."):  # not what others derive
            _OURS[cls] = cls.forward

    def __getattr__(self, name: str) -> Any:
        # A part of ours that accelerate() found under another name, or what only the former class has.
        state = self.__dict__
        if ACCELERATED in state and not any(name in state[own] for own in _STATE):
            return state[ACCELERATED].attribute(self, name)
        return super().__getattr__(name)

    def _layers(self) -> Iterable[nn.Module]:
        return ()

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        return ()


def is_published(module: Part) -> bool:
    """Whether the layers that a fused module does not call compute what it does; torch.compile follows it."""
    return _misfit(module) is None


def unpublished(module: Part, path: str = "") -> str | None:
    """None, or what about a fused module's layers is not as it takes for granted.

    path: the module's name, which the names of its layers begin with.
    """
    misfit = _misfit(module)
    if misfit is None:
        return None
    part, what = misfit
    inside = {inner: name for name, inner in module.named_modules()}
    name = part if isinstance(part, str) else inside.get(part, f"a {type(part).__name__} in it")
    return f"{_joined(path, name) if name else 'it'} {what}"


def _misfit(module):
    """None, or (layer or name of an attribute, what about it is not as the module takes for granted)."""
    original = module.__dict__.get(ACCELERATED)
    classes = _CLASSES if original is None else (*_CLASSES, *original.inner)
    try:
        for layer in module._layers():
            if not (type(layer) in classes or type(layer) in _OURS):
                return layer, f"is a {type(layer).__name__}, none of the published layers"
            custom = customised(layer)
            if custom is not None:
                return layer, custom
        for part, holds in module._published():
            if not holds:
                return part, "is not as published"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return module, "has not the published structure"
    return None


def _joined(path, name):
    return f"{path}.{name}" if path and name else path or name


def unfit(module: Part, path: str = "") -> str:
    """Why the Snapshot of a fused module does not stand; arguments as those of `unpublished`."""
    for name, inner in module.named_modules(prefix=path):
        forward = type(inner).forward
        if _FORWARDS.get(type(inner), forward) is not forward:
            return f"{type(inner).__name__}.forward was replaced"
        filt = getattr(inner, "filt", None) if isinstance(inner, Part) else None
        if type(filt) is torch.Tensor and not is_binomial(filt):
            return f"{_joined(name, 'filt')} is not the binomial filter"
    return unpublished(module, path) or "it was changed meanwhile"


def is_unhooked(layer: nn.Module) -> bool:
    """Whether nothing but the class of a layer decides what a call of it does, with its own tensors."""
    return customised(layer) is None


def customised(layer: nn.Module) -> str | None:
    """None, or what besides the class of a layer and its own tensors decides what a call of it does."""
    if "forward" in layer.__dict__:
        return "has a forward of its own"
    if any(getattr(layer, hooks) for hooks in HOOKS):
        return "has hooks"
    if not all(is_plain_tensor(p) for p in layer._parameters.values()):
        return "has parameters that are no plain tensors"
    return None


def is_plain_tensor(value: torch.Tensor | None) -> bool:
    """Whether it is a dense tensor of no class with code of its own, or None."""
    return value is None or (
        type(value) in (nn.Parameter, torch.Tensor, FakeTensor) and value.layout is torch.strided
    )


def is_sequence(layer: object, length: int) -> bool:
    return type(layer) is nn.Sequential and len(layer) == length


def is_activation(layer: object) -> bool:
    """Whether it is one that goes value by value."""
    return is_prelu(layer) if type(layer) is nn.PReLU else type(layer) in ACTIVATIONS


def is_prelu(layer: object) -> bool:
    return type(layer) is nn.PReLU and has_parameters(layer, "weight")


def is_conv(layer: object, size: int | None = None) -> bool:
    """Whether it is a convolution that keeps height and width, with a kernel of this size if one is given."""
    return (
        type(layer) is nn.Conv2d
        and has_parameters(layer, "weight", "bias")
        and layer.kernel_size == ((size or layer.kernel_size[0] | 1),) * 2
        and layer.padding in (tuple(k // 2 for k in layer.kernel_size), "same")
        and layer.padding_mode == "zeros"
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
    )


def is_doubling_conv(layer: object) -> bool:
    """Whether it is the transposed convolution of a ResidualUpSample."""
    return (
        type(layer) is nn.ConvTranspose2d
        and has_parameters(layer, "weight", "bias")
        and layer.kernel_size == (3, 3)
        and layer.stride == (2, 2)
        and layer.padding == layer.output_padding == layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
    )


def has_parameters(layer: nn.Module, *names: str) -> bool:
    """Whether the layer's parameters are these, none of them computed; all but the first may be None."""
    return tuple(layer._parameters) == names and layer._parameters[names[0]] is not None


def is_binomial(filt: torch.Tensor) -> bool:
    """Whether a blur's filter (channels, 1, k, k) has the values that the op applies."""
    if filt.is_meta or isinstance(filt, FakeTensor):
        return True  # it has no values
    return torch.equal(filt, _binomial_like(filt))


# As torch.compiler.assume_constant_result does, which would import all of torch._dynamo.
is_binomial._dynamo_marked_constant = True  # pyrefly: ignore[missing-attribute]


def _binomial_like(filt):
    shape = tuple(map(int, filt.shape))  # numbers also where torch.jit.trace makes tensors of them
    key = shape, filt.dtype, filt.device
    if key not in _binomials:
        _binomials[key] = binomial_filter(shape[-1], filt.dtype, filt.device).expand(shape)
    return _binomials[key]


def unplannable(x: torch.Tensor) -> str | None:
    """None, or why no plan is made for a forward of x now."""
    if torch.is_grad_enabled():
        return "gradients are wanted"
    if type(x) is not torch.Tensor:
        return f"the input is a {type(x).__name__}"
    if x.device.type not in ("cpu", "cuda"):
        return f"the input is on {x.device}; plans are for the CPU and for CUDA"
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or backends.is_transformed():
        return "something traces or transforms the forward"
    if x.dim() != 4 or not x.numel():
        return f"the input has the shape {tuple(x.shape)}"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    return None


def is_ours(module: nn.Module) -> bool:
    """Whether a module is of a class of this package, or of one derived from it."""
    return any(base in _OURS for base in type(module).__mro__)


def lowers(module: nn.Module) -> bool:
    """Whether a module's `lower` stands for a call of it."""
    return unlowered(module) is None


def unlowered(module: nn.Module, path: str = "") -> str | None:
    """None, or why a module in a network has to be called; arguments as those of `unpublished`."""
    cls = type(module)
    ours = next((base for base in cls.__mro__ if base in _OURS), None)
    if ours is None:
        return "it is code of others"
    if ours.forward is not _OURS[ours]:
        return f"{ours.__name__}.forward was replaced"
    if cls is not ours and any(
        getattr(cls, name, None) is not getattr(ours, name, None)
        for name in ("forward", "lower", "_layers", "_published", "__call__", "__getattribute__")
    ):
        return f"it is of a class derived from {ours.__name__} with code of its own"
    custom = customised(module)
    return unpublished(module, path) if custom is None else f"it {custom}"  # pyrefly: ignore[bad-argument-type]


def snapshot_of(module: Part) -> "Snapshot":
    """The Snapshot of a module as it is now."""
    known = _known.get(module)
    if known is None or not known.is_of(module):
        known = _known[module] = Snapshot(module)
    return known


def snapshots() -> "list[Snapshot]":
    """Every Snapshot that is kept: of each module that ran and is still there, the last one."""
    # At once, as other threads may add to it.
    return [*_known.data.values()]  # pyrefly: ignore[missing-attribute]


class Snapshot:
    """What a module and all modules in it consist of, and what that means.

    Attributes:
        stands: whether the layers that the module, a fused one, does not call compute what it does.
        alone: whether moreover all modules in it do so, and no hook and no code of others runs.
        tensors: all parameters and buffers of the modules.
        pointers: where their values lie; another list where they moved.
        plans: {what else decides: Plan or why there is none}, for `engine.plan`.
        precisions: copies in other dtypes, and what is known of them, for `mirnet_fast.precision`.
    """

    stands: bool
    alone: bool
    tensors: list[torch.Tensor]
    plans: dict[Any, "Plan | str"]
    precisions: dict[Any, Any]

    def __init__(self, module: Part) -> None:
        modules = [*module.modules()]
        # Not the module itself: it has to be able to go.
        self._others, self._types = modules[1:], [*map(type, modules)]
        self._forwards = {t: t.forward for t in self._types}
        states = [*map(vars, modules)]
        self._lengths = [*map(len, states)]  # a `forward` of its own is one more
        self._readers = [_reader(state) for state in states]
        self._attributes = [read(state) for read, state in zip(self._readers, states, strict=True)]
        self._empty = [state[hooks] for state in states for hooks in HOOKS if not state[hooks]]
        self._hooks = [state[hooks] for state in states for hooks in HOOKS if state[hooks]]
        self._hooked = [*map(len, self._hooks)]
        self._holders = [state[name] for state in states for name in _STATE if state[name]]
        self._held = [*_values(self._holders)]
        self._without = [state[name] for state in states for name in _STATE if not state[name]]
        self.tensors = [value for value in self._held if isinstance(value, torch.Tensor)]
        self._forms = [*map(_form, self.tensors)]
        self._plain = [t for t in self.tensors if type(t) in (nn.Parameter, torch.Tensor)]
        filters = [getattr(m, "filt", None) for m in modules if isinstance(m, Part)]
        filters = [f for f in filters if isinstance(f, torch.Tensor)]
        self._filters = [f for f in filters if f.device.type == "cpu" and type(f) is torch.Tensor]
        self._wanted = [*map(_binomial_like, self._filters)]
        # To compare values elsewhere would make the CPU wait for the device.
        self._distant = [f for f in filters if f.is_cuda]
        self._versions = [*map(_version, self._distant)]
        self._binomial = self._filters_are_binomial() and all(map(is_binomial, self._distant))
        unpatched = all(_FORWARDS.get(t, forward) is forward for t, forward in self._forwards.items())
        self.stands = unpatched and self._binomial and is_published(module)
        self.alone = self.stands and _is_alone(modules)
        self.plans, self.precisions = {}, {}
        self.pointers = []
        self._remember(states)

    def is_of(self, module: Part) -> bool:
        """Whether nothing in the module was replaced since; the values of parameters may be others."""
        states = [vars(module), *map(vars, self._others)]
        try:
            return (
                [type(module), *map(type, self._others)] == self._types
                and all(t.forward is forward for t, forward in self._forwards.items())
                and not any(self._empty)
                and not any(self._without)
                and [*map(len, self._hooks)] == self._hooked
                and _are_same([*_values(self._holders)], self._held)
                and [*map(_version, self._distant)] == self._versions
                and (self._is_remembered(states) or self._means_the_same(states))
            )
        except Exception:  # an attribute is gone, or objects of others can't be compared
            return False

    def _remember(self, states):
        """What is_of compares first, as it takes a third of the time; more may change than what counts."""
        self._state = [*_values(states[1:])]  # not the module's own, which may lead to it
        pointers = [*map(torch.Tensor.data_ptr, self._plain)]
        if pointers != self.pointers:
            self.pointers = pointers
        self._readings = [*map(_bytes_of, self._filters)]
        self._bytes = [read() for read in self._readings]

    def _is_remembered(self, states):
        root, *others = states
        return (
            [*map(torch.Tensor.data_ptr, self._plain)] == self.pointers
            and [read() for read in self._readings] == self._bytes
            and [*_values(others)] == self._state
            and len(root) == self._lengths[0]
            and self._readers[0](root) == self._attributes[0]
            and len(self._plain) == len(self.tensors)
        )

    def _means_the_same(self, states):
        same = (
            [*map(len, states)] == self._lengths
            and [*map(_form, self.tensors)] == self._forms
            and [read(state) for read, state in zip(self._readers, states, strict=True)] == self._attributes
            and self._filters_are_binomial() == self._binomial
        )
        if same:
            self._remember(states)
        return same

    def _filters_are_binomial(self):
        return all(map(torch.equal, self._filters, self._wanted))


_readers = {}  # {names of attributes: function of a module's __dict__}
_form = operator.attrgetter("dtype", "shape", "device")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _reader(state):
    """A function that gives what of a module's __dict__ decides what it computes."""
    names = (*_STATE, *HOOKS, *(name for name in state if name not in _STANDARD))
    if names not in _readers:
        _readers[names] = operator.itemgetter(*names)
    return _readers[names]


def _values(dicts):
    return itertools.chain.from_iterable(map(dict.values, dicts))


def _are_same(values, others):
    """Whether two lists hold the same objects; equal ones are not enough."""
    return len(values) == len(others) and all(map(operator.is_, values, others))


def _bytes_of(tensor):
    """A function that gives the bytes of a tensor's values, in less time than torch.equal takes."""
    return tensor.detach().view(_INTEGERS.get(tensor.itemsize, tensor.dtype)).numpy().tobytes


def _is_alone(modules):
    fused = [m for m in modules if isinstance(m, Part)]
    if not all(map(is_published, fused)):
        return False
    uncalled = {layer for m in fused for layer in m._layers()}
    packages = "torch", __name__.split(".")[0]
    return all(
        type(m).__module__.split(".")[0] in packages and is_unhooked(m) for m in modules if m not in uncalled
    )


def _version(tensor):
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version
