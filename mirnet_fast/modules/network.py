"""MSRB, RRG and MIRNet of the fused parts."""

import contextlib

import torch

from .. import reference
from ._arena import arena
from ._inference import add_conv, may_overwrite
from .attention import DAU, SKFF
from .resampling import DownSample, UpSample


class MSRB(reference.MSRB):
    """Multi-scale residual block (section 3, figure 2), in channels_last inside.

    Each stream is brought to half its resolution once: column 0 and column 1 ask for the same.
    """

    DAU, SKFF, DownSample, UpSample = DAU, SKFF, DownSample, UpSample

    def forward(self, x):
        """(N, C, H, W) -> (N, C, H, W) in x's memory format; H and W are multiples of 2**(height - 1)."""
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        streams, halved = [self.blocks[0][0](x)], []
        for j in range(1, self.height):
            halved.append(self.resample(streams[j - 1], j - 1, j))
            streams.append(self.blocks[j][0](halved[-1]))
        # From here on tensors are let go as soon as possible: the peak of memory is where stream 0
        # is fused, so the others, smaller and done with `halved`, come before it.
        for column in range(1, self.width):
            fused = []
            for j in reversed(range(1, self.height)):
                fused.append(self._fuse(streams, j, halved))
                del halved[j - 1 :]
            branches = [self.resample(streams.pop(), j, 0) for j in reversed(range(self.height))]
            fused.append(self._select_over(branches[::-1]))
            del branches
            for j in range(self.height):
                streams.append(self.blocks[j][column](fused.pop()))
        full = [self.last_up[str(j)](streams.pop()) for j in reversed(range(1, self.height))]
        full.append(streams.pop())
        merged = self._select_over(full[::-1])
        full.clear()
        y = add_conv(self.conv_out, merged, x) if self.SKIP else self.conv_out(merged)
        # A network that only borrows this block may go on with view().
        return y if channels_last else y.contiguous()

    def _fuse(self, streams, target, halved):
        branches = [
            halved[source] if halved and source == target - 1 else self.resample(stream, source, target)
            for source, stream in enumerate(streams)
        ]
        return self.selective_kernel[target](branches)

    def _select_over(self, branches):
        """SKFF of stream 0, over the last branch where nobody else can hold what resampling made."""
        skff = self.selective_kernel[0]
        resamplers = (*self.up.modules(), *self.last_up.modules())
        if self.height > 1 and isinstance(skff, SKFF) and may_overwrite(branches[-1], skff, *resamplers):
            return skff(branches, branches[-1])
        return skff(branches)


class RRG(reference.RRG):
    """Recursive residual group (section 3)."""

    MSRB = MSRB

    def forward(self, x):
        if not (self.SKIP and may_overwrite(x, self.body)):
            return super().forward(x)
        *blocks, conv = self.body
        y = x
        for block in blocks:
            y = block(y)
        return add_conv(conv, y, x)


class MIRNet(reference.MIRNet):
    """MIRNet: (N, in_channels, H, W) -> (N, out_channels, H, W), on the fused ops.

    Constructor arguments, state_dict and result are those of `mirnet_fast.reference.MIRNet`;
    inside, feature maps are channels_last. The output has the input's memory format.

    Raises:
        ValueError: H or W is not a multiple of 2**(height - 1).
    """

    RRG = RRG

    def forward(self, x):
        multiple = 2 ** (self.body[0].body[0].height - 1) if len(self.body) else 1
        if x.dim() != 4 or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"MIRNet: x must be (N, C, H, W) with H and W multiples of {multiple}; got {tuple(x.shape)} "
                "(mirnet_fast.restore pads any size)"
            )
        inside = x.contiguous(memory_format=torch.channels_last)
        # Of the maps at full resolution seven are there at a time; the rest is for gaps.
        size = 12 * self.conv_in.out_channels * inside.nbytes // max(inside.shape[1], 1)
        with arena(size) if size and may_overwrite(x) else contextlib.nullcontext():
            y = self.conv_out(self.body(self.conv_in(inside))) + inside
        return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()
