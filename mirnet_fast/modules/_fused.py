"""The forward of the fused modules: a plan, the fused ops, or the reference's layers."""

import contextlib
import threading

import torch
from torch.nn.modules.module import _has_any_global_hook

from .. import backends, engine
from ..engine.eligibility import Part, is_published

_current = threading.local()


class Fused(Part):
    """Of the modules that do not call all of their layers.

    A subclass has `_fused(x)`, its forward on the fused ops, and `lower(builder, x)`, which writes the same
    down for `mirnet_fast.engine`.
    """

    def forward(self, x: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        first = x[0] if isinstance(x, (list, tuple)) and x else x
        if (
            not isinstance(first, torch.Tensor)  # but what torch.fx traces with
            or _has_any_global_hook()
            or torch.onnx.is_in_onnx_export()
        ):
            return super().forward(x)
        if torch.compiler.is_compiling():
            return self._fused(x) if is_published(self) else super().forward(x)
        if backends.is_transformed():
            backends.pick(type(self).__name__, first.device.type, first.dtype)  # refuses what was chosen
            return super().forward(x)
        if is_trusted():
            return self._fused(x)
        with backends.settings_kept():
            snapshot, result = engine.run(self, x)
            if result is not None:
                return result
            if not snapshot.stands:
                return super().forward(x)
            with _trust(snapshot.alone):
                return self._fused(x)


@contextlib.contextmanager
def _trust(wanted):
    """Inside, modules of ours in this thread need not look at their layers: it was done for all."""
    before = is_trusted()
    _current.trusts = wanted
    try:
        yield
    finally:
        _current.trusts = before


def is_trusted() -> bool:
    """Whether a module of ours that runs in this thread, and all in it, is as it was published."""
    return getattr(_current, "trusts", False)
