"""Plans: built once for a module and a shape, run many times.

A plan is the list of kernel calls of a forward without gradients, on fixed offsets of one block of memory.
What lies between the kernels otherwise (modules, checks, slices, places for maps) costs a tenth of a
forward at 128 x 128, and as only one thread does it, it keeps the others waiting. A plan holds for as long
as nothing of the module was replaced; values that change in place are seen, as the kernels read them.
"""

import itertools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ..ops.packed_weights import release_packed_weights
from . import cpu, cuda, eligibility, memory
from .bound import Bound, UnexpectedResult
from .graph import Builder
from .means import GIVEN, Means
from .schedule import Scheduler, Task

Inputs = torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, ...]
MOST = 8  # plans of one module: shapes, layouts, dtypes and settings
ONE_OP = "it is one op, which is called"


class Unplannable(Exception):
    """There is no plan; the message is the reason."""


def executor_of(device: torch.device) -> ModuleType:
    """The module that makes calls of tasks on a device; of one that plans are not for, the CPU's."""
    return cuda if device.type == "cuda" else cpu


class Plan:
    """A module's forward for inputs of one form.

    Args:
        module: one of `mirnet_fast.modules`, which `lower`s itself.
        inputs: a tensor (N, C, H, W) of the form that is planned for; a list of them if it takes one.
        means: RECORDED or GIVEN of `means`: a run then takes one more input, of as many numbers as
            `means.value` has, for the means over all pixels that gates take.

    Attributes:
        device, dtype: of the inputs.
        executor: the module that makes a device's calls of tasks, as `cpu` does.
        tasks: list of `schedule.Task`.
        layout: where their values lie in a block.
        pointers: those of the Snapshot that it was made with.
        result: the Value that a run results in.
        means: Means; None where a run takes none.
        peak_bytes: the memory that a run takes beyond weights, inputs and result.

    Raises:
        Unplannable: the module's forward is not made of what the kernels know.
    """

    tasks: list[Task]
    layout: memory.Layout
    means: Any  # Means, where a run takes them
    pointers: list[int]
    peak_bytes: int

    def __init__(self, module: eligibility.Part, inputs: Inputs, means: str | None = None) -> None:
        many = isinstance(inputs, (list, tuple))
        first = inputs[0] if many else inputs
        self.device, self.dtype, self._channels_last = first.device, first.dtype, _is_channels_last(first)
        self.executor = executor_of(first.device)
        builder = Builder(eligibility.lowers)
        pairs = [builder.input(x.shape, _is_channels_last(x)) for x in (inputs if many else [inputs])]
        self._inputs = [given for given, _ in pairs]
        inside = tuple(value for _, value in pairs)
        try:
            self.result = module.lower(builder, inside if many else inside[0])
            if self.result.producer is None:
                raise ValueError("it has nothing to compute")
            if len(builder.steps) > 1 and _is_one_op(builder.steps):
                raise Unplannable(f"{ONE_OP}, as its maps are not channels_last")
            self.result.outside = self.result.outside or self._channels_last
            self.means = None if means is None else Means(builder.steps, means == GIVEN)
            self._inputs += [] if self.means is None else [self.means.value]
            self._scheduler = Scheduler(
                builder.steps,
                self.result,
                self.dtype.itemsize,
                lambda step: self.executor.is_for_kernels(step, self.dtype),
                self.executor.IN_BANDS,
                self.executor.JOINS,
                self.means,
            )
        except ValueError as error:  # shapes that don't fit: the ordinary forward says it as PyTorch does
            raise Unplannable(str(error)) from error
        self.tasks, self.layout = memory.arranged(self._scheduler)
        self.peak_bytes = self.layout.nbytes

    def run(
        self, inputs: Sequence[torch.Tensor], way: Callable[[Bound], object] = operator.methodcaller("run")
    ) -> torch.Tensor:
        """The result for inputs of the form that it was made for; safe in several threads at a time.

        Args:
            way: function of the Bound that makes its calls.

        Raises:
            MemoryError: there is no memory for its block.
            UnexpectedResult: a module that it calls returns something else than planned.
        """
        block = memory.take_block(self)
        try:
            bound = block.bound.get(self)
            if bound is None:
                bound = block.bound[self] = self._bound(block)
            bound.values |= zip(self._inputs, inputs, strict=True)
            try:
                way(bound)
                result = bound.of_result()
                return result if self._channels_last else _contiguous(result)
            finally:
                bound.values.clear()
        finally:
            memory.give_back(block, self)

    def timed(self, inputs: Sequence[torch.Tensor]) -> list[float]:
        """As `run`: [seconds] that each of the tasks takes."""
        seconds: list[float] = []
        self.run(inputs, lambda bound: seconds.extend(bound.timed()))
        return seconds

    def _bound(self, block):
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            return self.executor.bind(self, block)


def _is_one_op(steps):
    """Whether all but one step bring maps into channels_last, for an op that could take them as they are.

    With two maps of 80 channels at 128 x 128, an SKFF's takes 3.5 ms so, and with the copies 11.
    """
    return [step.kind for step in steps if step.kind != "channels_last"] == ["skff_select"]


def _is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


def _contiguous(x):
    # Not contiguous(), which may return x itself: that is the block's.
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


@dataclass
class EngineStats:
    """What the engine did since the start of the process, and what it holds.

    Attributes:
        built, runs: plans that were made, and forwards that were one.
        dropped: plans that went for others of the same module.
        plans: those that are kept, of all modules that are still there (`release_workspace` drops them).
        kept_bytes: memory of blocks that no run uses (`release_workspace` gives it back).
    """

    built: int = 0
    runs: int = 0
    dropped: int = 0
    plans: int = 0
    kept_bytes: int = 0


_stats, _counting = EngineStats(), threading.Lock()
followed = threading.local()  # `by`: what `explain` follows a forward of this thread with


def engine_stats() -> EngineStats:
    """EngineStats of this process."""
    with _counting:
        plans = sum(
            isinstance(plan, Plan) for each in eligibility.snapshots() for plan in [*each.plans.values()]
        )
        return EngineStats(_stats.built, _stats.runs, _stats.dropped, plans, memory.kept_bytes())


def release_workspace() -> None:
    """Drop all plans, and give back what forwards without gradients keep for the next one.

    That is at most 1 GiB in all for maps, of any number of networks and threads, what
    `packed_weights_bytes` tells, and the weights of networks that `restore` runs in another precision than
    theirs. Safe at any time: a forward that is running keeps what it uses.
    """
    for snapshot in eligibility.snapshots():
        snapshot.plans.clear()
        snapshot.precisions.clear()
    memory.release_blocks()
    release_packed_weights()


def _count(name):
    with _counting:
        setattr(_stats, name, getattr(_stats, name) + 1)


def plan_of(
    module: eligibility.Part,
    inputs: Inputs,
    snapshot: eligibility.Snapshot | None = None,
    means: str | None = None,
) -> Plan | str:
    """The Plan for module(inputs) as things are now, or the reason why there is none, a str.

    Args:
        inputs: a tensor or a list of them.
        snapshot: eligibility.snapshot_of(module), if that was asked for already.
        means: as of Plan.
    """
    every = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    if not every:
        return "there are no inputs"
    for x in every:
        reason = eligibility.unplannable(x) or executor_of(x.device).unplannable(x)
        if reason is not None:
            return reason
    if len({(x.shape, x.dtype, x.device) for x in every}) > 1:
        return "the inputs differ in shape, dtype or device"
    snapshot = snapshot or eligibility.snapshot_of(module)
    if not hasattr(module, "lower"):
        return ONE_OP
    if not snapshot.stands:
        return eligibility.unfit(module)
    x = every[0]
    forms = tuple(_is_channels_last(x) for x in every)
    key = x.shape, x.dtype, x.device, forms, means, *executor_of(x.device).settings()
    plan = snapshot.plans.get(key)
    if plan is not None and not isinstance(plan, str) and plan.executor.PINNED:
        plan = plan if plan.pointers is snapshot.pointers else None
    if plan is None:
        plan = _built(module, inputs, snapshot, x, means)
        snapshot.plans[key] = plan
        while len(snapshot.plans) > MOST:
            snapshot.plans.pop(next(iter(snapshot.plans), None), None)
            _count("dropped")
    return plan


def _built(module, inputs, snapshot, x, means):
    for tensor in snapshot.tensors:
        # Numbers that only count, as BatchNorm's, are of other dtypes.
        if tensor.device != x.device or (tensor.is_floating_point() and tensor.dtype != x.dtype):
            named = itertools.chain(module.named_parameters(), module.named_buffers())
            name = next((name for name, other in named if other is tensor), "parameter")
            return f"its {name} is {tensor.dtype} on {tensor.device}, and the input {x.dtype} on {x.device}"
    try:
        plan = Plan(module, inputs, means)
    except Unplannable as reason:
        return str(reason)
    plan.pointers = snapshot.pointers
    _count("built")
    return plan


def _refuse(snapshot, plan, reason):
    for key, other in [*snapshot.plans.items()]:
        if other is plan:
            snapshot.plans[key] = reason


def run(module: eligibility.Part, inputs: Inputs) -> tuple[eligibility.Snapshot, torch.Tensor | None]:
    """(the module's Snapshot, module(inputs) by a plan or None where there is none, or no memory for one)."""
    if hasattr(followed, "by"):
        return followed.by.run(module, inputs)
    snapshot = eligibility.snapshot_of(module)
    if not snapshot.stands or torch.is_grad_enabled():
        return snapshot, None
    plan = plan_of(module, inputs, snapshot)
    if isinstance(plan, str):
        return snapshot, None
    try:
        result = plan.run(inputs if isinstance(inputs, (list, tuple)) else [inputs])
    except MemoryError:
        return snapshot, None
    except UnexpectedResult as reason:
        _refuse(snapshot, plan, str(reason))
        return snapshot, None
    _count("runs")
    return snapshot, result
