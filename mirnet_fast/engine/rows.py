"""Which rows of its inputs a step needs for rows of its result."""

from collections.abc import Iterator
from typing import NamedTuple

from .graph import SUMS, Step, Value


class Rule(NamedTuple):
    """For rows [b, e) of a result: rows [scale b - above, scale e + below) of an input, scale = up / down."""

    up: int = 1
    down: int = 1
    above: int = 0
    below: int = 0


_SAME = Rule()
_RULES = {
    # From an even row on: the kernel takes rows by pairs.
    ("residual_down_tail", "top"): Rule(up=2, above=2),
    ("residual_down_tail", "bottom"): Rule(up=2, above=2),
    # An odd row of the result also reads the next small row; enlarged, an even one the row before.
    ("residual_up_tail", "x"): Rule(down=2, below=1),
    ("residual_up_tail", "bottom"): Rule(down=2, above=1, below=1),
}


def rule_of(step: Step, name: str) -> Rule:
    """The Rule of a Step's input `name`."""
    layer = None
    if name == "x" and step.kind in ("conv1x1", "conv3x3", "convolution"):
        layer = step.layers["conv"]
    elif name == "pooled" and step.kind == "dau_attention":
        layer = step.layers["spatial"]
    if layer is not None:
        halo = layer.kernel_size[0] // 2
        return Rule(above=halo, below=halo)
    return _RULES.get((step.kind, name), _SAME)


def maps_read(step: Step) -> Iterator[tuple[str, Value]]:
    """(argument, Value) of what has rows among a Step's inputs."""
    for name, values in step.inputs.items():
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None and value.kind != SUMS:
                yield name, value


def needed(step: Step, name: str, height: int, begin: int, end: int) -> tuple[int, int]:
    """Rows [first, last) of an input with `height` rows for rows [begin, end) of a Step's result."""
    rule = rule_of(step, name)
    first = begin * rule.up // rule.down - rule.above
    last = end * rule.up // rule.down + rule.below
    return max(first, 0), min(last, height)


def reached(step: Step, name: str, height: int, rows: int, result: int) -> int:
    """How many of the first of `result` rows can be made of the first `rows` of an input's `height`."""
    if rows == height:
        return result
    rule = rule_of(step, name)
    return min(max(rows - rule.below, 0) * rule.down // rule.up, result)
