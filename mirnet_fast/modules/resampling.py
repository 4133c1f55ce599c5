"""Blur-pool and the residual resamplers on the fused ops."""

from collections.abc import Iterable

import torch
from torch import nn

from .. import ops, reference
from ..engine.eligibility import (
    Part,
    is_activation,
    is_binomial,
    is_conv,
    is_doubling_conv,
    is_plain_tensor,
    is_prelu,
)
from ..engine.graph import Builder, Value
from ..ops.convolution import convolution
from ..reference.filters import PADDING_MODES, binomial_filter, pad_amounts
from ._fused import Fused


class Downsample(Fused, reference.Downsample):
    """Blur-pool (Zhang, ICML 2019): (N, channels, H, W) -> (N, channels, H', W').

    The op applies the binomial filter; another one in the buffer `filt` is applied by PyTorch, but
    loading a state_dict with one is refused.
    """

    def _layers(self) -> Iterable[nn.Module]:
        return tuple(self.children())  # the padding of a module that accelerate() took over

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        filt, (before, after) = self.filt, pad_amounts(self.filt_size, self.pad_off)
        yield "filt", filt.shape == (self.channels, 1, self.filt_size, self.filt_size)
        yield "filt", is_plain_tensor(filt) and is_binomial(filt)
        yield "pad_type", self.pad_type in PADDING_MODES
        yield "pad_sizes", tuple(self.pad_sizes) == (before, after, before, after)

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


class _Residual(Fused):
    """What both residual resamplers take for granted of their layers."""

    def _layers(self) -> Iterable[nn.Module]:
        return self.top, *self.top, self.bot, *self.bot

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        for part in (self.top, self.bot):
            yield part, type(part) is nn.Sequential
        expand, act, _, tail_act, *_ = self.top
        yield expand, is_conv(expand)
        yield act, is_activation(act)
        yield tail_act, is_prelu(tail_act)
        for part in (self.top[-1], self.bot[-1]):
            yield part, is_conv(part, 1)


class ResidualDownSample(_Residual, reference.ResidualDownSample):
    """C channels to 2C at half the resolution; the tail is one fused op (section 3.3, figure 5a).

    (N, C, H, W) -> (N, 2C, ceil(H / 2), ceil(W / 2)).
    """

    Blur = Downsample

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield from super()._published()
        _, _, conv, _, blur, _ = self.top
        low_blur, _ = self.bot
        yield conv, is_conv(conv)
        for part in (blur, low_blur):
            yield part, _halves(part)

    def _fused(self, x):
        expand, act, conv, tail_act, _, project = self.top
        top = convolution(conv, act(convolution(expand, x)))
        low = self.bot[1]
        return ops.residual_down_tail(
            top, x, tail_act.weight, project.weight, project.bias, low.weight, low.bias
        )

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        expand, act, conv, tail_act, _, project = self.top
        top = builder.conv(conv, builder.conv(expand, x, act))
        return builder.residual_down_tail(
            top, x, activation=tail_act, top_conv=project, bottom_conv=self.bot[1]
        )


def _halves(blur):
    return (
        type(blur) is Downsample
        and (blur.filt_size, blur.pad_type, blur.stride, blur.pad_off) == (3, "reflect", 2, 0)
        and all(holds for _, holds in blur._published())
    )


class ResidualUpSample(_Residual, reference.ResidualUpSample):
    """C channels to C/2 at double the resolution; the tail is one fused op (section 3.3, figure 5b).

    (N, C, H, W) -> (N, C // 2, 2H, 2W).
    """

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield from super()._published()
        _, _, conv, _, _ = self.top
        enlarge, _ = self.bot
        yield conv, is_doubling_conv(conv)
        yield (
            enlarge,
            type(enlarge) is nn.Upsample
            and (enlarge.mode, bool(enlarge.align_corners), enlarge.size) == ("bilinear", False, None)
            and enlarge.scale_factor in (2, (2, 2))
            and not enlarge.recompute_scale_factor,
        )

    def _fused(self, x):
        expand, act, conv, tail_act, project = self.top
        top, low = convolution(conv, act(convolution(expand, x))), self.bot[1]
        return ops.residual_up_tail(
            top, x, tail_act.weight, project.weight, project.bias, low.weight, low.bias
        )

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        expand, act, conv, tail_act, project = self.top
        top = builder.conv_transpose3x3(conv, builder.conv(expand, x, act))
        return builder.residual_up_tail(
            top, x, activation=tail_act, top_conv=project, bottom_conv=self.bot[1]
        )


class _Steps(Part):
    """Residual steps of 2, one after the other."""

    def _layers(self) -> Iterable[nn.Module]:
        return (self.body,)

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        for step in self.body:
            x = builder.apply(step, x, (x.shape[0], *self._sizes(*x.shape[1:])))
        return x


class DownSample(_Steps, reference.DownSample):
    """Down-sampling by a power of two (section 3.3)."""

    Step = ResidualDownSample

    @staticmethod
    def _sizes(channels, height, width):
        return 2 * channels, (height + 1) // 2, (width + 1) // 2


class UpSample(_Steps, reference.UpSample):
    """Up-sampling by a power of two (section 3.3)."""

    Step = ResidualUpSample

    @staticmethod
    def _sizes(channels, height, width):
        return channels // 2, 2 * height, 2 * width
