"""Which modules of a model a forward without gradients runs as plans, which not, and why: without running it.

A forward is followed on tensors without values (PyTorch's FakeTensor), so nothing is computed; and through
shallow copies of the modules, as DataParallel makes them, so nothing of the model changes. What comes to a
fused module on the way is decided on as in a real forward, for the module itself.
"""

import operator
import reprlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.nn.modules.module import _has_any_global_hook

from .. import backends
from . import eligibility
from .bound import is_kernel_call
from .explanation import Explanation, Planned, Unplanned
from .plan import Plan, Unplannable, followed, plan_of

# What code raises that asks for values, or calls what PyTorch knows no shapes of.
_NEEDS_VALUES = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
)


def explain(
    model: nn.Module,
    shape: Sequence[int] | torch.Tensor | Sequence[torch.Tensor],
    dtype: torch.dtype | None = None,
) -> Explanation:
    """What model(x) without gradients would do now, for x of this shape; nothing is computed.

    Settings count as they are: the backend, Winograd, autocast. The Python code of the model's modules runs
    once, on tensors without values; hooks are not called. Plans are made and kept as for a forward, so
    `engine_stats` counts them as built, and a forward of that shape has them.

    Args:
        model: any torch.nn.Module; its own mode, training or not, makes no difference to plans.
        shape: of x, (N, C, H, W); or a tensor of x's shape, dtype, layout and device; or a list of tensors,
            for what takes one, as an SKFF does.
        dtype: of x, torch.float32 or another floating one; of a shape alone. Not given, it is that of the
            model's first floating-point parameter. So is the device.

    Returns:
        Explanation.

    Raises:
        TypeError: `model` is no module, `shape` neither a shape nor tensors, `dtype` no dtype, or given with
            a tensor.
        ValueError: `shape` has a size below 1, `dtype` is not floating; or the model's forward fails for such
            an input, with its error as the cause.
        BackendError: as a forward raises it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module; got {type(model).__name__}")
    like = _input(model, shape, dtype)
    given = like[0] if isinstance(like, list) else like
    form = f"{f'{len(like)} of ' * isinstance(like, list)}{_form(given)}"
    follower = _Follower(model)
    try:
        with torch.no_grad(), backends.settings_kept():
            follower.follow(like)
    except backends.BackendError:
        raise
    except Exception as error:
        raise ValueError(f"explain: for shape {form}, the model's forward fails: {error}") from error
    return follower.explanation(form)


def _input(model, shape, dtype):
    """A tensor, or a list of them, of the form of the model's input."""
    many = shape if isinstance(shape, (list, tuple)) else [shape]
    if many and all(isinstance(x, torch.Tensor) for x in many):
        if dtype is not None:
            raise TypeError("explain: dtype goes with a shape; a tensor has its own")
        return list(many) if many is shape else shape
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError as error:
        message = "explain: shape must be (N, C, H, W), a tensor or a list of tensors"
        raise TypeError(f"{message}; got {reprlib.repr(shape)}") from error
    if not sizes or min(sizes) < 1:
        raise ValueError(f"explain: shape must have sizes of at least 1, (N, C, H, W); got {sizes}")
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    dtype = first.dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"explain: dtype must be a torch.dtype; got {dtype!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"explain: dtype must be floating-point, as torch.float32 is; got {dtype}")
    return torch.empty(sizes, dtype=dtype, device=first.device)


def _form(x):
    return f"{tuple(x.shape)}, {x.dtype}, {x.device}"


def _like(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _every(function, x):
    return [*map(function, x)] if isinstance(x, (list, tuple)) else function(x)


class _Follower:
    """Follows one forward of a model.

    Attributes:
        plans: {(module, Plan): how often the forward came to it}.
        ordinary: {module of ours: why there is no plan}, of those that the forward came to.
        lost: {module: why what is in it was not followed}.
    """

    def __init__(self, model):
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._copies, self._originals = {}, {}
        compiled = [m for m in self._names if "_orig_mod" in m._modules or m._compiled_call_impl is not None]
        self._compiled = {inner for module in compiled for inner in module.modules()}
        self.plans, self.ordinary, self.lost = Counter(), {}, {}

    def follow(self, like):
        """A forward for an input like this."""
        if _has_any_global_hook():
            self.lost[self._model] = "hooks on all modules are registered"
        elif backends.is_transformed():
            self.lost[self._model] = "torch.func or forward-mode differentiation transforms the forward"
        elif not self._is_decided(like):
            mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
            self._copies = _copies(self._names, mode)
            wrappers = {*filter(_wrapped, self._names)}
            self._originals = {copy: m for m, copy in self._copies.items() if m not in wrappers}
            followed.by = self
            try:
                with mode:
                    self._call(self._model, _every(_like, like))
            finally:
                del followed.by

    def _is_decided(self, like):
        """Whether nothing has to be followed: the model is a plan that calls no module, or runs in one go.

        The first FakeTensorMode of a process imports torch._dynamo, which takes seconds.
        """
        model = self._model
        if eligibility.unlowered(model) is not None or model in self._compiled:
            return False
        snapshot = eligibility.snapshot_of(model)
        plan = self._plan_of(model, like, snapshot)
        if isinstance(plan, str):
            if snapshot.alone and _fits(model, like, snapshot):
                self.ordinary[model] = plan
        elif not _calls(plan):
            self.plans[model, plan] += 1
        return bool(self.ordinary or self.plans)

    def run(self, module, inputs):
        """As `plan.run`, on tensors without values."""
        module = self._originals.get(module, module)
        with fake_tensor.unset_fake_temporarily():
            snapshot = eligibility.snapshot_of(module)
            plan = self._plan_of(module, inputs, snapshot)
        if isinstance(plan, str):
            self.ordinary[module] = plan
            return snapshot, None
        first = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
        before = self.plans.copy()
        self.plans[module, plan] += 1  # now, so that it stands before what it calls
        refused = self._refused(plan, first.dtype)
        if refused is not None:
            self.plans, self.ordinary[module] = before, refused
            return snapshot, None
        layout = torch.channels_last
        layout = layout if first.is_contiguous(memory_format=layout) else torch.contiguous_format
        return snapshot, torch.empty(plan.result.shape, dtype=first.dtype, memory_format=layout)

    def _plan_of(self, module, inputs, snapshot):
        if module in self._compiled:
            return "torch.compile runs it"
        if not snapshot.stands:
            return eligibility.unfit(module, self._name(module))
        return plan_of(module, _every(_like, inputs), snapshot)

    def _refused(self, plan, dtype):
        """Follows the modules that a plan calls; None, or why it would not go on after one of them."""

        def map_of(window):
            return torch.empty(window.value.shape, dtype=dtype, memory_format=torch.channels_last)

        for module, task in _calls(plan):
            result, wanted = self._call(module, _every(map_of, task.reads["x"])), task.writes["out"].value
            if module not in self.lost and (
                not isinstance(result, torch.Tensor) or (result.shape, result.dtype) != (wanted.shape, dtype)
            ):
                found = _form(result) if isinstance(result, torch.Tensor) else f"a {type(result).__name__}"
                return f"{self._name(module)} gives {found}, and not {wanted.shape}, {dtype}"
        return None

    def _call(self, module, x):
        try:
            return self._copies.get(module, module)(x)
        except _NEEDS_VALUES as error:
            name = self._name(module) or "the model itself"
            self.lost[module] = f"{name} cannot be followed without values ({error})"
            return None

    def _name(self, module):
        return self._names.get(module, f"a {type(module).__name__} in no list of modules")

    def explanation(self, given):
        """The Explanation of what was followed."""
        planned = []
        for (module, plan), times in self.plans.items():
            called = {inner: eligibility.unlowered(inner, self._name(inner)) for inner, _ in _calls(plan)}
            by_torch = [task.layers["conv"] for task in plan.tasks if not task.layers.get("by_kernels", True)]
            planned.append(
                Planned(
                    self._name(module),
                    type(module).__name__,
                    times,
                    sum(map(is_kernel_call, plan.tasks)),
                    plan.peak_bytes,
                    self._unplanned(called),
                    tuple(dict.fromkeys(map(self._name, by_torch))),
                )
            )
        # What one of them holds is so for the same reason.
        implied = {
            inner
            for module, reason in self.ordinary.items()
            for inner in module.modules()
            if inner is not module and self.ordinary.get(inner) == reason
        }
        reached = {module: reason for module, reason in self.ordinary.items() if module not in implied}
        ordinary = self._unplanned(reached | dict(self._missed(self._model)))
        others = Counter(type(module).__name__ for module in _others(self._model))
        return Explanation(given, tuple(planned), ordinary, dict(others))

    def _unplanned(self, reasons):
        return tuple(Unplanned(self._name(m), type(m).__name__, reason) for m, reason in reasons.items())

    def _missed(self, module, why=None):
        """(module of ours that the forward did not come to, the reason) of those in a module."""
        why = self.lost.get(module, why)
        plans = [plan for other, plan in self.plans if other is module]
        if plans:
            inside = [inner for plan in plans for inner, _ in _calls(plan)]
        elif module in self.ordinary:
            inside = () if eligibility.snapshot_of(module).alone else module.children()
        elif eligibility.is_ours(module) and hasattr(module, "_fused"):
            name = self._name(module)
            yield module, why or eligibility.unlowered(module, name) or "the forward does not come to it"
            return
        else:
            inside = module.children()
        for inner in inside:
            yield from self._missed(inner, why)


def _fits(module, like, snapshot):
    """Whether a forward of a module that could be a plan does not fail for an input like this."""
    first = like[0] if isinstance(like, list) else like
    if first.dim() != 4 or len({(t.dtype, t.device) for t in (first, *snapshot.tensors)}) > 1:
        return False
    try:
        return hasattr(module, "lower") and bool(Plan(module, like))
    except Unplannable:
        return False


def _calls(plan):
    """(module, Task) of each call of a module."""
    return [(task.layers["module"], task) for task in plan.tasks if task.kind == "call"]


def _others(module):
    """A module and those in it, but for ours and what these hold."""
    seen, waiting = {}, [module]
    while waiting:
        module = waiting.pop(0)
        if module not in seen and not eligibility.is_ours(module):
            seen[module] = None
            waiting += module.children()
    return seen


def _wrapped(module):
    """What a wrapper of PyTorch's passes its input on to; None if it is none."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    # Of torch.compile. Those of TorchScript are no dict: they have no get().
    return dict(module._modules.items()).get("_orig_mod")


def _copies(modules, mode):
    """{module: a copy of it that holds the copies of its parts, its tensors without values, and no hooks}.

    What a forward sets on a module it sets on the copy. A wrapper's copy is that of what it wraps: its own
    code would talk to other processes or devices, or compile.
    """

    def without_values(tensors):
        plain = eligibility.is_plain_tensor
        return {n: t if t is None or not plain(t) else mode.from_tensor(t) for n, t in tensors.items()}

    # TorchScript's modules can't be told what they hold.
    copied = [m for m in modules if _wrapped(m) is None and not isinstance(m, torch.jit.ScriptModule)]
    copies = {module: module._replicate_for_data_parallel() for module in copied}

    def copy_of(module):
        inner = None if module is None else _wrapped(module)
        return copies.get(module, module) if inner is None else copy_of(inner)

    for module, copy in copies.items():
        state = vars(copy)
        state.pop("_compiled_call_impl", None)
        state |= {hooks: {} for hooks in eligibility.HOOKS}
        state["_parameters"] = without_values(module._parameters)
        state["_buffers"] = without_values(module._buffers)
        state["_modules"] = {name: copy_of(inner) for name, inner in module._modules.items()}
    return {module: copy_of(module) for module in modules}
