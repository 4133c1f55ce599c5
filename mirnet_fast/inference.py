"""Running a network on images of any size."""

import torch


def restore(model, image, multiple=None):
    """Run `model` on an image of any size: padded by reflection, cropped back.

    The values are not clamped. Modules are in eval mode meanwhile and get their own mode back.

    Args:
        model: maps (N, C, H, W) to (N, C', H, W) for H and W that are multiples of `multiple`.
        image: (N, C, H, W) of the model's dtype and device, H and W at least 1.
        multiple: taken from the model if it is a MIRNet: 2**(height - 1).

    Returns:
        (N, C', H, W), a normal tensor without gradient.

    Raises:
        ValueError: `image` has no pixels or not four dimensions, or `multiple` is not given and
            the model has no module with a `height`.
    """
    if image.dim() != 4 or 0 in image.shape:
        raise ValueError(f"restore: image must be (N, C, H, W) with H, W >= 1; got {tuple(image.shape)}")
    multiple = size_multiple(model) if multiple is None else multiple
    height, width = image.shape[2:]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            padded_result = model(pad_by_reflection(image, multiple))
    finally:
        for module in training:
            module.training = True
    # The copy is outside of inference_mode, so that the caller may use it in autograd and in place.
    return padded_result[..., :height, :width].clone()


def restore_by_ensemble(model, image, multiple=None):
    """The mean of what `restore` makes of the image in its eight orientations, each turned back.

    Arguments, result and errors are those of `restore`. Source: Timofte et al., "Seven ways to improve
    example-based single image super resolution", CVPR 2016, section 3.6.
    """
    total = 0
    for turns in range(4):
        for mirrored in (False, True):
            seen = image.rot90(turns, (2, 3))
            restored = restore(model, seen.flip(3) if mirrored else seen, multiple)
            total = total + (restored.flip(3) if mirrored else restored).rot90(-turns, (2, 3))
    return total / 8


def pad_by_reflection(image, multiple):
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


def size_multiple(model):
    """2**(height - 1), what H and W have to be multiples of, of a model that is or holds a MIRNet.

    Raises:
        ValueError: no module of the model has an integer attribute `height`.
    """
    heights = [
        module.height for module in model.modules() if isinstance(getattr(module, "height", None), int)
    ]
    if not heights:
        raise ValueError("restore: the model is no MIRNet, so `multiple` must be given")
    return 2 ** (max(heights) - 1)


def _reflected(size, padded_size):
    period = max(2 * (size - 1), 1)
    index = torch.arange(padded_size) % period
    return torch.where(index < size, index, period - index)
