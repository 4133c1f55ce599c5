"""Tensors between two pages that may not be touched: a read or write beyond one ends the process."""

import ctypes
import mmap

import torch

_PAGE = mmap.PAGESIZE
_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def values(count, dtype, at_end=True):
    """So many values that end right before such a page, or begin right behind one."""
    pages = -(-count * dtype.itemsize // _PAGE)
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    for page in (0, pages + 1):
        if _protect(whole.data_ptr() + page * _PAGE, _PAGE, 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect")
    first = (pages + 1) * _PAGE - count * dtype.itemsize if at_end else _PAGE
    return whole[first : first + count * dtype.itemsize].view(dtype)


def strided(shape, strides, dtype, at_end=True):
    """An uninitialised tensor of these strides in such memory; the strides of axes of size 1 are free."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    return values(span, dtype, at_end).as_strided(shape, strides)


def like(value, at_end=True):
    """The same values with the same strides in such memory."""
    copy = strided(value.shape, value.stride(), value.dtype, at_end)
    once(copy).copy_(once(value))
    return copy


def once(value):
    """The part of a tensor that has each of its places in memory once."""
    return value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]
