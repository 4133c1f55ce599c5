"""residual_up_tail from 2C channels to C at double the resolution; the size is that of its output."""

from harness import compare_op, every_case


@every_case
def test_residual_up_tail(benchmark, record, case):
    n, outputs, height, width = case.size
    c, h, w = 2 * outputs, height // 2, width // 2  # the small map
    arguments = (
        case.random(n, c, height, width),
        case.random(n, c, h, w),
        case.random(1),
        case.weight(outputs, c),
        None,
        case.weight(outputs, c),
        None,
    )
    moved = n * c * h * w * (4 + 1 + 2)  # both maps, and half the channels of the large one out
    # The small map is projected before it is enlarged.
    gemms = [(n * height * width, c, outputs), (n * h * w, c, outputs)]
    compare_op(benchmark, record, case, "residual_up_tail", arguments, moved, gemms)
