"""A network over strips: equal to one piece, within its memory, and nothing left behind."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mirnet_fast
from mirnet_fast.engine import flow, rows, store, strip_run, strips
from mirnet_fast.engine.strips import NotEnough, Strips

from ..cases import first_of
from ..ops.common import needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def maps_alone(monkeypatch):
    """Beside maps as small as these, packed weights would be most of the memory."""
    monkeypatch.setattr(strips, "POINTS", {})


def image_of(height, width, dtype=torch.float32):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def least(network, x, **options):
    """The memory of the narrowest strips."""
    with pytest.raises(NotEnough) as error:
        Strips(network, tuple(x.shape), x.dtype, 1, **options)
    return error.value.least


def over_strips(plan, x, folder, progress=None):
    result = torch.full((1, plan.result.shape[1], *x.shape[2:]), torch.nan, dtype=x.dtype)

    def put(begin, part, image):
        result[:, :, begin : begin + part.shape[2]] = part

    strip_run.run(plan, str(folder), lambda begin, end: x[:, :, begin:end], put, progress)
    return result


def whole(network, x):
    with torch.inference_mode():
        return network(x)


def check(network, x, times, folder, **options):
    """Runs in `times` the least memory; returns the plan."""
    budget = int(times * least(network, x, **options))
    plan = Strips(network, tuple(x.shape), x.dtype, budget, **options)
    assert plan.memory <= budget
    difference = (over_strips(plan, x, folder) - whole(network, x)).abs().max().item()
    assert difference <= (0.04 if x.dtype == torch.bfloat16 else 1e-5)
    return plan


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("size", first_of([(36, 20), (64, 48), (4, 8), (8, 8), (128, 16), (100, 36)], 2))
def test_equal_to_one_piece(network, size, times, tmp_path):
    plan = check(network, image_of(*size), times, tmp_path)
    assert (plan.file > 0 and plan.count > 1) or size[0] < 36


@pytest.mark.parametrize("blocks", first_of([(4, 2), (1, 2), (2, 2), (3, 1), (3, 3)], 1))
def test_of_other_streams_and_columns(blocks, tmp_path):
    torch.manual_seed(0)
    height, width = blocks
    options = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 2, "height": height, "width": width}
    check(mirnet_fast.MIRNet(**options).eval(), image_of(64, 24), 1.5, tmp_path)


def test_in_bfloat16(network, tmp_path):
    check(network.to(torch.bfloat16), image_of(64, 24, torch.bfloat16), 1.5, tmp_path)


def test_with_convolutions_of_pytorch(network, tmp_path):
    with mirnet_fast.use_winograd(False):
        check(network, image_of(48, 24), 1.5, tmp_path)


def test_without_a_file_all_is_in_memory(network, tmp_path):
    plan = check(network, image_of(64, 24), 1, tmp_path, in_file=False)
    assert plan.file == 0


def test_what_is_made_again_is_not_kept(network, tmp_path, monkeypatch):
    monkeypatch.setattr(strips, "WRITTEN", 1e3)  # bytes/s: nothing is worth writing
    plan = check(network, image_of(64, 48), 1.5, tmp_path)
    again = {step.kind for each in plan.flows for step in each.segment.again}
    assert {"conv3x3", "residual_up_tail"} <= again


@pytest.mark.parametrize("bias", [True, False])
def test_sums_of_a_convolution_without_its_result(bias):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    x = torch.rand(1, 5, 9, 6).contiguous(memory_format=torch.channels_last)
    sums, total = torch.empty(1, 7, dtype=torch.float64), 0
    with torch.no_grad():
        for begin, end in ((0, 3), (3, 4), (4, 8), (8, 9)):
            strip_run._put_sums_of_conv(layer, sums, x[:, :, begin:end], begin == 0, end == 9)
            total = total + sums
        expected = layer.double()(x.double()).sum((2, 3))
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_no_row_is_made_twice_or_missing(network):
    plan = Strips(network, (1, 3, 64, 48), torch.float32, 10**6)
    for each in plan.flows:
        parts = [each.strip(number) for number in range(each.count)]
        for step in each.segment.steps:
            spans = [part.made[step] for part in parts if step in part.made]
            assert spans[0][0] == 0
            assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
        for part in parts:
            for step, (begin, end) in part.made.items():
                for name, value in rows.maps_read(step):
                    first, last = rows.needed(step, name, value.height, begin, end)
                    assert part.held[value][0] <= first and last <= part.held[value][1]
            for value, (begin, end) in part.held.items():
                assert end - begin <= each.most_rows()[value]


def test_values_that_live_together_lie_apart(network):
    plan = Strips(network, (1, 3, 64, 48), torch.float32, 600_000)
    for number, places in enumerate(plan.places):
        most = plan.flows[number].most_rows()
        taken = []
        for value, place in places.items():
            size = plan.row_bytes(value) * most[value]
            taken += [(at, at + size) for at in place.buffers]
            if place.whole is not None:
                taken.append((place.whole, place.whole + plan.nbytes(value)))
        taken = sorted(set(taken))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(taken))
        assert taken[-1][1] <= plan.memory


def test_too_little_memory(network):
    x = image_of(64, 48)
    needed = least(network, x)
    Strips(network, tuple(x.shape), x.dtype, needed)
    with pytest.raises(NotEnough):
        Strips(network, tuple(x.shape), x.dtype, needed - 1)


def test_packed_weights_are_counted(network, monkeypatch):
    x = image_of(64, 48)
    without = least(network, x)
    monkeypatch.setattr(strips, "POINTS", {"conv3x3": ((48, 6), (36, 4))})
    assert least(network, x) >= without + 4 * 48 * 32 * 32  # those of the lowest stream


def test_foreign_parts_need_whole_maps(network):
    network.body[0].body[0].register_forward_hook(lambda module, args, result: None)
    with pytest.raises(ValueError, match="a MSRB in it is called with whole maps"):
        Strips(network, (1, 3, 64, 48), torch.float32, 600_000)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop])
def test_nothing_is_left_behind(network, tmp_path, kind):
    plan = Strips(network, (1, 3, 64, 48), torch.float32, 600_000)
    assert plan.file > 0
    x, files, threads = image_of(64, 48), [], threading.active_count()

    def progress(done, total):
        files.append([*tmp_path.iterdir()])
        if done > total / 2:
            raise kind

    with pytest.raises(kind):
        over_strips(plan, x, tmp_path, progress)
    assert files and not any(files)  # it has no name at any time
    assert threading.active_count() == threads


def test_no_space(network, tmp_path):
    with pytest.raises(OSError, match=f"does not fit in {tmp_path}, where .* are free"):
        store.check_space(str(tmp_path), 2**60)
    with pytest.raises(OSError, match="no temporary file can be made in /no/such"):
        store.check_space("/no/such", 1)


def test_a_file_that_cannot_be_written_ends_the_run(network, tmp_path, monkeypatch):
    plan = Strips(network, (1, 3, 64, 48), torch.float32, 600_000)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "pwritev", full)
    with pytest.raises(OSError, match="No space left"):
        over_strips(plan, image_of(64, 48), tmp_path)


def test_two_at_once(network, tmp_path):
    images = [image_of(64, 48), image_of(64, 48).flip(3)]
    plans = [Strips(network, (1, 3, 64, 48), torch.float32, 600_000) for _ in images]
    with ThreadPoolExecutor(2) as pool:
        results = [*pool.map(over_strips, plans, images, [tmp_path] * 2)]
    for x, result in zip(images, results, strict=True):
        torch.testing.assert_close(result, whole(network, x), rtol=0, atol=1e-5)


def test_progress_ends_with_all_of_it(network, tmp_path):
    plan, seen = Strips(network, (1, 3, 36, 20), torch.float32, 200_000), []
    over_strips(plan, image_of(36, 20), tmp_path, lambda done, total: seen.append((done, total)))
    assert len(seen) == sum(each.count for each in plan.flows)
    assert all(before <= after for (before, _), (after, _) in itertools.pairwise(seen))
    assert math.isclose(*seen[-1])


def test_strips_in_the_middle_share_their_calls(network, tmp_path, monkeypatch):
    plan, bound = Strips(network, (1, 3, 128, 16), torch.float32, 100_000), []
    original = strip_run._Calls.of_task
    monkeypatch.setattr(strip_run._Calls, "of_task", lambda *args: bound.append(1) or original(*args))
    over_strips(plan, image_of(128, 16), tmp_path)
    made = sum(len(each.strip(number).made) for each in plan.flows for number in range(each.count))
    assert plan.count == 32 and len(bound) < made / 2


def test_a_flow_reaches_the_end_with_any_rows(network):
    plan = Strips(network, (1, 3, 36, 20), torch.float32, 10**6)
    for count in (4, 12, 36, 64):
        each = flow.Flow(plan.flows[0].segment, 36, count)
        last = each.strip(each.count - 1)
        assert all(end in (36, 18, 9) for _, end in last.made.values())
