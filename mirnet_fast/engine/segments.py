"""A network cut where it needs a mean of a whole map: what lies between two such cuts runs over strips.

A DAU's and an SKFF's gates take means over all pixels. Everything else needs some rows of its inputs for some
rows of its result. So the steps fall into segments: one runs over strips of rows from top to bottom, sums as
it goes, and the next may begin when it has ended. What a later segment reads of an earlier one is either
kept as a whole, in memory or in a file, or made again.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from .graph import POOLED, SUMMED, SUMS, Step, Value
from .rows import maps_read

# The steps that hand the result out, take the image in, make a convolution's sums without its result.
PUT, TAKEN, SUMS_OF_CONV = "put", "taken", "sums of conv"


@dataclass(eq=False)
class Segment:
    """What runs over strips between two cuts.

    Attributes:
        steps: in order.
        again: those that ran in an earlier segment, and leave no sums.
        loads: values of earlier segments that it reads.
        stores: values that it makes and later ones read.
    """

    steps: list[Step]
    again: set[Step]
    loads: list[Value]
    stores: list[Value] = field(default_factory=list)


class Segments:
    """A network's steps for one image, with where they are cut.

    Args:
        image: the Value that is taken in.
        steps: in the order of the graph; the first reads `image`.
        result: the Value that is put out.
        is_for_kernels: function of a convolution Step that says whether the device's own kernels run it.
        with_image: whether the image's rows are needed where the result is put out.

    Attributes:
        steps: those that run, with those that take statistics.
        cut: {Step: the number of cuts before it}.

    Raises:
        ValueError: a step needs whole maps; says which.
    """

    steps: list[Step]
    cut: dict[Step, int]

    def __init__(
        self,
        image: Value,
        steps: Sequence[Step],
        result: Value,
        is_for_kernels: Callable[[Step], bool],
        with_image: bool,
    ) -> None:
        taken = Step(TAKEN, {}, {}, {"out": image})
        image.producer = taken
        put = Step(PUT, {"x": result, "image": image if with_image else None}, {})
        self.image, self.result = image, result
        for step in steps:
            _check(step)
            if "conv" in step.layers:
                step.layers["by_kernels"] = is_for_kernels(step)
        self.steps = _with_statistics([taken, *_joined(steps), put])
        self.cut = {}
        for step in self.steps:
            before = [self.cut[maker(value)] + (value.kind == SUMS) for value in step.reads()]
            self.cut[step] = max(before, default=0)
        self._sums_alone = self._without_results()
        self.steps = [s for step in self.steps for s in (self._sums_alone.get(step), step) if s is not None]

    def crossing(self) -> list[Step]:
        """The Steps whose maps a later segment reads."""
        later = {
            maker(value)
            for step in self.steps
            for _, value in maps_read(step)
            if self.cut[maker(value)] < self.cut[step]
        }
        return [step for step in self.steps if step in later]

    def cut_up(self, dropped: Collection[Step] = frozenset()) -> list[Segment]:
        """The Segments, where the maps of the Steps in `dropped` are made again and not kept."""
        segments, wanted, kept = [], set(), {*self.crossing()} - {*dropped}
        for number in reversed(range(max(self.cut.values()) + 1)):
            own = [step for step in self.steps if self.cut[step] == number and step.kind != SUMS_OF_CONV]
            own = [self._sums_alone.get(step, step) if step in dropped else step for step in own]
            # What a segment is there for: sums, what is kept, the result.
            waiting = [s for s in own if s.kind == PUT or "sums" in s.outputs or _outputs(s) & wanted]
            chosen, loads = set(), {}
            while waiting:
                step = waiting.pop()
                if step in chosen:
                    continue
                chosen.add(step)
                for _, value in maps_read(step):
                    made = maker(value)
                    if self.cut[made] < number and made in kept:
                        loads[value] = None
                    else:
                        waiting.append(made)
            steps = [step for step in self.steps if step in chosen]
            again = {step for step in steps if self.cut[step] < number}
            made = [v for step in steps if step not in again for v in step.outputs.values()]
            segments.append(Segment(steps, again, [*loads], [value for value in made if value in wanted]))
            wanted |= loads.keys()
        return segments[::-1]

    def _without_results(self):
        """{convolution: a Step that makes its sums alone}, where only later segments read its result.

        The sums of a convolution are one of its input's sums, but for the edges of the map.
        """
        last = {}
        for step in self.steps:
            for _, value in maps_read(step):
                made = maker(value)
                last[made] = min(self.cut[step], last.get(made, self.cut[step]))
        found = {}
        for step, reader in last.items():
            plain = step.inputs.get("residual") is None and step.layers.get("activation") is None
            if step.kind == "conv3x3" and "sums" in step.outputs and plain and reader > self.cut[step]:
                sums = {"sums": step.outputs["sums"]}
                found[step] = Step(SUMS_OF_CONV, {"x": step.inputs["x"]}, step.layers, sums)
                self.cut[found[step]] = self.cut[step]
        return found


def maker(value: Value) -> Step:
    """The Step that makes a Value."""
    assert value.producer is not None
    return value.producer


def _outputs(step):
    return {value for value in step.outputs.values() if value.kind != SUMS}


def _check(step):
    if step.kind == "call":
        name = type(step.layers["module"]).__name__
        raise ValueError(f"a {name} in it is called with whole maps")
    for _, value in maps_read(step):
        if step.kind in ("add", "conv1x1", "conv3x3", "convolution") and value.height != step.out.height:
            raise ValueError("a map is added to one of another height")


def _joined(steps):
    """The Steps, transposed convolutions and the tails behind them as one."""
    uses, joined = Counter(value for step in steps for value in step.reads()), []
    for step in steps:
        if step.kind == "residual_up_tail":
            transposed = step.inputs["top"].producer
            if transposed is None or transposed.kind != "conv_transpose3x3" or uses[transposed.out] > 1:
                raise ValueError("the result of a transposed convolution has several uses")
            inputs = {"x": transposed.inputs["x"], "bottom": step.inputs["bottom"]}
            step = Step(step.kind, inputs, step.layers | transposed.layers, step.outputs)
            step.out.producer = step
        if step.kind != "conv_transpose3x3":
            joined.append(step)
    return joined


def _with_statistics(steps):
    """The Steps, with those that take what nobody leaves of a map: its sums, or its pooled channels too."""
    result = []
    for step in steps:
        if step.kind == "dau_attention":
            r = step.inputs["r"]
            made, (n, _, height, width) = r.producer, r.shape
            if not (made.kind == "conv3x3" and made.layers["by_kernels"]):
                made = Step("dau_pool", {"x": r}, {})
                result.append(made)
            if "pooled" not in made.outputs:
                made.outputs["pooled"] = Value((n, 2, height, width), POOLED, made)
            step.inputs["pooled"], step.inputs["sums"] = made.outputs["pooled"], _sums_of(made, r)
        elif step.kind == "skff_select":
            sums = []
            for branch in step.inputs["branches"]:
                made = branch.producer
                if made.kind not in SUMMED or not made.layers.get("by_kernels", True):
                    made = next(
                        (s for s in result if s.kind == "skff_pool" and s.inputs["x"] is branch), None
                    )
                    if made is None:
                        made = Step("skff_pool", {"x": branch}, {})
                        result.append(made)
                sums.append(_sums_of(made, branch))
            step.inputs["sums"] = tuple(sums)
        result.append(step)
    return result


def _sums_of(step: Step, value: Value) -> Any:
    if "sums" not in step.outputs:
        step.outputs["sums"] = Value((1, *value.shape[:2]), SUMS, step)
    return step.outputs["sums"]
