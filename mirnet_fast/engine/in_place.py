"""The forms of the CPU's kernels that write into maps which are there already: what a plan's tasks call.

The one file that calls them; a function's arguments are those of the op of its name. Maps are (N, C, H, W)
of one dtype, for convolutions float32 or bfloat16, any strides where nothing else is said; weights, biases
(None where there are none) and slopes (one value, or one a channel) are of it too, `pooled` is float32 beside
bfloat16. Sums are (N, C) in float64, contiguous, and are written, not added to. An argument that does not fit
is a RuntimeError that names the op and the argument.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

_kernels = torch.ops.mirnet_fast_cpu


def _kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Makes the function call the op of its name."""
    overload = getattr(_kernels, function.__name__).default

    @functools.wraps(function)
    def call(*args, **named):
        overload(*args, **named)

    return call


@_kernel
def conv1x1_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None) -> None:
    """out = PReLU(conv2d(x, weight, bias)).

    Args:
        out: (N, D, H, W), channels_last; must not overlap x.
        x: (N, C, H, W), channels_last.
        weight: (D, C, 1, 1).
        slope: of the PReLU; None for no activation.
    """


@_kernel
def conv3x3_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    pooled: Tensor | None,
    sums: Tensor | None,
    first_row: int,
) -> None:
    """out = rows of PReLU(conv2d(x, weight, bias, padding=1)) + residual, and statistics of out.

    By Winograd's method; accuracy and special values are those of `mirnet_fast.ops.conv3x3`.

    Args:
        out: (N, D, h, W), channels_last: rows first_row to first_row + h of the convolution. May be
            `residual`; must not overlap x.
        x: (N, C, H, W), channels_last: all rows that those of out need, with the zeros of the
            padding where it ends.
        weight: (D, C, 3, 3).
        slope: of the PReLU; None for no activation.
        residual: as out, or None.
        pooled: (N, 2, h, W), gets maximum and mean over the channels of out. With `sums`, or both None.
        sums: (N, D), gets the sums over the pixels of out.
        first_row: row of the convolution, and so of x, that row 0 of out is.
    """


@_kernel
def residual_down_tail_into(
    out: Tensor,
    top: Tensor,
    bottom: Tensor,
    slope: Tensor,
    top_weight: Tensor,
    top_bias: Tensor | None,
    bottom_weight: Tensor,
    bottom_bias: Tensor | None,
    sums: Tensor | None,
    first_row: int,
) -> None:
    """out = `mirnet_fast.ops.residual_down_tail` of the other arguments, or rows of it.

    Args:
        out: (N, D, h, ceil(W / 2)), ceil(H / 2) rows of the op's result or fewer; must not overlap the
            inputs.
        top, bottom: (N, C, H, W), or rows of them: all that those of out need, reflected where they end.
        sums: (N, D), gets the sums over the pixels of out, for `skff_select_into`; or None.
        first_row: even, row of top that row 0 of out is.
    """


@_kernel
def residual_up_tail_of_conv(
    out: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    bottom: Tensor,
    slope: Tensor,
    top_weight: Tensor,
    top_bias: Tensor | None,
    bottom_weight: Tensor,
    bottom_bias: Tensor | None,
    first_row: int,
    sums: Tensor | None,
) -> None:
    """out = rows of `mirnet_fast.ops.residual_up_tail` with the transposed convolution of x as its top.

    That convolution's result is never there as a whole: it is made and used one block of tiles at a time.

    Args:
        out: (N, D, 2h, 2W), channels_last: rows first_row to first_row + 2h of the op's result.
            Must not overlap the inputs.
        x: (N, C, h', W), channels_last: rows of the small map from first_row / 2 on, h of them and
            the one below, which an odd row of the result also needs, where there is one.
        conv_weight: (C, E, 3, 3), of a transposed convolution with stride 2, padding and output padding 1.
        bottom: (N, B, H, W), the whole of it; or rows of it with the ones above and below those that x
            begins and out ends with, for whose enlargement first_row then counts.
        top_weight: (D, E, 1, 1); bottom_weight: (D, B, 1, 1).
        first_row: even.
        sums: (N, D), gets the sums over the pixels of out, for `skff_select_into`; or None.
    """


@_kernel
def residual_up_tail_rows(
    out: Tensor,
    top: Tensor,
    bottom: Tensor,
    slope: Tensor,
    top_weight: Tensor,
    top_bias: Tensor | None,
    bottom_weight: Tensor,
    bottom_bias: Tensor | None,
    first_row: int,
) -> None:
    """out = rows of `mirnet_fast.ops.residual_up_tail` of the other arguments.

    Args:
        out: (N, D, h, 2W): rows first_row to first_row + h of the op's result; must not overlap the inputs.
        top: (N, C, h, 2W), the same rows of the large map.
        bottom: (N, B, H, W), the whole of the small one.
    """


@_kernel
def skff_select_into(
    out: Tensor,
    branches: list[Tensor],
    reduce_weight: Tensor,
    reduce_bias: Tensor | None,
    slope: Tensor | None,
    select_weights: list[Tensor],
    select_biases: list[Tensor],
    sums: list[Tensor],
    pixels: int,
) -> None:
    """out = `mirnet_fast.ops.skff_select` of the other arguments, or rows of it.

    Args:
        out: (N, C, h, W); may be one of the branches, as a pixel is read before it is written.
        branches: B maps (N, C, h, W).
        sums: parts (N, C) whose total is that of all branches over `pixels` pixels: what the ops that made
            them left, and what `skff_pool_into` gave. Empty: the sums of the branches are taken here.
        pixels: H * W of the whole map, of which out and the branches may be h rows.
    """


def skff_pool_into(out: Tensor, branches: list[Tensor]) -> None:
    """out = the branches' sums over their pixels, in total.

    Args:
        out: (N, C), float64.
        branches: B maps (N, C, H, W).
    """
    out.copy_(_kernels.skff_pool.default(branches))


@_kernel
def dau_attention_into(
    out: Tensor,
    r: Tensor,
    x: Tensor | None,
    spatial_weight: Tensor,
    squeeze_weight: Tensor,
    squeeze_bias: Tensor | None,
    excite_weight: Tensor,
    excite_bias: Tensor | None,
    fuse_weight: Tensor,
    fuse_bias: Tensor | None,
    pooled: Tensor | None,
    sums: Tensor | None,
    out_sums: Tensor | None,
    first_row: int,
    pixels: int,
) -> None:
    """out = `mirnet_fast.ops.dau_attention` of the other arguments, or rows of it.

    Args:
        out: (N, C, h, W); may be r or x, as a pixel is read before it is written.
        r, x: (N, C, h, W); x may be None.
        pooled: (N, 2, H, W), its rows contiguous, maximum and mean over the channels of r, as `conv3x3_into`
            leaves them: all rows that those of out need, with the zeros of the padding where it ends. With
            `sums`, or both None: then both are taken of r here.
        sums: (N, C), the sums over the pixels of the whole map.
        out_sums: (N, C), gets the sums over the pixels of out, for `skff_select_into`; or None.
        first_row: row of pooled that row 0 of out is.
        pixels: H * W of the whole map; 0 for those of r.
    """
