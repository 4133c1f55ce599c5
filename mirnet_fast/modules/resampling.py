"""Blur-pool and the residual resamplers on the fused ops."""

import torch
from torch import nn

from .. import ops, reference
from ..reference.filters import PADDING_MODES, binomial_filter, pad_amounts
from ._arena import empty_map
from ._inference import (
    activated,
    activated_conv,
    bands,
    is_fused_with_tail,
    may_write_into,
    rows,
    runs_in_rows,
    transposed_conv,
    transposed_rows,
)
from ._layers import (
    Fused,
    Part,
    is_activation,
    is_binomial,
    is_conv,
    is_doubling_conv,
    is_plain_tensor,
    is_prelu,
)
from ._sums import joined_sums, sums_for


class Downsample(Fused, reference.Downsample):
    """Blur-pool (Zhang, ICML 2019): (N, channels, H, W) -> (N, channels, H', W').

    The op applies the binomial filter; another one in the buffer `filt` is applied by PyTorch, but
    loading a state_dict with one is refused.
    """

    def _layers(self):
        return tuple(self.children())  # the padding of a module that accelerate() took over

    def _is_published(self):
        filt, (before, after) = self.filt, pad_amounts(self.filt_size, self.pad_off)
        return (
            filt.shape == (self.channels, 1, self.filt_size, self.filt_size)
            and is_plain_tensor(filt)
            and is_binomial(filt)
            and self.pad_type in PADDING_MODES
            and tuple(self.pad_sizes) == (before, after, before, after)
        )

    def _fused(self, x):
        if x.shape[1] != self.channels:
            raise ValueError(f"Downsample: x must have {self.channels} channels; got {x.shape[1]}")
        return ops.blur_pool(x, self.filt_size, self.pad_type, self.stride, self.pad_off)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        filt = state_dict.get(f"{prefix}filt")
        if filt is not None and filt.shape == self.filt.shape:
            expected = binomial_filter(self.filt_size, filt.dtype, filt.device)
            if not torch.equal(filt, expected.expand_as(filt)):
                error_msgs.append(f"{prefix}filt is not the binomial filter of {self.filt_size} taps")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class ResidualDownSample(Fused, reference.ResidualDownSample):
    """C channels to 2C at half the resolution; the tail is one fused op (section 3.3, figure 5a).

    (N, C, H, W) -> (N, 2C, ceil(H / 2), ceil(W / 2)).
    """

    Blur = Downsample

    def _layers(self):
        return self.top, *self.top, self.bot, *self.bot

    def _is_published(self):
        expand, act, conv, tail_act, blur, project = self.top
        low_blur, low_project = self.bot
        return (
            type(self.top) is type(self.bot) is nn.Sequential
            and is_conv(expand)
            and is_activation(act)
            and is_conv(conv)
            and is_prelu(tail_act)
            and _halves(blur)
            and _halves(low_blur)
            and is_conv(project, 1)
            and is_conv(low_project, 1)
        )

    def _fused(self, x):
        expand, act, conv, tail_act, _, project = self.top
        top = activated_conv(expand, act, conv, x)
        weights = (tail_act.weight, project.weight, project.bias, self.bot[1].weight, self.bot[1].bias)
        if not may_write_into("residual_down_tail", x):
            return ops.residual_down_tail(top, x, *weights)
        n, _, height, width = x.shape
        out = empty_map((n, project.out_channels, (height + 1) // 2, (width + 1) // 2), x)
        torch.ops.mirnet_fast_cpu.residual_down_tail_into(out, top, x, *weights, sums_for(out))
        return out


def _halves(blur):
    return (
        type(blur) is Downsample
        and (blur.filt_size, blur.pad_type, blur.stride, blur.pad_off) == (3, "reflect", 2, 0)
        and blur._is_published()
    )


class ResidualUpSample(Fused, reference.ResidualUpSample):
    """C channels to C/2 at double the resolution; the tail is one fused op (section 3.3, figure 5b).

    (N, C, H, W) -> (N, C // 2, 2H, 2W).

    Inference on the CPU goes through the large map in blocks or in bands of rows, so that of the largest
    map of the network, the transposed convolution's output, only a part is ever there.
    """

    def _layers(self):
        return self.top, *self.top, self.bot, *self.bot

    def _is_published(self):
        expand, act, conv, tail_act, project = self.top
        enlarge, low_project = self.bot
        return (
            type(self.top) is type(self.bot) is nn.Sequential
            and is_conv(expand)
            and is_activation(act)
            and is_doubling_conv(conv)
            and is_prelu(tail_act)
            and is_conv(project, 1)
            and type(enlarge) is nn.Upsample
            and (enlarge.mode, bool(enlarge.align_corners), enlarge.size) == ("bilinear", False, None)
            and enlarge.scale_factor in (2, (2, 2))
            and not enlarge.recompute_scale_factor
            and is_conv(low_project, 1)
        )

    def _fused(self, x):
        expand, act, conv, *_ = self.top
        if not self.runs_in_rows(x):
            return ops.residual_up_tail(transposed_conv(conv, activated(expand, act, x)), x, *self._tail())
        n, channels, height, width = x.shape
        out = empty_map((n, channels // 2, 2 * height, 2 * width), x)
        made = [self.rows(x, begin, end, out[:, :, 2 * begin : 2 * end]) for begin, end in self.bands(x)]
        joined_sums(out, made)
        return out

    def runs_in_rows(self, x):
        """Whether `rows` may be called."""
        return x.numel() > 0 and may_write_into("residual_up_tail", x) and runs_in_rows(x, self.top[0])

    def bands(self, x):
        """[(begin, end)] for `rows`."""
        # The largest map of a band: the result's, twice x, or the transposed convolution's, four times.
        return bands(x, scale=2 if is_fused_with_tail(self.top[2], x) else 4, beyond=1)

    def rows(self, x, begin, end, out=None):
        """Rows [2 * begin, 2 * end) of forward(x), in `out` if that is given."""
        expand, act, conv, *_ = self.top
        n, channels, height, width = x.shape
        if out is None:
            out = empty_map((n, channels // 2, 2 * (end - begin), 2 * width), x)
        # An odd row of the large map also reads the next small row.
        between = rows(expand, act, x, begin, min(end + 1, height))
        if is_fused_with_tail(conv, between):
            arguments = conv.weight, conv.bias, x, *self._tail(), 2 * begin, sums_for(out)
            torch.ops.mirnet_fast_cpu.residual_up_tail_of_conv(out, between, *arguments)
            return out
        top = transposed_rows(conv, between, end - begin)
        torch.ops.mirnet_fast_cpu.residual_up_tail_rows(out, top, x, *self._tail(), 2 * begin)
        return out

    def _tail(self):
        tail_act, project = self.top[3:]
        return tail_act.weight, project.weight, project.bias, self.bot[1].weight, self.bot[1].bias


class DownSample(Part, reference.DownSample):
    """Down-sampling by a power of two (section 3.3)."""

    Step = ResidualDownSample


class UpSample(Part, reference.UpSample):
    """Up-sampling by a power of two (section 3.3)."""

    Step = ResidualUpSample
