import importlib

import pytest
import torch

from mirnet_fast import ops

from .common import CudaTests, OpTests, TritonTests, Values, gradient_maker


def case(n, c, h, w, inputs, outputs, slope=1, bias=False):
    def make(v):
        return (
            v.map(n, c, 2 * h, 2 * w),
            v.map(n, inputs, h, w),
            v.weight(slope),
            v.weight(outputs, c, 1, 1),
            v.weight(outputs) if bias else None,
            v.weight(outputs, inputs, 1, 1),
            v.weight(outputs) if bias else None,
        )

    return make


class TestResidualUpTail(OpTests):
    op = "residual_up_tail"
    cases = {
        "plain": case(2, 16, 6, 7, 16, 8),
        "larger": case(1, 20, 31, 49, 24, 10),
        "tiny": case(2, 3, 2, 3, 2, 4, slope=3, bias=True),
        "one pixel": case(3, 5, 1, 1, 5, 2),
        "one row": case(1, 65, 1, 50, 65, 33, bias=True),
        "wide": case(1, 128, 3, 24, 128, 64),
        "pixels": case(1, 8, 256, 256, 8, 4, bias=True),
    }
    # The small map is projected before it is enlarged: Inf - Inf may become Inf, or the other way.
    orders_infinities = False

    @pytest.mark.parametrize("rows", [2, 4, 10])
    def test_in_bands_of_rows(self, rows):
        top, bottom, *weights = self.cases["larger"](Values(torch.float64, "channels_last"))
        whole = ops.residual_up_tail(top, bottom, *weights)
        out = torch.full_like(whole, float("nan"))
        for first in range(0, top.shape[2], rows):
            band = top[:, :, first : first + rows]
            rows_out = out[:, :, first : first + rows]
            torch.ops.mirnet_fast_cpu.residual_up_tail_rows(rows_out, band, bottom, *weights, first)
        assert torch.equal(out, whole)

    def test_a_band_outside(self):
        top, bottom, *weights = self.cases["plain"](Values())
        out = torch.empty(2, 8, 12, 14, dtype=torch.float64)
        for first in (-1, 1):
            with pytest.raises(RuntimeError, match=r"residual_up_tail: .*first_row"):
                torch.ops.mirnet_fast_cpu.residual_up_tail_rows(out, top, bottom, *weights, first)

    def test_maps_that_do_not_belong_together(self):
        top, bottom, *weights = self.cases["plain"](Values())
        with pytest.raises(ValueError, match=r"top must have shape \(2, \*, 12, 14\); got \(2, 16, 11, 14\)"):
            ops.residual_up_tail(top[:, :, 1:], bottom, *weights)


class TestResidualUpTailTriton(TritonTests):
    op = "residual_up_tail"
    cases = TestResidualUpTail.cases
    orders_infinities = False

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_many_tiles_and_blocks(self, monkeypatch, dtype):
        configs = importlib.import_module("mirnet_fast.kernels._configs")
        products = importlib.import_module("mirnet_fast.kernels._products")
        small = {"TH": 4, "TW": 4, "BC": 16, "BK": 16, "BD": 16, "num_warps": 4, "num_stages": 2}
        for kernel in ("up", "project", "resample", "weight_gradient"):
            options = {key: small[key] for key in configs.DEFAULT[kernel]}
            monkeypatch.setitem(configs.trial, kernel, options)
        monkeypatch.setattr(products, "WEIGHT_VALUES", 3 * 20 * 24)
        args = case(2, 20, 3, 5, 36, 24, slope=20, bias=True)(self.values(dtype))
        self.check_contract(args, gradient_maker("dense", dtype), draws=2)


class TestResidualUpTailCuda(CudaTests):
    op = "residual_up_tail"
    cases = {
        **TestResidualUpTail.cases,
        "many channels": case(1, 4096, 1, 2, 2048, 8, slope=4096),
        "many channels out": case(1, 8, 1, 2, 8, 4096, bias=True),
    }
    orders_infinities = False
