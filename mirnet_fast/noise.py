"""How noisy a photo is, by what a denoiser takes from it, and how much of that to take."""

import torch

# Standard deviations in units of full scale: up to the first none of the change is made, from the second on
# all of it. Of 36 clean photos as in training, some of fur, grass, brick and gravel all over, 33 are at most
# at 1.2/255 and none above 2.3; with white noise of 5/255, or a camera's at ISO 1600, all are at 3.5 or more.
NONE, FULL = 1.5 / 255, 3.25 / 255

BLOCK = 16  # pixels
MOST = 48  # blocks along each side that are looked at, evenly spread
SHARE = 0.25  # of the blocks are in the photo's flattest parts
CLIPPED = 1 / 8  # of a block's pixels: more would hide its noise


def estimate(image: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """The standard deviation of the noise of each photo, in the units of its values.

    What a denoiser took from those parts that it left the flattest. It tells noise from texture better than a
    filter of the photo does; and where it takes texture for noise, that is where some is left. Where noise
    varies with brightness, or is hidden by texture all over, that is its lower end.

    Blocks of which many pixels are at 0 or below or at 1 or above hide noise, and count only where there are
    no others. Of a photo of less than 16 x 16 pixels all parts count.

    Args:
        image: (N, C, H, W) floats from 0 to 1.
        restored: what a denoiser made of it at full strength, of its shape, dtype and device.

    Returns:
        (N,) float32 on the image's device.

    Raises:
        TypeError: one of them is no tensor of floats.
        ValueError: they are not (N, C, H, W) of one shape, or have values that are not finite.

    Source of what is flat: the mask and its norm are those of Immerkær, "Fast noise variance estimation",
    CVIU 1996, from pixel to pixel or from 2 x 2 pixels to the next.
    """
    for name, given in (("image", image), ("restored", restored)):
        if not isinstance(given, torch.Tensor) or not given.is_floating_point():
            kind = getattr(given, "dtype", type(given).__name__)
            raise TypeError(f"noise.estimate: {name} must be a tensor of floats from 0 to 1; got {kind}")
        if given.dim() != 4 or given.shape != image.shape:
            like = "" if given is image else f", as image, {tuple(image.shape)}"
            raise ValueError(f"noise.estimate: {name} must be (N, C, H, W){like}; got {tuple(given.shape)}")
        if not given.isfinite().all():
            raise ValueError(f"noise.estimate: {name} has values that are not finite")
    image, restored = image.detach(), restored.detach()
    if min(image.shape[2:]) < BLOCK:
        return (restored.float() - image.float()).square().mean((1, 2, 3)).sqrt()
    before, after = _blocks(image).float(), _blocks(restored).float()
    taken, texture = (after - before).square().mean((-2, -1)), _texture(after)
    hidden = ((before <= 0) | (before >= 1)).float().mean((-2, -1)) > CLIPPED
    seen = _in_the_flattest(taken, texture.masked_fill(hidden, torch.nan)).nanmean(1)
    return seen.where(~seen.isnan(), _in_the_flattest(taken, texture).mean(1)).sqrt()


def strength(sigma: torch.Tensor) -> torch.Tensor:
    """How much of a denoiser's change to make, from 0 to 1, for a tensor of what `estimate` gives.

    Rises smoothly from 0 at NONE to 1 at FULL.
    """
    part = ((sigma - NONE) / (FULL - NONE)).clamp(0, 1)
    return part * part * (3 - 2 * part)


def _blocks(image):
    """Blocks of a photo, (N, C, blocks, BLOCK, BLOCK)."""
    rows, columns = (_places(size, image.device) for size in image.shape[2:])
    return image[:, :, rows[:, None, :, None], columns[None, :, None, :]].flatten(2, 3)


def _places(size, device):
    first = torch.linspace(0, size - BLOCK, min(size // BLOCK, MOST), device=device).long()
    return first[:, None] + torch.arange(BLOCK, device=device)


def _in_the_flattest(taken, texture):
    """Of each channel the mean of `taken` over the blocks of least texture; NaN without any."""
    flat = texture <= texture.nanquantile(SHARE, -1, keepdim=True)
    return (taken * flat).sum(-1) / flat.sum(-1)


def _texture(blocks):
    """What a block varies, at the finest scale or the next, whichever is more."""
    halves = 2 * blocks.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-3, -1))
    return torch.maximum(_variance(blocks), _variance(halves))


def _variance(blocks):
    """That of white noise, by the mask [1 -2 1]' [1 -2 1], which planes and straight edges don't pass."""
    return (blocks.diff(n=2, dim=-1).diff(n=2, dim=-2) / 6).square().mean((-2, -1))
