"""residual_up_tail: PReLU and 1x1 convolution of the large map, plus the bilinear branch."""

from . import _checks
from ._registration import autocast, call, define_for_cpu, register, register_in_place


def residual_up_tail(top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias):
    """conv1x1(PReLU(top)) + conv1x1(bilinear x2 of bottom).

    The kernels project `bottom` before they enlarge it: both steps are linear and the bilinear
    weights sum to 1, so only rounding differs.

    Args:
        top: (N, C, 2H, 2W), the output of the top branch's transposed convolution, any strides.
        bottom: (N, E, H, W), the input of the module.
        slope: (1,) or (C,), the negative slope of the PReLU on top.
        top_weight: (D, C, 1, 1); bottom_weight: (D, E, 1, 1); their biases: (D,) or None.

    Returns:
        (N, D, 2H, 2W), dtype and memory format of top.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Source: MIRNet (arXiv 2003.06792) section 3.3, figure 5b.
    """
    op = "residual_up_tail"
    _checks.feature_map(op, "top", top)
    top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias = autocast(
        top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias
    )
    _checks.feature_map(op, "bottom", bottom)
    n, inputs, height, width = bottom.shape
    _checks.like(op, "top", top, (n, None, 2 * height, 2 * width), "bottom", bottom)
    channels = top.shape[1]
    _checks.slope(op, "slope", slope, channels, "top", top)
    _checks.like(op, "top_weight", top_weight, (None, channels, 1, 1), "top", top)
    outputs = top_weight.shape[0]
    _checks.optional_like(op, "top_bias", top_bias, (outputs,), "top", top)
    _checks.like(op, "bottom_weight", bottom_weight, (outputs, inputs, 1, 1), "top", top)
    _checks.optional_like(op, "bottom_bias", bottom_bias, (outputs,), "top", top)
    return call(op, top, bottom, slope, top_weight, top_bias, bottom_weight, bottom_bias)


def output_shape(top, bottom, slope, top_weight, *rest):
    return top.shape[0], top_weight.shape[0], top.shape[2], top.shape[3]


register(
    "residual_up_tail",
    [
        "Tensor top",
        "Tensor bottom",
        "Tensor slope",
        "Tensor top_weight",
        "Tensor? top_bias",
        "Tensor bottom_weight",
        "Tensor? bottom_bias",
    ],
    output_shape,
)

# Of the CPU engine: top is conv_transpose3x3(x, conv_weight, conv_bias), and never there as a whole.
# sums: (N, D) float64, written with the sums of out over its pixels, for skff_select_into.
define_for_cpu(
    "residual_up_tail_of_conv(Tensor(a!) out, Tensor x, Tensor conv_weight, Tensor? conv_bias, "
    "Tensor bottom, Tensor slope, Tensor top_weight, Tensor? top_bias, Tensor bottom_weight, "
    "Tensor? bottom_bias, int first_row, Tensor(b!)? sums=None) -> ()"
)
register_in_place(
    "residual_up_tail_rows",
    [
        "Tensor(a!) out",
        "Tensor top",
        "Tensor bottom",
        "Tensor slope",
        "Tensor top_weight",
        "Tensor? top_bias",
        "Tensor bottom_weight",
        "Tensor? bottom_bias",
        "int first_row",
    ],
)
