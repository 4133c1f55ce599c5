"""The fused ops in plain PyTorch: what each one computes, one operator after the other.

These functions are the yardstick of every kernel and the fallback where no kernel runs.
They are written for reading and keep the published order of operators; the rewrites that
make the kernels fast are not in here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .filters import PADDING_MODES, binomial_filter, pad_amounts


def blur_pool(
    x: torch.Tensor, filt_size: int = 3, pad_type: str = "reflect", stride: int = 2, pad_off: int = 0
) -> torch.Tensor:
    """Anti-aliased down-sampling: pad, then a depthwise binomial filter with a stride.

    Args:
        x: (N, C, H, W).
        filt_size: taps of the binomial filter, 1 to 7.
        pad_type: "reflect", "replicate" or "zero".
        stride: step of the filter, at least 1.
        pad_off: added to the padding of all four sides.

    Returns:
        (N, C, H', W') with H' = (H + padding - filt_size) // stride + 1.

    Source: Zhang, ICML 2019, section 3.
    """
    before, after = pad_amounts(filt_size, pad_off)
    channels = x.shape[1]
    filt = binomial_filter(filt_size, dtype=x.dtype, device=x.device)
    padded = F.pad(x, (before, after, before, after), mode=PADDING_MODES[pad_type])
    filt = filt.expand(channels, 1, filt_size, filt_size)
    return F.conv2d(padded, filt, stride=stride, groups=channels)


def skff_select(
    branches: Sequence[torch.Tensor],
    reduce_weight: torch.Tensor,
    reduce_bias: torch.Tensor | None,
    slope: torch.Tensor | None,
    select_weights: Sequence[torch.Tensor],
    select_biases: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Selective kernel feature fusion of B branches.

    Args:
        branches: list of B tensors (N, C, H, W).
        reduce_weight, reduce_bias: the squeeze 1x1 convolution, (d, C, 1, 1) and (d,) or None.
        slope: (1,) or (d,), the negative slope of the activation; None for a ReLU.
        select_weights, select_biases: B 1x1 convolutions, (C, d, 1, 1) each, and their
            (C,) biases (an empty list for none).

    Returns:
        (N, C, H, W), the sum of the branches weighted by a softmax over the branches.

    Source: MIRNet section 3.1, equations 1 and 2.
    """
    stacked = torch.stack(list(branches), dim=1)
    fused = stacked.sum(dim=1)
    pooled = F.adaptive_avg_pool2d(fused, 1)
    squeezed = activation(F.conv2d(pooled, reduce_weight, reduce_bias), slope)
    biases = list(select_biases) or [None] * len(select_weights)
    logits = [F.conv2d(squeezed, w, b) for w, b in zip(select_weights, biases, strict=True)]
    attention = torch.softmax(torch.stack(logits, dim=1), dim=1)
    return (stacked * attention).sum(dim=1)


def dau_attention(
    r: torch.Tensor,
    x: torch.Tensor | None,
    spatial_weight: torch.Tensor,
    squeeze_weight: torch.Tensor,
    squeeze_bias: torch.Tensor | None,
    excite_weight: torch.Tensor,
    excite_bias: torch.Tensor | None,
    fuse_weight: torch.Tensor,
    fuse_bias: torch.Tensor | None,
) -> torch.Tensor:
    """The attention half of the dual attention unit, residual included.

    Args:
        r: (N, C, H, W), the output of the unit's second 3x3 convolution.
        x: (N, C, H, W), the input of the unit; None to add nothing.
        spatial_weight: (1, 2, k, k), k odd, on [max over channels, mean over channels].
        squeeze_weight, squeeze_bias: (d, C, 1, 1) and (d,) or None.
        excite_weight, excite_bias: (C, d, 1, 1) and (C,) or None.
        fuse_weight, fuse_bias: (C, 2C, 1, 1) on [spatial branch, channel branch]; (C,) or None.

    Returns:
        (N, C, H, W).

    Source: MIRNet section 3.2, equation 3.
    """
    largest = torch.max(r, dim=1, keepdim=True).values
    mean = torch.mean(r, dim=1, keepdim=True)
    padding = spatial_weight.shape[-1] // 2
    spatial_gate = torch.sigmoid(F.conv2d(torch.cat([largest, mean], dim=1), spatial_weight, padding=padding))
    squeezed = F.relu(F.conv2d(F.adaptive_avg_pool2d(r, 1), squeeze_weight, squeeze_bias))
    channel_gate = torch.sigmoid(F.conv2d(squeezed, excite_weight, excite_bias))
    both = torch.cat([r * spatial_gate, r * channel_gate], dim=1)
    fused = F.conv2d(both, fuse_weight, fuse_bias)
    return fused if x is None else fused + x


def residual_down_tail(
    top: torch.Tensor,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    top_bias: torch.Tensor | None,
    bottom_weight: torch.Tensor,
    bottom_bias: torch.Tensor | None,
) -> torch.Tensor:
    """The end of the residual down-sampling: both halves blurred, projected and added.

    Args:
        top: (N, C, H, W), the output of the 3x3 convolution of the top branch.
        bottom: (N, C, H, W), the input of the module.
        slope: (1,) or (C,), the negative slope of the PReLU on `top`.
        top_weight, top_bias, bottom_weight, bottom_bias: (D, C, 1, 1) and (D,) or None.

    Returns:
        (N, D, ceil(H / 2), ceil(W / 2)).

    Source: MIRNet section 3.3, figure 5a.
    """
    upper = F.conv2d(blur_pool(F.prelu(top, slope)), top_weight, top_bias)
    lower = F.conv2d(blur_pool(bottom), bottom_weight, bottom_bias)
    return upper + lower


def residual_up_tail(
    top: torch.Tensor,
    bottom: torch.Tensor,
    slope: torch.Tensor,
    top_weight: torch.Tensor,
    top_bias: torch.Tensor | None,
    bottom_weight: torch.Tensor,
    bottom_bias: torch.Tensor | None,
) -> torch.Tensor:
    """The end of the residual up-sampling: PReLU and projection, plus the bilinear branch.

    Args:
        top: (N, C, 2H, 2W), the output of the transposed convolution of the top branch.
        bottom: (N, E, H, W), the input of the module.
        slope: (1,) or (C,), the negative slope of the PReLU on `top`.
        top_weight, top_bias: (D, C, 1, 1) and (D,) or None.
        bottom_weight, bottom_bias: (D, E, 1, 1) and (D,) or None.

    Returns:
        (N, D, 2H, 2W).

    Source: MIRNet section 3.3, figure 5b.
    """
    upper = F.conv2d(F.prelu(top, slope), top_weight, top_bias)
    enlarged = F.interpolate(bottom, scale_factor=2, mode="bilinear", align_corners=False)
    return upper + F.conv2d(enlarged, bottom_weight, bottom_bias)


def activation(x: torch.Tensor, slope: torch.Tensor | None) -> torch.Tensor:
    """PReLU or LeakyReLU with the given slope tensor; ReLU where it is None."""
    return F.relu(x) if slope is None else F.prelu(x, slope)
