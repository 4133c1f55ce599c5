"""One axis of a resampling as a table: which inputs an output is the weighted sum of.

A table is (index, weight), both (outputs, K), padded with weight 0. Blur-pool, bilinear
enlargement and the transposes of both, their gradients, are products of two such tables.
"""

import functools

import torch

from mirnet_fast.reference.filters import BINOMIAL, pad_amounts


def blur_taps(size, filt_size, pad_type, stride, pad_off):
    """Rows of the matrix that pads, filters and keeps every stride-th value of `size` values."""
    before, after = pad_amounts(filt_size, pad_off)
    taps = BINOMIAL[filt_size]
    total = sum(taps)
    rows = []
    for start in range(-before, size + after - filt_size + 1, stride):
        row = {}
        for t, tap in enumerate(taps):
            source = _padded(start + t, size, pad_type)
            if source is not None:
                row[source] = row.get(source, 0) + tap / total
        rows.append(row)
    return rows


def bilinear_taps(size):
    """Rows of the matrix that doubles `size` values, align_corners=False."""
    rows = []
    for i in range(2 * size):
        near, far = i // 2, i // 2 + (1 if i % 2 else -1)
        row = {near: 0.75}
        far = min(max(far, 0), size - 1)
        row[far] = row.get(far, 0) + 0.25
        rows.append(row)
    return rows


def transposed(rows, size):
    """Rows of the transposed matrix; `size` is the length of what `rows` read."""
    columns = [{} for _ in range(size)]
    for i, row in enumerate(rows):
        for source, weight in row.items():
            columns[source][i] = weight
    return columns


def _padded(position, size, pad_type):
    if 0 <= position < size:
        return position
    if pad_type == "zero":
        return None
    if pad_type == "replicate":
        return min(max(position, 0), size - 1)
    return -position if position < 0 else 2 * (size - 1) - position


@functools.lru_cache(maxsize=256)
def blur_table(size, filt_size, pad_type, stride, pad_off, device, backward=False):
    """blur_taps, or its transpose, on a device."""
    rows = blur_taps(size, filt_size, pad_type, stride, pad_off)
    return _table(transposed(rows, size) if backward else rows, device)


@functools.lru_cache(maxsize=256)
def bilinear_table(size, device, backward=False):
    """bilinear_taps, or its transpose, on a device."""
    rows = bilinear_taps(size)
    return _table(transposed(rows, size) if backward else rows, device)


def _table(rows, device):
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "mirnet_fast: the first call for an image size copies a small table to the GPU, which CUDA graph "
            "capture does not allow; call once with these sizes before the capture"
        )
    width = max(1, max(map(len, rows)))
    index = [[*sorted(row), *[0] * (width - len(row))] for row in rows]
    weight = [[*(row[k] for k in sorted(row)), *[0.0] * (width - len(row))] for row in rows]
    # Made outside inference mode, so that later calls with gradients may use it too.
    with torch.inference_mode(False):
        return (
            torch.tensor(index, dtype=torch.int32, device=device),
            torch.tensor(weight, dtype=torch.float32, device=device),
        )
