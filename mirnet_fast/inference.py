"""Running a network on images of any size."""

import math
from functools import partial

import torch
from torch import nn

from . import noise
from . import precision as precisions
from .engine import budget
from .one_piece import (
    blocks_and_others,
    in_one_piece,
    misfit,
    pad_by_reflection,
    padded_size,
    size_multiple,
)
from .restoration import (
    Forecast,
    Progress,
    Restoration,
    available,
    checked_multiple,
    checked_strength,
    fp32_where_it_overflows,
    one_piece,
    way_of,
)
from .tiles import Difference, difference, in_tiles, needs_tiles, side_of

__all__ = [
    "Difference",
    "Forecast",
    "Restoration",
    "pad_by_reflection",
    "restore",
    "restore_by_ensemble",
    "size_multiple",
    "tile_difference",
]

# A noisy photo reaches beyond 1, but not this far; one of 0 to 255 does, unless it is black.
LARGEST = 8
FEW_PIXELS = 2**18  # need so little memory that nobody asks how much there is


def restore(
    model: nn.Module,
    image: torch.Tensor,
    multiple: int | None = None,
    strength: float | str = 1.0,
    precision: str = "auto",
    check_finite: bool = True,
    memory: int | str | None = None,
    progress: Progress | None = None,
    tile: int | None = None,
) -> torch.Tensor:
    """Run `model` on an image of any size: padded by reflection, cropped back.

    The values are not clamped. Modules are in eval mode meanwhile and get their own mode back.

    Args:
        model: maps (N, C, H, W) to (N, C', H, W) for H and W that are multiples of `multiple`.
        image: (N, C, H, W) floats from 0 to 1, of the model's dtype and device, H and W at least 1; of any
            dtype where `precision` is not "auto".
        multiple: what H and W have to be multiples of; see `size_multiple` if not given.
        strength: how much of the model's change is made, image + strength (model(image) - image): from 0,
            the image, to 1, the model's result bit for bit. "auto" takes `noise.strength` of
            `noise.estimate`, each image's own, by what the model would change.
        precision: what is computed in, "fp32", "fp16" (on GPUs) or "bf16", by a copy of the model that
            follows its weights, if it has others; the result is of the image's dtype. "auto" takes fp32 or,
            where `mirnet_fast.precision.automatic` finds that faster and near enough, a lower one; model
            and image of another dtype than float32 are left as they are.
        check_finite: whether to look for overflow: results of half precision or bfloat16 that are not
            finite, of images that are. Under "auto" such an image is computed anew in float32, with a
            RuntimeWarning. Images that are not finite themselves are let through.
        memory: what this call may take beyond image and weights, in bytes or as "4G" or "600M"; what is free
            now if not given. An image that needs more is worked through in strips, with the same result to
            rounding; see `Restoration`.
        progress: progress(done, total) is called after each strip or tile, with the work that is done and all
            of it, in the same unit; not for images in one piece.
        tile: run an image of more than `tile` * `tile` pixels in tiles of at most so many pixels a side that
            overlap, which takes the memory of one of them; the side is rounded down to a multiple. The
            result is not that of one piece, but near: see `tile_difference`. Not with `memory`.

    Returns:
        (N, C', H, W), a normal tensor without gradient.

    Raises:
        TypeError: `model` is no module, `image` no tensor of floats, `multiple` no integer, `strength`
            neither a number nor a word, or the model returns something else than a tensor.
        ValueError: `image` has no pixels, not four dimensions, or values from 0 to 255 instead of 1 (some
            are above 8; of models without MIRNet's blocks that is not asked, nor of values that are not
            finite); `multiple` is below 1, or not given and not to be told from the model; the model
            returns another size, or fails and the image has other channels, dtype or device than it takes;
            `strength` is another word than "auto", not from 0 to 1, or not 1 and the model returns other
            channels than it gets; or it is "auto" and the image has values that are not finite;
            `precision` is none of those, or "fp16" on a CPU; `tile` is too small, or given with `memory`, or
            the image needs tiles and the network is not one of this package that runs as a plan.
        OverflowError: an image overflows, and `precision` is not "auto", or is and there is no float32.
    """
    _check(model, image)
    precisions.check(precision, image.device)
    weight = None if strength == "auto" else _weight(strength)
    multiple = checked_multiple(size_multiple(model) if multiple is None else multiple)
    side = None if tile is None else side_of(tile, multiple, memory)
    if side is not None and needs_tiles(image, side, multiple):
        result = in_tiles(model, image, side, multiple, weight, precision, check_finite, progress)
        return _by_its_noise(image, result) if strength == "auto" else result
    too_large = _too_large(model, image, multiple, precision, memory)
    if too_large is None:
        result = in_one_piece(model, image, multiple, weight, precision, check_finite)
    else:
        options = multiple, precision, check_finite, too_large, progress
        result = _in_strips(model, image, weight, *options)
    return _by_its_noise(image, result) if strength == "auto" else result


def restore_by_ensemble(
    model: nn.Module,
    image: torch.Tensor,
    multiple: int | None = None,
    precision: str = "auto",
    memory: int | str | None = None,
    tile: int | None = None,
) -> torch.Tensor:
    """The mean of what `restore` makes of the image in its eight orientations, each turned back.

    Arguments, result and errors are those of `restore` at strength 1. Source: Timofte et al., "Seven ways to
    improve example-based single image super resolution", CVPR 2016, section 3.6.
    """
    _check(model, image)
    total = 0
    for turns in range(4):
        for mirrored in (False, True):
            seen = image.rot90(turns, (2, 3))
            seen = seen.flip(3) if mirrored else seen
            restored = restore(model, seen, multiple, precision=precision, memory=memory, tile=tile)
            total = total + (restored.flip(3) if mirrored else restored).rot90(-turns, (2, 3))
    return total / 8  # pyrefly: ignore[bad-return]


def tile_difference(
    model: nn.Module,
    image: torch.Tensor,
    tile: int,
    multiple: int | None = None,
    precision: str = "auto",
) -> Difference | None:
    """How far `restore(tile=)` is from `restore` without, at strength 1, measured on a sample.

    The sample is the middle of the image, of at most `tile` * `tile` pixels, in one piece and in tiles half
    as large, with means of its own. That takes about as long as three tiles, and no more memory. It tells the
    order of magnitude: of 15 results its mean was a quarter to four times the true one.

    Args: as of `restore`.

    Returns:
        Difference; None where the image is restored in one piece, or the result is not finite.

    Raises: as `restore`.
    """
    _check(model, image)
    precisions.check(precision, image.device)
    multiple = checked_multiple(size_multiple(model) if multiple is None else multiple)
    side = side_of(tile, multiple)
    return difference(model, image, side, multiple, precision) if needs_tiles(image, side, multiple) else None


def _check(model, image):
    """Raises what `restore` says of `model` and `image`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module; got {type(model).__name__}")
    expected = "restore: image must be a tensor (N, C, H, W) of floats from 0 to 1"
    if not isinstance(image, torch.Tensor):
        array = hasattr(image, "__array_interface__")  # NumPy and PIL have it
        hint = "torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None].float() / 255"
        raise TypeError(
            f"{expected}; got {type(image).__module__}.{type(image).__qualname__}"
            f"{f' (of H x W x C bytes: {hint})' if array else ''}"
        )
    if not image.is_floating_point():
        hint = " (image.float() / 255)" if image.dtype == torch.uint8 else ""
        raise TypeError(f"{expected}; got {image.dtype}{hint}")
    if image.dim() != 4 or 0 in image.shape:
        last = image.dim() == 3 and image.shape[2] in (1, 3, 4) and image.shape[0] not in (1, 3, 4)
        hint = " (image.permute(2, 0, 1)[None])" if last else " (image[None])" if image.dim() == 3 else ""
        raise ValueError(
            f"restore: image must be (N, C, H, W) with N, C, H, W >= 1; got {tuple(image.shape)}{hint}"
        )
    if type(image) is torch.Tensor and not image.is_meta and blocks_and_others(model)[0]:
        largest = image.amax().item()
        if LARGEST < largest < math.inf:
            raise ValueError(f"{expected}; got values up to {largest:g} (divide by 255?)")


def _weight(strength: float | str) -> torch.Tensor | None:
    """What `restore` mixes with; None for 1: 0 times infinity shall not be made."""
    if isinstance(strength, str):
        raise ValueError(f"restore: strength must be a number from 0 to 1, or 'auto'; got {strength!r}")
    return checked_strength(strength)


def _by_its_noise(image: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """As much of the change as the noise of each image calls for."""
    if result.shape != image.shape:
        raise ValueError(
            f"restore: strength 'auto' mixes the image with the model's result, which must be of its shape; "
            f"of {tuple(image.shape)} it made {tuple(result.shape)}"
        )
    image = image.detach().to(result)
    weight = noise.strength(noise.estimate(image, result))[:, None, None, None].to(result)
    return image.lerp(result, weight)


def _too_large(model, image, multiple, precision, memory):
    """None, or the bytes that there are for images which do not fit in them in one piece."""
    allowed = None if memory is None else budget.parsed(memory)
    n, channels, *size = image.shape
    shape = (n, channels, *(padded_size(side, multiple) for side in size))
    if allowed is None and (type(image) is not torch.Tensor or n * shape[2] * shape[3] < FEW_PIXELS):
        return None
    if allowed is None and image.device.type != "cpu":
        return None
    way = way_of(model, image.dtype, image.device, channels, precision, multiple)
    whole = one_piece(model, way, shape, image.dtype, image.device)
    if isinstance(whole, str):
        if allowed is None:
            return None
        raise ValueError(f"restore: {misfit(model, image, precision) or f'`memory` cannot be kept: {whole}'}")
    allowed = available() if allowed is None else allowed
    return None if allowed is None or whole.nbytes <= allowed else allowed


def _in_strips(model, image, weight, multiple, precision, check_finite, allowed, progress):
    """`restore` of one image after the other, each in strips if it must be."""
    n, channels, height, width = image.shape
    strength = 1.0 if weight is None else weight.item()
    allowed = max(allowed - image.numel() * image.itemsize, 1)  # the result is about as large
    jobs, results = {}, []

    def run(number, precision):
        if precision not in jobs:
            jobs[precision] = Restoration(
                model,
                (channels, height, width),
                dtype=image.dtype,
                multiple=multiple,
                strength=strength,
                precision=precision,
                check_finite=check_finite,
                memory=allowed,
            )

        def put(begin, part):
            if not results:
                last = image.is_contiguous(memory_format=torch.channels_last)
                order = torch.channels_last if last else torch.contiguous_format
                shape = n, part.shape[1], height, width
                results.append(torch.empty(shape, dtype=image.dtype, memory_format=order))
            results[0][number : number + 1, :, begin : begin + part.shape[2]] = part

        def of_all(done, total):
            progress(number * total + done, n * total)

        def rows(begin, end):
            return image[number : number + 1, :, begin:end].detach()

        jobs[precision].run(rows, put, None if progress is None else of_all)

    for number in range(n):
        fp32_where_it_overflows(partial(run, number), precision, image.dtype)
    return results[0]
