"""An image through a network, in one piece or in strips, within a memory that is known beforehand."""

import math
import numbers
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from . import engine
from . import precision as precisions
from .engine import budget, eligibility, store, strip_run
from .engine.strips import CORE, NotEnough, Strips, seconds_of
from .measure import product_rate
from .one_piece import in_eval_mode, in_one_piece, padded_size, reflected, size_multiple

Progress = Callable[[float, float], object]
Rows = Callable[[int, int], torch.Tensor]
Result = TypeVar("Result")

LEFT = 0.9  # of the memory that is free, what is taken where nobody says how much


@dataclass(frozen=True)
class Forecast:
    """What a Restoration will take, before it runs; str() is a line for people.

    Attributes:
        pixels: of the image, height times width.
        memory: bytes at its peak, beyond the weights and what the caller holds; 0 where that is not known.
        file: bytes of the temporary file; 0 where there is none.
        folder: where that file will be, or would be.
        strips: how many strips the largest maps are worked through in; 1 for an image in one piece.
        seconds: about how long it will take; 0 where that is not known.
    """

    pixels: int
    memory: int
    file: int
    folder: str
    strips: int
    seconds: float

    def __str__(self) -> str:
        parts = [f"{self.pixels / 1e6:.1f} megapixels in " + (f"{self.strips} strips" * (self.strips > 1))]
        parts[0] += "one piece" * (self.strips == 1)
        if self.memory:
            parts.append(f"{self.memory / 2**30:.1f} GB of memory")
        if self.file:
            parts.append(f"a temporary file of {self.file / 2**30:.1f} GB in {self.folder}")
        if self.seconds >= 90:
            parts.append(f"about {self.seconds / 60:.0f} minutes")
        elif self.seconds:
            parts.append(f"about {max(self.seconds, 1):.0f} seconds")
        return ", ".join(parts)


class Restoration:
    """`restore` for one image that need not be in memory as a whole, with its needs known beforehand.

    Where the image does not fit in `memory` in one piece, the network runs step by step over strips of rows;
    its global means are of the whole image all the same, so that the result is that of one piece to rounding.
    Maps that do not fit lie in a temporary file without a name, which is gone whatever happens.

    Args:
        model, multiple, precision, check_finite, memory: as those of `restore`.
        shape: (C, H, W) of the image.
        dtype: of the image.
        strength: as that of `restore`, but a number.
        folder: where a temporary file may be; the system's place for such files if not given.

    Attributes:
        forecast: Forecast.

    Raises:
        MemoryError: the image cannot be restored within `memory`; says the least that would do.
        OSError: the folder has not enough space for the temporary file, or is not to be written to.
        ValueError: `memory` is not understood, or the model is not one that strips can be made of, and the
            image does not fit in one piece or that cannot be told; says why. Also as `restore`.
        TypeError: as `restore`.
    """

    forecast: Forecast
    _strips: Strips | None
    _network: eligibility.Part

    def __init__(
        self,
        model: nn.Module,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        multiple: int | None = None,
        strength: float = 1.0,
        precision: str = "auto",
        check_finite: bool = True,
        memory: int | str | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._shape = _checked_shape(shape)
        tensor = next(iter(model.parameters()), None)
        self._device = torch.device("cpu") if tensor is None else tensor.device
        precisions.check(precision, self._device)
        self._weight = checked_strength(strength)
        self._multiple = checked_multiple(size_multiple(model) if multiple is None else multiple)
        self._allowed = None if memory is None else budget.parsed(memory)
        self._model, self._dtype, self._precision = model, dtype, precision
        self._check_finite = check_finite
        self._folder = store.default_folder() if folder is None else os.fspath(folder)
        self._prepare()

    def run(
        self, rows: Rows, put: Callable[[int, torch.Tensor], object], progress: Progress | None = None
    ) -> None:
        """Restore the image; may be called again, for another image of the same form.

        Args:
            rows: rows(begin, end) is (1, C, end - begin, W), rows of the image; asked for once each, from top
                to bottom.
            put: put(begin, result) gets (1, C', h, W), the result's rows from `begin` on, from top to bottom;
                to be used before it returns.
            progress: progress(done, total) is called after each strip, with the work that is done and all of
                it, in the same unit.

        Raises:
            OverflowError: as `restore`, but in strips under "auto" as well: rows are not asked for again.
            MemoryError, OSError: there is less memory or space by now than there was.

        What `rows`, `put` or `progress` raise, KeyboardInterrupt too, ends the run and is raised.
        """
        if self._strips is not None and not self._stands():
            self._prepare()
        _, height, _ = self._shape
        if self._strips is not None:
            self._run_strips(self._strips, rows, put, progress)
            return
        image = self._checked(rows(0, height), 0, height)
        options = self._multiple, self._weight, self._precision, self._check_finite
        put(0, in_one_piece(self._model, image, *options))
        if progress is not None:
            progress(1.0, 1.0)

    def _prepare(self):
        channels, height, width = self._shape
        padded = [padded_size(size, self._multiple) for size in (height, width)]
        self._strips, way = None, self._way()
        shape = (1, channels, *padded)
        whole = one_piece(self._model, way, shape, self._dtype, self._device)
        allowed = available() if self._allowed is None else self._allowed
        if isinstance(whole, str):
            if self._allowed is not None:
                raise ValueError(f"restore: `memory` cannot be kept: {whole}")
            self.forecast = Forecast(height * width, 0, 0, self._folder, 1, 0.0)
            return
        if allowed is None or whole.nbytes <= allowed:
            self.forecast = Forecast(height * width, whole.nbytes, 0, self._folder, 1, scaled(whole.seconds))
            return
        self._prepare_strips(way, shape, allowed)

    def _prepare_strips(self, way, shape, allowed):
        channels, height, width = self._shape
        network: Any = self._model if way is None else way.network  # a Part
        entered = shape
        image = enter = None
        if way is not None:
            entered = way.enter(torch.empty((1, channels, 1, 1), dtype=self._dtype)).shape[1]
            entered = (1, entered, *shape[2:])
            image, enter = (shape, self._dtype), way.enter
        in_file = not store.is_in_memory(self._folder)
        # Rows on their way in and out.
        spare = 4 * channels * shape[3] * self._dtype.itemsize
        try:
            strips = Strips(
                network,
                entered,
                self._dtype if way is None else way.dtype,
                allowed,
                image,
                enter,
                self._needs_image(way),
                in_file,
                spare,
            )
        except NotEnough as error:
            where = "" if in_file else f" (a temporary file in {self._folder} would be in memory too)"
            raise MemoryError(
                f"restore: {height} x {width} pixels need {_text(error.least)} of memory at least{where}; "
                f"{_text(allowed)} are allowed"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"restore: {height} x {width} pixels do not fit in {_text(allowed)} of memory in one piece, "
                f"and strips cannot be made: {error}"
            ) from error
        if self._weight is not None and strips.result.shape[1] != channels:
            raise ValueError(
                f"restore: strength {self._weight.item()} mixes the image with the model's result, which has "
                f"{strips.result.shape[1]} channels instead of {channels}"
            )
        if strips.file:
            store.check_space(self._folder, strips.file)
        self._strips, self._network = strips, network
        self._snapshot = eligibility.snapshot_of(network)
        seconds = scaled(strips.seconds)
        self.forecast = Forecast(
            height * width, strips.memory, strips.file, self._folder, strips.count, seconds
        )

    def _needs_image(self, way):
        halves = (self._dtype if way is None else way.dtype) in precisions.HALVES
        return self._weight is not None or bool(way and way.with_image) or (halves and self._check_finite)

    def _way(self):
        options = self._dtype, self._device, self._shape[0], self._precision, self._multiple
        return way_of(self._model, *options)

    def _stands(self):
        """Whether the strips are of the model as it is; brings over the weights of a copy."""
        way = self._way()
        network = self._model if way is None else way.network
        return network is self._network and eligibility.snapshot_of(self._network) is self._snapshot

    def _run_strips(self, strips, rows, put, progress):
        _, height, width = self._shape
        way, weight = self._way(), self._weight
        half = (self._dtype if way is None else way.dtype) in precisions.HALVES
        finite = [True, True]  # the image, the result

        def put_rows(begin, result, image):
            end = min(begin + result.shape[2], height)
            if begin >= end:
                return
            result = result[:, :, : end - begin, :width]
            image = None if image is None else image[:, :, : end - begin, :width]
            result = result if way is None else way.leave(result, image, self._dtype)
            if half and self._check_finite and image is not None:
                finite[0] = finite[0] and bool(image.isfinite().all())
                finite[1] = finite[1] and bool(result.isfinite().all())
            if weight is not None and image is not None:
                result = image.to(result).lerp(result, weight.to(result))
            put(begin, result)

        padded = _Padded(lambda b, e: self._checked(rows(b, e), b, e), self._shape, self._multiple)
        with torch.no_grad():
            strip_run.run(strips, self._folder, padded, put_rows, progress)
        if finite == [True, False]:
            raise precisions.overflow("the image", self._dtype if way is None else way.dtype)

    def _checked(self, part, begin, end):
        channels, _, width = self._shape
        wanted = (1, channels, end - begin, width)
        if not isinstance(part, torch.Tensor) or part.shape != wanted or part.dtype != self._dtype:
            got = (
                f"{part.dtype} {tuple(part.shape)}" if isinstance(part, torch.Tensor) else type(part).__name__
            )
            raise ValueError(f"restore: rows({begin}, {end}) must give {self._dtype} {wanted}; got {got}")
        return part


class _Padded:
    """Rows of an image that is padded by reflection; each is asked for once, from top to bottom."""

    def __init__(self, rows: Rows, shape: Sequence[int], multiple: int) -> None:
        _, self._height, width = shape
        self._rows = rows
        self._lines, columns = (reflected(size, padded_size(size, multiple)) for size in shape[1:])
        self._columns = columns if len(columns) > width else None
        self._last: torch.Tensor | None = None  # the rows that padding repeats
        self._first = 0  # the first of them

    def __call__(self, begin: int, end: int) -> torch.Tensor:
        parts, inside = [], min(end, self._height)
        if begin < inside:
            parts.append(self._rows(begin, inside))
            self._keep(parts[0], begin)
        if end > inside:
            assert self._last is not None
            parts.append(self._last[:, :, self._lines[max(begin, inside) : end] - self._first])
        result = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        return result if self._columns is None else result[:, :, :, self._columns]

    def _keep(self, part, begin):
        beyond = self._lines[self._height :]
        if not len(beyond):
            return
        first = int(beyond.min())
        if begin + part.shape[2] > first:
            part = part[:, :, max(first - begin, 0) :].clone()
            self._first = first
            self._last = part if self._last is None else torch.cat([self._last, part], 2)


@dataclass(frozen=True)
class Whole:
    """What an image in one piece takes: bytes beyond the weights and the image, and seconds of a CORE."""

    nbytes: int
    seconds: float


def way_of(model: nn.Module, *options: Any) -> precisions.Way | None:
    """`precision.way_of` of a model in whatever mode, which it keeps."""
    with in_eval_mode(model):
        return precisions.way_of(model, *options)


def fp32_where_it_overflows(run: Callable[[str], Result], precision: str, dtype: torch.dtype) -> Result:
    """run(precision); where that overflows under "auto", with a warning, run("fp32")."""
    try:
        return run(precision)
    except OverflowError as error:
        if precision != "auto" or dtype != torch.float32:
            raise
        warnings.warn(f"{error}; it was computed in fp32", RuntimeWarning, stacklevel=4)
        return run("fp32")


def available() -> int | None:
    """Bytes that are taken where nobody says how much; None where the system does not tell."""
    free = budget.free()
    return None if free is None else int(LEFT * free)


def one_piece(
    model: nn.Module,
    way: precisions.Way | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Whole | str:
    """What padded images (N, C, H, W) of a dtype take in one piece, or why that cannot be told."""
    network: Any = model if way is None else way.network  # a Part, if it is none of the others
    if device.type != "cpu":
        return f"the model is on {device}"
    with torch.no_grad():
        sample = torch.empty(tuple(shape), dtype=dtype)
        if way is not None:
            entered = way.enter(sample[:1, :, :1, :1])
            sample = torch.empty((shape[0], entered.shape[1], *shape[2:]), dtype=entered.dtype)
        plan = plan_without_calls(network, sample)
    if isinstance(plan, str):
        return plan
    # Beside the plan's: the padded image, what the network gets, the result, its copy.
    nbytes = plan.peak_bytes + 2 * math.prod(plan.result.shape) * dtype.itemsize
    nbytes += math.prod(shape) * dtype.itemsize + (0 if way is None else sample.numel() * sample.itemsize)
    return Whole(nbytes, sum(seconds_of(task, plan.dtype.itemsize) for task in plan.tasks))


def plan_without_calls(network: Any, x: torch.Tensor, means: str | None = None) -> engine.Plan | str:
    """`engine.plan_of` a network all of which is known, or why that cannot be had."""
    if not isinstance(network, eligibility.Part):
        return f"a {type(network).__name__} is none of mirnet_fast's modules"
    if _has_any_global_hook():
        return "hooks on all modules are registered"
    if reason := eligibility.unlowered(network):
        return reason
    plan = engine.plan_of(network, x, means=means)
    if isinstance(plan, str):
        return plan
    called = next((task.layers["module"] for task in plan.tasks if task.kind == "call"), None)
    if called is not None:
        return f"a {type(called).__name__} in it is called, and what that takes is not known"
    return plan


_measuring = threading.Lock()


def scaled(seconds: float) -> float:
    """Seconds of a CORE on all threads as seconds here."""
    with _measuring:
        return seconds / _speed()


@lru_cache
def _speed():
    return product_rate(512, rounds=9) / (CORE.rate * torch.get_num_threads())


def checked_strength(strength: float) -> torch.Tensor | None:
    """What `restore` mixes with; None for 1: 0 times infinity shall not be made.

    Raises:
        TypeError, ValueError: as `restore`.
    """
    if not isinstance(strength, numbers.Real):
        raise TypeError(
            f"restore: strength must be a number from 0 to 1, or 'auto'; got {type(strength).__name__}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"restore: strength must be from 0 to 1, or 'auto'; got {strength}")
    return None if strength == 1 else torch.tensor(float(strength), dtype=torch.float64)


def checked_multiple(multiple: int) -> int:
    """
    Raises:
        TypeError, ValueError: as `restore`.
    """
    if not isinstance(multiple, int):
        raise TypeError(f"restore: multiple must be an integer; got {type(multiple).__name__}")
    if multiple < 1:
        raise ValueError(f"restore: multiple must be at least 1; got {multiple}")
    return multiple


def _checked_shape(shape):
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"restore: shape must be (C, H, W), each at least 1; got {tuple(shape)}")
    return tuple(shape)


def _text(nbytes):
    return f"{nbytes / 2**30:.2f} GB" if nbytes >= 2**29 else f"{nbytes / 2**20:.1f} MB"
