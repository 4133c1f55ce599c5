"""Convolution layers: by this package's kernels where these can and are faster, else by PyTorch's.

On the CPU, 3x3 convolutions in float32 run by Winograd's method, and so, without gradients, do those in
bfloat16, which is then how their maps and weights are stored. Elsewhere, and of other sizes, they are
torch.nn's own, in float32 where this CPU only stores what it is given.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .. import _native, backends

# With fewer pixels a convolution of 64 to 256 channels takes longer than oneDNN: (where it brings its weights
# into Winograd's form first, where it has them from the run before), on two cores.
FEWEST_PIXELS = {nn.Conv2d: (64, 4), nn.ConvTranspose2d: (512, 4)}


def convolution(layer: nn.Conv2d | nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    """layer(x), with gradients.

    Args:
        layer: a torch.nn.Conv2d that keeps height and width, or a torch.nn.ConvTranspose2d that doubles them.
        x: (N, C, H, W), any layout.
    """
    if layer.kernel_size == (1, 1) or not (is_on_cpu(x) and x.stride(1) == 1):
        return called(layer, x)
    if not is_for_kernels(layer, x.shape, x.dtype):
        return called(layer, x)
    if type(layer) is nn.ConvTranspose2d:
        return torch.ops.mirnet_fast_cpu.conv_transpose3x3(x, layer.weight, layer.bias)
    return torch.ops.mirnet_fast_cpu.conv3x3(x, layer.weight, layer.bias, None, None)


def is_on_cpu(x: torch.Tensor) -> bool:
    """Whether kernels of the CPU may run on x where a layer is called: nothing traces or transforms."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not backends.is_transformed()
    )


def is_for_kernels(
    layer: nn.Conv2d | nn.ConvTranspose2d, shape: Sequence[int], dtype: torch.dtype, again: bool = False
) -> bool:
    """Whether the kernels can run the layer on a channels_last map of this shape, and are faster.

    again: it runs with the same weights many times.
    """
    enough = shape[0] * shape[2] * shape[3] >= FEWEST_PIXELS.get(type(layer), (0, 0))[again]
    by_winograd = layer.kernel_size == (3, 3) and enough and backends.winograd()
    stored = dtype == torch.bfloat16 and (again or not torch.is_grad_enabled())
    return (
        (layer.kernel_size == (1, 1) or by_winograd)
        and 0 not in shape
        and dtype == layer.weight.dtype
        and (dtype == torch.float32 or (stored and (uses_amx() or not has_amx())))
        and not torch.is_autocast_enabled("cpu")
        and backends.pick("conv3x3", "cpu", dtype) == "cpu"
    )


def has_amx() -> bool:
    """Whether this CPU multiplies tiles of bfloat16, faster than Winograd's method is in float32."""
    return torch.cpu._is_amx_tile_supported()


def uses_amx() -> bool:
    """Whether the kernels do that, which the user has to ask for."""
    return _native.isa_active() == "amx"


def called(layer: nn.Conv2d | nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    """layer(x), in float32 where this CPU does not compute in x's dtype."""
    if not _is_only_stored(layer, x):
        return layer(x)
    parameters = {name: p.float() for name, p in layer.named_parameters()}
    return torch.func.functional_call(layer, parameters, (x.float(),)).to(x.dtype)


def called_on_rows(layer: nn.Conv2d, x: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Rows [begin, end) of layer(x), of a convolution that keeps height and width."""
    halo = layer.kernel_size[0] // 2
    above, below = max(begin - halo, 0), min(end + halo, x.shape[2])
    rows = x[:, :, above:below]
    if above == begin - halo and below == end + halo and not _is_only_stored(layer, x):
        return F.conv2d(rows, layer.weight, layer.bias, padding=(0, halo), groups=layer.groups)
    # At the border of the map the zeros around it count; around other rows they are cut off.
    return called(layer, rows)[:, :, begin - above : end - above]


def slope_of(activation: nn.Module | None, like: torch.Tensor) -> torch.Tensor | None:
    """The slope argument of the ops for a PReLU, LeakyReLU or ReLU module."""
    if isinstance(activation, nn.PReLU):
        return activation.weight
    if isinstance(activation, nn.LeakyReLU):
        return like.new_full((1,), activation.negative_slope)
    return None


def _is_only_stored(layer, x):
    return (
        is_on_cpu(x)
        and x.dtype == layer.weight.dtype
        and not backends.cpu_computes(x.dtype)
        and not torch.is_autocast_enabled("cpu")
    )
