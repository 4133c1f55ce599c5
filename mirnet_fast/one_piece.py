"""An image of any size through a network in one piece."""

import contextlib
from collections.abc import Generator, Sized
from typing import Any

import torch
from torch import nn

from . import precision as precisions


def in_one_piece(
    model: nn.Module,
    image: torch.Tensor,
    multiple: int,
    weight: torch.Tensor | None,
    precision: str,
    check_finite: bool,
) -> torch.Tensor:
    """`inference.restore` of images that fit in memory, with its arguments and errors.

    Args:
        weight: what the image is mixed with the result by, one number; None for 1: 0 times infinity shall not
            be made.
    """
    height, width = image.shape[2:]
    padded = pad_by_reflection(image, multiple)
    try:
        with in_eval_mode(model), torch.inference_mode():
            padded_result = precisions.run(model, padded, precision, multiple, check_finite)
    except OverflowError:
        raise
    except Exception as error:
        reason = misfit(model, image, precision)
        if reason is None:
            raise
        raise ValueError(f"restore: {reason}") from error
    if not isinstance(padded_result, torch.Tensor):
        raise TypeError(f"restore: the model must return a tensor; got {type(padded_result).__name__}")
    if padded_result.dim() != 4 or padded_result.shape[2:] != padded.shape[2:]:
        raise ValueError(
            f"restore: the model must return (N, C, H, W) of its input's H and W; of {tuple(padded.shape)} "
            f"it made {tuple(padded_result.shape)}. Is `multiple`, {multiple}, large enough?"
        )
    result = padded_result[..., :height, :width]
    # Copies are made outside of inference_mode, so that the caller may use them in autograd and in place.
    return result.clone() if weight is None else mixed(image, result, weight)


def mixed(image: torch.Tensor, result: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As much of the change from image to result as `weight`, one number.

    Raises:
        ValueError: they differ in shape.
    """
    if result.shape != image.shape:
        raise ValueError(
            f"restore: strength {weight.item():g} mixes the image with the model's result, which must be of "
            f"its shape; of {tuple(image.shape)} it made {tuple(result.shape)}"
        )
    return image.detach().to(result).lerp(result, weight.to(result))


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Generator[None]:
    """Inside, all modules are in eval mode; each gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def pad_by_reflection(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """(N, C, H, W) padded at the bottom and right, to the next multiples.

    Unlike torch's reflect padding this one goes back and forth, so the padding may be larger than
    the image; an axis of one pixel is repeated.
    """
    rows, columns = (reflected(size, padded_size(size, multiple)) for size in image.shape[2:])
    if len(rows) > image.shape[2]:
        image = image[:, :, rows.to(image.device)]
    if len(columns) > image.shape[3]:
        image = image[:, :, :, columns.to(image.device)]
    return image


def size_multiple(model: nn.Module) -> int:
    """2**(height - 1), what H and W have to be multiples of, of a model that is or holds a MIRNet.

    Of a model that holds MSRBs and changes the resolution nowhere else; the largest height counts.

    Raises:
        ValueError: the model has no MSRB, or a layer outside of them changes the resolution, so that the
            multiple can't be told.
    """
    blocks, others = blocks_and_others(model)
    if not blocks:
        raise ValueError(
            f"restore: the model, {type(model).__name__}, has no multi-scale residual block (MSRB) of "
            "MIRNet, so `multiple` must be given"
        )
    for name, module in others:
        if _resamples(module):
            raise ValueError(
                f"restore: {name} ({type(module).__name__}) changes the resolution, too, so `multiple` must "
                "be given"
            )
    return 2 ** (max(block.height for block in blocks) - 1)


def blocks_and_others(model: nn.Module) -> tuple[list[Any], list[tuple[str, nn.Module]]]:
    """([MSRB], [(name, module that lies in none of them)]), ours and other people's."""
    blocks, others, seen, waiting = [], [], set(), [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if _is_block(module):
            blocks.append(module)
        else:
            others.append((name, module))
            waiting += [(f"{name}.{part}".lstrip("."), child) for part, child in module.named_children()]
    return blocks, others


def _is_block(module):
    # By the height alone it might be an SKFF, whose height is its number of branches.
    height, blocks = getattr(module, "height", None), getattr(module, "blocks", None)
    return isinstance(height, int) and isinstance(blocks, Sized) and len(blocks) == height


def _resamples(module):
    """Whether it is a layer with a stride or a scale: convolution, pooling, pixel shuffle, interpolation."""
    if any(True for _ in module.children()) and not isinstance(module, nn.modules.conv._ConvNd):
        return False
    names = ("stride", "scale_factor", "upscale_factor", "downscale_factor")
    factors = [getattr(module, name, None) for name in names]
    factors += [module.size] if isinstance(module, nn.Upsample) else []
    return any(factor not in (None, 1, (1, 1)) for factor in factors)


def padded_size(size: int, multiple: int) -> int:
    """The least multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def reflected(size: int, padded: int) -> torch.Tensor:
    """The index of what stands at each place of an axis that is padded by reflection, back and forth."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(padded) % period
    return torch.where(index < size, index, period - index)


def misfit(model: nn.Module, image: torch.Tensor, precision: str) -> str | None:
    """What of the image is not as the model's first layer takes it, in a sentence, or None.

    Asked only of a model that failed: what wraps one may well turn an image into what it takes.
    """
    first = next((m.conv_in for m in model.modules() if hasattr(m, "conv_in")), None)
    weight = getattr(first, "weight", None)
    if weight is None:
        return None
    channels = image.shape[1]
    if channels != weight.shape[1]:
        hint = " (image.permute(0, 3, 1, 2))" if image.shape[3] in (1, 3, 4) else ""
        hint = " (image[:, :3] has no transparency)" if (channels, weight.shape[1]) == (4, 3) else hint
        return f"image must have {weight.shape[1]} channels; got {channels}, {tuple(image.shape)}{hint}"
    if image.dtype != weight.dtype and precision == "auto":
        return f"image must be {weight.dtype}, as the model is; got {image.dtype}"
    if image.device != weight.device:
        return f"image must be on {weight.device}, as the model is; got {image.device}"
    return None
