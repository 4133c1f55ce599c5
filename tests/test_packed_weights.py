"""Packed weights of 3x3 convolutions: kept where that pays, used only for the values they were made of."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import mirnet_fast
from mirnet_fast import packed_weights_bytes
from mirnet_fast.engine import in_place

from .cases import first_of
from .ops.common import needs_kernels

pytestmark = needs_kernels

OPS = ("conv3x3", "conv_transpose3x3")
# Packed weights are kept up to 2**28 multiply-adds.
SMALL, LARGE = 64, 72  # 256 and 324 tiles of 4 x 4, for 160 channels: too many for 4 x 6
LITTLE, MUCH = 160, 176  # channels, for 256 tiles


@pytest.fixture(autouse=True)
def nothing_kept():
    mirnet_fast.release_workspace()
    yield
    mirnet_fast.release_workspace()


class Convolution:
    """One of OPS as inference calls it, and PyTorch's in float64."""

    def __init__(self, op, inputs=24, outputs=40, size=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.op, self.inputs, self.outputs = op, inputs, outputs
        shape = (outputs, inputs) if op == "conv3x3" else (inputs, outputs)
        self.weight = torch.randn(*shape, 3, 3, generator=generator) / (3 * inputs**0.5)
        x = torch.randn(1, inputs, size, size, generator=generator)
        self.x = x.contiguous(memory_format=torch.channels_last)

    def __call__(self):
        scale = 1 if self.op == "conv3x3" else 2
        size = scale * self.x.shape[2], scale * self.x.shape[3]
        out = torch.empty(1, self.outputs, *size).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            if self.op == "conv3x3":
                in_place.conv3x3_into(out, self.x, self.weight, *(None,) * 5, 0)
            else:
                # With a tail that changes nothing.
                bottom, none = torch.zeros(1, 1, *self.x.shape[2:]), torch.zeros(self.outputs, 1, 1, 1)
                same = torch.eye(self.outputs)[:, :, None, None]
                tail = bottom, torch.ones(1), same, None, none, None
                in_place.residual_up_tail_of_conv(out, self.x, self.weight, None, *tail, 0, None)
        return out

    def is_right(self):
        x, weight = self.x.double(), self.weight.double()
        if self.op == "conv3x3":
            expected = F.conv2d(x, weight, padding=1)
        else:
            expected = F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
        return ((self() - expected).norm() / expected.norm()).item() < 3e-6

    def bytes(self):
        """36 points for 9 taps, or 48 for tiles of six columns; outputs in groups of 16."""
        points = 48 if self.tile_columns() == 6 else 36
        return points * self.inputs * (-(-self.outputs // 16) * 16) * 4

    def tile_columns(self):
        width = self.x.shape[3]
        few = 48 * -(-width // 6) < 36 * -(-width // 4) and self.inputs <= 128
        return 6 if few and self.op == "conv3x3" else 4


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [12, 16])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (17, 40), (64, 64)])
def test_contract(op, channels, size):
    conv = Convolution(op, *channels, size)
    assert conv.is_right()
    assert packed_weights_bytes() == conv.bytes()
    first = conv()
    conv.x.neg_()
    assert torch.equal(conv(), -first)
    assert packed_weights_bytes() == conv.bytes()


def test_one_for_each_shape_of_tiles():
    wide, narrow = Convolution("conv3x3", size=12), Convolution("conv3x3", size=16)
    assert (wide.tile_columns(), narrow.tile_columns()) == (6, 4)
    narrow.weight = wide.weight
    for _ in range(2):
        assert wide.is_right() and narrow.is_right()
        assert packed_weights_bytes() == wide.bytes() + narrow.bytes()
    wide.weight.neg_()
    assert narrow.is_right() and wide.is_right()
    assert packed_weights_bytes() == wide.bytes() + narrow.bytes()


@pytest.mark.parametrize("op", OPS)
def test_only_where_maps_are_small(op):
    large, small = Convolution(op, LITTLE, LITTLE, LARGE), Convolution(op, LITTLE, LITTLE, SMALL)
    assert large.is_right() and packed_weights_bytes() == 0
    assert small.is_right() and packed_weights_bytes() == small.bytes()


@pytest.mark.parametrize("op", OPS)
def test_only_where_there_is_little_to_compute(op):
    large, small = Convolution(op, MUCH, MUCH, SMALL), Convolution(op, LITTLE, LITTLE, SMALL)
    assert large.is_right() and packed_weights_bytes() == 0
    assert small.is_right() and packed_weights_bytes() == small.bytes()


def test_not_where_there_are_gradients():
    conv = Convolution("conv3x3")
    torch.ops.mirnet_fast_cpu.conv3x3(conv.x, conv.weight.requires_grad_(), None, None, None).sum().backward()
    assert packed_weights_bytes() == 0
    network = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    network(torch.rand(1, 3, 32, 32)).sum().backward()
    assert packed_weights_bytes() == 0


CHANGES = {
    "every sign": lambda w: w.neg_(),
    "its data": lambda w: w.data.mul_(1.5),
    "the last bit of one value": lambda w: w.view(torch.int32).view(-1)[-1].bitwise_xor_(1),
    "the first sign": lambda w: w.view(-1)[0].neg_(),
    "two signs of one vector": lambda w: w.view(-1)[:3:2].neg_(),
    "two signs of two vectors": lambda w: w.view(-1)[5:900:128].neg_(),
    "an order": lambda w: w.copy_(w.flip(0)),
    "neighbours": lambda w: w.view(-1)[:2].copy_(w.view(-1)[:2].flip(0)),
    "numpy": lambda w: w.numpy().__imul__(2),
    "zero to minus zero": lambda w: w.view(-1)[7].copy_(torch.tensor(-0.0)),
    "not a number": lambda w: w.view(-1)[11].fill_(float("nan")),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("change", CHANGES)
def test_contract_of_a_changed_weight(op, change):
    conv = Convolution(op)
    conv.weight.view(-1)[7] = 0
    before = conv()
    CHANGES[change](conv.weight)
    after = conv()
    mirnet_fast.release_workspace()
    fresh = conv()
    torch.testing.assert_close(after, fresh, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(after, before) or change == "zero to minus zero"


@pytest.mark.parametrize("op", OPS)
def test_every_value_counts(op):
    """One bit of any of them, in lanes of vectors and behind the last one."""
    conv = Convolution(op, inputs=5, outputs=7)
    for i in range(conv.weight.numel()):
        with torch.no_grad():
            conv.weight.view(-1)[i] += 1
        kept = conv()
        mirnet_fast.release_workspace()
        assert torch.equal(kept, conv()), i


def test_another_weight_at_the_same_address():
    memory = torch.empty(2 * 40 * 24 * 9)
    conv, other = Convolution("conv3x3", 24, 40), Convolution("conv3x3", 40, 24)
    memory[: conv.weight.numel()] = conv.weight.view(-1)
    for shape, c in ((conv.weight.shape, conv), (other.weight.shape, other)):
        c.weight = memory[: c.weight.numel()].view(shape)
        assert c.is_right()
    across = Convolution("conv_transpose3x3", 40, 24)
    across.weight = memory[: across.weight.numel()].view(40, 24, 3, 3)
    assert across.is_right() and conv.is_right() and other.is_right()
    del conv.weight
    for seed in range(20):  # whose memory is often the last one's
        assert Convolution("conv3x3", seed=seed).is_right()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "layout",
    {
        "channels_last": lambda w: w.contiguous(memory_format=torch.channels_last),
        "transposed": lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": lambda w: F.pad(w, (1, 2, 1, 1), value=float("nan"))[:, :, 1:-1, 1:-2],
        "expanded": lambda w: w[:1].expand_as(w),
        "a view of the middle": lambda w: torch.cat([w, w, w])[len(w) : 2 * len(w)],
    }.items(),
    ids=lambda layout: layout[0],
)
def test_layouts_of_a_weight(op, layout):
    name, lay_out = layout
    conv = Convolution(op)
    conv.weight = lay_out(conv.weight)
    assert conv.is_right() and conv.is_right()
    assert packed_weights_bytes() == (0 if name in ("sliced", "expanded") else conv.bytes())
    if name != "expanded":
        conv.weight.neg_()
        assert conv.is_right()


def test_two_that_share_their_weight_share_its_packed_form():
    one, two = Convolution("conv3x3"), Convolution("conv3x3", seed=1)
    two.weight = one.weight
    assert one.is_right() and two.is_right()
    assert packed_weights_bytes() == one.bytes()


def test_released():
    conv = Convolution("conv3x3")
    assert conv.is_right() and packed_weights_bytes()
    mirnet_fast.release_workspace()
    assert packed_weights_bytes() == 0
    assert conv.is_right() and packed_weights_bytes() == conv.bytes()


def test_threads_that_use_change_and_release():
    """Each changes a weight of its own; one they all use; and the kept ones go away beneath them."""
    shared = Convolution("conv3x3", 64, 64)
    expected = shared()

    def work(seed):
        own = Convolution(OPS[seed % 2], seed=seed)
        for i in range(30):
            own.weight.neg_()
            if not (own.is_right() and torch.equal(shared(), expected)):
                return False
            if i % 5 == seed % 5:
                mirnet_fast.release_workspace()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def in_a_child(conv, expected):
    torch.set_num_threads(1)  # as in a DataLoader's workers: OpenMP has no other thread in a child
    conv.weight.neg_()
    assert torch.equal(conv(), expected)
    assert packed_weights_bytes() == conv.bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # with threads: that is the test
def test_forked_processes():
    """Also while another thread looks something up."""
    conv = Convolution("conv3x3")
    expected, stop = -conv(), threading.Event()

    def ask():
        while not stop.is_set():
            packed_weights_bytes()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=in_a_child, args=(conv, expected)) for _ in range(10)]
    asking = threading.Thread(target=ask)
    asking.start()
    for child in children:
        child.start()
    stop.set()
    asking.join()
    for child in children:
        child.join(60)
        child.kill()
        assert child.exitcode == 0
    assert conv.is_right()


def run_with_limit(megabytes, code):
    environment = {k: v for k, v in os.environ.items() if k != "MIRNET_FAST_PACKED_MB"}
    if megabytes is not None:
        environment["MIRNET_FAST_PACKED_MB"] = megabytes
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


KEEPS = """
from tests.test_packed_weights import Convolution, packed_weights_bytes
convs = [Convolution("conv3x3", 64, 64, seed=i) for i in range(4)]
assert all(conv.is_right() for conv in convs) and all(conv.is_right() for conv in convs)
print(packed_weights_bytes() // convs[0].bytes())
"""


@pytest.mark.parametrize("limit", first_of([("2", 3), ("", 4), ("0", 0), ("1", 1), ("100", 4), (None, 4)]))
def test_the_limit(limit):
    """One takes 0.56 MiB."""
    megabytes, kept = limit
    done = run_with_limit(megabytes, KEEPS)
    assert done.returncode == 0 and int(done.stdout) == kept, done.stderr


@pytest.mark.parametrize("megabytes", first_of(["1.5", "-1", "much", "99999999999999999999"]))
def test_a_wrong_limit(megabytes):
    error = run_with_limit(megabytes, KEEPS).stderr
    assert f"MIRNET_FAST_PACKED_MB must be a number of megabytes, 0 or more; got '{megabytes}'" in error


MAKES_ROOM = """
from tests.test_packed_weights import Convolution, packed_weights_bytes
first, second = Convolution("conv3x3", 64, 64), Convolution("conv3x3", 64, 80)
for conv, times in ((first, 1), (second, 1000)):
    assert all(conv.is_right() for _ in range(times))
    assert packed_weights_bytes() == first.bytes()
assert second.is_right() and packed_weights_bytes() == second.bytes()
assert first.is_right() and packed_weights_bytes() == second.bytes()
"""


def test_unused_ones_make_room():
    """After a thousand calls of others."""
    done = run_with_limit("1", MAKES_ROOM)
    assert done.returncode == 0, done.stderr
