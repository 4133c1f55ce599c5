"""Where the pixels of a feature map lie.

Feature maps are channels_last inside: a pixel is C consecutive values. A map whose channels are
consecutive is read in place, whatever its other strides; any other is converted once (`map_in`).
"""

import torch
import triton.language as tl


def map_in(x):
    """x with consecutive channels: itself where it has them, else its one conversion."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous(memory_format=torch.channels_last)


def map_out(shape, like, dtype=None):
    """An uninitialised channels_last map for a kernel to write."""
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last
    )


def laid_out_like(out, x):
    """`out` in the memory format that the op promises for an input x: x's.

    The rule is that of mirnet_fast/ops/_registration.py: channels_last where x is.
    """
    return out if x.stride(1) == 1 and x.stride(3) != 1 else out.contiguous()


def strides(x):
    """Strides of image, row and pixel."""
    return x.stride(0), x.stride(2), x.stride(3)


def offset_type(*maps):
    """Type of the offsets within one image: 32 bits where they reach."""
    reach = max(sum((s - 1) * abs(d) for s, d in zip(m.shape[1:], m.stride()[1:], strict=True)) for m in maps)
    return tl.int64 if reach >= 2**31 else tl.int32
