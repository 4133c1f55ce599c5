import importlib

import pytest
import torch

from mirnet_fast import ops, reference

from ..cases import first_of
from .common import check_large_means, gradient_maker, needs_kernels
from .subject import CPU, CUDA, TRITON, Op


def case(n, c, h, w, branches=3, squeezed=4, bias=False, slope=1):
    def make(v):
        return (
            [v.map(n, c, h, w) for _ in range(branches)],
            v.weight(squeezed, c, 1, 1),
            v.weight(squeezed) if bias else None,
            v.weight(slope) if slope else None,
            [v.weight(c, squeezed, 1, 1) for _ in range(branches)],
            [v.weight(c) for _ in range(branches)] if bias else [],
        )

    return make


SKFF_SELECT = Op(
    "skff_select",
    cases={
        "plain": case(2, 16, 9, 12),
        "larger": case(1, 20, 31, 97),
        "tiny": case(2, 3, 2, 3, branches=2, squeezed=2, bias=True, slope=2),
        "one branch": case(2, 5, 3, 4, branches=1),
        "two branches": case(3, 64, 4, 49, branches=2, squeezed=8),
        "four branches": case(1, 80, 3, 5, branches=4, bias=True),
        "six branches": case(1, 17, 3, 50, branches=6, bias=True, slope=4),
        "relu": case(1, 8, 3, 5, slope=0),
        "one pixel": case(3, 1, 1, 1),
        "pixels": case(1, 8, 256, 256),
    },
    cuda_cases={
        # More branches than a kernel's arguments hold, with and without accesses of 16 bytes.
        "listed branches": case(1, 8, 3, 5, branches=17, bias=True),
        "many branches": case(2, 3, 2, 3, branches=40),
        "many channels": case(1, 4096, 2, 3, branches=2),
        # Their partial sums are more than one block adds.
        "many sums": case(1, 136, 528, 1),
    },
    into=True,
    widest=True,
)


@SKFF_SELECT.on(CPU)
def test_autocast(op):
    branches, *weights = op.arguments("plain", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = [branches[0], *(b.bfloat16() for b in branches[1:])]
        output = ops.skff_select(mixed, *weights)
        published = reference.skff_select(mixed, *weights)
    assert output.dtype == published.dtype == torch.float32
    rounded = [branches[0], *(b.bfloat16().float() for b in branches[1:])]
    assert torch.equal(output, ops.skff_select(rounded, *weights))


@SKFF_SELECT.on(CPU)
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_in_bands_of_rows(op, dtype):
    branches, *weights = op.arguments("larger", dtype, "channels_last")
    whole = ops.skff_select(branches, *weights)
    bands = [slice(first, first + 10) for first in range(0, whole.shape[2], 10)]
    engine = torch.ops.mirnet_fast_cpu
    sums = [engine.skff_pool([b[:, :, band] for b in branches]) for band in bands]
    torch.testing.assert_close(sum(sums), sum(branches).double().sum((2, 3)), rtol=1e-6, atol=1e-5)
    out = torch.full_like(whole, float("nan"))
    for band in bands:
        parts = [b[:, :, band] for b in branches]
        engine.skff_select_into(out[:, :, band], parts, *weights, sums, whole[0, 0].numel())
    torch.testing.assert_close(out, whole, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@SKFF_SELECT.on(CPU)
@needs_kernels
def test_sums_that_do_not_fit(op):
    branches, *weights = op.arguments("plain")
    out = torch.empty_like(branches[0])
    into = torch.ops.mirnet_fast_cpu.skff_select_into
    good = torch.zeros(2, 16, dtype=torch.float64)
    for wrong in (good[:, :15].contiguous(), good.float()):
        with pytest.raises(RuntimeError, match=r"skff_select: sums must be .* float64 of shape \(2, 16\)"):
            into(out, branches, *weights, [good, wrong], 1)
    with pytest.raises(RuntimeError, match="skff_select: pixels must be those of the sums; got 0"):
        into(out, branches, *weights, [good])


@SKFF_SELECT.on(CPU)
def test_one_tensor_in_every_branch(op):
    branches, *weights = op.arguments("plain")
    op.check_close(branches[:1], lambda op, x: op([x, x, x], *weights))


@SKFF_SELECT.on(CPU)
def test_branches_in_different_layouts(op):
    args = op.arguments("plain")
    branches = [args[0][0].contiguous(memory_format=torch.channels_last), *args[0][1:]]
    torch.testing.assert_close(ops.skff_select(branches, *args[1:]), reference.skff_select(*args))


@SKFF_SELECT.on(CPU)
def test_large_logits_do_not_overflow(op):
    branches, *weights = op.arguments("plain", torch.float32)
    weights[3] = [1e4 * w for w in weights[3]]
    assert torch.isfinite(ops.skff_select(branches, *weights)).all()


@SKFF_SELECT.on(CPU)
def test_wrong_counts(op):
    branches, *weights = op.arguments("plain")
    with pytest.raises(ValueError, match="branches must hold at least one tensor; got none"):
        ops.skff_select([], *weights)
    with pytest.raises(ValueError, match="select_weights must hold one weight a branch, 2; got 3"):
        ops.skff_select(branches[:2], *weights)
    with pytest.raises(ValueError, match="select_biases must be empty or hold 3, one a branch; got 1"):
        ops.skff_select(branches, *weights[:-1], [torch.zeros(16)])


@SKFF_SELECT.on(TRITON)
@pytest.mark.parametrize("partials", first_of([3, 1, 7]))
def test_partial_sums(op, monkeypatch, partials):
    kernels = importlib.import_module("mirnet_fast.kernels.skff_select")
    small = {"TH": 2, "TW": 4, "BC": 8, "num_warps": 4}
    monkeypatch.setattr(kernels, "config", lambda name, x: dict(small))
    # Of two images, by two blocks of channels.
    monkeypatch.setattr(kernels, "PARTIALS", partials * 2 * 2)
    monkeypatch.setattr(kernels, "multiprocessors", lambda x: partials * 2 * 2 // kernels.PROGRAMS)
    args = op.arguments("plain")
    assert kernels.pool(args[0]).shape == (2, partials, 1, 16)
    op.check_contract(args, gradient_maker("dense", torch.float32), draws=1)


@SKFF_SELECT.on(TRITON, CUDA)
def test_large_means(op):
    check_large_means(op, case(1, 16, 24, 32))


@SKFF_SELECT.on(TRITON)
def test_sums_of_a_producer(op):
    branches, *weights = op.arguments("plain")
    kernels = importlib.import_module("mirnet_fast.kernels.skff_select")
    maps = [b.contiguous(memory_format=torch.channels_last) for b in branches]
    first, *rest = [b.double().sum((2, 3)) for b in maps]
    for sums in ([], [first, *rest], [first, sum(rest)]):
        out = torch.empty_like(maps[0])
        kernels.skff_select_into(out, maps, *weights, sums)
        torch.testing.assert_close(out, ops.skff_select(maps, *weights))
    kernels.skff_select_into(maps[1], maps, *weights)
    torch.testing.assert_close(maps[1], out)


@SKFF_SELECT.on(CUDA)
def test_more_channels_than_fit(op):
    # As wide a reduce layer as no network has: its outputs are in shared memory.
    args = case(1, 1, 2, 3, squeezed=30000)(op.values())
    with pytest.raises(RuntimeError, match=r"skff_select on \(1, 1, 2, 3\): .* bytes of shared memory"):
        op.fast(*args)
