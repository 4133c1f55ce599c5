"""Blur-pool and the residual resamplers on the fused ops."""

import torch

from .. import ops, reference
from ..reference.filters import binomial_filter
from ._inference import activated, may_write_into


class Downsample(reference.Downsample):
    """Blur-pool (Zhang, ICML 2019). The filter is the binomial one that the buffer `filt` holds.

    Loading a state_dict whose `filt` is another filter is refused: the op would not apply it.
    """

    def forward(self, x):
        """(N, channels, H, W) -> (N, channels, H', W')."""
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


class ResidualDownSample(reference.ResidualDownSample):
    """C channels to 2C at half the resolution; the tail is one fused op (section 3.3, figure 5a)."""

    Blur = Downsample

    def forward(self, x):
        """(N, C, H, W) -> (N, 2C, ceil(H / 2), ceil(W / 2))."""
        expand, act, conv, tail_act, _, project = self.top
        return ops.residual_down_tail(
            conv(activated(expand, act, x)),
            x,
            tail_act.weight,
            project.weight,
            project.bias,
            self.bot[1].weight,
            self.bot[1].bias,
        )


class ResidualUpSample(reference.ResidualUpSample):
    """C channels to C/2 at double the resolution; the tail is one fused op (section 3.3, figure 5b).

    Inference on the CPU goes through the large map in bands of rows, so that of the largest
    maps of the network, the transposed convolution's input and output, only a part is ever there.
    """

    BAND_BYTES = 2**22  # of the large map; a band stays in the last-level cache

    def forward(self, x):
        """(N, C, H, W) -> (N, C // 2, 2H, 2W)."""
        expand, act, conv, tail_act, project = self.top
        weights = (tail_act.weight, project.weight, project.bias, self.bot[1].weight, self.bot[1].bias)
        n, _, height, width = x.shape
        rows = self.BAND_BYTES // max(4 * x[:, :, :1].nbytes, 1)
        if not 0 < rows < height or not may_write_into("residual_up_tail", x, expand, act, conv):
            return ops.residual_up_tail(conv(activated(expand, act, x)), x, *weights)
        shape = (n, project.out_channels, 2 * height, 2 * width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for first in range(0, height, rows):
            last = min(first + rows, height)
            # An odd row of the large map also reads the next small row.
            top = conv(activated(expand, act, x[:, :, first : last + 1]))[:, :, : 2 * (last - first)]
            torch.ops.mirnet_fast_cpu.residual_up_tail_rows(out, top, x, *weights, 2 * first)
            del top
        return out


class DownSample(reference.DownSample):
    """Down-sampling by a power of two (section 3.3)."""

    Step = ResidualDownSample


class UpSample(reference.UpSample):
    """Up-sampling by a power of two (section 3.3)."""

    Step = ResidualUpSample
