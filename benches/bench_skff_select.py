"""skff_select of three branches, as in the published network."""

from harness import compare_op, every_case

BRANCHES = 3


@every_case
def test_skff_select(benchmark, record, case):
    n, c, h, w = case.size
    squeezed = max(c // 8, 4)
    arguments = (
        [case.random(*case.size) for _ in range(BRANCHES)],
        case.weight(squeezed, c),
        None,
        case.random(1),
        [case.weight(c, squeezed) for _ in range(BRANCHES)],
        [],
    )
    # The weights of the sum depend on the mean of every value, so each branch is read twice.
    moved = n * c * h * w * (2 * BRANCHES + 1)
    compare_op(benchmark, record, case, "skff_select", arguments, moved)
