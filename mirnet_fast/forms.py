"""Images as NumPy, PIL and torch have them, to what a network takes and back."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .inference import LARGEST

KINDS = "a NumPy array (H, W) or (H, W, C), a PIL image, or a tensor (C, H, W) or (N, C, H, W)"
_FULL = {torch.uint8: 255, torch.uint16: 65535}
_PIL_MODES = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "I;16": "I;16"}


@dataclass(frozen=True)
class Form:
    """An image, opened.

    Attributes:
        rgb: (N, 3, H, W) floats from 0 to 1, on the image's device; N is 1 but of a batch of tensors.
        closed: makes of a restored `rgb` an image of the kind that was opened.
    """

    rgb: torch.Tensor
    closed: Callable[[torch.Tensor], Any]


def opened(image: Any, name: str) -> Form:
    """An image of any of KINDS.

    Args:
        name: what to call it in errors.

    Raises:
        TypeError: it is something else, or its dtype is.
        ValueError: it is of another shape or mode, empty, or has values above 1 where 1 is the most.
    """
    if isinstance(image, torch.Tensor):
        return _of_tensor(image, name)
    if isinstance(image, np.ndarray):
        return _of_array(image, name)
    pil = sys.modules.get("PIL.Image")  # who has such an image has imported it
    if pil is not None and isinstance(image, pil.Image):
        return _of_pil(pil, image, name)
    raise TypeError(f"Restorer: {name} must be {KINDS}; got {type(image).__module__}.{type(image).__name__}")


def _of_tensor(image, name):
    if image.dim() not in (3, 4) or 0 in image.shape or image.shape[-3] not in (1, 2, 3, 4):
        last = image.dim() in (3, 4) and image.shape[-1] in (1, 2, 3, 4)
        hint = " (channels come first: image.movedim(-1, -3))" if last and 0 not in image.shape else ""
        raise ValueError(
            f"Restorer: {name} must be (C, H, W) or (N, C, H, W) with C from 1 to 4 and no side of 0; "
            f"got {tuple(image.shape)}{hint}"
        )
    batch = image.detach()[(None,) * (4 - image.dim())]
    channels = image.shape[-3]
    has_alpha = channels in (2, 4)
    colours = batch[:, : channels - has_alpha]
    rgb = _floats(colours, name).expand(-1, 3, -1, -1)

    def closed(restored):
        if channels < 3:
            restored = restored.mean(1, keepdim=True)
        result = _as(image.dtype, restored).to(image.device)
        if has_alpha:
            result = torch.cat([result, batch[:, -1:]], 1)
        return result.reshape(image.shape)

    return Form(rgb, closed)


def _of_array(image, name):
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] > 4):
        first = image.ndim == 3 and image.shape[0] in (1, 2, 3, 4)
        hint = " (channels come last: image.transpose(1, 2, 0))" if first else ""
        hint = " (of a batch give a list: [*images])" if image.ndim == 4 else hint
        raise ValueError(
            f"Restorer: {name} must be (H, W) or (H, W, C) with C from 1 to 4 and no side of 0; "
            f"got {image.shape}{hint}"
        )
    if image.dtype.type not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise TypeError(f"Restorer: {name} must be uint8, uint16 or floats; got {image.dtype}")
    native = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    form = _of_tensor(torch.from_numpy(native.reshape(*image.shape[:2], -1)).permute(2, 0, 1), name)

    def closed(restored):
        result = form.closed(restored).permute(1, 2, 0).contiguous().numpy()
        return result.reshape(image.shape).astype(image.dtype, copy=False)

    return Form(form.rgb, closed)


def _of_pil(pil, image, name):
    mode = _PIL_MODES.get(image.mode)
    if image.mode in ("P", "PA"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
    if mode is None:
        raise ValueError(
            f"Restorer: {name} must be of mode L, LA, RGB, RGBA, I;16, P or 1; got {image.mode} "
            "(image.convert('RGB'))"
        )
    pixels = image if image.mode == mode else image.convert(mode)
    form = _of_array(np.array(pixels), name)

    def closed(restored):
        result = pil.fromarray(form.closed(restored))
        result.info = {key: value for key, value in image.info.items() if key != "transparency"}
        return result

    return Form(form.rgb, closed)


def _floats(colours, name):
    """From 0 to 1."""
    if colours.dtype in _FULL:
        return colours.to(torch.float32) / _FULL[colours.dtype]
    if not colours.is_floating_point():
        raise TypeError(f"Restorer: {name} must be uint8, uint16 or floats; got {colours.dtype}")
    largest = colours.amax().item()
    if LARGEST < largest < float("inf"):
        raise ValueError(
            f"Restorer: {name} must be floats from 0 to 1, or of dtype uint8 or uint16; "
            f"got {colours.dtype} up to {largest:g}"
        )
    return colours.to(torch.promote_types(colours.dtype, torch.float32))


def _as(dtype, restored):
    if dtype in _FULL:
        return (restored.clamp(0, 1) * _FULL[dtype]).round().to(dtype)
    return restored.to(dtype)
