"""residual_down_tail from C channels to 2C at half the resolution; the size is that of its inputs."""

from harness import compare_op, every_case


@every_case
def test_residual_down_tail(benchmark, record, case):
    n, c, h, w = case.size
    arguments = (
        case.random(*case.size),
        case.random(*case.size),
        case.random(1),
        case.weight(2 * c, c),
        None,
        case.weight(2 * c, c),
        None,
    )
    moved = n * c * h * w * (2 + 1 / 2)  # both maps, and twice the channels of a quarter out
    gemms = [(n * h * w // 4, 2 * c, 2 * c)]  # both projections at once
    compare_op(benchmark, record, case, "residual_down_tail", arguments, moved, gemms)
