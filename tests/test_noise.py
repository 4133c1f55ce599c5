"""The estimate of a photo's noise, and the strength that follows from it."""

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from mirnet_fast import noise
from mirnet_fast.noise import estimate, strength


def tensor(pixels):
    """(1, C, H, W) from 0 to 1 of (H, W, C) from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).permute(2, 0, 1)[None] / 255


def photo(name):
    pixels = getattr(skimage.data, name)().astype(np.float32)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None].repeat(3, 2)
    return pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]


def as_file(pixels):
    return np.clip(np.round(pixels), 0, 255)


def white(pixels, sigma, seed=0):
    return as_file(pixels + sigma * np.random.default_rng(seed).standard_normal(pixels.shape))


def jpeg(pixels, quality):
    data = cv2.imencode(".jpg", as_file(pixels).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32)


def camera(pixels, shot, read, seed=0):
    """Noise of a sensor behind a Bayer mosaic, demosaiced bilinearly, as a JPEG."""
    linear = (pixels / 255) ** 2.2
    mosaic = linear[:, :, 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = linear[::2, ::2, 0], linear[1::2, 1::2, 2]
    spread = np.sqrt(shot * mosaic + read**2)
    mosaic += spread * np.random.default_rng(seed).standard_normal(mosaic.shape)
    whole = cv2.demosaicing((65535 * mosaic.clip(0, 1)).astype(np.uint16), cv2.COLOR_BayerBG2RGB)
    return jpeg(255 * (whole / 65535) ** (1 / 2.2), 92)


def in_grey_levels(pixels):
    return 255 * estimate(tensor(pixels)).item()


PHOTOS = ["astronaut", "chelsea", "coffee", "brick", "camera"]


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("spoil", [as_file, lambda p: jpeg(p, 85)], ids=["as it is", "JPEG 85"])
def test_clean_photos_get_next_to_nothing(name, spoil):
    assert strength(estimate(tensor(spoil(photo(name))))).item() < 0.03


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda p, sigma=sigma: white(p, sigma) for sigma in (5, 25)),
        lambda p: jpeg(white(p, 10), 85),
        lambda p: camera(p, 0.012, 0.02),
    ],
    ids=["5", "25", "10, JPEG 85", "camera"],
)
def test_noise_gets_the_full_strength(name, spoil):
    assert strength(estimate(tensor(spoil(photo(name))))).item() == 1


@pytest.mark.parametrize("name", PHOTOS)
def test_little_noise_gets_part_of_it(name):
    for spoiled in (white(photo(name), 3), camera(photo(name), 0.0015, 0.003)):
        assert 0.1 < strength(estimate(tensor(spoiled))).item() < 1


@pytest.mark.parametrize("sigma", [2, 5, 10, 25])
@pytest.mark.parametrize("base", [np.full((128, 160, 3), 128), photo("chelsea")], ids=["grey", "photo"])
def test_white_noise_is_measured(base, sigma):
    assert in_grey_levels(white(base, sigma)) == pytest.approx(sigma, rel=0.16)


def test_each_image_of_a_batch_has_its_own():
    images = [tensor(white(photo("chelsea")[:200, :200], sigma)) for sigma in (0, 4, 30)]
    together = estimate(torch.cat(images))
    assert together.shape == (3,) and together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat([estimate(image) for image in images]))
    assert together[0] < together[1] < together[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_and_16_bits(dtype):
    fine = photo("coffee")[:256, :256] + 8 * np.random.default_rng(0).standard_normal((256, 256, 3))
    image = tensor(np.clip(np.round(257 * fine), 0, 65535) / 257)
    found = estimate(image.to(dtype))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(estimate(image).item(), rel=0.02)
    assert 255 * found.item() == pytest.approx(in_grey_levels(as_file(fine)), rel=0.02)


def test_grey_photos():
    image = tensor(white(photo("camera")[:, :, :1], 10))
    assert estimate(image.expand(-1, 3, -1, -1)).item() == pytest.approx(estimate(image).item(), rel=1e-5)


def test_neither_gradient_nor_layout_matters():
    image = tensor(white(photo("coffee"), 10))
    seen = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = estimate(seen)
    torch.testing.assert_close(found, estimate(image))
    assert not found.requires_grad


@pytest.mark.parametrize("part", [np.s_[:100], np.s_[-100:], np.s_[:, :100], np.s_[:, -100:]])
def test_large_photos_are_looked_at_everywhere(monkeypatch, part):
    monkeypatch.setattr(noise, "MOST", 16)
    pixels = photo("grass")
    pixels[part] = 100
    assert in_grey_levels(white(pixels, 6)) == pytest.approx(6, rel=0.16)


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_one_colour(value):
    assert in_grey_levels(np.full((40, 50, 3), value)) == 0


@pytest.mark.parametrize("paper", [255, 240])
@pytest.mark.parametrize("smooth", [cv2.LINE_8, cv2.LINE_AA])
def test_a_drawing_has_no_noise(paper, smooth):
    pixels = np.full((300, 400, 3), paper, np.uint8)
    for line in range(20, 300, 20):
        cv2.putText(
            pixels, "one line of text, and then 1234567890", (5, line), 0, 0.55, (30, 0, 90), 1, smooth
        )
    assert in_grey_levels(pixels) == 0


def test_a_ramp_has_no_noise():
    ramp = np.linspace(0, 255, 256)[:, None, None] + np.linspace(0, 20, 300)[None, :, None]
    assert in_grey_levels(as_file(ramp)) < 0.5


def test_black_bars_are_no_part_of_the_photo():
    noisy = white(photo("astronaut"), 10)
    barred = np.zeros((512, 1600, 3))
    barred[:, 544:1056] = noisy
    assert in_grey_levels(barred) == pytest.approx(in_grey_levels(noisy), rel=0.05)


@pytest.mark.parametrize("level", [-25, 280])
def test_what_is_clipped_hides_no_noise_elsewhere(level):
    clean = photo("coffee")
    clean[:300] = level
    assert in_grey_levels(white(clean, 10)) == pytest.approx(10, rel=0.16)
    assert in_grey_levels(as_file(clean)) < 1.5


def test_a_channel_all_of_which_is_clipped_does_not_count():
    yellow = white(np.full((64, 64, 3), 128), 10)
    yellow[:, :, 2] = 0
    assert in_grey_levels(yellow) == pytest.approx(10, rel=0.16)


def test_a_dark_photo_all_of_which_is_clipped():
    assert strength(estimate(tensor(white(np.full((64, 64, 3), 2.0), 12)))).item() == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (15, 40), (40, 15)])
def test_too_small_to_tell(size):
    assert estimate(torch.rand(2, 3, *size)).tolist() == [0, 0]


def test_as_small_as_can_be_told():
    assert in_grey_levels(white(np.full((16, 17, 3), 128), 10)) == pytest.approx(10, rel=0.3)


def test_errors():
    with pytest.raises(TypeError, match=r"tensor of floats from 0 to 1; got torch\.uint8"):
        estimate(torch.zeros(1, 3, 20, 20, dtype=torch.uint8))
    with pytest.raises(TypeError, match="floats from 0 to 1; got float64"):
        estimate(np.zeros((1, 3, 20, 20)))
    with pytest.raises(TypeError, match="floats from 0 to 1; got list"):
        estimate([])
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W\); got \(3, 20, 20\)"):
        estimate(torch.zeros(3, 20, 20))
    for size in (4, 20):
        image = torch.zeros(1, 3, size, size)
        image[0, 1, 2, 3] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            estimate(image)


def test_strength_rises_smoothly():
    sigma = torch.linspace(0, 8 / 255, 400)
    found = strength(sigma)
    assert (found[sigma <= noise.NONE] == 0).all() and (found[sigma >= noise.FULL] == 1).all()
    steps = found.diff()
    assert (steps >= 0).all() and (steps[found[1:] < 1] < 0.02).all()
