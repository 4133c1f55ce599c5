"""dau_attention: spatial gate and channel gate on r, the 1x1 convolution of both, plus x.

Forward: `stats_kernel` reads r once and leaves each pixel's channel maximum and mean and partial
sums of each channel, which PyTorch adds; `apply_kernel` does the small layers of the channel gate and
the k x k convolution on the two small maps, multiplies r by both halves of the fuse weight, the gates
applied on the way, and adds bias and x. Floor: 4 maps, 3 where a producer gives the statistics
(`dau_attention_into`).

Backward: the statistics again, with the index of the maximum (1 map); `apply_backward_kernel` leaves
in r's gradient all but the pooled terms (3 maps); `weight_kernel` multiplies gradient and gated r
(2 maps); `taps_kernel` works on small maps only; `spread_kernel` adds the pooled terms (2 maps). A
bias of the 1x1 convolution, which the published network has not, costs one more map.

Tile: pixels by all channels up to 256, so that r is read once; of the products, as many pixels as
keep the float32 sums in registers, for the weights are read again by every tile, from the cache.
The statistics' tiles are 128 pixels by 64 channels, eight 16-byte loads a thread.

The small layers in a launch of their own, a program an image, would leave all multiprocessors but one
waiting. In each program they take, with 64, 128 and 256 channels in 16 bits (r = 8), 3, 9 and 34 KiB from
the second-level cache beside 40, 112 and 352 of maps and fuse weight, and one multiplication for 512 of
the products.
"""

import torch
import triton

from ._common import INTERPRETED, on_device, operand_type, power_of_two, product_precision, tiles
from ._configs import config
from ._dau_backward import apply_backward_kernel, spread_kernel, taps_kernel, weight_kernel
from ._dau_forward import apply_kernel, stats_kernel
from ._layouts import laid_out_like, map_in, map_out, offset_type, strides

# Partial sums of one image: enough programs to fill a GPU.
PARTIALS = 512
# Squeezed channels of the channel gate that a program has at a time: all of the published network's.
SQUEEZED = 32
# Values of all partial sums of the fuse weight's gradient together.
WEIGHT_VALUES = 2**21


def stats(r, with_index=False):
    """pooled (N, 2, H, W), sums (N, programs, C), index (N, H, W) of the maximum or None."""
    n, channels, height, width = r.shape
    c = config("dau_stats", r)
    if r.dtype.itemsize > 2:
        _shrink(c, 4)  # the registers hold no more
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    count = tiles(1, height, width, c["TH"], c["TW"])
    programs = min(count, max(1, PARTIALS // n))
    pooled = r.new_empty((n, 2, height, width), dtype=torch.float32)
    sums = r.new_empty((n, programs, channels), dtype=torch.float32)
    index = r.new_empty((n, height, width), dtype=torch.int32) if with_index else None
    with on_device(r):
        stats_kernel[(programs, n)](
            r,
            pooled,
            index,
            sums,
            *strides(r),
            height,
            width,
            count,
            C=channels,
            BC=bc,
            OFFSET=offset_type(r, pooled),
            **c,
        )
    return pooled, sums, index


def dau_attention_into(
    out,
    r,
    x,
    spatial_weight,
    squeeze_weight,
    squeeze_bias,
    excite_weight,
    excite_bias,
    fuse_weight,
    fuse_bias,
    pooled=None,
    sums=None,
    out_sums=None,
):
    """dau_attention of channels_last maps, into one.

    Args:
        out: as r, written; may be r.
        r, x: (N, C, H, W); x may be None.
        pooled: (N, 2, H, W) float32, contiguous, the maximum and mean over the channels of r. With `sums`, or
            both None: then both are taken of r here.
        sums: (N, C) float64, contiguous, those over r's pixels.
        out_sums: (N, C) float64, contiguous, to which the sums over the pixels of out are added; or None.
    """
    n, channels, height, width = r.shape
    if pooled is None:
        pooled, sums, _ = stats(r)
        sums = sums.sum(1, dtype=torch.float64)
    squeezed = squeeze_weight.shape[0]
    c = _product_options("dau_apply", r, "BO")
    blocks = triton.cdiv(channels, c["BO"])
    if blocks > 1 and out.data_ptr() == r.data_ptr():
        r = r.clone()  # the others would read what one of them wrote
    with on_device(r):
        apply_kernel[(tiles(n, height, width, c["TH"], c["TW"]), blocks)](
            r,
            x,
            pooled,
            sums,
            spatial_weight.contiguous(),
            squeeze_weight.contiguous(),
            None if squeeze_bias is None else squeeze_bias.contiguous(),
            excite_weight.contiguous(),
            None if excite_bias is None else excite_bias.contiguous(),
            fuse_weight.contiguous(),
            None if fuse_bias is None else fuse_bias.contiguous(),
            out,
            out_sums,
            *strides(r),
            *((0, 0, 0) if x is None else strides(x)),
            *strides(out),
            height,
            width,
            height * width,
            C=channels,
            D=squeezed,
            TAPS=spatial_weight.shape[2],
            CP=power_of_two(channels),
            BD=min(SQUEEZED, triton.next_power_of_2(squeezed)),
            OPERAND=operand_type(r.dtype),
            PRECISION=product_precision(),
            OFFSET=offset_type(r, out, pooled, *([] if x is None else [x])),
            **c,
        )


def _shrink(c, times):
    """Tiles so many times smaller, where they are held in registers."""
    if not INTERPRETED:
        c["TH"] = max(1, c["TH"] // times)


def _product_options(kernel, x, side):
    """The options of a kernel for x; `side` names that of how many channels a program keeps in registers."""
    c = config(kernel, x)
    wide = power_of_two(x.shape[1])
    if x.dtype.itemsize > 2:
        # Twice the room for everything, and products outside the tensor cores want more registers.
        _shrink(c, 2)
        c["BK"] = max(16, c["BK"] // 2)
    elif wide <= 64:
        c["BK"] = wide
    return c | {"BK": min(c["BK"], wide), side: min(c[side], wide)}


def dau_attention(r, x, *weights):
    """As mirnet_fast.ops.dau_attention."""
    if r.shape[0] == 0:
        return laid_out_like(map_out(r.shape, r), r)
    out, added = map_out(r.shape, r), None if x is None else map_in(x)
    dau_attention_into(out, map_in(r), added, *weights)
    return laid_out_like(out, r)


def dau_attention_backward(grad, r, spatial_weight, *weights):
    """[gradients of r and of every weight and bias that is not None]."""
    n, channels, height, width = r.shape
    taps = spatial_weight.shape[2]
    *small_weights, fuse_weight, fuse_bias = weights
    r_grad = map_out(r.shape, r)
    if n == 0:
        given = [w for w in (spatial_weight, *weights) if w is not None]
        return [laid_out_like(r_grad, r), *map(torch.zeros_like, given)]
    inner, grad = map_in(r), map_in(grad)
    spatial = spatial_weight.contiguous()
    fuse = fuse_weight.contiguous()
    pooled, r_sums, index = stats(inner, with_index=True)
    small = _Gate(r_sums.sum(1, dtype=torch.float64) / (height * width), *small_weights)
    gate = small.gate.float()
    gates = torch.empty_like(pooled)
    shared = {"C": channels, "OFFSET": offset_type(inner, grad, r_grad, pooled)}
    product = {"OPERAND": operand_type(r.dtype), "PRECISION": product_precision()}

    c = _product_options("dau_apply_backward", r, "BC")
    if r.dtype.itemsize > 2:
        c["num_stages"] = 1  # loads ahead of their use would not fit the registers
    count = tiles(1, height, width, c["TH"], c["TW"])
    programs = min(count, max(1, PARTIALS // n))
    gate_sums = gate.new_empty((n, programs, channels))
    with on_device(r):
        apply_backward_kernel[(programs, n)](
            grad,
            inner,
            pooled,
            spatial,
            gate,
            fuse,
            gates,
            r_grad,
            gate_sums,
            *strides(grad),
            *strides(inner),
            *strides(r_grad),
            height,
            width,
            count,
            TAPS=taps,
            **shared,
            **product,
            **c,
        )

    c = config("dau_weight", r)
    if r.dtype.itemsize > 2:
        # The product sums over the pixels, unrolled where it is not on the tensor cores.
        _shrink(c, 4)
        c["num_warps"] *= 2
    bc = min(c.pop("BC"), power_of_two(channels))
    count = tiles(n, height, width, c["TH"], c["TW"])
    programs = min(count, max(1, WEIGHT_VALUES // (2 * channels**2)), PARTIALS)
    weight_sums = gate.new_empty((programs, channels, 2 * channels))
    with on_device(r):
        weight_kernel[(triton.cdiv(channels, bc) ** 2, programs)](
            grad,
            inner,
            gates,
            gate,
            weight_sums,
            *strides(grad),
            *strides(inner),
            height,
            width,
            count,
            BO=bc,
            BC=bc,
            **shared,
            **product,
            **c,
        )

    c = config("dau_taps", r)
    count = tiles(n, height, width, c["TH"], c["TW"])
    programs = min(count, PARTIALS // 4)
    tap_sums = gate.new_empty((programs, 2, taps, taps))
    with on_device(r):
        taps_kernel[(programs, 2 * taps)](
            gates,
            pooled,
            tap_sums,
            height,
            width,
            count,
            TAPS=taps,
            OFFSET=shared["OFFSET"],
            **c,
        )

    small_gradients, pooled_grad = small.backward(gate_sums.sum(1, dtype=torch.float64))
    shift = (pooled_grad / (height * width)).float()
    c = config("dau_spread", r)
    bc = min(c.pop("BC"), triton.next_power_of_2(channels))
    with on_device(r):
        spread_kernel[(tiles(n, height, width, c["TH"], c["TW"]),)](
            r_grad,
            gates,
            index,
            spatial,
            shift,
            *strides(r_grad),
            height,
            width,
            TAPS=taps,
            BC=bc,
            **shared,
            **c,
        )

    gradients = [(tap_sums.sum(0), spatial_weight), *small_gradients, (weight_sums.sum(0), fuse_weight)]
    if fuse_bias is not None:
        gradients.append((grad.sum((0, 2, 3), dtype=torch.float32), fuse_bias))
    return [laid_out_like(r_grad, r), *(_gradient(value, weight) for value, weight in gradients)]


def _gradient(value, weight):
    """The value in the shape, dtype and memory format of the weight."""
    value = value.to(weight.dtype).view(weight.shape)
    if weight.dim() < 4:
        return value
    return laid_out_like(value.contiguous(memory_format=torch.channels_last), weight)


class _Gate:
    """The channel gate (N, C) of means (N, C) of r, in float64: a few thousand numbers."""

    def __init__(self, pooled, squeeze_weight, squeeze_bias, excite_weight, excite_bias):
        self._weights = squeeze_weight, squeeze_bias, excite_weight, excite_bias
        self._pooled, self._squeeze = pooled, squeeze_weight.flatten(1).double()
        self._excite = excite_weight.flatten(1).double()
        self._before = pooled @ self._squeeze.T
        if squeeze_bias is not None:
            self._before = self._before + squeeze_bias.double()
        self._hidden = torch.where(self._before <= 0, 0, self._before)
        logit = self._hidden @ self._excite.T
        if excite_bias is not None:
            logit = logit + excite_bias.double()
        self.gate = logit.sigmoid()

    def backward(self, gate_grad):
        """[(gradient of a weight, the weight)], gradient of the means."""
        logit_grad = gate_grad * self.gate * (1 - self.gate)
        before_grad = torch.where(self._before <= 0, 0, logit_grad @ self._excite)
        gradients = (
            before_grad.T @ self._pooled,
            before_grad.sum(0),
            logit_grad.T @ self._hidden,
            logit_grad.sum(0),
        )
        pairs = zip(gradients, self._weights, strict=True)
        return [pair for pair in pairs if pair[1] is not None], before_grad @ self._squeeze
