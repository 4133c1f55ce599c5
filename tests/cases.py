"""Which cases are of `make test` and which of `make test-all` alone: see the top of tests/__init__.py."""

import itertools

import pytest
from allpairspy import AllPairs

exhaustive = pytest.mark.exhaustive


def pairwise(**axes):
    """A test's cases are the product of the axes: {argument: values}.

    Each value of an axis meets each of every other in a case of `make test`; the other combinations are
    exhaustive. A test that takes `any_case` has the cases of its class as one more axis.
    """
    return pytest.mark.combinations(axes, lambda values: AllPairs([*map(range, map(len, values))]))


def each(**axes):
    """As pairwise, but a case of `make test` is there for every value, not for every pair of values."""

    def once(values):
        most = max(map(len, values))
        return (tuple(i % len(axis) for axis in values) for i in range(most))

    return pytest.mark.combinations(axes, once)


def first_of(values, count=1):
    """The values for pytest.mark.parametrize; `make test` takes the first, or the first `count`."""
    later = [pytest.param(value, marks=exhaustive, id=_name(value)) for value in [*values][count:]]
    return [pytest.param(value, id=_name(value)) for value in [*values][:count]] + later


def combine(metafunc):
    """pytest_generate_tests: makes the cases that `pairwise`, `each` and `any_case` stand for."""
    mark = metafunc.definition.get_closest_marker("combinations")
    axes, choose = mark.args if mark else ({}, None)
    if "any_case" in metafunc.fixturenames:
        axes = {"any_case": [name for name in metafunc.cls.cases if name != "pixels"], **axes}
    if not axes:
        return
    sizes = [range(len(axis)) for axis in axes.values()]
    first = set(map(tuple, choose([*axes.values()]))) if mark and len(axes) > 1 else None
    cases = []
    for places in itertools.product(*sizes):
        values = [axis[place] for axis, place in zip(axes.values(), places, strict=True)]
        marks = () if first is None or places in first else exhaustive
        cases.append(pytest.param(*values, marks=marks, id="-".join(map(_name, values))))
    metafunc.parametrize(list(axes), cases)


def _name(value):
    if isinstance(value, tuple):
        return "-".join(map(_name, value))
    return str(getattr(value, "__name__", value))
