"""The estimate of a photo's noise, and the strength that follows from it."""

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from mirnet_fast import load_pretrained, noise, restore
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


def in_grey_levels(pixels, restored):
    return 255 * estimate(tensor(pixels), tensor(restored)).item()


@pytest.fixture(scope="module")
def seen():
    """The estimate by what the network that comes along makes of (H, W, C)."""
    network = load_pretrained()

    def seen(pixels):
        image = tensor(pixels)
        return estimate(image, restore(network, image))

    return seen


PHOTOS = ["astronaut", "chelsea", "coffee", "brick"]


def middle(name, side=160):
    pixels = photo(name)
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("spoil", [as_file, lambda p: jpeg(p, 85)], ids=["as it is", "JPEG 85"])
def test_clean_photos_get_next_to_nothing(seen, name, spoil):
    assert strength(seen(spoil(middle(name)))).item() < 0.05


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
def test_noise_gets_the_full_strength(seen, name, spoil):
    assert strength(seen(spoil(middle(name)))).item() == 1


@pytest.mark.parametrize("sigma", [2, 10, 25])
@pytest.mark.parametrize("base", [np.full((128, 160, 3), 128), photo("chelsea")], ids=["grey", "photo"])
def test_what_was_taken_is_measured(base, sigma):
    """From below, as by the calmest blocks."""
    assert 0.85 * sigma < in_grey_levels(white(base, sigma), base) < 1.01 * sigma


def test_texture_that_is_taken_for_noise_is_not_everywhere():
    clean = photo("coffee")[:160, :200]
    noisy, restored = white(clean, 4), clean.copy()
    restored[:, 30:] += 0.5 * (clean.mean() - clean)[:, 30:]
    assert 3.4 < in_grey_levels(noisy, restored) < 4.1
    assert in_grey_levels(clean, restored) == 0


def test_each_image_of_a_batch_has_its_own():
    clean = photo("chelsea")[:200, :200]
    images = [tensor(white(clean, sigma)) for sigma in (0, 4, 30)]
    together = estimate(torch.cat(images), tensor(clean).expand(3, -1, -1, -1))
    assert together.shape == (3,) and together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat([estimate(image, tensor(clean)) for image in images]))
    assert together[0] < together[1] < together[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    clean = photo("coffee")[:256, :256]
    image = tensor(white(clean, 8))
    found = estimate(image.to(dtype), tensor(clean).to(dtype))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(estimate(image, tensor(clean)).item(), rel=0.02)


def test_neither_gradient_nor_layout_matters():
    clean = tensor(photo("coffee"))
    image = tensor(white(photo("coffee"), 10))
    given = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = estimate(given, clean)
    torch.testing.assert_close(found, estimate(image, clean))
    assert not found.requires_grad


@pytest.mark.parametrize("value", [0, 255, 99])
def test_bars_of_one_colour_are_no_part_of_the_photo(value):
    clean, barred = photo("astronaut"), np.full((2, 512, 1600, 3), float(value))
    noisy = white(clean, 10)
    barred[:, :, 544:1056] = noisy, clean
    assert in_grey_levels(*barred) == pytest.approx(in_grey_levels(noisy, clean), rel=0.01)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_colour(value):
    pixels = np.full((40, 50, 3), value)
    assert in_grey_levels(pixels, pixels) == 0


@pytest.mark.parametrize("level", [-25, 280])
def test_what_is_clipped_hides_no_noise_elsewhere(level):
    clean = photo("coffee")
    clean[:300] = level
    assert in_grey_levels(white(clean, 10), as_file(clean)) == pytest.approx(10, rel=0.15)


def test_a_channel_all_of_which_is_clipped_does_not_count():
    clean = np.full((64, 64, 3), 128.0)
    yellow = white(clean, 10)
    yellow[:, :, 2] = clean[:, :, 2] = 0
    assert in_grey_levels(yellow, clean) == pytest.approx(10, rel=0.15)


def test_a_dark_photo_all_of_which_is_clipped():
    clean = np.full((64, 64, 3), 2.0)
    assert strength(estimate(tensor(white(clean, 12)), tensor(clean))).item() == 1


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (15, 40), (40, 15), (16, 17)])
def test_small_photos(size):
    clean = torch.full((2, 3, *size), 0.5)
    noisy = clean + torch.tensor([0.02, 0.04])[:, None, None, None] * torch.sign(
        torch.rand(clean.shape) - 0.5
    )
    torch.testing.assert_close(estimate(noisy, clean), torch.tensor([0.02, 0.04]))


def test_errors():
    image = torch.zeros(1, 3, 20, 20)
    for wrong, kind in ((image.byte(), r"torch\.uint8"), (image.numpy(), "float32"), ([], "list")):
        for name, given in (("image", (wrong, image)), ("restored", (image, wrong))):
            with pytest.raises(TypeError, match=f"{name} must be a tensor of floats from 0 to 1; got {kind}"):
                estimate(*given)
    with pytest.raises(ValueError, match=r"image must be \(N, C, H, W\); got \(3, 20, 20\)"):
        estimate(image[0], image[0])
    with pytest.raises(
        ValueError, match=r"restored must be .*as image, \(1, 3, 20, 20\); got \(1, 1, 20, 20\)"
    ):
        estimate(image, image[:, :1])
    for size in (4, 20):
        image, broken = torch.zeros(2, 1, 3, size, size)
        broken[0, 1, 2, 3] = torch.nan
        for name, given in (("image", (broken, image)), ("restored", (image, broken))):
            with pytest.raises(ValueError, match=f"{name} has values that are not finite"):
                estimate(*given)


def test_strength_rises_smoothly():
    sigma = torch.linspace(0, 4 / 255, 400)
    found = strength(sigma)
    assert (found[sigma <= noise.NONE] == 0).all() and (found[sigma >= noise.FULL] == 1).all()
    steps = found.diff()
    assert (steps >= 0).all() and (steps[found[1:] < 1] < 0.02).all()
