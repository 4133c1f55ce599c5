"""Values brought together by one launch: weights in the order that kernels read them, sums cleared.

A plan does that before each of its runs, as values may have changed in place. By PyTorch's operators it
would be a launch for each weight. Floor: every value read and written once. A program moves 64 rows by 64
values, so that of a weight whose taps or outputs lie beside each other it has whole sectors of 32 bytes.
"""

import math

import torch
import triton
import triton.language as tl

from ._common import on_device

ROWS, COLUMNS = 64, 64  # of a program


@triton.jit
def gather_kernel(addresses, table, owners, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VALUE: tl.constexpr):
    # `owners` has the part of each program, `addresses` of each part those of source and target, `table`
    # its sizes (K, H, W, C), strides of the source, first program.
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    source = tl.load(addresses + 2 * owner).to(tl.pointer_type(VALUE))
    target = tl.load(addresses + 2 * owner + 1).to(tl.pointer_type(VALUE))
    part = table + 9 * owner
    height, width, columns = tl.load(part + 1), tl.load(part + 2), tl.load(part + 3)
    rows, place = tl.load(part) * height * width, program - tl.load(part + 8)
    across = tl.cdiv(columns, COLUMNS)
    row = place // across * ROWS + tl.arange(0, ROWS)
    column = place % across * COLUMNS + tl.arange(0, COLUMNS)
    below = row // (height * width) * tl.load(part + 4)
    below += row // width % height * tl.load(part + 5) + row % width * tl.load(part + 6)
    beside = column * tl.load(part + 7)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(source + below[:, None] + beside[None, :], mask=mask)
    tl.store(target + row[:, None] * columns + column[None, :], value, mask=mask)


class Gathering:
    """A launch that copies tensors, and clears others.

    Args:
        targets: contiguous tensors on one device, whose values have one size.
        sources: for each target a tensor of its shape, of at most four dimensions and any strides, that it
            becomes a copy of; None where it is cleared. All stay where they are.
    """

    def __init__(self, targets, sources):
        device, size = targets[0].device, targets[0].itemsize
        zero = torch.zeros(1, dtype=targets[0].dtype, device=device)
        self._kept, self._value = [zero, *targets, *sources], getattr(tl, f"int{8 * size}")
        addresses, parts, owners = [], [], []
        for target, source in zip(targets, sources, strict=True):
            if source is None:
                columns = math.gcd(target.numel(), COLUMNS)
                source = zero.expand(target.numel() // columns, columns)
            source = source[(None,) * (4 - source.dim())]
            addresses += [source.data_ptr(), target.data_ptr()]
            parts.append([*source.shape, *source.stride(), len(owners)])
            columns = source.shape[3]
            programs = triton.cdiv(source.numel() // columns, ROWS) * triton.cdiv(columns, COLUMNS)
            owners += [len(parts) - 1] * programs
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=device)
        # No weight has 2^31 values.
        self._table, self._owners = (
            torch.tensor(v, dtype=torch.int32, device=device) for v in (parts, owners)
        )

    def run(self):
        """Launches it on the current stream."""
        places = self._addresses, self._table, self._owners
        options = {"ROWS": ROWS, "COLUMNS": COLUMNS, "VALUE": self._value, "num_warps": 8}
        with on_device(self._table):
            gather_kernel[(len(self._owners),)](*places, **options)
