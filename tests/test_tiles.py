"""restore(tile=): near to one piece, in tiles that overlap, with means that are the whole image's."""

import itertools
import threading

import numpy as np
import pytest
import skimage.data
import torch
from torch import nn

import mirnet_fast
from mirnet_fast import MIRNet, Restorer, inference, noise, precision, tiles
from mirnet_fast.inference import restore, tile_difference

from .cases import first_of
from .ops.common import needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def denoiser():
    return mirnet_fast.load_pretrained()


@pytest.fixture(scope="module")
def photo():
    """Of bright and of dark parts, with noise."""
    pixels = torch.from_numpy(skimage.data.astronaut()[::3, ::3].copy()).permute(2, 0, 1)[None] / 255
    return pixels + 0.1 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()


@pytest.fixture(scope="module")
def identity():
    """A network that changes nothing."""
    network = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()
    nn.init.zeros_(network.conv_out.weight)
    return network


def image_of(height, width, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def off(result, exact):
    """(largest, mean) in grey levels."""
    apart = 255 * (result - exact).abs()
    return apart.max().item(), apart.mean().item()


def test_near_to_one_piece_and_how_near_is_told(denoiser, photo, monkeypatch):
    exact = restore(denoiser, photo)
    true = off(restore(denoiser, photo, tile=96), exact)
    told = tile_difference(denoiser, photo, 96)
    assert told is not None and told.largest > told.mean
    assert all(0.1 * a < b < 10 * a for a, b in zip(true, told, strict=True)), (true, told)
    # With means that are exactly the image's what is left comes from the tiles' edges.
    with monkeypatch.context() as patch:
        patch.setattr(tiles, "_patches", lambda image, *rest: image)
        of_edges = off(restore(denoiser, photo, tile=96), exact)
    monkeypatch.setattr(tiles._Network, "_with_means", lambda self, x, means: self._model(x))
    of_own = off(restore(denoiser, photo, tile=96), exact)
    assert all(a < 0.5 * b for a, b in zip(true, of_own, strict=True)), (true, of_own)
    assert all(a < 0.1 * b for a, b in zip(of_edges, of_own, strict=True)), (of_edges, of_own)


def test_where_there_is_no_difference_to_tell(network):
    assert tile_difference(network, image_of(36, 45), 64) is None
    assert tile_difference(network, image_of(36, 45).fill_(torch.nan), 32) is None


@pytest.mark.parametrize("size", first_of([(33, 61), (1, 300), (300, 1), (60, 57), (5, 1200)], 3))
def test_weights_sum_to_one(identity, size):
    image = image_of(*size)
    torch.testing.assert_close(restore(identity, image, tile=33), image, rtol=0, atol=1e-6)
    told = tile_difference(identity, image, 33)
    assert told is not None and told.largest < 1e-3


def test_cuts_of_an_axis():
    for size, side, multiple in itertools.product((32, 36, 64, 68, 300, 1000), (32, 64, 200), (1, 4)):
        overlap = tiles._overlap(side, multiple)
        total = torch.zeros(size, dtype=torch.float64)
        cuts = tiles._cuts(size, side, overlap, multiple)
        for begin, weights in cuts:
            assert begin % multiple == 0 and len(weights) <= side and weights.min() >= 0
            total[begin : begin + len(weights)] += weights
        torch.testing.assert_close(total, torch.ones_like(total))
        assert len({len(weights) for _, weights in cuts}) == 1
        assert len(cuts) == 1 if size <= side else len(cuts) <= 1 + (size - overlap) / (side - overlap)
        # Next to an edge inside of the image a tile is not seen, and neighbours fade into each other.
        for (begin, weights), (after, others) in itertools.pairwise(cuts):
            assert begin + len(weights) - after >= overlap
            assert weights[-1] == others[0] == 0 and weights.diff().min() > -4 / overlap


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (33, 700), (100, 97), (1000, 800)])
def test_patches_are_from_all_over(size):
    image = torch.arange(size[0] * size[1]).reshape(1, 1, *size).float()
    taken = tiles._patches(image, 64, 1)
    assert taken.unique().numel() > 0.95 * taken.numel() and taken.numel() <= 64 * 64
    assert taken.numel() > 0.5 * 64 * 64
    rows, columns = taken.long() // size[1], taken.long() % size[1]
    for places, length in ((rows, size[0]), (columns, size[1])):
        assert places.min() < 16 and places.max() >= length - 16


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (61, 63), (32, 100)])
def test_what_is_no_larger_than_a_tile_is_in_one_piece(network, monkeypatch, size):
    monkeypatch.setattr(inference, "in_tiles", lambda *args: pytest.fail("in tiles"))
    image = image_of(*size)
    assert restore(network, image, tile=67).equal(restore(network, image))
    assert tile_difference(network, image, 67) is None


def test_each_image_of_a_batch_by_itself(network):
    image = image_of(70, 30, batch=3)
    image[1] *= 0.2
    seen = []
    result = restore(network, image, tile=32, progress=lambda *told: seen.append(told))
    for one, alone in zip(image, result, strict=True):
        assert restore(network, one[None], tile=32)[0].equal(alone)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and {t for _, t in seen} == {len(seen)}
    assert len(seen) == 3 * (1 + 3)


@pytest.mark.parametrize("layout", first_of([torch.channels_last, torch.contiguous_format]))
def test_what_comes_back(network, layout):
    image = image_of(36, 45).contiguous(memory_format=layout).requires_grad_()
    result = restore(network, image, tile=32)
    assert result.is_contiguous(memory_format=layout) and result.dtype == torch.float32
    assert not result.requires_grad and not result.is_inference()
    with torch.inference_mode():
        inside = restore(network, image, tile=32)
        assert inside.equal(result)
    assert not inside.is_inference() and network.train().training
    assert restore(network, image, tile=32).equal(result) and network.training
    network.eval()


def test_strength(network):
    image = image_of(36, 45, batch=2)
    full = restore(network, image, tile=32)
    torch.testing.assert_close(restore(network, image, strength=0.5, tile=32), image.lerp(full, 0.5))
    assert restore(network, image, strength=0, tile=32).equal(image)
    weight = noise.strength(noise.estimate(image, full))[:, None, None, None].float()
    torch.testing.assert_close(restore(network, image, strength="auto", tile=32), image.lerp(full, weight))


@pytest.mark.parametrize("dtype", first_of([torch.bfloat16, torch.float64]))
def test_in_other_dtypes(network, dtype):
    image = image_of(36, 45)
    expected = restore(network, image, tile=32)
    other = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    other.load_state_dict(network.state_dict())
    result = restore(other.to(dtype), image.to(dtype), tile=32)
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=tolerance)
    if dtype == torch.bfloat16:
        result = restore(network, image, precision="bf16", tile=32)
        assert result.dtype == torch.float32 and not result.equal(expected)
        torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)


def test_overflow(monkeypatch):
    torch.manual_seed(0)
    network, image = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval(), image_of(36, 45, batch=2)
    with torch.no_grad():
        network.conv_in.weight.mul_(1e38)
        network.body[0].body[-1].weight.mul_(1e38)
    with pytest.raises(OverflowError, match=r"image\[0\] overflows in bf16: .*; take precision 'fp32'"):
        restore(network, image, precision="bf16", tile=32)
    monkeypatch.setattr(precision, "automatic", lambda *args: precision.Verdict("bf16", "for this test"))
    with pytest.warns(RuntimeWarning, match="overflows in bf16") as told:
        restore(network, image, tile=32)
    assert told[0].filename == __file__


def test_weights_that_changed(network):
    image = image_of(36, 45)
    changed = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1, bias=True).eval()
    for options in ({}, {"precision": "bf16"}):
        changed.load_state_dict(network.state_dict())
        assert restore(changed, image, tile=32, **options).equal(restore(network, image, tile=32, **options))
        with torch.no_grad():
            changed.conv_out.weight.mul_(2)
        again = restore(changed, image, tile=32, **options)
        assert (again - restore(network, image, tile=32, **options)).abs().max() > 1e-3


def test_several_threads(network):
    images, wrong = [image_of(36 + 8 * i, 45) for i in range(3)], []
    wanted = [restore(network, image, tile=32) for image in images]

    def work():
        for image, right in zip(images, wanted, strict=True):
            if not restore(network, image, tile=32).equal(right):
                wrong.append(image.shape)

    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tile": 31}, ValueError, "tile must be at least 32, pixels a side; got 31"),
        ({"tile": 63, "multiple": 16}, ValueError, "tile must be at least 64, pixels a side; got 63"),
        ({"tile": -64}, ValueError, "got -64"),
        ({"tile": "64"}, TypeError, "tile must be an integer; got str"),
        ({"tile": True}, TypeError, "tile must be an integer; got bool"),
        ({"tile": 64.0}, TypeError, "tile must be an integer; got float"),
        ({"tile": 64, "memory": "1G"}, ValueError, "tile and memory exclude each other: .*memory='1G'"),
    ],
)
def test_wrong_arguments(network, options, error, match):
    with pytest.raises(error, match=match):
        restore(network, image_of(8, 8), **options)
    if "multiple" not in options:
        with pytest.raises(error, match=match):
            Restorer(network, device="cpu", **options)


def test_networks_that_it_is_not_for(network):
    image = image_of(36, 45)
    with pytest.raises(
        ValueError, match="`tile` is not for this network: a Sequential is none of mirnet_fast"
    ):
        restore(nn.Sequential(network), image, tile=32)
    with pytest.raises(ValueError, match="image must have 3 channels; got 4"):
        restore(network, torch.rand(1, 4, 36, 45), tile=32)
    for path in ("", "body.0.body.0"):
        hooked = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()
        hooked.get_submodule(path).register_forward_hook(lambda module, args, result: None)
        with pytest.raises(
            ValueError, match=r"`tile` is not for this network: .*(hooks|a MSRB in it is called)"
        ):
            restore(hooked, image, tile=32)
    with mirnet_fast.use_backend("reference"), pytest.raises(ValueError, match="the backend is 'reference'"):
        restore(network, image, tile=32)


def test_by_a_restorer(network):
    image = image_of(36, 45)
    by_tiles = Restorer(network, device="cpu", tile=32, strength=0.5)
    wanted = restore(network, image, strength=0.5, tile=32)
    pixels = image[0].permute(1, 2, 0).numpy()
    assert np.allclose(by_tiles(pixels), wanted[0].permute(1, 2, 0), atol=1e-6)
    assert by_tiles.tile_difference(image) == tile_difference(network, image, 32)
    assert Restorer(network, device="cpu").tile_difference(image) is None
    whole = Restorer(network, device="cpu", self_ensemble=True)(image)
    ensemble = Restorer(network, device="cpu", tile=32, self_ensemble=True)(image)
    assert 0 < off(ensemble, whole)[1] < 1


def test_memory_that_runs_out_is_told(network, monkeypatch):
    seen = []

    def full(*arguments):
        seen.append(arguments)
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(inference, "in_tiles", full)
    with pytest.raises(RuntimeError, match="not enough memory"):
        Restorer(network, device="cpu", tile=32)(image_of(36, 45))
    assert len(seen) == 1
