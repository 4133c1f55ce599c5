"""The sums over the pixels that an SKFF needs, from the modules that make its branches.

They have every value at hand, for which a branch would be read once more. A map's sums are kept beside
it while a block runs in which nobody else comes to its maps, and taken by the SKFF that the map goes to.
"""

import contextlib
import threading

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_current = threading.local()


@contextlib.contextmanager
def sums_kept(keep):
    """Inside, in this thread, maps have sums if `keep`."""
    outer = getattr(_current, "sums", None)
    _current.sums = WeakTensorKeyDictionary() if keep else None
    try:
        yield
    finally:
        _current.sums = outer


def sums_for(out):
    """The (N, C) float64 tensor to write the sums of the map `out` to, None where no one asks."""
    known = getattr(_current, "sums", None)
    if known is None:
        return None
    sums = out.new_empty(out.shape[:2], dtype=torch.float64)
    known[out] = [sums]
    return sums


def joined_sums(out, parts):
    """Gives the map `out` the sums of the parts that it consists of, if they all have some."""
    if sums := taken_sums(parts):
        _current.sums[out] = sums


def taken_sums(maps):
    """Tensors whose total is the maps' sum, none if one of them has no sums."""
    known = getattr(_current, "sums", None)
    found = [None if known is None else known.pop(each, None) for each in maps]
    return [] if None in found else [sums for each in found for sums in each]
