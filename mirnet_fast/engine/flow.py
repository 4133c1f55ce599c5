"""How far the values of a segment are strip by strip, and which rows of them lie in a buffer meanwhile.

No row is computed twice in a segment: a step makes the rows that its inputs allow beyond those of the strip
before, and a buffer holds what is new in it and the last rows of before that are still read.
"""

import math
from dataclasses import dataclass
from typing import Any

from .graph import SUMS, Step, Value
from .rows import maps_read, needed, reached
from .segments import TAKEN, Segment, maker


@dataclass(frozen=True)
class Strip:
    """One strip of a segment.

    Attributes:
        held: {Value: (first row, last row + 1)}, what lies in its buffer.
        made: {Step: (first row, last row + 1)}, what a step makes; those that make nothing are missing.
        kept: {Value: rows at the end of what is held that the next strip needs}, of what is made.
    """

    held: dict[Value, tuple[int, int]]
    made: dict[Step, tuple[int, int]]
    kept: dict[Value, int]


class Flow:
    """A segment's strips.

    Args:
        height: of the largest maps.
        rows: of them that a strip has.

    Attributes:
        segment: the Segment.
        count: of strips.
        values: what lies in buffers: what is loaded and what is made, with rows.
    """

    segment: Segment
    count: int
    values: list[Value]

    def __init__(self, segment: Segment, height: int, rows: int) -> None:
        self.segment, self._height, self._rows = segment, height, rows
        self.count = math.ceil(height / rows)
        self._reads = {step: [*maps_read(step)] for step in segment.steps}
        self._outputs = {s: [v for v in s.outputs.values() if v.kind != SUMS] for s in segment.steps}
        made = [value for outputs in self._outputs.values() for value in outputs]
        self.values = [*segment.loads, *made]
        self._loaded = {*segment.loads}
        self._most: dict[Value, int] | None = None
        self._readers: dict[Value, list[tuple[Step, str]]] = {value: [] for value in self.values}
        for step, reads in self._reads.items():
            for name, value in reads:
                self._readers[value].append((step, name))

    def strip(self, number: int) -> Strip:
        """Strip `number`, from 0 on."""
        before, now = self._reached(number - 1), self._reached(number)
        held, kept = {}, {}
        for value, readers in self._readers.items():
            first = self._first(value, readers, before)
            if value in self._loaded:
                ends = [needed(s, name, value.height, 0, now[s])[1] for s, name in readers if now[s]]
                held[value] = first, max([first, *ends])
            else:
                held[value] = first, now[value]
                kept[value] = now[value] - self._first(value, readers, now)
        made = {s: (before[s], now[s]) for s in self.segment.steps if now[s] > before[s]}
        return Strip(held, made, kept)

    def most_rows(self) -> dict[Value, int]:
        """{Value: the rows that its buffer must have}."""
        if self._most is None:
            self._most = dict.fromkeys(self.values, 1)
            for number in self._different():
                for value, (begin, end) in self.strip(number).held.items():
                    self._most[value] = max(self._most[value], end - begin)
        return self._most

    def may_overlay(self, value: Value, old: Value) -> bool:
        """Whether rows of a Value may be put where those of `old` lie, which its step reads as it goes.

        That is so if nobody else reads rows of `old` after they are overwritten.
        """
        by = maker(value)
        readers = [(step, name) for step, name in self._readers[old] if step is not by]
        order, all_rows = self.segment.steps, self._reached(self.count - 1)
        for number in self._different() if readers else ():
            before, now = self._reached(number - 1), self._reached(number)
            for step, name in readers:
                # One that comes after it has yet to make this strip's rows.
                done = (before if order.index(step) > order.index(by) else now)[step]
                if done < all_rows[step] and needed(step, name, old.height, done, done)[0] < now[value]:
                    return False
        return True

    def _different(self):
        """The numbers of strips that are not like others: some at the ends, and one between."""
        return sorted({*range(min(3, self.count)), *range(max(self.count - 3, 0), self.count)})

    def _reached(self, number) -> dict[Any, int]:
        """{Value or Step: how many rows of it there are after strip `number`}."""
        there = min((number + 1) * self._rows, self._height)
        reach: dict[Any, int] = {
            value: -(-there * value.height // self._height) for value in self.segment.loads
        }
        for step, reads in self._reads.items():
            height = (self._outputs[step] or [value for _, value in reads])[0].height
            rows = there if step.kind == TAKEN else height
            for name, value in reads:
                rows = min(rows, reached(step, name, value.height, reach[value], height))
            reach[step] = rows
            for value in self._outputs[step]:
                reach[value] = rows
        return reach

    def _first(self, value, readers, reach):
        """The first row that is read or made after those that `reach` has."""
        firsts = [needed(s, name, value.height, reach[s], reach[s])[0] for s, name in readers]
        return min([reach[value], *firsts])
