"""A network with all that is to be known to restore images by it: arrays, PIL images and tensors."""

import numbers
import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from . import forms, inference, noise, pretrained, tiles
from . import precision as precisions
from .engine import budget
from .restoration import fp32_where_it_overflows

BATCH_PIXELS = 2**20  # of images of like sizes that are restored together

# As torch says it of a CPU.
_OUT_OF_MEMORY = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)

Progress = Callable[[float, float], object]
Result = TypeVar("Result")


class Restored(NamedTuple):
    """What came of (N, C, H, W).

    Attributes:
        image: of the same shape, on the Restorer's device, of its network's dtype, not clamped.
        noise: (N,) the standard deviation of each one's noise, 1 being full scale; None where the strength
            does not go by it.
        strength: (N,) how much of the network's change was made.
    """

    image: torch.Tensor
    noise: torch.Tensor | None
    strength: torch.Tensor


class Restorer:
    """Restores images of any kind and size; several threads may call it at once.

    Args:
        network: what for, such as "denoise", by a network that comes along; or the path of a checkpoint of a
            MIRNet; or a module that maps (N, 3, H, W) to (N, 3, H, W), which is moved to `device` and put in
            eval mode.
        device: where it runs; the first GPU if not given, or the CPU without one.
        precision: as of `mirnet_fast.restore`.
        strength: as of `mirnet_fast.restore`; if not given "auto" for the task "denoise", else 1.
        self_ensemble: whether to take the mean over eight orientations, which takes eight times as long.
        memory: what an image, or a batch, may take on a CPU beyond itself and the weights, as of
            `mirnet_fast.restore`.
        tile: as of `mirnet_fast.restore`, for images of more pixels than a tile; not with `memory`.

    Raises:
        TypeError: an argument is of another type.
        ValueError: there is no such task, file or precision, the strength is not from 0 to 1, or the tile is
            too small or given with `memory`.
        CheckpointError: the file is not a MIRNet's from RGB to RGB.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | nn.Module = pretrained.DEFAULT,
        *,
        device: str | torch.device | None = None,
        precision: str = "auto",
        strength: float | str | None = None,
        self_ensemble: bool = False,
        memory: int | str | None = None,
        tile: int | None = None,
    ) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.empty(0, device=device).device
        precisions.check(precision, self.device)
        self.network = _network(network).to(self.device).eval()
        if strength is None:
            strength = "auto" if network == "denoise" else 1.0
        if strength != "auto" and not (isinstance(strength, numbers.Real) and 0 <= strength <= 1):
            raise ValueError(f"Restorer: strength must be a number from 0 to 1, or 'auto'; got {strength!r}")
        self.memory = None if memory is None else budget.parsed(memory)
        self.tile = tile
        if tile is not None:
            tiles.side_of(tile, inference.size_multiple(self.network), memory)
        self.precision, self.strength, self.self_ensemble = precision, strength, self_ensemble
        parameters = (p for p in self.network.parameters() if p.is_floating_point())
        self._dtype = next(parameters, torch.empty(0)).dtype

    def __call__(self, images: Any) -> Any:
        """The images restored: of the kind, layout, dtype and device that they come in.

        Args:
            images: an image, or a list or tuple of images, which need not be alike; those of like sizes are
                restored together. An image is

                - a NumPy array (H, W), (H, W, 1) or (H, W, 3), or with transparency, which stays as it is,
                  (H, W, 2) or (H, W, 4): uint8, uint16, or floats from 0 to 1;
                - a PIL image of mode L, LA, RGB, RGBA or I;16; of mode P or 1 the result is one of RGB, RGBA
                  or L. What its file had, such as the ICC profile, goes along; it is not turned by EXIF;
                - a tensor (C, H, W) or (N, C, H, W) of the same dtypes and numbers of channels.

        Returns:
            The same, a list for a list or tuple. Integers are rounded; floats are not clamped, and may be a
            little below 0 or above 1.

        Raises:
            TypeError: an image is something else.
            ValueError: it is of another shape or mode, empty, or its values are from 0 to 255.
            OverflowError: as of `mirnet_fast.restore`.
        """
        several = isinstance(images, (list, tuple))
        given = list(images) if several else [images]
        opened = [
            forms.opened(image, f"images[{i}]" if several else "images") for i, image in enumerate(given)
        ]
        results: list[Any] = [None] * len(opened)
        for group in _alike([form.rgb for form in opened]):
            restored = self.restored(torch.cat([opened[i].rgb for i in group])).image
            counts = [len(opened[i].rgb) for i in group]
            for i, part in zip(group, restored.split(counts), strict=True):
                results[i] = opened[i].closed(part)
        return results if several else results[0]

    def restored(self, rgb: torch.Tensor, progress: Progress | None = None) -> Restored:
        """`mirnet_fast.restore` of (N, 3, H, W) floats, and what was told of them.

        Where memory runs out nevertheless, and `tile` is not given, it is tried again in smaller strips, with
        a RuntimeWarning.

        Args:
            progress: as of `mirnet_fast.restore`.

        Raises: as `mirnet_fast.restore`.
        """
        rgb = rgb.to(self.device, self._dtype)

        def run(memory: int | None) -> torch.Tensor:
            how: dict[str, Any] = {"precision": self.precision, "memory": memory, "tile": self.tile}
            if self.self_ensemble:
                return inference.restore_by_ensemble(self.network, rgb, **how)
            return inference.restore(self.network, rgb, progress=progress, **how)

        size = len(rgb), *rgb.shape[2:]
        restored = run(None) if self.tile is not None else self._within_memory(size, run)
        sigma, weights = self._weights(rgb, restored)
        if (weights != 1).any():
            restored = rgb.lerp(restored, weights[:, None, None, None].to(restored))
        return Restored(restored, sigma, weights)

    def tile_difference(self, rgb: torch.Tensor) -> inference.Difference | None:
        """`mirnet_fast.inference.tile_difference` of what `restored` gets; None without `tile`."""
        if self.tile is None:
            return None
        rgb = rgb.to(self.device, self._dtype)
        return inference.tile_difference(self.network, rgb, self.tile, precision=self.precision)

    def can_keep_to_memory(self) -> bool:
        """Whether `memory` may be given: it is known what an image takes by the network."""
        precision, dtype = self.precision, self._dtype
        try:
            inference.Restoration(self.network, (3, 1, 1), dtype=dtype, precision=precision, memory="1G")
        except ValueError:
            return False
        return True

    def restored_by_rows(
        self,
        size: tuple[int, int],
        rows: Callable[[int, int], torch.Tensor],
        put: Callable[[int, torch.Tensor], object],
        progress: Progress | None = None,
        forecast: Callable[[inference.Forecast], object] = lambda forecast: None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The same for an image that need not be in memory: on a CPU, without self_ensemble and `tile`.

        Its noise is that of `noise.sampled`.

        Args:
            size: (H, W).
            rows: rows(begin, end) is (1, 3, end - begin, W), rows of the image, as often as wanted.
            put, progress: as of `mirnet_fast.inference.Restoration.run`.
            forecast: called with what it will take.

        Returns:
            `noise` and `strength` of a Restored.

        Raises: as Restoration.
        """
        windows = noise.sampled(rows, *size).to(self._dtype)
        restored = windows
        if self.strength == "auto":
            restored = inference.restore(self.network, windows, precision=self.precision, memory=self.memory)
        sigma, weights = self._weights(noise.together(windows), noise.together(restored))

        def run(precision: str, memory: int | None) -> None:
            restoration = inference.Restoration(
                self.network,
                (3, *size),
                dtype=self._dtype,
                strength=weights.item(),
                precision=precision,
                memory=memory,
            )
            forecast(restoration.forecast)
            restoration.run(lambda begin, end: rows(begin, end).to(self._dtype), put, progress)

        def within_memory(precision: str) -> None:
            self._within_memory((1, *size), partial(run, precision))

        fp32_where_it_overflows(within_memory, self.precision, self._dtype)
        return sigma, weights

    def _weights(self, rgb, restored):
        """(noise or None, strength) of each image."""
        if self.strength != "auto":
            return None, torch.full((len(rgb),), float(self.strength), dtype=torch.float64)
        sigma = noise.estimate(rgb, restored)
        return sigma, noise.strength(sigma)

    def _within_memory(self, size: Sequence[int], run: Callable[[int | None], Result]) -> Result:
        """run(memory), and with less of it where it runs out; `size` is (N, H, W)."""
        memory, failed = self.memory, None
        while True:
            try:
                result = run(memory)
            except RuntimeError as error:  # torch's
                if self.device.type != "cpu" or not _OUT_OF_MEMORY.search(str(error)):
                    raise
                failed = failed or error
                memory = self._half(size, memory)
                if memory is None:
                    raise failed from None
            except MemoryError:  # no strips would do with so little
                if failed is None:
                    raise
                raise failed from None
            else:
                if failed and memory:
                    what = f"out of memory; done in strips within {memory / 2**20:.0f} MB"
                    warnings.warn(what, RuntimeWarning, stacklevel=3)
                return result

    def _half(self, size, memory):
        """Half of what images of a size take within `memory`; None where that is not known."""
        options = {"dtype": self._dtype, "precision": self.precision, "memory": memory}
        try:
            forecast = inference.Restoration(self.network, (3, *size[1:]), **options).forecast
        except (ValueError, MemoryError, OSError):
            return None
        return size[0] * forecast.memory // 2 or None


def _network(network):
    if isinstance(network, nn.Module):
        return network
    if not isinstance(network, (str, os.PathLike)):
        raise TypeError(
            "Restorer: network must be a task, a checkpoint's path or a torch.nn.Module; "
            f"got {type(network).__name__}"
        )
    if network in pretrained.tasks():
        return pretrained.load_pretrained(str(network))
    if not Path(network).is_file():
        raise ValueError(
            f"Restorer: network must be a task ({', '.join(pretrained.tasks())}), the path of a checkpoint "
            f"or a module; {str(network)!r} is neither a task nor a file"
        )
    return pretrained.network_in(Path(network))


def _alike(images: Sequence[torch.Tensor]) -> list[list[int]]:
    """Numbers of images that are of one size, as many together as BATCH_PIXELS allows."""
    groups: list[list[int]] = []
    begun: dict[tuple[Any, ...], tuple[list[int], int]] = {}
    for i, image in enumerate(images):
        key = (*image.shape[1:], image.dtype)
        group, pixels = begun.get(key, ([], 0))
        more = len(image) * image.shape[2] * image.shape[3]
        if not group or pixels + more > BATCH_PIXELS:
            group, pixels = [], 0
            groups.append(group)
        group.append(i)
        begun[key] = group, pixels + more
    return groups
