"""MSRB, RRG and MIRNet of the fused parts."""

from collections.abc import Iterable

import torch
from torch import nn

from .. import reference
from ..engine.eligibility import is_conv
from ..engine.graph import Builder, Value
from ..ops.convolution import convolution
from ._fused import Fused
from ._hub import OnHub
from .attention import DAU, SKFF
from .resampling import DownSample, UpSample


class MSRB(Fused, reference.MSRB):
    """Multi-scale residual block (section 3, figure 2), in channels_last inside.

    (N, C, H, W) -> (N, C, H, W) in x's memory format; H and W are multiples of 2**(height - 1).
    Each stream is brought to half its resolution once: column 0 and column 1 ask for the same.
    """

    DAU, SKFF, DownSample, UpSample = DAU, SKFF, DownSample, UpSample

    def _layers(self) -> Iterable[nn.Module]:
        # Not the samplers' parts, which are called; but a hook would see some once instead of twice.
        samplers = [part for table in (self.down, self.up, self.last_up) for part in table.values()]
        return self.conv_out, *[inner for part in samplers for inner in (part, part.body, *part.body)]

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield self.conv_out, is_conv(self.conv_out)

    def _fused(self, x):
        inside = x.contiguous(memory_format=torch.channels_last)
        streams, halved = [self.blocks[0][0](inside)], {}
        for j in range(1, self.height):
            halved[j] = self.resample(streams[j - 1], j - 1, j)
            streams.append(self.blocks[j][0](halved[j]))
            if not isinstance(self.blocks[j][0], DAU):
                del halved[j]  # others may have changed it
        for column in range(1, self.width):
            fused = [
                self.selective_kernel[j](
                    [
                        halved.pop(j) if k == j - 1 and j in halved else self.resample(s, k, j)
                        for k, s in enumerate(streams)
                    ]
                )
                for j in range(self.height)
            ]
            # What is read no more goes at once: without gradients that makes room for what comes.
            streams.clear()
            streams = [self.blocks[j][column](fused.pop(0)) for j in range(self.height)]
        full = [streams.pop(0)]
        full += [self.last_up[str(j)](streams.pop(0)) for j in range(1, self.height)]
        y = self.selective_kernel[0](full)
        full.clear()
        y = convolution(self.conv_out, y)
        y = inside + y if self.SKIP else y
        # A network that only borrows this block may go on with view().
        return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph: what is asked for twice is there once."""

        def resample(value, source, target):
            if source == target:
                return value
            shape = x.shape[0], self.channels[target], x.shape[2] >> target, x.shape[3] >> target
            return builder.apply(self._resampler(source, target), value, shape)

        def brought_down(j, stream, column):
            # At once, while the least else is there: it is asked for again where it is needed.
            for target in range(j + 1, self.height if column < self.width - 1 else 0):
                resample(stream, j, target)
            return stream

        streams = [brought_down(0, builder.apply(self.blocks[0][0], x), 0)]
        for j in range(1, self.height):
            lowered = resample(streams[j - 1], j - 1, j)
            streams.append(brought_down(j, builder.apply(self.blocks[j][0], lowered), 0))
        for column in range(1, self.width):
            after = {}
            for j in reversed(range(self.height)):  # that of the largest maps when the least is there
                branches = tuple(resample(s, k, j) for k, s in enumerate(streams))
                merged = builder.apply(self.selective_kernel[j], branches, streams[j].shape)
                after[j] = brought_down(j, builder.apply(self.blocks[j][column], merged), column)
            streams = [after[j] for j in range(self.height)]
        up = [
            builder.apply(self.last_up[str(j)], streams[j], streams[0].shape) for j in range(1, self.height)
        ]
        y = builder.apply(self.selective_kernel[0], (streams[0], *up), streams[0].shape)
        return builder.conv(self.conv_out, y, residual=x if self.SKIP else None)


class RRG(Fused, reference.RRG):
    """Recursive residual group (section 3): (N, C, H, W) -> (N, C, H, W)."""

    MSRB = MSRB

    def _layers(self) -> Iterable[nn.Module]:
        return self.body, self.body[-1]

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield self.body, type(self.body) is nn.Sequential
        yield self.body[-1], is_conv(self.body[-1])

    def _fused(self, x):
        *blocks, conv = self.body
        y = x
        for block in blocks:
            y = block(y)
        y = convolution(conv, y)
        return y + x if self.SKIP else y

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        *blocks, conv = self.body
        y = x
        for block in blocks:
            y = builder.apply(block, y)
        return builder.conv(conv, y, residual=x if self.SKIP else None)


class MIRNet(Fused, reference.MIRNet, OnHub):
    """MIRNet: (N, in_channels, H, W) -> (N, out_channels, H, W), on the fused ops.

    Constructor arguments, state_dict and result are those of `mirnet_fast.reference.MIRNet`;
    inside, feature maps are channels_last. The output has the input's memory format. `from_pretrained`,
    `save_pretrained` and `push_to_hub` are huggingface_hub's, and need the extra `hub`.

    Raises:
        ValueError: H or W is not a multiple of 2**(height - 1).
    """

    RRG = RRG

    def _layers(self) -> Iterable[nn.Module]:
        return self.conv_in, self.body, self.conv_out

    def _published(self) -> Iterable[tuple[nn.Module | str, bool]]:
        yield self.conv_in, is_conv(self.conv_in)
        yield self.body, type(self.body) is nn.Sequential
        yield self.conv_out, is_conv(self.conv_out)

    def _fused(self, x):
        self._check_size(x)
        inside = x.contiguous(memory_format=torch.channels_last)
        y = convolution(self.conv_in, inside)
        for group in self.body:  # which would hold what the first one gets until the last one ends
            y = group(y)
        y = convolution(self.conv_out, y)
        y = y + inside if self.SKIP else y
        return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()

    def lower(self, builder: Builder, x: Value) -> Value:
        """The same as steps of a graph."""
        self._check_size(x)
        y = builder.conv(self.conv_in, x)
        for group in self.body:
            y = builder.apply(group, y)
        return builder.conv(self.conv_out, y, residual=x if self.SKIP else None)

    def _check_size(self, x):
        blocks = (block for group in self.body for block in getattr(group, "body", ()))
        multiple = next((2 ** (block.height - 1) for block in blocks if isinstance(block, reference.MSRB)), 1)
        if len(x.shape) != 4 or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"MIRNet: x must be (N, C, H, W) with H and W multiples of {multiple}; got {tuple(x.shape)} "
                "(mirnet_fast.restore pads any size)"
            )


class Change(MIRNet):
    """What a MIRNet adds to its input, without the sum: (N, in_channels, H, W) -> (N, out_channels, H, W)."""

    SKIP = False
