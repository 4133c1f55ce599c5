"""From a graph to a list of tasks: in which bands of rows, what leaves statistics, what is made twice.

Large maps are worked through in bands of rows: what one convolution hands to the next then stays in the
cache, and is never there as a whole. Where a large map only goes into an SKFF, it is made in bands twice
instead, once for the SKFF's statistics and once for its sum.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .graph import POOLED, SUMMED, SUMS, Step, Value

if TYPE_CHECKING:
    from .means import Means

BAND_BYTES = 2**24  # what one convolution hands to the next stays in the last-level cache
LATE_BYTES = 2**26  # maps above it count more than the time to make one of them twice
JOINED_BANDS = 4  # of a GPU, where bands only save memory, and each should be much more than a launch
TILE = 4  # rows of Winograd's convolutions


@dataclass(frozen=True, slots=True)
class Window:
    """Rows [begin, end) of a map or of its pooled channels; parts [begin, end) of sums."""

    value: Value
    begin: int
    end: int

    def rows(self, begin: int, count: int) -> "Window":
        """The `count` rows of it from its row `begin` on."""
        return Window(self.value, self.begin + begin, self.begin + begin + count)


def whole(value: Value) -> Window:
    """All of a Value, as a Window."""
    return Window(value, 0, value.shape[0 if value.kind == SUMS else 2])


@dataclass(eq=False)
class Task:
    """One call of a kernel.

    Attributes:
        kind: the op's name.
        layers: as the Step's.
        reads, writes: {argument: Window, tuple of Windows or None}.
        row: the first row that is written, of the op's whole output for what it reads.
    """

    kind: str
    layers: dict[str, Any]
    reads: Mapping[str, Any]
    writes: Mapping[str, Any]
    row: int = 0

    def windows(self) -> Iterator[Window]:
        """Every Window that it reads or writes."""
        for window in (*self.reads.values(), *self.writes.values()):
            if isinstance(window, Window):
                yield window
            elif window is not None:
                yield from window


class Node(NamedTuple):
    """Steps that run together, band by band: what they hand on is not there as a whole.

    Where `joined`, the first also makes the 1x1 convolution of the other branch of an up tail, which reads
    the same map, as further channels.
    """

    steps: tuple[Step, ...]
    bands: tuple[tuple[int, int], ...]
    joined: bool

    @property
    def last(self) -> Step:
        return self.steps[-1]


class Scheduler:
    """The tasks for the graph that `output` is the result of.

    Args:
        steps: in the order in which they run.
        itemsize: bytes of a map's element.
        is_for_kernels: function of a convolution Step that says whether the device's own kernels run it.
        in_bands: False leaves every map whole, but what is joined where something is made late.
        joins: whether kernels of up tails take their other branch projected, so that it can be `joined`.
        means: what the tasks are to do with the gates' means; None for nothing else.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        output: Value,
        itemsize: int,
        is_for_kernels: Callable[[Step], bool],
        in_bands: bool = True,
        joins: bool = False,
        means: "Means | None" = None,
    ) -> None:
        self._itemsize, self._in_bands, self._joins, self._means = itemsize, in_bands, joins, means
        self._uses = Counter(value for step in steps for value in step.reads())
        self._output = output
        for step in steps:
            if "conv" in step.layers:
                step.layers["by_kernels"] = is_for_kernels(step)
        self.nodes = self._grouped(steps)
        self._bands_of_last = {node.last: node.bands for node in self.nodes}
        for node in self.nodes:
            self._ask_for_statistics(node)

    def tasks(self, late: Collection[Step] = frozenset()) -> list[Task]:
        """The list of Tasks; the SKFFs (Steps) in `late` get their late branches twice.

        Where there are any, what is joined is in bands.
        """
        made_late = {value for skff in late for value in self.late_branches(skff)}
        tasks, waiting = [], {}
        for node in self.nodes:
            if node.last.out in made_late:
                waiting[node.last.out] = node
            elif node.last in late:
                tasks += self._select_with_late_branches(node.last, waiting)
            elif node.joined and not late:
                tasks += self._run(node._replace(bands=_bands_in(node.steps[0].out.height, 1)))
            else:
                tasks += self._run(node)
        return tasks if self._means is None else self._means.woven_in(tasks)

    def skffs(self) -> list[Step]:
        """The SKFFs (Steps) in their order."""
        return [node.last for node in self.nodes if node.last.kind == "skff_select"]

    def late_branches(self, skff: Step) -> list[Value]:
        """The branches of an SKFF (Step) that need not be there as a whole.

        The first two always are: over one of them goes the result.
        """
        return [
            value
            for value in skff.inputs["branches"][2:]
            if self._sole_producer(value, "residual_up_tail")
            and len(self._bands_of_last.get(value.producer, ())) > 1
            and self.nbytes(value) > LATE_BYTES
        ]

    def nbytes(self, value: Value) -> int:
        """Bytes of a Value."""
        return math.prod(value.shape) * {SUMS: 8, POOLED: max(self._itemsize, 4)}.get(
            value.kind, self._itemsize
        )

    # Nodes

    def _grouped(self, steps):
        taken, nodes = set(), []
        for step in reversed(steps):
            if step in taken:
                continue
            group = self._group_of(step)
            taken.update(group)
            joined = self._are_joined(group)
            nodes.append(Node(tuple(group), self._bands_of(group, joined), joined))
        return nodes[::-1]

    def _group_of(self, step):
        if step.kind == "residual_up_tail":
            transposed = self._sole_producer(step.inputs["top"], "conv_transpose3x3")
            if transposed is None:
                raise ValueError("the result of a transposed convolution has several uses")
            expand = self._sole_producer(transposed.inputs["x"], "conv1x1")
            return [s for s in (expand, transposed, step) if s]
        if step.kind in ("conv1x1", "conv3x3"):
            first = self._sole_producer(step.inputs["x"], "conv1x1", "conv3x3")
            if first and first.inputs["residual"] is None and len(self._bands(first.inputs["x"])) > 1:
                return [first, step]
        return [step]

    def _are_joined(self, group):
        return (
            self._joins
            and [step.kind for step in group] == ["conv1x1", "conv_transpose3x3", "residual_up_tail"]
            and all(step.layers["by_kernels"] for step in group[:2])
            and group[0].inputs["x"] is group[2].inputs["bottom"]
        )

    def _sole_producer(self, value, *kinds):
        """The step that makes it, of these kinds and for one other step alone."""
        step = value.producer
        alone = self._uses[value] == 1 and not value.outside and value is not self._output
        return step if alone and step is not None and step.kind in kinds else None

    def _bands_of(self, group, joined):
        first, last = group[0], group[-1]
        x = first.inputs.get("x")
        if joined:
            return _bands_in(x.height, JOINED_BANDS)
        if last.kind == "residual_up_tail":
            # The largest map of a band: the result's, twice x, or the transposed convolution's, four times.
            return self._bands(x, 2 if group[-2].layers["by_kernels"] else 4, beyond=1)
        if len(group) > 1 or (last.kind in ("conv1x1", "conv3x3") and not last.layers["by_kernels"]):
            return self._bands(x)
        return ((0, x.height),) if x is not None and not isinstance(x, tuple) else ()

    def _bands(self, x, scale=1, beyond=0):
        """((first row, last row + 1), ...) of x in bands of about BAND_BYTES, `scale` bytes for each of x.

        With the rows `beyond` its end that it also reads, a band is whole tiles of Winograd's
        convolutions. They are of like size: the smallest would cost more than their share.
        """
        number = round(scale * self.nbytes(x) / BAND_BYTES) if self._in_bands else 1
        return _bands_in(x.height, number, beyond)

    def _ask_for_statistics(self, node):
        """Lets the producers of what an op needs statistics of leave these."""
        step = node.last
        if step.kind == "dau_attention":
            self._ask_for_pooled(step)
        elif step.kind == "skff_select":
            branches = step.inputs["branches"]
            if all(map(self._leaves_sums, branches)):
                step.inputs["sums"] = tuple(self._sums_of(branch) for branch in branches)

    def _ask_for_pooled(self, step):
        r = step.inputs["r"]
        made = r.producer
        if made is None or made.kind != "conv3x3" or r.outside or not made.layers["by_kernels"]:
            return
        n, _, height, width = r.shape
        made.outputs["pooled"] = step.inputs["pooled"] = Value((n, 2, height, width), POOLED, made)
        step.inputs["sums"] = self._sums_of(r)

    def _leaves_sums(self, value):
        step = value.producer
        if step is None or step.kind not in SUMMED or value.outside:
            return False
        if step.kind == "residual_up_tail":
            return step.inputs["top"].producer.layers["by_kernels"]
        return True

    def _sums_of(self, value):
        """The sums of a map, one part for each band that it is made in, or one that all of these add to."""
        outputs = value.producer.outputs
        if "sums" not in outputs:
            parts = 1 if self._joins else max(len(self._bands_of_last[value.producer]), 1)
            outputs["sums"] = Value((parts, *value.shape[:2]), SUMS, value.producer)
        return outputs["sums"]

    # Tasks

    def _run(self, node):
        step = node.last
        if len(node.steps) > 1:
            between = _between(node)
            bands = range(len(node.bands))
            return [t for i in bands for t in _band(node, i, between, step.out, step.outputs)]
        if len(node.bands) > 1:
            return [self._rows_of(step, *band) for band in node.bands]
        reads: dict[str, Any] = {name: _whole(value) for name, value in step.inputs.items()}
        writes = {name: whole(value) for name, value in step.outputs.items()}
        if step.kind == "skff_select":
            reads["sums"] = _parts(step.inputs["sums"])
            return [Task(step.kind, step.layers | {"pixels": _pixels(step.out)}, reads, writes)]
        tasks = []
        if step.kind == "dau_attention" and reads["sums"] is not None and reads["sums"].end > 1:
            total = Value((1, *step.inputs["sums"].shape[1:]), SUMS)
            tasks.append(Task("total", {}, {"x": reads["sums"]}, {"out": whole(total)}))
            reads["sums"] = whole(total)
        return [*tasks, Task(step.kind, step.layers, reads, writes)]

    def _rows_of(self, step, begin, end):
        """The Task for rows of a convolution."""
        reads = {"x": whole(step.inputs["x"]), "residual": _rows(step.inputs["residual"], begin, end)}
        return Task(step.kind, step.layers, reads, {"out": Window(step.out, begin, end)}, begin)

    def _select_with_late_branches(self, step, waiting):
        late = [waiting[value] for value in step.inputs["branches"] if value in waiting]
        there = [value for value in step.inputs["branches"] if value not in waiting]
        bands, sums, tasks = late[0].bands, [*_parts(step.inputs["sums"])], []
        leave_sums = bool(sums)
        if not leave_sums:
            tasks.append(pool([whole(value) for value in there]))
            sums.append(tasks[-1].writes["out"])
        for i, (begin, end) in enumerate(bands):
            for node in late:
                made, outputs = _band_buffer(node), node.last.outputs if leave_sums else {}
                tasks += _band(node, i, _between(node), made, outputs, 2 * begin)
                if not leave_sums:
                    tasks.append(pool([Window(made, 0, 2 * (end - begin))]))
                    sums.append(tasks[-1].writes["out"])
        for i, (begin, end) in enumerate(bands):
            made = []
            for node in late:
                made.append(Window(_band_buffer(node), 0, 2 * (end - begin)))
                tasks += _band(node, i, _between(node), made[-1].value, {}, 2 * begin)
            branches = (*(Window(value, 2 * begin, 2 * end) for value in there), *made)
            layers = step.layers | {"pixels": _pixels(step.out)}
            reads = {"branches": branches, "sums": tuple(sums)}
            out = Window(step.out, 2 * begin, 2 * end)
            tasks.append(Task(step.kind, layers, reads, {"out": out}, 2 * begin))
        return tasks


def _bands_in(height, number, beyond=0):
    """((first row, last row + 1), ...) in about `number` bands of whole tiles with the rows `beyond` them."""
    count = -(-max(height, 1) // max(number, 1)) + beyond
    count = -(-count // TILE) * TILE - beyond
    return tuple((begin, min(begin + count, height)) for begin in range(0, height, count))


def _band(node, i, between, out, outputs, offset=0):
    """The Tasks for band i of a node of several steps, in `out`, whose first row is row `offset`."""
    first, last, (begin, end) = node.steps[0], node.last, node.bands[i]
    x = first.inputs["x"]
    sums = outputs.get("sums")
    parts = _parts((sums,)) if sums is not None else (None,)
    writes = {"sums": parts[min(i, len(parts) - 1)]}
    if last.kind == "residual_up_tail":
        # An odd row of the large map also reads the next small row; an even one the row before, but of the
        # other branch alone.
        above, below = max(begin - node.joined, 0), min(end + 1, x.height)
        layers, rows = last.layers | node.steps[-2].layers, (2 * begin, 2 * end)
        if node.joined:
            del layers["bottom_conv"]
            reads, row = {"bottom": None}, 2 * (begin - above)
        else:
            reads, row = {"bottom": whole(last.inputs["bottom"])}, rows[0]
    else:
        halo = last.layers["conv"].kernel_size[0] // 2
        above, below = max(begin - halo, 0), min(end + halo, x.height)
        layers, rows, row = last.layers, (begin, end), begin - above
        reads = {"residual": _rows(last.inputs["residual"], begin, end)}
        writes["pooled"] = _rows(outputs.get("pooled"), begin, end)
    writes["out"] = Window(out, rows[0] - offset, rows[1] - offset)
    tasks = []
    if first.kind == "conv_transpose3x3":
        between = Window(x, above, below)
    else:
        between = Window(between, 0, below - above)
        makes = {"x": whole(x), "residual": None}
        also = {"also": last.layers["bottom_conv"]} if node.joined else {}
        tasks.append(Task(first.kind, first.layers | also, makes, {"out": between}, above))
    return [*tasks, Task(last.kind, layers, reads | {"x": between}, writes, row)]


def _between(node):
    """What the first step hands to the next in one band: a Value for the longest of them."""
    n, _, height, width = node.steps[0].inputs["x"].shape
    beyond = 1 if node.last.kind == "residual_up_tail" and not node.joined else 2
    rows = min(max(end - begin for begin, end in node.bands) + beyond, height)
    channels = node.steps[0].out.shape[1] + (node.last.out.shape[1] if node.joined else 0)
    return Value((n, channels, rows, width))


def _band_buffer(node):
    """The result of one band of a ResidualUpSample's steps: a Value for the longest of them."""
    n, channels, _, width = node.last.out.shape
    return Value((n, channels, 2 * max(end - begin for begin, end in node.bands), width))


def _pixels(value):
    return value.shape[2] * value.shape[3]


def _whole(value):
    if isinstance(value, tuple):
        return tuple(map(whole, value))
    return None if value is None else whole(value)


def _rows(value, begin, end):
    return None if value is None else Window(value, begin, end)


def _parts(sums):
    """A Window for each part of each of the sums."""
    return tuple(Window(value, i, i + 1) for value in sums for i in range(value.shape[0]))


def pool(branches: Sequence[Window]) -> Task:
    """The Task that takes the sums of an SKFF's branches."""
    n, channels = branches[0].value.shape[:2]
    return Task("skff_pool", {}, {"branches": tuple(branches)}, {"out": whole(Value((1, n, channels), SUMS))})
