"""Which cases are of `make test` and which of `make test-all` alone: see the top of tests/__init__.py."""

import importlib.util
import itertools

import pytest

exhaustive = pytest.mark.exhaustive


def pairwise(**axes):
    """A test's cases are the product of the axes: {argument: values}.

    Each value of an axis meets each of every other in a case of `make test`; the other combinations are
    exhaustive. A test that takes `op` has all this for every subject that it is marked with; if it takes
    `any_case` too, the cases of the subject are one more axis.
    """
    return pytest.mark.combinations(axes, _pairs)


def each(**axes):
    """As pairwise, but a case of `make test` is there for every value, not for every pair of values."""
    return pytest.mark.combinations(axes, _once)


def first_of(values, count=1):
    """The values for pytest.mark.parametrize; `make test` takes the first, or the first `count`."""
    marks = [()] * count + [exhaustive] * (len(values) - count)
    return [pytest.param(v, marks=m, id=_name(v)) for v, m in zip(values, marks, strict=True)]


def combine(metafunc):
    """pytest_generate_tests: makes the cases that `pairwise`, `each`, `op` and `any_case` stand for."""
    mark = metafunc.definition.get_closest_marker("combinations")
    axes, choose = mark.args if mark else ({}, None)
    mark = metafunc.definition.get_closest_marker("subjects")
    names, cases = [*axes], []
    if mark:
        names = ["op", *(["any_case"] if "any_case" in metafunc.fixturenames else []), *axes]
        for subject in mark.args:
            any_case = {"any_case": [name for name in subject.cases if name != "pixels"]}
            cases += _combined({**any_case, **axes} if "any_case" in names else axes, choose, subject)
    elif axes:
        cases = _combined(axes, choose)
    if names:
        metafunc.parametrize(names, cases, indirect=["op"] if mark else False)


def _combined(axes, choose, *subject):
    """pytest's parameters: the subject, if any, with each of the combinations of the axes."""
    sizes = [len(values) for values in axes.values()]
    places = [*itertools.product(*map(range, sizes))]
    first = set(choose(sizes)) if choose and len(axes) > 1 else {*places}
    cases = []
    for place in places:
        values = [*subject, *(axis[i] for axis, i in zip(axes.values(), place, strict=True))]
        marks = [mark for one in subject for mark in one.marks] + [exhaustive] * (place not in first)
        cases.append(pytest.param(*values, marks=marks, id="-".join(map(_name, values))))
    return cases


def _pairs(sizes):
    if importlib.util.find_spec("allpairspy") is None:  # as on a machine that is only lent: every case
        return itertools.product(*map(range, sizes))
    from allpairspy import AllPairs

    return map(tuple, AllPairs([*map(range, sizes)]))


def _once(sizes):
    return (tuple(i % size for size in sizes) for i in range(max(sizes)))


def _name(value):
    if isinstance(value, tuple):
        return "-".join(map(_name, value))
    return str(getattr(value, "__name__", value))
