import importlib

import pytest


@pytest.fixture
def op(request):
    """A Subject, inside the context in which its backend runs."""
    with request.param.backend.kernels():
        yield request.param


@pytest.fixture
def small_tiles(monkeypatch):
    """Makes some of the Triton kernels take tiles of which a small map has many."""
    configs = importlib.import_module("mirnet_fast.kernels._configs")
    products = importlib.import_module("mirnet_fast.kernels._products")
    small = {"TH": 4, "TW": 4, "BC": 16, "BK": 16, "BD": 16, "num_warps": 4, "num_stages": 2}

    def set_tiles(*kernels):
        for kernel in kernels:
            options = {key: small[key] for key in configs.DEFAULT[kernel]}
            monkeypatch.setitem(configs.trial, kernel, options)
        monkeypatch.setattr(products, "WEIGHT_VALUES", 3 * 20 * 24)

    return set_tiles
