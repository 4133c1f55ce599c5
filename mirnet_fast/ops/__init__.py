"""The fused ops: checks, schemas, gradients, and the way to a backend."""

from . import conv1x1 as _conv1x1  # noqa: F401 (defines ops)
from . import conv3x3 as _conv3x3  # noqa: F401 (defines ops)
from . import conv_transpose3x3 as _conv_transpose3x3  # noqa: F401 (defines ops)
from .blur_pool import blur_pool
from .dau_attention import dau_attention
from .residual_down_tail import residual_down_tail
from .residual_up_tail import residual_up_tail
from .skff_select import skff_select

OPS = ("blur_pool", "dau_attention", "residual_down_tail", "residual_up_tail", "skff_select")

__all__ = [
    "OPS",
    "blur_pool",
    "dau_attention",
    "residual_down_tail",
    "residual_up_tail",
    "skff_select",
]
