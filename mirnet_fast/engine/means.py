"""The means over all pixels that gates take: written down by one plan, for others to take for their own.

An SKFF and a DAU are gated by means of a whole map. A plan of a part of an image that is given those of the
whole computes what a plan of the whole would there, but for what comes from beyond the part's edges.
"""

from collections.abc import Sequence

from .graph import MEANS, POOLED, SUMS, Step, Value
from .schedule import Task, pool, whole

RECORDED, GIVEN = "recorded", "given"
_GATED = ("skff_select", "dau_attention")


class Means:
    """The place of the means of each gated step in one Value.

    Args:
        steps: of a graph; those of a network have the same places whatever the size of its input.
        given: whether the steps take what is there; or else write there what they take.

    Attributes:
        value: (N, channels of all the steps, 1, 1), outside of the plan.
    """

    value: Value

    def __init__(self, steps: Sequence[Step], given: bool) -> None:
        self._given, self._places, count = given, {}, 0
        gated = [step.out for step in steps if step.kind in _GATED]
        for out in gated:
            self._places[out] = count
            count += out.shape[1]
        self.value = Value((gated[0].shape[0] if gated else 0, count, 1, 1), MEANS, outside=True)

    def woven_in(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks, with those between them that write the means or give them."""
        result, totals = [], {}
        for task in tasks:
            if task.kind in _GATED:
                out = task.writes["out"].value
                if out not in totals:  # an SKFF may come in bands
                    before, task = _with_statistics(task)
                    totals[out] = whole(Value((1, *out.shape[:2]), SUMS))
                    result += [*before, self._exchange(task, totals[out])]
                if self._given:
                    task = _with(task, sums=(totals[out],) if task.kind == "skff_select" else totals[out])
            result.append(task)
        return result

    def _exchange(self, task, total):
        out = task.writes["out"].value
        layers = {"begin": self._places[out], "pixels": out.shape[2] * out.shape[3]}
        if self._given:
            return Task("give means", layers, {"means": whole(self.value)}, {"out": total})
        sums = task.reads["sums"]
        reads = {"sums": sums if isinstance(sums, tuple) else (sums,)}
        return Task("record means", layers, reads, {"means": whole(self.value)})


def _with_statistics(task):
    """(Tasks that take what nobody left, the Task with it)."""
    if task.kind == "skff_select" and not task.reads["sums"]:
        taken = pool(task.reads["branches"])
        return [taken], _with(task, sums=(taken.writes["out"],))
    if task.kind == "dau_attention" and task.reads["sums"] is None:
        n, channels, height, width = task.reads["r"].value.shape
        pooled, sums = Value((n, 2, height, width), POOLED), Value((1, n, channels), SUMS)
        writes = {"pooled": whole(pooled), "sums": whole(sums)}
        taken = Task("dau_pool", {}, {"x": task.reads["r"]}, writes)
        return [taken], _with(task, **writes)
    return [], task


def _with(task, **reads):
    return Task(task.kind, task.layers, {**task.reads, **reads}, task.writes, task.row)
