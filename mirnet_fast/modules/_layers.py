"""Whether a fused module may compute what its layers would: the one place that decides.

A fused module does not call its layers. It reads their tensors, and takes for granted what they compute.
That is so for the layers that it was built of, and no longer for one that somebody wrapped, derived,
hooked, gave a `forward` or a computed weight, or changed the numbers of. Then the layers are called, by the
forward of mirnet_fast.reference.

A fused module has `_layers()`, the modules that it does not call, and `_is_published()`, whether what these
compute is what its fused ops do. Both are asked again only after something in the module was replaced.
"""

import contextlib
import itertools
import operator
import threading
import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

from .. import backends
from ..reference.filters import binomial_filter
from ..reference.modules import ChannelAttention, SpatialAttention

ACCELERATED = "_mirnet_fast_original"  # the attribute of a module that accelerate() made ours

ACTIVATIONS = (nn.PReLU, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus)
ACTIVATIONS += (nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Identity)
_PADDINGS = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.ConstantPad2d)
_CLASSES = (*ACTIVATIONS, *_PADDINGS, nn.Conv2d, nn.ConvTranspose2d, nn.Upsample, nn.Sequential)
_CLASSES += (SpatialAttention, SpatialAttention.Gate, ChannelAttention)
_FORWARDS = {cls: cls.forward for cls in _CLASSES}
_OURS = set()
_OWN = ("_parameters", "_buffers", "_modules")

_binomials = {}  # {(shape, dtype, device): filter}
_known = weakref.WeakKeyDictionary()  # {module: Snapshot}
_current = threading.local()


class Part:
    """Of every module of this package; stands before the reference's class that it derives from."""

    def __init_subclass__(cls):
        if cls.__module__.startswith(f"{__package__}."):  # not what others derive
            _OURS.add(cls)

    def __getattr__(self, name):
        # A part of ours that accelerate() found under another name, or what only the former class has.
        state = self.__dict__
        if ACCELERATED in state and not any(name in state[own] for own in _OWN):
            return state[ACCELERATED].attribute(self, name)
        return super().__getattr__(name)


class Fused(Part):
    """Of the modules that do not call all of their layers."""

    def forward(self, x, *more):
        first = x[0] if isinstance(x, (list, tuple)) and x else x
        if (
            not isinstance(first, torch.Tensor)  # but what torch.fx traces with
            or _has_any_global_hook()
            or torch.onnx.is_in_onnx_export()
        ):
            return super().forward(x)
        if torch.compiler.is_compiling():
            return self._fused(x, *more) if is_published(self) else super().forward(x)
        if backends.is_transformed():
            backends.pick(type(self).__name__, first.device.type, first.dtype)  # refuses what was chosen
            return super().forward(x)
        if is_trusted():
            return self._fused(x, *more)
        snapshot = snapshot_of(self)
        if not snapshot.stands:
            return super().forward(x)
        with backends.settings_kept(), _trust(snapshot.alone):
            return self._fused(x, *more)


@contextlib.contextmanager
def _trust(wanted):
    """Inside, modules of ours in this thread need not look at their layers: it was done for all."""
    _current.trusts = wanted
    try:
        yield
    finally:
        _current.trusts = False


def is_trusted():
    """Whether a module of ours that runs in this thread, and all in it, is as it was published."""
    return getattr(_current, "trusts", False)


def stands(module):
    """Whether the layers that a fused module does not call compute what it does."""
    return is_trusted() or snapshot_of(module).stands


def is_published(module):
    """Whether the layers that a fused module does not call compute what it does; torch.compile follows it."""
    original = module.__dict__.get(ACCELERATED)
    classes = _CLASSES if original is None else (*_CLASSES, *original.inner)
    try:
        return all(is_plain(layer, classes) for layer in module._layers()) and module._is_published()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False  # another structure


def is_plain(layer, classes=_CLASSES):
    """Whether calling a layer runs the forward of its class on tensors of its own, and nothing else."""
    return (type(layer) in classes or type(layer) in _OURS) and is_unhooked(layer)


def is_unhooked(layer):
    """Whether nothing but the class of a layer decides what a call of it does, with its own tensors."""
    return (
        "forward" not in layer.__dict__
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and all(is_plain_tensor(p) for p in layer._parameters.values())
    )


def is_plain_tensor(value):
    """Whether it is a dense tensor of no class with code of its own, or None."""
    return value is None or (
        type(value) in (nn.Parameter, torch.Tensor, FakeTensor) and value.layout is torch.strided
    )


def is_sequence(layer, length):
    return type(layer) is nn.Sequential and len(layer) == length


def is_activation(layer):
    """Whether it is one that goes value by value."""
    return is_prelu(layer) if type(layer) is nn.PReLU else type(layer) in ACTIVATIONS


def is_prelu(layer):
    return type(layer) is nn.PReLU and has_parameters(layer, "weight")


def is_conv(layer, size=None):
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


def is_doubling_conv(layer):
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


def has_parameters(layer, *names):
    """Whether the layer's parameters are these, none of them computed; all but the first may be None."""
    return tuple(layer._parameters) == names and layer._parameters[names[0]] is not None


def is_binomial(filt):
    """Whether a blur's filter (channels, 1, k, k) has the values that the op applies."""
    if filt.is_meta or isinstance(filt, FakeTensor):
        return True  # it has no values
    return torch.equal(filt, _binomial_like(filt))


# As torch.compiler.assume_constant_result does, which would import all of torch._dynamo.
is_binomial._dynamo_marked_constant = True


def _binomial_like(filt):
    key = filt.shape, filt.dtype, filt.device
    if key not in _binomials:
        _binomials[key] = binomial_filter(filt.shape[-1], filt.dtype, filt.device).expand_as(filt)
    return _binomials[key]


def snapshot_of(module):
    """The Snapshot of a module as it is now."""
    known = _known.get(module)
    if known is None or not known.is_of(module):
        known = _known[module] = Snapshot(module)
    return known


def last_snapshot(module):
    """That which was made or found right when the forward began that runs now."""
    return _known[module]


class Snapshot:
    """What a module and all modules in it consist of, and what that means.

    Attributes:
        stands: whether the layers that the module, a fused one, does not call compute what it does.
        alone: whether moreover all modules in it do so, and no hook and no code of others runs.
    """

    def __init__(self, module):
        modules = [*module.modules()]
        # Not the module itself: it has to be able to go.
        self._others, self._types = modules[1:], [*map(type, modules)]
        self._forwards = {t: t.forward for t in self._types}
        dicts = [d for m in modules for d in (vars(m), *(v for v in vars(m).values() if isinstance(v, dict)))]
        self._empty = [d for d in dicts if not d]  # most of them, and quicker to ask
        self._dicts = [d for d in dicts if d]
        self._count = sum(map(len, self._dicts))
        # Tensors have to be the same objects. For the rest equal is enough, which is quicker asked.
        self._holders = [d for d in self._dicts if any(isinstance(v, torch.Tensor) for v in d.values())]
        holders = {*map(id, self._holders)}
        self._rest = [d for d in self._dicts if id(d) not in holders]
        self._held, self._values = [*_values(self._holders)], [*_values(self._rest)]
        filters = [getattr(m, "filt", None) for m in modules if isinstance(m, Fused)]
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

    def is_of(self, module):
        """Whether nothing in the module was replaced since; the values of parameters may be others."""
        return (
            [type(module), *map(type, self._others)] == self._types
            and all(t.forward is forward for t, forward in self._forwards.items())
            and not any(self._empty)
            and sum(map(len, self._dicts)) == self._count
            and all(map(operator.is_, _values(self._holders), self._held))
            and _are_equal([*_values(self._rest)], self._values)
            and self._filters_are_binomial() == self._binomial
            and [*map(_version, self._distant)] == self._versions
        )

    def tensors(self):
        """All tensors that the modules hold."""
        return [value for value in self._held if isinstance(value, torch.Tensor)]

    def _filters_are_binomial(self):
        return all(map(torch.equal, self._filters, self._wanted))


def _values(dicts):
    return itertools.chain.from_iterable(map(dict.values, dicts))


def _are_equal(values, others):
    try:
        return values == others
    except Exception:  # what objects of others do when they are compared
        return False


def _is_alone(modules):
    fused = [m for m in modules if isinstance(m, Fused)]
    if not all(map(is_published, fused)):
        return False
    uncalled = {layer for m in fused for layer in m._layers()}
    packages = "torch", __name__.split(".")[0]
    return all(
        type(m).__module__.split(".")[0] in packages and is_unhooked(m) for m in modules if m not in uncalled
    )


def _version(tensor):
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version
