"""What is asked of every fused op, of every backend or of some."""

from ..subject import subjects
from ..test_blur_pool import BLUR_POOL
from ..test_dau_attention import DAU_ATTENTION
from ..test_residual_down_tail import RESIDUAL_DOWN_TAIL
from ..test_residual_up_tail import RESIDUAL_UP_TAIL
from ..test_skff_select import SKFF_SELECT

OPS = (BLUR_POOL, DAU_ATTENTION, RESIDUAL_DOWN_TAIL, RESIDUAL_UP_TAIL, SKFF_SELECT)


def every_op(*backends, where=lambda op: True):
    """The mark of a test that takes `op`: each one on each of these backends."""
    return subjects([op for op in OPS if where(op)], backends)
