"""An image through a network in tiles that overlap: not exact, but near, in the memory that one tile takes.

The network's gates take means over all pixels, and tiles with means of their own show seams and shifts of
colour. So a pass before them takes the means once for all: of patches from all over the image, which lie side
by side as one image of a tile's size. Patches, and not the image made smaller: that has less noise and other
edges, so that the result is further from exact than with each tile's own means (docs/restore.md).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from . import precision as precisions
from .engine.means import GIVEN, RECORDED
from .one_piece import in_one_piece, misfit, mixed, pad_by_reflection, padded_size
from .restoration import Progress, fp32_where_it_overflows, plan_without_calls, way_of

LEAST = 32  # pixels a side of a tile
OVERLAP = 32  # of neighbours, at least, where a quarter of a tile is more
# Of a side at least, and how many a side of a tile, if not: smaller ones have more edges that are not the
# image's, larger ones are from fewer places.
PATCH, PATCHES = 16, 16


class Difference(NamedTuple):
    """How far tiles are from one piece, in grey levels of 255.

    Attributes:
        largest, mean: of the absolute differences of all values.
    """

    largest: float
    mean: float


def side_of(tile: int, multiple: int, memory: int | str | None = None) -> int:
    """The side of tiles of at most `tile` pixels a side, a multiple of `multiple`.

    Raises:
        TypeError, ValueError: as `restore`.
    """
    if not isinstance(tile, int) or isinstance(tile, bool):
        raise TypeError(f"tile must be an integer; got {type(tile).__name__}")
    least = max(-(-LEAST // multiple), 4) * multiple
    if tile < least:
        raise ValueError(f"tile must be at least {least}, pixels a side; got {tile}")
    if memory is not None:
        raise ValueError(
            "tile and memory exclude each other: both take less memory, and the strips of memory are exact; "
            f"got {tile=} and {memory=}"
        )
    return tile // multiple * multiple


def needs_tiles(image: torch.Tensor, side: int, multiple: int) -> bool:
    """Whether images (N, C, H, W), padded to `multiple`, have more pixels than a tile of that side."""
    return math.prod(padded_size(size, multiple) for size in image.shape[2:]) > side * side


def in_tiles(
    model: nn.Module,
    image: torch.Tensor,
    side: int,
    multiple: int,
    weight: torch.Tensor | None,
    precision: str,
    check_finite: bool,
    progress: Progress | None = None,
) -> torch.Tensor:
    """`inference.restore` of images that `needs_tiles`, with its arguments and errors; each image by itself.

    Args:
        side: of a tile at most, a multiple of `multiple`.
        weight: as of `one_piece.in_one_piece`.
    """
    n, _, height, width = image.shape
    results = []

    def restore_one(number, precision):
        one = image[number : number + 1].detach()
        network = _Network(model, one, multiple, precision)

        def of_all(done, total):
            if progress is not None:
                progress(number * total + done, n * total)

        restored = network.in_tiles(pad_by_reflection(one, multiple), side, of_all)
        restored = restored[:, :, :height, :width]
        checked = check_finite and network.dtype in precisions.HALVES
        if checked and one.isfinite().all() and not restored.isfinite().all():
            raise precisions.overflow(f"image[{number}]" if n > 1 else "the image", network.dtype)
        if not results:
            shape = n, restored.shape[1], height, width
            last = image.is_contiguous(memory_format=torch.channels_last)
            order = torch.channels_last if last else torch.contiguous_format
            results.append(torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=order))
        results[0][number : number + 1] = restored

    # Tensors of inference mode could not be used in autograd and in place by the caller.
    with torch.inference_mode(False), torch.no_grad():
        for number in range(n):
            fp32_where_it_overflows(partial(restore_one, number), precision, image.dtype)
        return results[0] if weight is None else mixed(image, results[0], weight)


def difference(
    model: nn.Module, image: torch.Tensor, side: int, multiple: int, precision: str
) -> Difference | None:
    """How far `in_tiles` is from `in_one_piece`, told by the middle of the images, in tiles half as large.

    That middle has as many pixels as a tile, so that it takes no more memory; as long as three tiles, about.
    """
    crop = _middle(pad_by_reflection(image.detach(), multiple), side, multiple)
    options: tuple[Any, ...] = multiple, None, precision, True
    exact = in_one_piece(model, crop, *options)
    half = padded_size(side + _overlap(side, multiple), 2 * multiple) // 2
    tiled = in_tiles(model, crop, half, *options)
    apart = 255 * (exact.float() - tiled.float()).abs()
    return Difference(apart.max().item(), apart.mean().item()) if apart.isfinite().all() else None


class _Network:
    """A network as its plans run, whose gates take means that are taken from elsewhere.

    Args:
        image: (1, C, H, W), of the form that it is for.
    """

    def __init__(self, model: nn.Module, image: torch.Tensor, multiple: int, precision: str) -> None:
        options = image.dtype, image.device, image.shape[1], precision, multiple
        self._model, self._way, self._precision = model, way_of(model, *options), precision
        self._multiple = multiple
        self._network: Any = model if self._way is None else self._way.network
        self.dtype = image.dtype if self._way is None else self._way.dtype

    def in_tiles(
        self, image: torch.Tensor, side: int, progress: Callable[[float, float], object]
    ) -> torch.Tensor:
        """The result for a padded image, in float32 at least."""
        overlap = _overlap(side, self._multiple)
        rows, columns = (_cuts(size, side, overlap, self._multiple) for size in image.shape[2:])
        tiles = [(y, x) for y in rows for x in columns]
        means = self._means(_patches(image, side, self._multiple))
        progress(1, 1 + len(tiles))
        wide = torch.promote_types(image.dtype, torch.float32)
        result = torch.zeros((), dtype=wide, device=image.device)
        for number, ((top, down), (left, across)) in enumerate(tiles):
            place = ..., slice(top, top + len(down)), slice(left, left + len(across))
            part = self._with_means(image[place].contiguous(), means)
            if number == 0:
                result = result.new_zeros((1, part.shape[1], *image.shape[2:]))
            result[place] += (down[:, None] * across).to(result) * part
            progress(2 + number, 1 + len(tiles))
        return result

    def _means(self, x):
        plan, entered = self._plan(x, RECORDED)
        means = torch.empty(plan.means.value.shape, dtype=torch.float64, device=x.device)
        plan.run([entered, means])
        return means

    def _with_means(self, x, means):
        plan, entered = self._plan(x, GIVEN)
        result = plan.run([entered, means])
        return result if self._way is None else self._way.leave(result, x, x.dtype)

    def _plan(self, x, means):
        """(the Plan for an image or part of one, what it is run on)."""
        entered = x if self._way is None else self._way.enter(x)
        plan = plan_without_calls(self._network, entered, means)
        if not isinstance(plan, str):
            return plan, entered
        reason = misfit(self._model, x, self._precision) or f"`tile` is not for this network: {plan}"
        raise ValueError(f"restore: {reason}")


def _overlap(side, multiple):
    return min(max(OVERLAP // multiple, 1), side // multiple // 4) * multiple


def _cuts(size, side, overlap, multiple):
    """[(first pixel, weights of all pixels)] of the tiles along an axis; the weights of a pixel sum to one.

    They are of like length, the least with which so many do, and begin at multiples.
    """
    count = max(-(-(size - overlap) // (side - overlap)), 1)
    length = -(-(size + (count - 1) * overlap) // (count * multiple)) * multiple
    begins = [i * (size - length) // max(count - 1, 1) // multiple * multiple for i in range(count)]
    total = torch.zeros(size, dtype=torch.float64)
    weights = []
    for begin in begins:
        # Next to its edges, where a tile knows least of the image, it has no weight.
        ramp = ((torch.arange(length, dtype=torch.float64) + 0.5 - overlap / 4) / (overlap / 2)).clamp(0, 1)
        up = ramp if begin > 0 else torch.ones_like(ramp)
        down = ramp.flip(0) if begin + length < size else torch.ones_like(ramp)
        weights.append(torch.minimum(up, down))
        total[begin : begin + length] += weights[-1]
    return [(b, w / total[b : b + length]) for b, w in zip(begins, weights, strict=True)]


def _patches(image, side, multiple):
    """An image of at most side * side pixels, of patches from all over the image."""
    height, width = image.shape[2:]
    patch = padded_size(max(PATCH, side // PATCHES), multiple)
    high, wide = min(patch, height), min(patch, width)
    most = side * side // (high * wide)
    rows = max(min(int(height * side / math.sqrt(height * width)) // high, most), 1)
    columns = max(min(width // wide, most // rows), 1)
    index = (_spread(*axis, multiple) for axis in ((height, high, rows), (width, wide, columns)))
    rows, columns = (each.to(image.device) for each in index)
    return image[:, :, rows][:, :, :, columns].contiguous()


def _spread(size, length, count, multiple):
    """The index of `count` runs of `length` pixels, evenly over an axis."""
    room = size - length
    begins = [i * room // (count - 1) if count > 1 else room // 2 for i in range(count)]
    return torch.cat([begin // multiple * multiple + torch.arange(length) for begin in begins])


def _middle(image, side, multiple):
    """The middle of an image, of as many pixels as a tile or a little less."""
    height, width = image.shape[2:]
    high = min(height, max(side, side * side // width // multiple * multiple))
    wide = min(width, side * side // high // multiple * multiple)
    top, left = ((size - part) // 2 // multiple * multiple for size, part in ((height, high), (width, wide)))
    return image[:, :, top : top + high, left : left + wide].contiguous()
