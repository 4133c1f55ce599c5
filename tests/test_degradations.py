"""What spoils photos on their way: each kind by what is known of it, together, and on strange photos."""

import math

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from mirnet_fast.images import ImageError
from mirnet_fast.training import degradations
from mirnet_fast.training.data import Patches, Photos, generator

from .trainings import CLEAN, NOISE, recipe

EXAMPLES = [
    NOISE,
    {"kind": "camera", "shot": (0.01, 0.01), "read": (0.02, 0.02)},
    {"kind": "correlated", "sigma": (0, 20), "blur": (0.1, 3)},
    {"kind": "correlated", "sigma": (20, 20), "blur": (2, 2), "channels": "chroma"},
    {"kind": "correlated", "sigma": (20, 20), "blur": (1, 1), "channels": "luma"},
    {"kind": "jpeg", "quality": (10, 100), "subsampling": ["4:2:0", "4:4:4"]},
    {"kind": "low_light", "gamma": (2, 2), "gain": (0.5, 0.5)},
    {"kind": "resample", "factor": 4, "filter": ["area", "bicubic"]},
    {"kind": "zoom", "factor": (1, 4)},
    {"kind": "sharpen", "amount": (0, 2), "radius": (0.1, 3)},
    {"kind": "raw", "iso": (50, 25600), "exposure": (0.1, 1)},
    {"kind": "fade", "white": (0.5, 1)},
]
TOGETHER = {
    "kind": "any_order",
    "steps": [
        {"kind": "one_of", "steps": EXAMPLES[:5], "weights": [1, 2, 3, 4, 5]},
        {"kind": "chance", "share": 0.5, "steps": EXAMPLES[8:10]},
        EXAMPLES[10],
        EXAMPLES[5],
    ],
}


def step(fields):
    return recipe(train=CLEAN | {"degradations": [fields]}).train.degradations[0]


def grey(height=64, width=48, value=0.5):
    return np.full((height, width, 3), value, np.float32)


def astronaut():
    return skimage.data.astronaut()[:160, 128:288].astype(np.float32) / 255


def psnr(a, b):
    return -10 * math.log10(np.mean((a - b) ** 2))


@pytest.mark.parametrize(
    ("degradation", "check"),
    [
        (
            {"kind": "camera", "shot": (0.01, 0.01), "read": (0.02, 0.02)},
            lambda x, y: abs((y - x).var() - (0.01 * 0.5 + 0.02**2)) < 2e-4,
        ),
        ({"kind": "jpeg", "quality": (10, 10)}, lambda x, y: 0 < np.abs(y - x).max() < 0.1),
        (
            {"kind": "low_light", "gamma": (2, 2), "gain": (0.5, 0.5)},
            lambda x, y: np.allclose(y, 0.125),
        ),
        ({"kind": "resample", "factor": 4}, lambda x, y: np.allclose(y, 0.5, atol=1e-6)),
    ],
)
def test_degradations(degradation, check):
    made = step(degradation)
    grey = np.full((64, 48, 3), 0.5, np.float32)
    spoilt = made.apply(grey, generator(0, 1))
    assert spoilt.dtype == np.float32 and spoilt.shape == grey.shape
    assert check(grey, spoilt)
    assert np.array_equal(spoilt, made.apply(grey, generator(0, 1)))


@pytest.mark.parametrize("fields", [*EXAMPLES, TOGETHER], ids=lambda fields: fields["kind"])
def test_any_photo_survives(fields):
    made = step(fields)
    photo = astronaut()
    shades = [np.zeros((9, 7, 3)), np.ones((8, 13, 3)), np.eye(3)[np.arange(15).reshape(3, 5) % 3]]
    one_pixel = [np.full((1, 1, 3), 0.3), np.full((1, 6, 3), 0.3)]
    windows = [photo[5:38, 7:28], photo[::-1, ::-1], np.rot90(photo[:20, :31])]
    for number, given in enumerate([*shades, *one_pixel, *windows]):
        given = given.astype(np.float32) if given.dtype != np.float32 else given
        before = given.copy()
        for noise in (True, False):
            out = made.apply(given, generator(1, number), noise)
            assert out.shape == given.shape and out.dtype == np.float32
            assert np.isfinite(out).all()
            if fields is not NOISE:
                assert out.min() >= 0 and out.max() <= 1
            assert np.array_equal(out, made.apply(given, generator(1, number), noise))
        assert np.array_equal(given, before)


def test_bicubic_is_as_pillow_has_it():
    photo = astronaut()[:93, :120]
    pixels = Image.fromarray(np.round(255 * photo).astype(np.uint8))
    small = pixels.resize((60, 46), Image.Resampling.BICUBIC).resize((120, 93), Image.Resampling.BICUBIC)
    bicubic, area = (
        step({"kind": "resample", "factor": 2, "filter": [name]}).apply(photo, generator(0, 0))
        for name in ("bicubic", "area")
    )
    assert psnr(bicubic, np.asarray(small) / 255) > 52  # it rounds to 8 bits
    assert psnr(bicubic, photo) < 40 and psnr(area, bicubic) < 48


def test_noise_is_clipped_at_a_chance():
    clean = np.full((8, 8, 3), 0.01, np.float32)
    for chance, expected in ((0, 0), (0.5, 0.5), (1, 1)):
        noise = step(NOISE | {"clip": chance})
        clipped = [noise.apply(clean, generator(0, i)).min() >= 0 for i in range(200)]
        assert abs(np.mean(clipped) - expected) < 0.1


def test_correlated_noise():
    made = step({"kind": "correlated", "sigma": (10, 10), "blur": (2, 2)})
    noise = 255 * (made.apply(grey(256, 256), generator(0, 1)) - 0.5)
    assert noise.std() == pytest.approx(10, rel=0.05)
    for lag in (1, 2, 4):  # the blur of a blur is wider by the root of two
        shared = np.mean(noise[:, lag:] * noise[:, :-lag]) / noise.var()
        assert shared == pytest.approx(math.exp(-(lag**2) / (4 * 2**2)), abs=0.05)
    red, green, blue = noise.reshape(-1, 3).T
    assert np.abs(np.corrcoef([red, green, blue])[np.triu_indices(3, 1)]).max() < 0.1
    edges = np.concatenate([made.apply(grey(8, 256), generator(1, i))[0] for i in range(20)]) - 0.5
    assert 255 * edges.std() == pytest.approx(10, rel=0.1)


def test_noise_of_colour_and_of_light():
    fields = {"kind": "correlated", "sigma": (10, 10), "blur": (1.5, 1.5)}
    chroma = 255 * (step(fields | {"channels": "chroma"}).apply(grey(128, 128), generator(0, 1)) - 0.5)
    luma = chroma @ [0.299, 0.587, 0.114]
    assert np.abs(luma).max() < 1e-3 and chroma.std() > 5
    cb, cr = (chroma[:, :, 2] - luma) / 1.772, (chroma[:, :, 0] - luma) / 1.402
    assert cb.std() == pytest.approx(10, rel=0.1) and cr.std() == pytest.approx(10, rel=0.1)
    assert abs(np.corrcoef(cb.ravel(), cr.ravel())[0, 1]) < 0.1
    light = 255 * (step(fields | {"channels": "luma"}).apply(grey(128, 128), generator(0, 1)) - 0.5)
    assert np.ptp(light, axis=2).max() < 1e-3 and light.std() == pytest.approx(10, rel=0.1)


def test_subsampling_of_colour():
    photo = astronaut()
    default = step({"kind": "jpeg", "quality": (80, 80)}).apply(photo, generator(0, 1))
    pixels = np.round(255 * photo).astype(np.uint8)[:, :, ::-1]
    plain = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)
    assert np.array_equal(np.round(255 * default), plain[:, :, ::-1])
    either = step({"kind": "jpeg", "quality": (80, 80), "subsampling": ["4:2:0", "4:4:4"]})
    made = [psnr(either.apply(photo, generator(0, i)), photo) for i in range(40)]
    assert len(set(made)) == 2 and max(made) > min(made) + 0.5
    assert 0.2 < np.mean(np.array(made) == max(made)) < 0.8


def test_sharpening_overshoots_at_edges_alone():
    edge = grey(16, 64, 0.25)
    edge[:, 32:] = 0.75
    sharp = step({"kind": "sharpen", "amount": (1, 1), "radius": (1, 1)}).apply(edge, generator(0, 1))
    # Half of a Gaussian's cell of one pixel is on the other side: the blur's middle is known.
    step_up = 0.5 * (0.5 - 0.5 * cv2.getGaussianKernel(9, 1)[4, 0])
    assert sharp[8, 32, 0] == pytest.approx(0.75 + step_up, abs=1e-3)
    assert np.abs(sharp - edge)[:, :24].max() < 1e-6
    none = step({"kind": "sharpen", "amount": (0, 0), "radius": (1, 1)}).apply(edge, generator(0, 1))
    assert np.array_equal(none, edge)


def test_zoom_keeps_the_size_and_loses_detail():
    photo = astronaut()[:63, :50]
    lost = {}
    for factor in (1, 1.5, 3):
        made = step({"kind": "zoom", "factor": (factor, factor)})
        outs = [made.apply(photo, generator(0, i)) for i in range(30)]
        lost[factor] = np.mean([np.mean((out - photo) ** 2) for out in outs])
        assert factor == 1 or len({out.tobytes() for out in outs}) > 6  # of 12 ways
    assert lost[1] < 1e-12 < lost[1.5] < lost[3]


# The camera


DEMOSAICINGS = ["bilinear", "edge_aware", "hamilton_adams"]


def raw(**fields):
    return step({"kind": "raw", "iso": (3200, 3200)} | fields)


@pytest.mark.parametrize("demosaic", DEMOSAICINGS)
def test_a_colour_comes_back(demosaic):
    # What is flat loses nothing to the mosaic: whatever the phase, the matrix and the curve, all is undone
    # but for steps of 14 bits. Near black, half of one times gain and matrix (up to 4) and 12.92 of sRGB is
    # 0.4 of a grey level, so rounding may go to the next.
    made = raw(demosaic=[demosaic], bits=(14, 14))
    draw = np.random.default_rng(0)
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255), *draw.integers(0, 250, (40, 3))]
    for number, colour in enumerate(colours):
        flat = np.broadcast_to(np.float32(colour) / 255, (10, 9, 3))
        back = made.apply(flat, generator(0, number), noise=False)
        assert np.abs(255 * back - colour).max() <= 1.001, colour


def test_a_photo_comes_back_but_for_the_mosaic():
    photo = astronaut()
    smooth = cv2.GaussianBlur(photo, (0, 0), 4)
    after = {}
    for demosaic in DEMOSAICINGS:
        made = raw(demosaic=[demosaic], bits=(14, 14))
        assert psnr(made.apply(smooth, generator(0, 1), noise=False), smooth) > 42
        backs = [made.apply(photo, generator(0, i), noise=False) for i in range(4)]
        after[demosaic] = np.mean([psnr(back, photo) for back in backs])
    assert min(after.values()) > 27 and after["hamilton_adams"] > after["bilinear"] + 1


@pytest.fixture
def sensor(monkeypatch):
    """Calls of what makes a sensor's noise: (signal, shot, read, noisy)."""
    calls, real = [], degradations._as_a_sensor

    def spied(signal, shot, read, rng):
        calls.append((signal, shot, read, real(signal, shot, read, rng)))
        return calls[-1][3]

    monkeypatch.setattr(degradations, "_as_a_sensor", spied)
    return calls


def test_noise_of_the_sensor(sensor):
    made = raw()
    for number in range(300):
        made.apply(grey(32, 32), generator(0, number))
    sites, off = [], []
    for signal, shot, read, noisy in sensor:
        assert shot == pytest.approx(degradations.SHOT * 3200)
        off.append(math.log(read**2) - 2.18 * math.log(shot) - 1.2)
        for level in np.unique(signal):  # those of red, green and blue pixels
            noise = (noisy - signal)[signal == level]
            sites.append([level, noise.sum(), len(noise), np.sum(noise**2) / (shot * level + read**2)])
    level, total, count, square = np.transpose(sites)
    assert 0.05 < level.min() < 0.6 * level.max() < 0.3
    for chosen in (level < np.median(level), level >= np.median(level)):
        assert abs(total[chosen].sum() / count[chosen].sum()) < 1e-3
        assert square[chosen].sum() / count[chosen].sum() == pytest.approx(1, abs=0.02)
    assert abs(np.mean(off)) < 0.06 and np.std(off) == pytest.approx(0.26, abs=0.04)


def test_iso_is_drawn_by_its_logarithm(sensor):
    made = raw(iso=(100, 10000))
    for number in range(200):
        made.apply(grey(2, 2), generator(0, number))
    isos = [shot / degradations.SHOT for _, shot, *_ in sensor]
    assert min(isos) >= 99.9 and max(isos) <= 10001
    assert 0.4 < np.mean(np.array(isos) < 1000) < 0.6


@pytest.mark.parametrize(("iso", "low", "high"), [(3200, 26.5, 30.5), (12800, 21, 25)])
def test_how_noisy_an_iso_is(iso, low, high):
    made, photo = raw(iso=(iso, iso)), astronaut()
    ratios = [psnr(*(made.apply(photo, generator(0, i), noise) for noise in (True, False))) for i in range(8)]
    assert low < np.mean(ratios) < high


def test_every_phase_of_the_mosaic(monkeypatch):
    patterns, real = set(), degradations._unprocessed

    def spied(rgb, matrix, gains, pattern, tone):
        patterns.add(tuple(pattern.ravel()))
        return real(rgb, matrix, gains, pattern, tone)

    monkeypatch.setattr(degradations, "_unprocessed", spied)
    for number in range(60):
        raw().apply(grey(4, 4), generator(0, number))
    assert patterns == {(0, 1, 1, 2), (1, 0, 2, 1), (1, 2, 0, 1), (2, 1, 1, 0)}


def test_exposure_darkens_what_is_given_alone():
    fields = {"iso": (0.01, 0.01), "tone": 0, "bits": (14, 14)}
    dark, full = raw(exposure=(0.25, 0.25), **fields), raw(exposure=(1, 1), **fields)
    assert np.array_equal(
        dark.apply(grey(), generator(0, 1), noise=False), full.apply(grey(), generator(0, 1), noise=False)
    )
    light = ((dark.apply(grey(), generator(0, 1)) + 0.055) / 1.055) ** 2.4
    assert np.allclose(light, 0.25 * ((0.5 + 0.055) / 1.055) ** 2.4, atol=2e-3)
    assert raw(tone=0).exposure == (1, 1)


# Steps together


HALVED = {"kind": "low_light", "gamma": (1, 1), "gain": (0.5, 0.5)}
SQUARED = {"kind": "low_light", "gamma": (2, 2), "gain": (1, 1)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "any_order", "steps": [HALVED, SQUARED]}, {0.0625: 0.5, 0.125: 0.5}),
        ({"kind": "one_of", "steps": [HALVED, SQUARED | {"gamma": (3, 3)}]}, {0.25: 0.5, 0.125: 0.5}),
        (
            {"kind": "one_of", "steps": [HALVED, SQUARED | {"gamma": (3, 3)}], "weights": [4, 1]},
            {0.25: 0.8, 0.125: 0.2},
        ),
        ({"kind": "chance", "share": 0.3, "steps": [HALVED, SQUARED]}, {0.0625: 0.3, 0.5: 0.7}),
        ({"kind": "chance", "share": 1, "steps": [SQUARED, HALVED]}, {0.125: 1.0}),
        ({"kind": "chance", "share": 0, "steps": [SQUARED, HALVED]}, {0.5: 1.0}),
    ],
)
def test_steps_together(fields, expected):
    made = step(fields)
    values = [float(made.apply(grey(1, 1), generator(0, i))[0, 0, 0]) for i in range(400)]
    assert set(values) == set(expected)
    for value, share in expected.items():
        assert np.mean(np.array(values) == value) == pytest.approx(share, abs=0.08)


def test_steps_of_one_kind_are_independent():
    twice = step({"kind": "chance", "share": 1, "steps": [NOISE, NOISE]})
    noise = 255 * (twice.apply(grey(), generator(0, 1)) - 0.5)
    assert noise.std() == pytest.approx(25 * math.sqrt(2), rel=0.05)


def processed(*steps, **fields):
    source = {"photos": ["skimage:astronaut"], "degradations": steps, "target": "processed"}
    return Patches(recipe(train=CLEAN | source | fields).train, 32, seed=5)


def test_a_processed_target_has_all_but_the_noise():
    def chain(noisy):
        # Draws more numbers, or other ones, before everything else if it is noisy.
        noise = [
            {"kind": "gaussian", "sigma": (0, 30 * noisy), "clip": 0.5},
            {"kind": "correlated", "sigma": (0, 30 * noisy), "blur": (1, 2)},
            {"kind": "camera", "shot": (0, 0.01 * noisy), "read": (0, 0.05 * noisy)},
        ]
        rest = [fields for fields in EXAMPLES if fields["kind"] in ("zoom", "sharpen", "jpeg")]
        mixed = {"kind": "any_order", "steps": [*rest, {"kind": "chance", "share": 0.5, "steps": noise[:1]}]}
        return [*noise, {"kind": "one_of", "steps": [mixed, noise[1]], "weights": [9, 1]}, rest[0]]

    without, noisy = processed(*chain(0), margin=4), processed(*chain(1), margin=4)
    for number in range(20):
        given, target, _ = without[number]
        assert np.array_equal(given, target)
        given, same, _ = noisy[number]
        assert np.array_equal(target, same) and not np.array_equal(given, same)
    clean = Patches(recipe(train=CLEAN | {"photos": ["skimage:astronaut"]}).train, 32, seed=5)
    assert not any(np.array_equal(without[number][1], clean[number][1]) for number in range(5))


def test_a_processed_target_of_a_camera():
    photos = processed({"kind": "raw", "iso": (12800, 12800)}, {"kind": "jpeg", "quality": (92, 92)}).photos
    pairs = [photos.pair(0, generator(0, i), (slice(0, 96), slice(0, 96))) for i in range(4)]
    clean = photos.target(0)[:96, :96]
    for given, target in pairs:
        assert psnr(given, target) < 28 < psnr(target, clean)
    nothing = processed({"kind": "raw", "iso": (1e-12, 1e-12)}, {"kind": "jpeg", "quality": (92, 92)}).photos
    assert np.array_equal(*nothing.pair(0, generator(0, 1), (slice(0, 96), slice(0, 96))))
    dark = processed({"kind": "low_light", "gamma": (2, 2), "gain": (0.1, 0.1)}).photos
    assert np.array_equal(dark.pair(0, generator(0, 1))[1], dark.target(0))
    faded = processed({"kind": "fade", "white": (0.7, 0.7)}).photos
    for image in faded.pair(0, generator(0, 1)):
        assert np.array_equal(image, np.float32(0.7) * faded.target(0))


def test_margins(tmp_path):
    # Red and green say where a pixel comes from, however the patch was turned.
    rows, columns = np.mgrid[:28, :28]
    photo = np.stack([columns, rows, 9 * (rows + columns) % 256], 2).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), photo[:, :, ::-1])
    source = {
        "kind": "clean",
        "folder": tmp_path,
        "degradations": [{"kind": "jpeg", "quality": (10, 10)}],
        "margin": 6,
    }
    patches = Patches(recipe(train=source).train, 16, seed=0)
    whole, clean = Photos(recipe(train=source).train).pair(0, generator(0, 0))
    assert whole.shape == clean.shape == photo.shape
    corners = set()
    for number in range(120):
        given, target, _ = patches[number]
        x, y, _ = np.round(255 * target.numpy()).astype(int)
        assert np.array_equal(given.numpy().transpose(1, 2, 0), whole[y, x])
        corners.add((y.min(), x.min()))
    for place in zip(*corners, strict=True):
        assert set(place) == set(range(13))
    message = r"28 x 28 pixels, smaller than a patch of 16 with margins of 7, together a square of 30"
    with pytest.raises(ImageError, match=message):
        Patches(recipe(train=source | {"margin": 7}).train, 16, seed=0)[0]
