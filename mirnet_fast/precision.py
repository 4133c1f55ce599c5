"""The precision that a network computes in, where it is not that of its weights and images."""

import copy
import logging
import math
import threading
import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .engine import eligibility
from .modules import MIRNet
from .modules.network import Change
from .ops.convolution import has_amx

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHOICES = ("auto", *DTYPES)
HALVES = (torch.float16, torch.bfloat16)
LARGEST_DIFFERENCE = 0.1  # from fp32, which "auto" takes: root mean square, in grey levels of 255
# Of the photo that tells the difference: pixels a side at least, and noise in grey levels.
SAMPLE_SIDE, SAMPLE_NOISE = 128, 25

_names = {dtype: name for name, dtype in DTYPES.items()}
_lock = threading.RLock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What "auto" comes to: one of DTYPES, and the reason, a sentence."""

    precision: str
    reason: str


class Way:
    """A network, with what is made of an image before and of its result after, pixel by pixel.

    Attributes:
        network: what runs.
        dtype: that it runs in.
        with_image: whether `leave` needs the image.
    """

    network: nn.Module
    dtype: torch.dtype
    with_image = False

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.network, self.dtype = network, dtype

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """What the network gets for an image, or rows of it."""
        return x.to(self.dtype)

    def leave(self, result: torch.Tensor, x: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """What its result, or rows of it, comes to for an image of a dtype."""
        return _as(dtype, result)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """model(x) as computed in the way's dtype; in that of x."""
        return self.leave(self.network(self.enter(x)), x, x.dtype)


class Converted(Way):
    """A copy of a module in eval mode, all its floats in another dtype."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        sources = [*model.parameters(), *model.buffers()]
        copies = [_empty_like(tensor, dtype) for tensor in sources]
        network = copy.deepcopy(model, dict(zip(map(id, sources), copies, strict=True))).eval()
        super().__init__(network, dtype)
        # By .data, through which to write counts no version: the filters of a GPU would pass for others.
        self._targets = [tensor.data for tensor in copies]

    def refresh(self, model: nn.Module) -> None:
        """Take over the values of that module's weights, however they were changed."""
        sources = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        torch._foreach_copy_(self._targets, sources)


class ConvertedInParts(Converted):
    """The same of a MIRNet of this package as it was published, closer to it.

    The image and the first layer's weights come in two parts, rounded and what rounding lost, and the sum
    with the image is made in float32. What is left are the rounding errors in between.
    """

    with_image = True

    def __init__(self, model: MIRNet, dtype: torch.dtype) -> None:
        super().__init__(model, dtype)
        network, first = self.network, model.conv_in
        shape = 3 * first.in_channels, first.out_channels, first.kernel_size
        wide = nn.Conv2d(*shape, padding=first.padding, bias=False, device="meta")  # draws no random numbers
        wide.weight = nn.Parameter(first.weight.new_empty(wide.weight.shape, dtype=dtype), False)
        wide.bias = network.conv_in.bias  # pyrefly: ignore[missing-attribute]
        network.conv_in, network.__class__ = wide, Change
        self._first = wide.weight.data.chunk(3, 1)

    def refresh(self, model: nn.Module) -> None:
        """As Converted's."""
        super().refresh(model)
        weight, (rounded, again, rest) = model.conv_in.weight.detach(), self._first  # pyrefly: ignore
        rounded.copy_(weight)
        again.copy_(weight)
        rest.copy_(weight - rounded)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """As Converted's."""
        rounded = x.to(self.dtype)
        rest = (x - rounded).to(self.dtype)
        return torch.cat([rounded, rest, rounded], 1)

    def leave(self, result: torch.Tensor, x: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """As Converted's."""
        assert x is not None
        return (x + result.to(torch.promote_types(dtype, torch.float32))).to(dtype)


def check(precision: str, device: torch.device) -> None:
    """
    Raises:
        TypeError: `precision` is no str.
        ValueError: it is none of CHOICES, or not there on this device.
    """
    expected = f"precision must be one of {', '.join(CHOICES)}"
    if not isinstance(precision, str):
        raise TypeError(f"{expected}; got {type(precision).__name__}")
    if precision not in CHOICES:
        raise ValueError(f"{expected}; got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' is for GPUs; on a CPU it may be 'bf16' or 'fp32'")


def run(
    model: nn.Module, x: torch.Tensor, precision: str = "auto", multiple: int = 1, check_finite: bool = True
) -> torch.Tensor:
    """model(x) as computed in a precision, without gradients.

    Args:
        model: in eval mode.
        x: (N, C, H, W) floats.
        precision: one of CHOICES.
        multiple: what H and W have to be multiples of.
        check_finite: look for values of the result that are not finite, where it was computed in half
            precision or bfloat16, of images whose own values are; under "auto" these images are computed
            anew in float32, with a warning.

    Raises:
        OverflowError: there are some, and `precision` is not "auto", or model and x are not in float32.
    """
    way = way_of(model, x.dtype, x.device, x.shape[1], precision, multiple)
    dtype = x.dtype if way is None else way.dtype
    result = model(x) if way is None else way(x)
    if not check_finite or dtype not in HALVES:
        return result
    for i in _overflowed(x, result):
        what = f"image[{i}]" if len(x) > 1 else "the image"
        if precision != "auto" or way is None:
            raise overflow(what, dtype)
        warnings.warn(f"{what} overflows in {_names[dtype]}, so it was computed in fp32", RuntimeWarning, 4)
        result[i] = model(x[i : i + 1])[0]
    return result


def way_of(
    model: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    channels: int,
    precision: str = "auto",
    multiple: int = 1,
) -> Way | None:
    """The Way that images of a dtype on a device go in a precision; None: model(image), as they are.

    channels, multiple, precision: as of `run` and `automatic`.
    """
    wanted = dtype
    if precision != "auto":
        wanted = DTYPES[precision]
    elif dtype == torch.float32:
        wanted = DTYPES[automatic(model, device, channels, multiple).precision]
    return None if precision == "auto" and wanted == dtype else _converted(model, wanted)


def overflow(what: str, dtype: torch.dtype) -> OverflowError:
    """The error for an image, named by `what`, whose result is not finite."""
    others = "precision 'fp32'" if dtype == torch.bfloat16 else "precision 'bf16' or 'fp32'"
    return OverflowError(
        f"{what} overflows in {_names[dtype]}: the result has values that are not finite, and the image has "
        f"none; take {others}"
    )


def automatic(model: nn.Module, device: torch.device, channels: int = 3, multiple: int = 1) -> Verdict:
    """What precision "auto" comes to for images on a device.

    Half precision on a GPU with tensor cores, or else bfloat16 there and on a CPU with AMX, for a MIRNet of
    this package as it was published, with weights in float32, where the result for a noisy photo differs by
    at most LARGEST_DIFFERENCE from that in fp32. That is measured once, and again where weights were
    changed; it is fp32 wherever it can't be.

    Args:
        model: in eval mode.
        channels, multiple: of images: how many they have, and what H and W have to be multiples of.
    """
    candidates, reason = candidates_on(device)
    if not candidates:
        return Verdict("fp32", reason)
    if type(model) is not MIRNet:
        return Verdict("fp32", f"{type(model).__name__} is not mirnet_fast.MIRNet, of which more is known")
    with _lock:
        snapshot = eligibility.snapshot_of(model)
        if not snapshot.alone:
            return Verdict("fp32", "the network has hooks, or layers that are not as published")
        if any((t.dtype, t.device) != (torch.float32, device) for t in snapshot.tensors):
            return Verdict("fp32", f"the network is not in float32 on {device}")
        versions = [(t.data_ptr(), None if t.is_inference() else t._version) for t in snapshot.tensors]
        key = device, channels, multiple
        known, verdict = snapshot.precisions.get(key, (None, None))
        if verdict is None or known != versions:
            verdict = _measured(model, candidates, partial(_sample, device, channels, multiple))
            snapshot.precisions[key] = versions, verdict
            _log.info("precision %s on %s: %s", verdict.precision, device, verdict.reason)
        return verdict


def candidates_on(device: torch.device) -> tuple[tuple[str, ...], str]:
    """(precisions that are faster than fp32 on a device, the better first; the reason where none is)."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        found = ("fp16", "bf16") if capability >= (8, 0) else ("fp16",) if capability >= (7, 0) else ()
        return found, "" if found else "this GPU has no tensor cores"
    if device.type == "cpu":
        return (("bf16",), "") if has_amx() else ((), "this CPU has no AMX")
    return (), f"on {device.type} no other precision was tried"


def _measured(model, candidates, sample):
    reasons = []
    for precision in candidates:
        try:
            with torch.inference_mode():
                x = sample()
                difference = _converted(model, DTYPES[precision])(x) - model(x)
                size = 255 * difference.square().mean().sqrt().item()
        except Exception as error:  # of whatever kind: fp32 raises it too, or does without
            reasons.append(f"{precision} fails: {str(error).partition(chr(10))[0]}")
            continue
        differs = f"differs from fp32 by {size:.3f} grey levels" if math.isfinite(size) else "overflows"
        reasons.append(f"{precision} {differs}")
        if size <= LARGEST_DIFFERENCE:
            return Verdict(precision, reasons[-1])
    return Verdict("fp32", f"{'; '.join(reasons)}; {LARGEST_DIFFERENCE} at most would do")


def _sample(device, channels, multiple):
    """A part of a photo with noise, (1, channels, H, W) from 0 to 1."""
    import skimage.data

    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    side = torch.arange(-(-SAMPLE_SIDE // multiple) * multiple)
    rows, columns = side % photo.shape[1], (160 + side) % photo.shape[2]  # the face
    clean = photo[torch.arange(channels) % 3][:, rows][:, :, columns]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return (clean + SAMPLE_NOISE / 255 * noise)[None].to(device)


def _converted(model, dtype):
    """The Way of a model in a dtype.

    The copy that it takes is kept as long as nothing in the model is replaced.
    """
    floats = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    if all(t.dtype == dtype for t in floats):
        return Way(model, dtype)
    with _lock, torch.inference_mode(False), torch.no_grad():
        snapshot = eligibility.snapshot_of(model)
        kept = snapshot.precisions.get(dtype)
        if kept is None:
            in_parts = dtype in HALVES and type(model) is MIRNet and snapshot.alone
            kept = snapshot.precisions[dtype] = (ConvertedInParts if in_parts else Converted)(model, dtype)
        kept.refresh(model)
        return kept


def _empty_like(tensor, dtype):
    result = torch.empty_like(tensor.detach(), dtype=dtype if tensor.is_floating_point() else None)
    return nn.Parameter(result, False) if isinstance(tensor, nn.Parameter) else result


def _as(dtype, result):
    return result.to(dtype) if isinstance(result, torch.Tensor) else result


def _overflowed(x, result):
    """The numbers of the images that are finite and have a result that is not."""
    if not all(type(t) is torch.Tensor and not t.is_meta for t in (x, result)):
        return []
    if result.shape[:1] != x.shape[:1]:
        return []  # which `restore` refuses
    images = x.isfinite().flatten(1).all(1) & ~result.isfinite().flatten(1).all(1)
    return images.nonzero().flatten().tolist()
