"""SKFF and DAU on the fused ops."""

import torch
from torch import nn

from .. import ops, reference
from ._arena import empty_map
from ._inference import activated_conv, may_write_into, slope_of
from ._layers import Fused, is_activation, is_conv, is_prelu, is_sequence
from ._sums import sums_for, taken_sums


class SKFF(Fused, reference.SKFF):
    """Selective kernel feature fusion: one fused op (section 3.1, equations 1 and 2).

    [(N, C, H, W)] * height -> (N, C, H, W).
    """

    def _layers(self):
        return self.conv_du, *self.conv_du, *self.fcs

    def _is_published(self):
        biases = {fc.bias is None for fc in self.fcs}
        return (
            is_sequence(self.conv_du, 2)
            and is_conv(self.conv_du[0], 1)
            and (is_prelu(self.conv_du[1]) or type(self.conv_du[1]) in (nn.LeakyReLU, nn.ReLU))
            and all(is_conv(fc, 1) for fc in self.fcs)
            and len(biases) == 1
        )

    def _fused(self, branches, spare=None):
        """spare: a branch that may be overwritten with the result where no gradient is wanted."""
        branches, weights = list(branches), self._weights()
        if not may_write_into("skff_select", branches[0]):
            return ops.skff_select(branches, *weights)
        out = empty_map(branches[0].shape, branches[0]) if spare is None else spare
        pixels = out.shape[2] * out.shape[3]
        torch.ops.mirnet_fast_cpu.skff_select_into(out, branches, *weights, taken_sums(branches), pixels)
        return out

    def over_last_branch(self, branches, late):
        """forward of branches and of late ones, over branches[-1], where forward may overwrite that.

        late: pairs of a ResidualUpSample and its input. Such a branch is made in bands of rows,
        once for the statistics and once for the sum, and is never there as a whole.
        """
        engine, weights, out = torch.ops.mirnet_fast_cpu, self._weights(), branches[-1]
        step, small = late[0]
        sums, pixels = taken_sums(branches) or [engine.skff_pool(branches)], out.shape[2] * out.shape[3]
        for begin, end in step.bands(small):
            made = [step.rows(x, begin, end) for step, x in late]
            sums += taken_sums(made) or [engine.skff_pool(made)]
            del made  # before the next ones are there
        for begin, end in step.bands(small):
            parts = [whole[:, :, 2 * begin : 2 * end] for whole in branches]
            made = [step.rows(x, begin, end) for step, x in late]
            engine.skff_select_into(parts[-1], [*parts, *made], *weights, sums, pixels)
            del made
        return out

    def _weights(self):
        reduce, activation = self.conv_du
        biases = [fc.bias for fc in self.fcs]
        return (
            reduce.weight,
            reduce.bias,
            slope_of(activation, reduce.weight),
            [fc.weight for fc in self.fcs],
            [] if biases[0] is None else biases,
        )


class DAU(Fused, reference.DAU):
    """Dual attention unit: two convolutions and one fused op (section 3.2, equation 3).

    (N, C, H, W) -> (N, C, H, W).
    """

    def _layers(self):
        return self.body, *self.body, *self.SA.modules(), *self.CA.modules(), self.conv1x1

    def _is_published(self):
        gate, channel = self.SA.spatial.conv, self.CA.conv_du
        return (
            is_sequence(self.body, 3)
            and is_conv(self.body[0])
            and is_activation(self.body[1])
            and is_conv(self.body[2])
            and is_conv(gate)
            and gate.bias is None
            and is_sequence(channel, 4)
            and is_conv(channel[0], 1)
            and type(channel[1]) is nn.ReLU
            and is_conv(channel[2], 1)
            and type(channel[3]) is nn.Sigmoid
            and is_conv(self.conv1x1, 1)
        )

    def _fused(self, x):
        first, act, second = self.body
        squeeze, _, excite, _ = self.CA.conv_du
        statistics = []
        r = activated_conv(first, act, second, x, statistics)
        weights = (
            self.SA.spatial.conv.weight,
            squeeze.weight,
            squeeze.bias,
            excite.weight,
            excite.bias,
            self.conv1x1.weight,
            self.conv1x1.bias,
        )
        skip = x if self.SKIP else None
        if not may_write_into("dau_attention", r):
            return ops.dau_attention(r, skip, *weights)
        pooled, sums = statistics or (None, None)
        torch.ops.mirnet_fast_cpu.dau_attention_into(r, r, skip, *weights, pooled, sums, sums_for(r))
        return r
