"""SKFF and DAU on the fused ops."""

import torch

from .. import ops, reference
from ._arena import empty_map
from ._inference import activated_conv, may_write_into, slope_of
from ._sums import sums_for, taken_sums


class SKFF(reference.SKFF):
    """Selective kernel feature fusion: one fused op (section 3.1, equations 1 and 2)."""

    def forward(self, branches, spare=None):
        """[(N, C, H, W)] * height -> (N, C, H, W).

        spare: a branch that may be overwritten with the result where no gradient is wanted.
        """
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


class DAU(reference.DAU):
    """Dual attention unit: two convolutions and one fused op (section 3.2, equation 3)."""

    def forward(self, x):
        """(N, C, H, W) -> (N, C, H, W)."""
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
        if not may_write_into("dau_attention", r, second):
            return ops.dau_attention(r, skip, *weights)
        pooled, sums = statistics or (None, None)
        torch.ops.mirnet_fast_cpu.dau_attention_into(r, r, skip, *weights, pooled, sums, sums_for(r))
        return r
