"""mirnet_fast.Restorer: any kind of image in, the same out."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import mirnet_fast
from mirnet_fast import MIRNet, Restorer, noise, restorer
from mirnet_fast.checkpoints import save_checkpoint

from .cases import each, exhaustive


@pytest.fixture
def model(one_thread):
    torch.manual_seed(3)
    return MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()


@pytest.fixture
def restore(model):
    return Restorer(model, device="cpu")


def pixels(dtype, *shape):
    values = np.random.default_rng(0).random(shape)
    return (
        values.astype(dtype)
        if np.issubdtype(dtype, np.floating)
        else (values * np.iinfo(dtype).max).astype(dtype)
    )


def expected(model, image):
    """What the network makes of (H, W, 1 or 3) from 0 to 1."""
    rgb = torch.from_numpy(np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32))
    made = mirnet_fast.restore(model, rgb.permute(2, 0, 1)[None].contiguous())[0].permute(1, 2, 0).numpy()
    return made if image.shape[2] == 3 else made.mean(2, keepdims=True)


@each(dtype=[np.uint8, np.uint16, np.float16, np.float32, np.float64], channels=[(), (1,), (2,), (3,), (4,)])
def test_arrays(model, restore, dtype, channels):
    image = pixels(dtype, 9, 14, *channels)
    before = image.copy()
    result = restore(image)
    assert type(result) is np.ndarray and result.dtype == dtype and result.shape == image.shape
    assert np.array_equal(image, before)
    wide = image.reshape(9, 14, -1)
    colours = wide.shape[2] - (wide.shape[2] in (2, 4))
    full = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    wanted = expected(model, wide[:, :, :colours] / np.float64(full))
    got = result.reshape(wide.shape)
    close = 0.501 if full > 1 else 2e-3 if dtype == np.float16 else 1e-5
    wanted = wanted.clip(0, 1) * full if full > 1 else wanted
    assert np.abs(got[:, :, :colours] - wanted).max() <= close * (1 if full < 1000 else 1.1)
    assert np.array_equal(got[:, :, colours:], wide[:, :, colours:])


def test_arrays_that_lie_otherwise(restore):
    image = pixels(np.uint16, 12, 10, 3)
    result = restore(image)
    assert np.array_equal(restore(np.asfortranarray(image)), result)
    assert np.array_equal(restore(image[::-1][::-1]), result)
    swapped = restore(image.astype(">u2"))
    assert swapped.dtype == np.dtype(">u2") and np.array_equal(swapped, result)


@each(
    dtype=[torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64],
    shape=[(3, 8, 12), (2, 3, 8, 12), (1, 8, 12), (4, 8, 12), (2, 2, 8, 12)],
)
def test_tensors(restore, dtype, shape):
    full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    image = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * full).to(dtype)
    result = restore(image)
    assert type(result) is torch.Tensor and result.dtype == dtype and result.shape == shape
    assert not result.requires_grad and not result.is_inference()
    # As the same in an array.
    one = image if len(shape) == 3 else image[1]
    if dtype != torch.bfloat16:
        same = restore(np.ascontiguousarray(one.permute(1, 2, 0).numpy()))
        got = result if len(shape) == 3 else result[1]
        assert np.allclose(
            got.permute(1, 2, 0).double().numpy(), same.astype(float), atol=1e-5 * full + (full > 1)
        )


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "P", "1"])
def test_pil_images(restore, mode):
    if mode == "I;16":
        image = Image.fromarray(pixels(np.uint16, 9, 14))
    else:
        image = Image.fromarray(pixels(np.uint8, 9, 14, 3)).convert(mode)
    image.info["icc_profile"] = b"profile"
    result = restore(image)
    assert isinstance(result, Image.Image) and result.size == (14, 9)
    made_of = {"P": "RGB", "1": "L"}.get(mode, mode)
    assert result.mode == made_of and result.info["icc_profile"] == b"profile"
    assert np.array_equal(
        np.asarray(result), restore(np.array(image if mode == made_of else image.convert(made_of)))
    )


def test_a_palette_with_transparency(restore):
    image = Image.fromarray(pixels(np.uint8, 9, 14, 3)).convert("P")
    image.info["transparency"] = 0
    result = restore(image)
    assert result.mode == "RGBA" and "transparency" not in result.info


def test_a_list_is_restored_in_batches_of_like_sizes(model, restore, monkeypatch):
    monkeypatch.setattr(restorer, "BATCH_PIXELS", 4 * 8 * 8)
    calls, forward = [], MIRNet.forward
    monkeypatch.setattr(MIRNet, "forward", lambda self, x: calls.append(tuple(x.shape)) or forward(self, x))
    wide, small = pixels(np.uint8, 6, 8, 8, 3), pixels(np.float32, 2, 8, 8)
    images = [
        wide[0],
        Image.fromarray(wide[1]),
        torch.from_numpy(wide[2:4]).permute(0, 3, 1, 2),
        pixels(np.uint8, 5, 9),
    ]
    images += [wide[4], small[0], wide[5], small[1]]
    results = restore(images)
    assert sorted(shape[0] for shape in calls) == [1, 4, 4]
    assert [type(r) for r in results] == [type(i) for i in images]
    for image, result in zip(images, results, strict=True):
        alone = restore(image)
        assert np.allclose(np.asarray(alone, float), np.asarray(result, float), atol=1.001)
    assert restore([]) == [] and type(restore((wide[0],))) is list


def test_strength(model):
    noisy = pixels(np.float32, 64, 64, 3)
    full, half = Restorer(model, device="cpu")(noisy), Restorer(model, device="cpu", strength=0.5)(noisy)
    assert np.allclose(half, (noisy + full) / 2, atol=1e-6)
    rgb, change = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (noisy, full - noisy))
    auto = Restorer(model, device="cpu", strength="auto")
    for share, partly in ((1, False), (1.5 / 255 / change.square().mean().sqrt().item(), True)):
        network = lambda x, share=share: x + share * change  # noqa: E731
        auto.network.forward = network
        told, expected = auto.restored(rgb), noise.estimate(rgb, network(rgb))
        torch.testing.assert_close(told.noise, expected)
        torch.testing.assert_close(told.strength, noise.strength(expected))
        torch.testing.assert_close(told.image, rgb + told.strength * share * change)
        assert (0 < told.strength.item() < 1) == partly
    del auto.network.forward
    assert np.array_equal(Restorer(model, device="cpu", strength=0)(noisy), noisy)


def test_self_ensemble(model):
    image = torch.rand(1, 3, 9, 13)
    made = Restorer(model, device="cpu", self_ensemble=True)(image)
    assert torch.allclose(made, mirnet_fast.inference.restore_by_ensemble(model, image), atol=1e-6)
    assert (made - Restorer(model, device="cpu")(image)).abs().max() > 1e-3


def test_by_task_and_by_file(model, tmp_path):
    image = pixels(np.float32, 20, 24, 3)
    save_checkpoint(model, tmp_path / "net.safetensors")
    for path in (tmp_path / "net.safetensors", str(tmp_path / "net.safetensors")):
        assert np.allclose(
            Restorer(path, device="cpu")(image), Restorer(model, device="cpu")(image), atol=1e-6
        )
    shipped = Restorer(device="cpu")
    assert shipped.strength == "auto" and Restorer("denoise", device="cpu").strength == "auto"
    as_restored = mirnet_fast.restore(
        mirnet_fast.load_pretrained(), torch.from_numpy(image).permute(2, 0, 1)[None], strength="auto"
    )
    assert np.allclose(shipped(image), as_restored[0].permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"network": "sharpn"},
            ValueError,
            "network must be a task .denoise.*'sharpn' is neither a task nor a file",
        ),
        ({"network": 3}, TypeError, "network must be a task, .*got int"),
        ({"strength": 1.5}, ValueError, "strength must be .*got 1.5"),
        ({"strength": "much"}, ValueError, "strength must be .*got 'much'"),
        ({"precision": "int8"}, ValueError, "precision must be one of"),
        ({"precision": "fp16"}, ValueError, "fp16' is for GPUs"),
        ({"device": "abacus"}, RuntimeError, "abacus"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        Restorer(**{"device": "cpu", **arguments})


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        ("photo.jpg", TypeError, r"images must be a NumPy array .*got builtins.str"),
        (np.zeros((3, 8, 9), bool), ValueError, r"channels come last: image.transpose\(1, 2, 0\)"),
        (np.zeros((8, 9), bool), TypeError, "uint8, uint16 or floats; got bool"),
        (np.zeros((8, 9, 3), np.int32), TypeError, "got int32"),
        (np.zeros((2, 8, 9, 3), np.uint8), ValueError, r"of a batch give a list"),
        (np.zeros((8, 0, 3), np.uint8), ValueError, r"no side of 0; got \(8, 0, 3\)"),
        (np.zeros(8, np.uint8), ValueError, r"got \(8,\)"),
        (np.full((8, 9, 3), 200.0), ValueError, "floats from 0 to 1, .*got torch.float64 up to 200"),
        (torch.zeros(8, 9, 3), ValueError, r"channels come first: image.movedim\(-1, -3\)"),
        (torch.zeros(8, 9), ValueError, r"got \(8, 9\)"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), TypeError, "got torch.int64"),
        (Image.new("CMYK", (8, 9)), ValueError, r"got CMYK \(image.convert"),
        ([np.zeros((8, 9), np.uint8), None], TypeError, r"images\[1\] must be .*got builtins.NoneType"),
    ],
)
def test_wrong_images(restore, image, error, match):
    with pytest.raises(error, match=match):
        restore(image)


@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=exhaustive)])
def test_several_threads(model, shared):
    images = [pixels(np.float32, 16 + 4 * i, 20, 3) for i in range(6)]
    wanted = [Restorer(model, device="cpu", precision="bf16")(image) for image in images]
    one, wrong = Restorer(model, device="cpu", precision="bf16"), []

    def work():
        own = one if shared else Restorer(model, device="cpu", precision="bf16")
        for _ in range(3):
            for image, right in zip(images, wanted, strict=True):
                if not np.array_equal(own(image), right):
                    wrong.append(image.shape)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
