"""Weights of convolutions as the CPU engine reads them, packed once for each state of a weight.

A weight may change in ways that leave no trace but its values (`weight.data.copy_`, a new `weight.data`),
so the values decide: before each use their fingerprint is compared with that of the packed ones.
"""

import threading

import torch
from torch.utils.weak import WeakIdKeyDictionary

_lock = threading.Lock()
# By the weight itself: modules that share it share this too, and it goes with the weight. Copies and
# pickles of a module do not take it along.
_kept = WeakIdKeyDictionary()


def packed(weight, pack):
    """pack(weight), kept for as long as the weight has these values.

    Args:
        weight: float32 on the CPU.
        pack: always the same for one weight.
    """
    mark = torch.ops.mirnet_fast_cpu.conv3x3_fingerprint(weight)
    with _lock:
        kept = _kept.get(weight)
    if kept is None or kept[0] != mark:
        kept = mark, pack(weight)
        with _lock:
            _kept[weight] = kept
    return kept[1]


def packed_bytes(model):
    """Bytes of the packed weights that are kept for a model's convolutions."""
    with _lock:
        kept = [_kept[p][1] for p in model.parameters() if p in _kept]
    return sum(t.nbytes for t in kept)


def release_packed(model):
    """Let go of a model's packed weights; its next inference packs them anew."""
    with _lock:
        for p in model.parameters():
            _kept.pop(p, None)
