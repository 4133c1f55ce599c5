"""blur_pool as the network uses it: 3 taps, reflected, every second value."""

from harness import compare_op, every_case


@every_case
def test_blur_pool(benchmark, record, case):
    n, c, h, w = case.size
    moved = n * c * h * w * (1 + 1 / 4)  # the map, and a quarter of it out
    compare_op(benchmark, record, case, "blur_pool", (case.random(*case.size),), moved)
