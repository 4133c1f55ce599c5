"""SKFF and DAU on the fused ops."""

from .. import ops, reference
from ._inference import activated, slope_of


class SKFF(reference.SKFF):
    """Selective kernel feature fusion: one fused op (section 3.1, equations 1 and 2)."""

    def forward(self, branches):
        """[(N, C, H, W)] * height -> (N, C, H, W)."""
        reduce, activation = self.conv_du
        branches = list(branches)
        biases = [fc.bias for fc in self.fcs]
        return ops.skff_select(
            branches,
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
        return ops.dau_attention(
            second(activated(first, act, x)),
            x,
            self.SA.spatial.conv.weight,
            squeeze.weight,
            squeeze.bias,
            excite.weight,
            excite.bias,
            self.conv1x1.weight,
            self.conv1x1.bias,
        )
