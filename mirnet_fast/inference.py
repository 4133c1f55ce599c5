"""Running a network on images of any size."""

import math
import numbers
from collections.abc import Sized

import torch
from torch import nn

from . import noise
from . import precision as precisions

# A noisy photo reaches beyond 1, but not this far; one of 0 to 255 does, unless it is black.
LARGEST = 8


def restore(
    model: nn.Module,
    image: torch.Tensor,
    multiple: int | None = None,
    strength: float | str = 1.0,
    precision: str = "auto",
    check_finite: bool = True,
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
            `precision` is none of those, or "fp16" on a CPU.
        OverflowError: an image overflows, and `precision` is not "auto", or is and there is no float32.
    """
    _check(model, image)
    precisions.check(precision, image.device)
    _check_strength(strength)
    multiple = size_multiple(model) if multiple is None else multiple
    if not isinstance(multiple, int):
        raise TypeError(f"restore: multiple must be an integer; got {type(multiple).__name__}")
    if multiple < 1:
        raise ValueError(f"restore: multiple must be at least 1; got {multiple}")
    height, width = image.shape[2:]
    padded = pad_by_reflection(image, multiple)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            padded_result = precisions.run(model, padded, precision, multiple, check_finite)
    except OverflowError:
        raise
    except Exception as error:
        misfit = _misfit(model, image, precision)
        if misfit is None:
            raise
        raise ValueError(f"restore: {misfit}") from error
    finally:
        for module in training:
            module.training = True
    if not isinstance(padded_result, torch.Tensor):
        raise TypeError(f"restore: the model must return a tensor; got {type(padded_result).__name__}")
    if padded_result.dim() != 4 or padded_result.shape[2:] != padded.shape[2:]:
        raise ValueError(
            f"restore: the model must return (N, C, H, W) of its input's H and W; of {tuple(padded.shape)} "
            f"it made {tuple(padded_result.shape)}. Is `multiple`, {multiple}, large enough?"
        )
    result = padded_result[..., :height, :width]
    # Copies are made outside of inference_mode, so that the caller may use them in autograd and in place.
    if strength == 1:  # 0 times infinity shall not be made
        return result.clone()
    if result.shape != image.shape:
        raise ValueError(
            f"restore: strength {strength} mixes the image with the model's result, which must be of its "
            f"shape; of {tuple(image.shape)} it made {tuple(result.shape)}"
        )
    image = image.detach().to(result)
    if strength == "auto":
        weight = noise.strength(noise.estimate(image, result))[:, None, None, None]
    else:
        weight = torch.tensor(float(strength), dtype=torch.float64)
    return image.lerp(result, weight.to(result))


def restore_by_ensemble(
    model: nn.Module, image: torch.Tensor, multiple: int | None = None, precision: str = "auto"
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
            restored = restore(model, seen.flip(3) if mirrored else seen, multiple, precision=precision)
            total = total + (restored.flip(3) if mirrored else restored).rot90(-turns, (2, 3))
    return total / 8  # pyrefly: ignore[bad-return]


def pad_by_reflection(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """(N, C, H, W) padded at the bottom and right, to the next multiples.

    Unlike torch's reflect padding this one goes back and forth, so the padding may be larger than
    the image; an axis of one pixel is repeated.
    """
    rows, columns = (_reflected(size, -(-size // multiple) * multiple) for size in image.shape[2:])
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
    blocks, others = _blocks_and_others(model)
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


def _blocks_and_others(model):
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
    if type(image) is torch.Tensor and not image.is_meta and _blocks_and_others(model)[0]:
        largest = image.amax().item()
        if LARGEST < largest < math.inf:
            raise ValueError(f"{expected}; got values up to {largest:g} (divide by 255?)")


def _check_strength(strength: float | str) -> None:
    if isinstance(strength, str):
        if strength != "auto":
            raise ValueError(f"restore: strength must be a number from 0 to 1, or 'auto'; got {strength!r}")
    elif not isinstance(strength, numbers.Real):
        raise TypeError(
            f"restore: strength must be a number from 0 to 1, or 'auto'; got {type(strength).__name__}"
        )
    elif not 0 <= strength <= 1:
        raise ValueError(f"restore: strength must be from 0 to 1, or 'auto'; got {strength}")


def _misfit(model, image, precision):
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


def _reflected(size, padded_size):
    period = max(2 * (size - 1), 1)
    index = torch.arange(padded_size) % period
    return torch.where(index < size, index, period - index)
