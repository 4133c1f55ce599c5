import importlib

import pytest
import torch

from mirnet_fast import ops, reference

from ..cases import first_of
from .common import CudaProductTests, LeavesSums, OpTests, TritonTests, Values, gradient_maker, run


def case(n, c, h, w, outputs, slope=1, bias=False):
    def make(v):
        return (
            v.map(n, c, h, w),
            v.map(n, c, h, w),
            v.weight(slope),
            v.weight(outputs, c, 1, 1),
            v.weight(outputs) if bias else None,
            v.weight(outputs, c, 1, 1),
            v.weight(outputs) if bias else None,
        )

    return make


class TestResidualDownTail(LeavesSums, OpTests):
    op = "residual_down_tail"
    cases = {
        "plain": case(2, 16, 9, 12, 32),
        "larger": case(1, 20, 31, 97, 40),
        "tiny": case(2, 3, 4, 5, 2, slope=3, bias=True),
        "smallest": case(3, 5, 2, 2, 10),
        "wide": case(1, 65, 3, 99, 130, bias=True),
        "fewer channels out": case(1, 24, 6, 8, 7, slope=24),
        "pixels": case(1, 8, 1024, 512, 8, bias=True),
    }

    def test_one_tensor_in_both_halves(self):
        x, _, *weights = self.cases["plain"](Values())
        fast = run(lambda x: ops.residual_down_tail(x, x, *weights), (x,), torch.ones_like)
        expected = run(lambda x: reference.residual_down_tail(x, x, *weights), (x,), torch.ones_like)
        for a, b in zip(fast, expected, strict=True):
            torch.testing.assert_close(a, b)

    def test_one_row_cannot_be_reflected(self):
        args = self.cases["plain"](Values())
        with pytest.raises(ValueError, match=r"top must be .* with H, W >= 2; got \(2, 16, 1, 12\)"):
            ops.residual_down_tail(args[0][:, :, :1], args[1][:, :, :1], *args[2:])

    def test_slope_of_neither_size(self):
        args = list(self.cases["plain"](Values()))
        args[2] = torch.zeros(7, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"slope must have shape \(1,\) or \(16,\); got \(7,\)"):
            ops.residual_down_tail(*args)


class TestResidualDownTailTriton(TritonTests):
    op = "residual_down_tail"
    cases = TestResidualDownTail.cases

    @pytest.mark.parametrize("dtype", first_of([torch.float16, torch.float32]))
    def test_many_tiles_and_blocks(self, monkeypatch, dtype):
        configs = importlib.import_module("mirnet_fast.kernels._configs")
        products = importlib.import_module("mirnet_fast.kernels._products")
        small = {"TH": 4, "TW": 4, "BC": 16, "BK": 16, "BD": 16, "num_warps": 4, "num_stages": 2}
        for kernel in ("down", "project", "resample", "weight_gradient"):
            options = {key: small[key] for key in configs.DEFAULT[kernel]}
            monkeypatch.setitem(configs.trial, kernel, options)
        monkeypatch.setattr(products, "WEIGHT_VALUES", 3 * 20 * 24)
        args = case(2, 20, 7, 11, 24, slope=20, bias=True)(self.values(dtype))
        self.check_contract(args, gradient_maker("dense", dtype), draws=2)


class TestResidualDownTailCuda(CudaProductTests):
    op = "residual_down_tail"
    cases = {
        **TestResidualDownTail.cases,
        # A pixel of more accesses than a block has threads.
        "many channels": case(1, 2056, 3, 4, 8),
        "many channels out": case(1, 8, 3, 4, 4096, slope=8, bias=True),
    }

    def deep(self, channels):
        return case(1, channels, 4, 6, channels)
