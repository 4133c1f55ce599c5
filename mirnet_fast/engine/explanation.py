"""What `explain` says, as values and as text."""

from collections import defaultdict
from dataclasses import dataclass

_SHOWN = 3  # names of one kind in what is printed


@dataclass(frozen=True)
class Unplanned:
    """A module that runs its own forward, or that a plan has to call.

    Attributes:
        name, class_name: its first name in the model ("" for the model itself), and its class.
        reason: why it is so; layers in it are called by their names in the model.
    """

    name: str
    class_name: str
    reason: str


@dataclass(frozen=True)
class Planned:
    """A module whose forward is one plan.

    Attributes:
        name, class_name: as those of Unplanned.
        times: how often the forward comes to it.
        kernel_calls: calls of kernels that a run of the plan is.
        peak_bytes: the memory that a run takes beyond weights, inputs and result.
        called: the modules in it that the plan calls.
        by_torch: names of the convolutions in it that PyTorch runs and not the kernels.
    """

    name: str
    class_name: str
    times: int
    kernel_calls: int
    peak_bytes: int
    called: tuple[Unplanned, ...]
    by_torch: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What a forward without gradients would do; `str` of it is for reading.

    Attributes:
        given: the form of the input.
        planned: in the order in which the forward comes to them.
        ordinary: the modules of mirnet_fast that run without a plan; one that another of
            them holds is left out where the reason is the same.
        others: {class name: number of modules of it} of those that no module of mirnet_fast holds.
    """

    given: str
    planned: tuple[Planned, ...]
    ordinary: tuple[Unplanned, ...]
    others: dict[str, int]

    def __str__(self) -> str:
        lines = [f"a forward without gradients, input {self.given}"]
        told = {module for plan in self.planned for module in plan.called}
        for (first, *rest), plans in _grouped(self.planned, _described):
            lines += [f"  planned: {_listed(plans)} {first}", *rest]
        for what, modules in _grouped(self.ordinary, _why):
            if not told.issuperset(modules):
                lines.append(f"  without a plan: {_listed(modules)} {what}")
        if self.others:
            counts = (name if n == 1 else f"{name} ({n})" for name, n in self.others.items())
            lines.append(f"  not of mirnet_fast: {', '.join(counts)}")
        if not self.planned and not self.ordinary:
            lines.append("  mirnet_fast.accelerate(model) puts in what fits")
        return "\n".join(lines)


def _described(plan):
    """The lines that say of a Planned all but its name."""
    times = f", {plan.times} times" if plan.times > 1 else ""
    peak = f"{plan.peak_bytes / 1e6:.1f} MB at its peak"
    lines = [f"({plan.class_name}), {plan.kernel_calls} kernel calls, {peak}{times}"]
    lines += [f"    calls {_listed(modules)} {what}" for what, modules in _grouped(plan.called, _why)]
    if plan.by_torch:
        lines.append(f"    convolutions by PyTorch: {_first(plan.by_torch)}")
    return tuple(lines)


def _why(module):
    """The class and reason of an Unplanned, in words that are the same for all of a kind."""
    reason, own = module.reason, f"{module.name}."
    return f"({module.class_name}): {'its ' * reason.startswith(own)}{reason.removeprefix(own)}"


def _grouped(entries, key):
    groups = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    return groups.items()


def _listed(entries):
    return _first([entry.name or "the model itself" for entry in entries])


def _first(names):
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
