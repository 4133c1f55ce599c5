"""How noisy a photo is, by what a denoiser takes from it, and how much of that to take."""

import torch

# Standard deviations in units of full scale: up to the first none of the change is made, from the second on
# all of it.
NONE, FULL = 1.5 / 255, 4.5 / 255

BLOCK = 16  # pixels
SHARE = 0.25  # of the blocks are in the calmest parts of what was taken away
CLIPPED = 1 / 8  # of a block's pixels: more would hide its noise


def estimate(image: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """The standard deviation of the noise of each photo, in the units of its values.

    That is what a denoiser changes in the photo's calmer parts. It tells noise from texture better than any
    filter of the photo alone; and texture that it does take for noise, of fur or bricks, is only where that
    is, but noise is everywhere. Where noise varies with brightness this is its lower end.

    Blocks of 16 x 16 pixels of which many are at 0 or below or at 1 or above hide noise, and count only where
    there are no others.

    Args:
        image: (N, C, H, W) floats from 0 to 1.
        restored: what a denoiser, at full strength, made of it, of the same shape and device.

    Returns:
        (N,) float32 on the image's device.

    Raises:
        TypeError: one of them is no tensor of floats.
        ValueError: they are not of one shape (N, C, H, W), or have values that are not finite.
    """
    for name, tensor in (("image", image), ("restored", restored)):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"noise.estimate: {name} must be a tensor of floats; got {kind}")
    if image.dim() != 4 or image.shape != restored.shape:
        shapes = f"{tuple(image.shape)} and {tuple(restored.shape)}"
        raise ValueError(f"noise.estimate: image and restored must be (N, C, H, W), both alike; got {shapes}")
    image, restored = image.detach().float(), restored.detach().float()
    change = _means((restored - image).square())
    if not change.isfinite().all():
        raise ValueError("noise.estimate: image or restored has values that are not finite")
    hidden = _means(((image <= 0) | (image >= 1)).float()) > CLIPPED
    calmest = change.masked_fill(hidden, torch.nan).nanquantile(SHARE, -1).nanmean(1)
    return calmest.where(~calmest.isnan(), change.quantile(SHARE, -1).mean(1)).sqrt()


def strength(sigma: torch.Tensor) -> torch.Tensor:
    """How much of a denoiser's change to make, from 0 to 1, for a tensor of what `estimate` gives.

    Rises smoothly from 0 at NONE to 1 at FULL.
    """
    part = ((sigma - NONE) / (FULL - NONE)).clamp(0, 1)
    return part * part * (3 - 2 * part)


def _means(maps):
    """Of each channel the means of the blocks, (N, C, blocks); of a smaller photo one, of all of it."""
    size = [min(BLOCK, side) for side in maps.shape[2:]]
    return torch.nn.functional.avg_pool2d(maps, size).flatten(2)
