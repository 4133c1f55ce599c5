"""MSRB, RRG and MIRNet of the fused parts."""

import torch
from torch import nn

from .. import reference
from ._arena import arena
from ._inference import add_conv, convolved, may_overwrite, may_write_into
from ._layers import Fused, is_conv, is_plain, is_trusted, stands
from ._replay import replayed
from ._sums import sums_kept
from .attention import DAU, SKFF
from .resampling import DownSample, ResidualUpSample, UpSample

LATE_BYTES = 2**26  # maps above it count more than the time to make one of them twice


class MSRB(Fused, reference.MSRB):
    """Multi-scale residual block (section 3, figure 2), in channels_last inside.

    (N, C, H, W) -> (N, C, H, W) in x's memory format; H and W are multiples of 2**(height - 1).
    Each stream is brought to half its resolution once: column 0 and column 1 ask for the same.
    """

    DAU, SKFF, DownSample, UpSample = DAU, SKFF, DownSample, UpSample

    def _layers(self):
        # Not the samplers' parts, which are called; but a hook would see some once instead of twice.
        samplers = [part for table in (self.down, self.up, self.last_up) for part in table.values()]
        return self.conv_out, *[inner for part in samplers for inner in (part, part.body, *part.body)]

    def _is_published(self):
        return is_conv(self.conv_out)

    def _fused(self, x):
        if not may_overwrite(x):
            return self._forward(x)
        with sums_kept(is_trusted()):
            return self._forward(x)

    def _forward(self, x):
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        # The peak of memory is where stream 0 is fused. So the others are done before it, and for them
        # each stream is brought to the lower resolutions as soon as it is there.
        streams, lowered = [], {}
        # Nobody else can hold what resampling makes.
        ours = may_overwrite(x)
        for j in range(self.height):
            streams.append(self.blocks[j][0](lowered[j - 1, j] if j else x))
            self._lower(streams, j, lowered, 0)
        if self.width == 1:
            lowered.clear()
        for column in range(1, self.width):
            fused = []
            for j in reversed(range(1, self.height)):
                branches = [lowered.pop((source, j)) for source in range(j)]
                branches += [self.resample(streams[source], source, j) for source in range(j, self.height)]
                # What was made for this alone: a stream that was brought to a higher resolution.
                merged = self._select(j, branches, spare=ours and j < self.height - 1)
                del branches
                fused.append(self.blocks[j][column](merged))
                del merged
            ups = {j: self.up[f"{self.channels[j]}_{2**j}"] for j in range(1, self.height)}
            late = ours and x.nbytes > LATE_BYTES
            merged = self._select_at_full_resolution(streams, ups, ours, late)
            fused.append(self.blocks[0][column](merged))
            del merged
            for j in range(self.height):
                streams.append(fused.pop())
                self._lower(streams, j, lowered, column)
        ups = {int(j): up for j, up in self.last_up.items()}
        merged = self._select_at_full_resolution(streams, ups, ours)
        y = add_conv(self.conv_out, merged, x) if self.SKIP else convolved(self.conv_out, merged)
        # A network that only borrows this block may go on with view().
        return y if channels_last else y.contiguous()

    def _lower(self, streams, j, lowered, column):
        """Bring stream j to the lower resolutions that are asked for: by the next column's SKFFs to
        each, and by column 0 itself to the next one, which is the same."""
        targets = range(j + 1, self.height)
        if column == self.width - 1:
            targets = targets[:1] if column == 0 else ()
        for target in targets:
            lowered[j, target] = self.resample(streams[j], j, target)

    def _select_at_full_resolution(self, streams, ups, ours, late=False):
        """SKFF of stream 0 and the others brought to its resolution; empties `streams`.

        late: the streams from 2 on are to be made in bands where that is possible: they cost their last
        step twice then, but no memory.
        """
        skff, branches, made_late = self.selective_kernel[0], [streams.pop(0)], []
        late = late and type(skff) is SKFF and stands(skff) and may_write_into("skff_select", branches[0])
        for j, up in ups.items():
            stream = streams.pop(0)
            steps = [up]
            if type(up) is UpSample and may_overwrite(stream):
                # One by one: a stream goes before the last step makes the largest map.
                *first, last = up.body
                for step in first:
                    stream = step(stream)
                steps = [last]
            (step,) = steps
            if (
                late
                and j > 1
                and type(step) is ResidualUpSample
                and stands(step)
                and step.runs_in_rows(stream)
            ):
                made_late.append((step, stream))
            else:
                branches.append(step(stream))
            del stream
        if made_late:
            return skff.over_last_branch(branches, made_late)
        return self._select(0, branches, spare=ours and self.height > 1)

    def _select(self, j, branches, spare):
        """SKFF of stream j, over the last branch if that is a spare one and the SKFF keeps none."""
        skff = self.selective_kernel[j]
        if spare and type(skff) is SKFF and is_plain(skff) and may_overwrite(branches[-1]):
            return skff(branches, branches[-1])
        return skff(branches)


class RRG(Fused, reference.RRG):
    """Recursive residual group (section 3): (N, C, H, W) -> (N, C, H, W)."""

    MSRB = MSRB

    def _layers(self):
        return self.body, self.body[-1]

    def _is_published(self):
        return type(self.body) is nn.Sequential and is_conv(self.body[-1])

    def _fused(self, x):
        *blocks, conv = self.body
        y = x
        for block in blocks:
            y = block(y)
        return add_conv(conv, y, x) if self.SKIP else convolved(conv, y)


class MIRNet(Fused, reference.MIRNet):
    """MIRNet: (N, in_channels, H, W) -> (N, out_channels, H, W), on the fused ops.

    Constructor arguments, state_dict and result are those of `mirnet_fast.reference.MIRNet`;
    inside, feature maps are channels_last. The output has the input's memory format.

    Raises:
        ValueError: H or W is not a multiple of 2**(height - 1).
    """

    RRG = RRG

    def _layers(self):
        return self.conv_in, self.body, self.conv_out

    def _is_published(self):
        return is_conv(self.conv_in) and type(self.body) is nn.Sequential and is_conv(self.conv_out)

    def _fused(self, x):
        multiple = 2 ** (self.body[0].body[0].height - 1) if len(self.body) else 1
        if x.dim() != 4 or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"MIRNet: x must be (N, C, H, W) with H and W multiples of {multiple}; got {tuple(x.shape)} "
                "(mirnet_fast.restore pads any size)"
            )
        if not may_overwrite(x):
            return self._forward(x)
        # Of the maps at full resolution seven are there at a time; the rest is for gaps.
        size = 12 * self.conv_in.out_channels * x.nbytes // max(x.shape[1], 1)
        return replayed(self, self._forward, x, size)

    def _forward(self, x):
        inside = x.contiguous(memory_format=torch.channels_last)
        y = convolved(self.conv_in, inside)
        # One by one: what calls the body as a whole holds its input to the end.
        for part in self.body if may_overwrite(x) else (self.body,):
            y = part(y)
        with arena(0):  # the result stays with the caller
            y = add_conv(self.conv_out, y, inside)
        return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()
