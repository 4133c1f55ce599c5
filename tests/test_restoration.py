"""restore(memory=) and Restoration: in one piece or in strips, by rows, within so much memory."""

import itertools
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import mirnet_fast
from mirnet_fast import inference, precision, restoration
from mirnet_fast.inference import Restoration, restore

from .ops.common import needs_kernels

pytestmark = needs_kernels

LITTLE = 1_700_000  # bytes; in one piece the image needs twice as much


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 127, 98, generator=torch.Generator().manual_seed(2))


class ByRows:
    """An image that is only there row by row, and what becomes of it."""

    def __init__(self, image):
        self.image, self.asked, self.parts = image, [], []

    def rows(self, begin, end):
        self.asked.append((begin, end))
        return self.image[:, :, begin:end]

    def put(self, begin, part):
        assert begin == sum(part.shape[2] for part in self.parts)
        self.parts.append(part.clone())

    @property
    def result(self):
        return torch.cat(self.parts, 2)


@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.5}, {"strength": "auto"}, {"precision": "bf16"}], ids=str
)
def test_the_same_as_without(network, image, options):
    seen = []
    image = torch.cat([image, image.flip(3), image.flip(2)])
    expected = restore(network, image, **options)
    result = restore(network, image, **options, memory=LITTLE, progress=lambda *args: seen.append(args))
    assert len(seen) > 3 * 7 * 2 and seen[-1][0] == pytest.approx(seen[-1][1])
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(seen))
    tolerance = 0.02 if "precision" in options else 1e-5
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
    assert result.stride() == expected.stride() and not result.is_inference()


def test_what_fits_is_in_one_piece(network, image, monkeypatch):
    monkeypatch.setattr(restoration.strip_run, "run", lambda *args: pytest.fail("in strips"))
    assert restore(network, image, memory="1G").equal(restore(network, image))


def test_without_a_word_it_is_what_is_free(network, image, monkeypatch):
    expected, asked, run = restore(network, image), [], restoration.strip_run.run
    monkeypatch.setattr(inference, "FEW_PIXELS", 0)
    monkeypatch.setattr(restoration.budget, "free", lambda: LITTLE)
    monkeypatch.setattr(restoration.strip_run, "run", lambda *args: asked.append(args) or run(*args))
    torch.testing.assert_close(restore(network, image), expected, rtol=0, atol=1e-5)
    assert len(asked) == 1


def test_by_rows(network, image):
    by_rows = ByRows(image)
    job = Restoration(network, image.shape[1:], memory=LITTLE)
    assert job.forecast.strips > 1 and job.forecast.memory <= LITTLE
    for _ in range(2):
        by_rows.asked.clear(), by_rows.parts.clear()
        job.run(by_rows.rows, by_rows.put)
        assert [begin for begin, _ in by_rows.asked[1:]] == [end for _, end in by_rows.asked[:-1]]
        assert by_rows.asked[0][0] == 0 and by_rows.asked[-1][1] == 127
        torch.testing.assert_close(by_rows.result, restore(network, image), rtol=0, atol=1e-5)
    assert len(by_rows.asked) > 2


def test_by_rows_in_one_piece(network, image):
    by_rows = ByRows(image)
    job = Restoration(network, image.shape[1:])
    assert (job.forecast.strips, job.forecast.file) == (1, 0)
    job.run(by_rows.rows, by_rows.put)
    assert by_rows.result.equal(restore(network, image))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (5, 3), (9, 10), (62, 7)])
def test_of_any_size(network, size):
    image = torch.rand(1, 3, *size)
    by_rows, multiple = ByRows(image), 16
    padded = restoration._Padded(by_rows.rows, image.shape[1:], multiple)
    expected = inference.pad_by_reflection(image, multiple)
    for count in (1, 3, 16):
        begins = range(0, expected.shape[2], count)
        padded = restoration._Padded(by_rows.rows, image.shape[1:], multiple)
        parts = [padded(begin, min(begin + count, expected.shape[2])) for begin in begins]
        assert torch.cat(parts, 2).equal(expected)


def test_a_changed_network_is_seen(network, image):
    by_rows = ByRows(image)
    changed = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    job = Restoration(changed, image.shape[1:], memory=LITTLE)
    changed.conv_in = torch.nn.Conv2d(3, 8, 3, padding=1)
    changed.load_state_dict({k: v for k, v in network.state_dict().items()}, strict=False)
    with torch.no_grad():
        changed.conv_out.weight.mul_(2)
    job.run(by_rows.rows, by_rows.put)
    torch.testing.assert_close(by_rows.result, restore(changed, image), rtol=0, atol=1e-5)


def test_forecast_is_a_line_for_people():
    forecast = restoration.Forecast(12_000_000, 4 * 2**30, 9 * 2**30, "/var/tmp", 188, 600.0)
    assert str(forecast) == (
        "12.0 megapixels in 188 strips, 4.0 GB of memory, a temporary file of 9.0 GB in /var/tmp, "
        "about 10 minutes"
    )
    assert str(restoration.Forecast(10**6, 0, 0, "/tmp", 1, 0.0)) == "1.0 megapixels in one piece"


def test_too_little_memory_says_what_would_do(network, image, tmp_path, monkeypatch):
    with pytest.raises(
        MemoryError, match=r"127 x 98 pixels need 1\.\d MB of memory at least; 0\.0 MB are allowed"
    ):
        restore(network, image, memory=10_000)
    monkeypatch.setattr(restoration.store, "is_in_memory", lambda folder: True)
    with pytest.raises(MemoryError, match="would be in memory too"):
        Restoration(network, image.shape[1:], memory=LITTLE, folder=tmp_path)


def test_where_it_cannot_be_kept(network, image):
    with pytest.raises(ValueError, match="a Sequential is none of mirnet_fast's modules"):
        restore(torch.nn.Sequential(network), image, memory="1G")
    hooked = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()
    cases = [
        (hooked.register_forward_hook, "it has hooks"),
        (register_module_forward_hook, "hooks on all modules"),
    ]
    for register, reason in cases:
        with (
            register(lambda module, args, result: None),
            pytest.raises(ValueError, match=f"cannot be kept: {reason}"),
        ):
            restore(hooked, image, memory=300_000)
    hooked.body[0].body[0].register_forward_hook(lambda module, args, result: None)
    with pytest.raises(
        ValueError, match="cannot be kept: a MSRB in it is called, and what that takes is not"
    ):
        restore(hooked, image, memory=300_000)
    with pytest.raises(ValueError, match="image must have 3 channels; got 4"):
        restore(network, torch.rand(1, 4, 8, 8), memory="1G")


@pytest.mark.parametrize("memory", ["", 0, "lots"])
def test_no_memory(network, image, memory):
    with pytest.raises(ValueError, match="memory must be bytes or text"):
        restore(network, image, memory=memory)


def test_rows_that_do_not_fit(network, image):
    job = Restoration(network, image.shape[1:], memory=LITTLE)
    with pytest.raises(
        ValueError, match=r"rows\(0, \d+\) must give torch.float32 \(1, 3, \d+, 98\); got torch.float64"
    ):
        job.run(lambda begin, end: image[:, :, begin:end].double(), print)
    with pytest.raises(ValueError, match="got NoneType"):
        job.run(lambda begin, end: None, print)


def test_overflow_in_strips(image, monkeypatch):
    torch.manual_seed(0)
    network = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()
    with torch.no_grad():
        network.conv_in.weight.mul_(1e38)
        network.body[0].body[-1].weight.mul_(1e38)
    with pytest.raises(OverflowError, match=r"the image overflows in bf16: .*; take precision 'fp32'"):
        restore(network, image, precision="bf16", memory=LITTLE)
    monkeypatch.setattr(precision, "automatic", lambda *args: precision.Verdict("bf16", "for this test"))
    with pytest.warns(RuntimeWarning, match="overflows in bf16") as told:
        restore(network, image, memory=LITTLE)
    assert told[0].filename == __file__


def test_the_process_stays_within_it():
    """Of a process of its own, what it takes beyond what it had before, at its highest."""
    script = """
        import resource, torch, mirnet_fast
        from mirnet_fast.inference import Restoration

        torch.manual_seed(0)
        torch.set_num_threads(1)
        network = mirnet_fast.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()

        def rows(begin, end):
            return torch.zeros(1, 3, end - begin, 512)

        def run(height, memory):
            job = Restoration(network, (3, height, 512), memory=memory)
            job.run(rows, lambda begin, part: None)
            return job.forecast

        run(16, "64M")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        forecast = run(1024, "20M")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, forecast.strips, forecast.file)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    more, strips, file = map(int, done.stdout.split())
    assert strips > 1 and file > 20 * 2**20
    assert more * 1024 < 1.25 * 20 * 2**20
