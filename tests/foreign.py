"""Packages of others that tests run with where they are installed."""

import contextlib
import importlib
import importlib.util
from types import ModuleType

import pytest
import torch


def installed(name: str) -> ModuleType:
    """The package, or a skip that names it."""
    if name in ("spandrel", "lightning"):
        make_torchvision_importable()
    return pytest.importorskip(name, reason=f"needs {name}, of `make test-all`")


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}, of `make test-all`")


def make_torchvision_importable() -> None:
    # PyPI's is built for CUDA and does not load beside torch for the CPU, where it then misses two operators
    # that it describes. What is tested here calls neither.
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
