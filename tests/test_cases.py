"""What `make test` takes of the combinations."""

import itertools
import types

import pytest

from .cases import combine, each, first_of, pairwise

AXES = {"layout": ["nchw", "sliced", "expanded"], "gradient": ["dense", "sliced"], "bias": [False, True]}


def cases_of(mark, **cases):
    """{case: whether it is of the first kind} as pytest would get them."""
    made = {}
    subject = types.SimpleNamespace(cases=cases, marks=())
    marks = {"combinations": mark.mark, "subjects": pytest.mark.subjects(subject).mark if cases else None}

    def parametrize(names, params, indirect):
        assert names == [*(["op", "any_case"] if cases else []), *AXES]
        assert indirect == (["op"] if cases else False)
        made.update({param.values[bool(cases) :]: not param.marks for param in params})
        assert len({param.id for param in params}) == len(params)

    combine(
        types.SimpleNamespace(
            definition=types.SimpleNamespace(get_closest_marker=marks.get),
            fixturenames=[*(["op", "any_case"] if cases else []), *AXES],
            parametrize=parametrize,
        )
    )
    return made


def test_every_pair_of_values_meets():
    pytest.importorskip("allpairspy", reason="without it every case is of the first kind")
    made = cases_of(pairwise(**AXES), plain=1, larger=2, tiny=3, pixels=4)
    assert len(made) == 3 * 3 * 2 * 2  # "pixels" is no case of every test
    first = [values for values, is_first in made.items() if is_first]
    axes = [["plain", "larger", "tiny"], *AXES.values()]
    for (i, a), (j, b) in itertools.combinations(enumerate(axes), 2):
        assert {(values[i], values[j]) for values in first} == set(itertools.product(a, b))
    assert len(first) < 12


def test_every_value_appears():
    made = cases_of(each(**AXES))
    assert len(made) == 3 * 2 * 2
    first = [values for values, is_first in made.items() if is_first]
    assert [set(values) for values in zip(*first, strict=True)] == [*map(set, AXES.values())]
    assert len(first) == 3


def test_first_of():
    made = {param.values: bool(param.marks) for param in first_of([3, 4, 5], 2)}
    assert made == {(3,): False, (4,): False, (5,): True}


def test_a_subject_brings_its_own_cases_and_marks():
    slow = types.SimpleNamespace(cases={"plain": 1, "pixels": 2}, marks=(pytest.mark.untraced,))
    quick = types.SimpleNamespace(cases={"plain": 1, "tiny": 2}, marks=())
    marks = {"subjects": pytest.mark.subjects(slow, quick).mark}
    made = []
    combine(
        types.SimpleNamespace(
            definition=types.SimpleNamespace(get_closest_marker=marks.get),
            fixturenames=["op", "any_case"],
            parametrize=lambda names, params, indirect: made.extend(params),
        )
    )
    assert [param.values for param in made] == [(slow, "plain"), (quick, "plain"), (quick, "tiny")]
    assert [[mark.name for mark in param.marks] for param in made] == [["untraced"], [], []]
