"""dau_attention: the dual attention unit after its second 3x3 convolution."""

from harness import compare_op, every_case


@every_case
def test_dau_attention(benchmark, record, case):
    n, c, h, w = case.size
    squeezed = c // 8
    arguments = (
        case.random(*case.size),
        case.random(*case.size),
        case.weight(1, 2, kernel_size=5),
        case.weight(squeezed, c),
        None,
        case.weight(c, squeezed),
        None,
        case.weight(c, 2 * c),
        None,
    )
    moved = n * c * h * w * 4  # r twice (its channel gate needs a global mean), x, the output
    gemms = [(n * h * w, 2 * c, c)]
    compare_op(benchmark, record, case, "dau_attention", arguments, moved, gemms)
