"""Whether a foreign module and ours compute the same: both run, in float64, on the same numbers."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import reference
from ..backends import use_backend
from .fit import Fit, NotReplaceable, become
from .recognise import attributes_of

TOLERANCE = 1e-9
_SMALLEST_SCALE = 1e-3  # gradients that cancel to nothing are compared absolutely below this


def signature(module: nn.Module) -> Hashable:
    """A key that two modules share only if the proof for one holds for the other."""
    seen, entries = {}, []
    for name, inner in module.named_modules(remove_duplicate=False):
        tensors = [
            (key, None if value is None else (tuple(value.shape), seen.setdefault(id(value), len(seen))))
            for key, value in [*inner._parameters.items(), *inner._buffers.items()]
        ]
        attributes = _frozen(attributes_of(inner))
        entries.append((name, seen.setdefault(id(inner), len(seen)), type(inner), attributes, tuple(tensors)))
    return tuple(entries)


def _frozen(value):
    if isinstance(value, dict):
        return tuple(sorted((repr(key), _frozen(v)) for key, v in value.items()))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(map(_frozen, value))
    plain = value is None or isinstance(value, (bool, int, float, str))
    return (type(value).__name__, repr(value) if plain else id(value))


@contextlib.contextmanager
def _one_thread():
    # Thousands of tiny operators: on a busy machine their threads wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def prove(module: nn.Module, fit: Fit) -> None:
    """Compare results and gradients of a foreign module and of ours on random numbers.

    The module itself is not run: a copy on the CPU, in float64, with random parameters and
    without hooks is, in training mode with gradients and in evaluation mode without. Random
    parameters, because the real ones may hide a difference (a convolution initialised to zero
    hides what follows it). Parts that are proved already are not run either, but a _StandIn for
    each: those of a whole network would take seconds.

    Raises:
        NotReplaceable: they differ, or one of the two does not run.
    """
    with (
        _one_thread(),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        use_backend("reference"),
    ):
        generator = torch.Generator().manual_seed(0)
        twin = _float64_copy(module, fit.given, generator)
        cases = []
        for scale, shapes in zip((1, 6), fit.input_shapes, strict=True):
            inputs = _random_inputs(scale, shapes, generator)
            cases += [(inputs, True), (inputs, False)]
        expected = [_run(twin, twin, "its own forward", fit, *case) for case in cases]
        if fit.uneven:
            case = _random_inputs(1, fit.uneven, generator), False
            # Most fail, as ours does. Those that pad what they get do not.
            with contextlib.suppress(NotReplaceable):
                expected.append(_run(twin, twin, "its own forward", fit, *case))
                cases.append(case)
        try:
            become(twin, fit)
        except TypeError as error:
            raise NotReplaceable(f"objects of its class cannot change class: {error}") from error
        for forward in _our_forwards(twin, fit):
            for case, wanted in zip(cases, expected, strict=True):
                _compare(fit.target.__name__, _run(twin, forward, "ours", fit, *case), wanted)


def _our_forwards(twin, fit):
    """Those to compare: the fused one, and the one that calls layers, as theirs may do something else."""
    calling = partial(getattr(reference, fit.target.__name__).forward, twin)
    if fit.given:
        return [calling]  # ours looks into its parts, not only at what they compute
    return [twin] if fit.composite else [twin, calling]


def _random_inputs(scale, shapes, generator):
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


class _StandIn(nn.Module):
    """In place of a part that keeps its input's shape: every value of the result depends on all of them."""

    def __init__(self, part: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        # Not set as attributes: the part is no submodule, and may have a `gain` of its own.
        self._parameters["gain"] = _random_parameter((), generator)
        self.__dict__["_part"] = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = x.roll((1, 1, 2), (1, 2, 3))
        return self.gain * x + torch.tanh(moved + x.mean((1, 2, 3), keepdim=True))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_part"], name)  # a forward may look at its number of scales


def _float64_copy(module, given, generator):
    memo: dict[int, Any] = {id(part): _StandIn(part, generator) for part in given}
    inside = {inner for part in given for inner in part.modules()}
    for inner in module.modules():
        # A hook may belong to a trainer that holds the whole model.
        for name, value in inner.__dict__.items():
            if "_hooks" in name:
                memo[id(value)] = OrderedDict()
        if inner in inside:
            continue
        for parameter in inner._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = _random_parameter(parameter.shape, generator)
        for buffer in inner._buffers.values():
            if buffer is not None:
                dtype = torch.float64 if buffer.is_floating_point() else buffer.dtype
                memo[id(buffer)] = buffer.detach().to("cpu", dtype, copy=True)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise NotReplaceable(f"it cannot be copied for the comparison: {_short(error)}") from error


def _random_parameter(shape, generator):
    value = torch.randn(shape, generator=generator, dtype=torch.float64)
    if len(shape) > 1:
        value *= (shape[0] / max(value.numel(), 1)) ** 0.5
    else:
        value *= 0.3
    return nn.Parameter(value)


def _run(module, forward, who, fit, inputs, training):
    torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed the GPUs too
    module.train(training)
    module.zero_grad(set_to_none=True)
    leaves = [t.clone().requires_grad_(training) for t in inputs]
    try:
        with torch.set_grad_enabled(training):
            result = forward(leaves) if fit.as_list else forward(*leaves)
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"it returns a {type(result).__name__}")
        if training:
            # Uneven weights: a plain sum would hide an error that cancels.
            weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype)
            result.backward(weights.reshape(result.shape))
    except Exception as error:
        raise NotReplaceable(f"{who} fails on random inputs: {_short(error)}") from error
    compared = {"the result": result.detach()}
    if training:
        compared |= {f"the gradient of input {i}": leaf.grad for i, leaf in enumerate(leaves)}
        compared |= {f"the gradient of {name}": p.grad for name, p in module.named_parameters()}
    else:
        compared |= {f"input {i} afterwards": leaf for i, leaf in enumerate(leaves)}
    return compared


def _compare(kind, actual, expected):
    for name, wanted in expected.items():
        value = actual[name]
        if value is None and wanted is None:
            continue
        if value is None or wanted is None or value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise NotReplaceable(
                f"it computes something else than the published {kind}: {name} is of another form"
            )
        scale = max(wanted.abs().max().item(), _SMALLEST_SCALE)
        error = (value - wanted).abs().max().item() / scale
        if not error <= TOLERANCE:
            raise NotReplaceable(
                f"it computes something else than the published {kind}: on random inputs "
                f"{name} differs by {error:.1e} (relative)"
            )


def _short(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
