"""The photos of a training and of its validation, and the samples drawn from them."""

import cv2
import numpy as np
import pytest
import torch

from mirnet_fast import evaluation
from mirnet_fast.images import ImageError
from mirnet_fast.training import Trainer
from mirnet_fast.training.data import Patches, Photos, generator

from .trainings import CAT, CLEAN, NOISE, PHOTOS, recipe, write_photos


def samples(patches, numbers, workers=0):
    loader = torch.utils.data.DataLoader(patches, batch_size=None, sampler=numbers, num_workers=workers)
    return [(x.clone(), y.clone(), name) for x, y, name in loader]


def test_a_sample_is_a_function_of_its_number():
    patches = Patches(recipe().train, 16, seed=3)
    once = samples(patches, range(6))
    for other in (samples(patches, range(6), workers=2), samples(Patches(recipe().train, 16, 3), range(6))):
        for (a, b, name), (c, d, other_name) in zip(once, other, strict=True):
            assert torch.equal(a, c) and torch.equal(b, d) and name == other_name
    # Every photo once an epoch; the noise on what is clean.
    assert len({name for *_, name in once[:3]}) == len({name for *_, name in once[3:]}) == 3
    noise = torch.stack([x - y for x, y, _ in samples(patches, range(30))])
    assert abs(noise.std() * 255 - 25) < 0.5
    assert not torch.equal(samples(Patches(recipe().train, 16, 4), [0])[0][0], once[0][0])


def test_scales():
    photos = Photos(recipe(train=CLEAN | {"scales": [1.0, 0.5]}).train)
    assert len(photos) == 2 * len(PHOTOS)
    whole, half = photos.target(0), photos.target(len(PHOTOS))
    assert half.shape == (256, 256, 3) and photos.name(0) == photos.name(len(PHOTOS)) == PHOTOS[0]
    assert np.allclose(half, whole.reshape(256, 2, 256, 2, 3).mean((1, 3)), atol=1e-6)


def test_sides():
    photos = Photos(recipe(train=CLEAN | {"sides": [128, 10**6]}).train)
    assert len(photos) == 3 * len(PHOTOS)
    whole, small, as_it_is = (photos.target(i * len(PHOTOS)) for i in range(3))
    assert whole.shape == as_it_is.shape == (512, 512, 3) and small.shape == (128, 128, 3)
    assert np.allclose(small, whole.reshape(128, 4, 128, 4, 3).mean((1, 3)), atol=1e-6)


def test_pairs(tmp_path):
    clean, noisy = write_photos(tmp_path / "clean"), write_photos(tmp_path / "noisy", seed=1)
    photos = Photos(recipe(train={"kind": "pairs", "input": noisy, "target": clean}).train)
    given, target = photos.pair(1, None)
    assert np.array_equal(target, cv2.imread(str(clean / "1.png"))[:, :, ::-1].astype(np.float32) / 255)
    assert np.array_equal(given, cv2.imread(str(noisy / "1.png"))[:, :, ::-1].astype(np.float32) / 255)


def test_photos_that_are_missing_or_do_not_fit(tmp_path):
    clean, noisy = write_photos(tmp_path / "clean", 3), write_photos(tmp_path / "noisy")
    pairs = {"kind": "pairs", "input": noisy, "target": clean}
    with pytest.raises(ImageError, match=r"must hold the same names; only in one of them: 2\.png"):
        Trainer(recipe(train=pairs), tmp_path / "out")
    (clean / "2.png").unlink()
    cv2.imwrite(str(noisy / "0.png"), np.zeros((24, 30, 3), np.uint8))
    with pytest.raises(ImageError, match=r"0\.png is 30 x 24 pixels and .*0\.png 24 x 24"):
        Trainer(recipe(train=pairs), tmp_path / "out").run(progress=False)
    (noisy / "0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0\.png is not an image"):
        Trainer(recipe(train=pairs), tmp_path / "out").run(progress=False)
    with pytest.raises(ImageError, match="there is no such folder"):
        Trainer(recipe(train=pairs | {"input": tmp_path / "none"}), tmp_path / "out")
    folder = {"kind": "clean", "folder": clean, "degradations": [NOISE]}
    with pytest.raises(ImageError, match="24 x 24 pixels, smaller than a patch of 32"):
        Trainer(recipe(train=folder, patch=32), tmp_path / "out").run(progress=False)
    with pytest.raises(ImageError, match="'nobody' is none of skimage:NAME"):
        Photos(recipe(train=folder | {"folder": None, "photos": ["nobody"]}).train).target(0)


@pytest.mark.parametrize("shape", [(5, 5), (10, 40)])
def test_validation_photos_are_checked_before_the_first_step(tmp_path, shape):
    photos = write_photos(tmp_path / "photos", size=shape)
    validation = {"source": {"kind": "clean", "folder": photos, "degradations": [NOISE]}}
    message = rf"0\.png is {shape[1]} x {shape[0]} pixels, smaller than SSIM's window of 11"
    with pytest.raises(ImageError, match=message):
        Trainer(recipe(validation=validation), tmp_path / "out")


def test_smallest_validation_photo(tmp_path):
    photos = write_photos(tmp_path / "photos", size=(11, 11))
    validation = {"source": {"kind": "clean", "folder": photos, "degradations": [NOISE]}, "every": 1}
    Trainer(recipe(validation=validation, steps=1), tmp_path / "out").run(progress=False)


def test_pairs_of_the_validation_are_checked_too(tmp_path):
    clean, noisy = write_photos(tmp_path / "a"), write_photos(tmp_path / "b", size=(24, 25))
    validation = {"source": {"kind": "pairs", "input": noisy, "target": clean}}
    with pytest.raises(ImageError, match="a pair must have one size"):
        Trainer(recipe(validation=validation), tmp_path / "out")


def test_validation_judges_as_evaluate_does(tmp_path):
    trainer = Trainer(recipe(validation=CAT), tmp_path)
    trainer.judge.conv_out.weight.data.zero_()  # the network that gives back its input
    given, target = Photos(recipe(validation=CAT).validation.source).pair(0, generator(0, 2**61))
    expected = evaluation.score("cat", given, target)
    assert trainer.validate() == pytest.approx((expected.psnr, expected.ssim), rel=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photo_is_one_line(tmp_path, workers):
    photos = write_photos(tmp_path / "photos")
    (photos / "1.png").write_bytes(b"no image")
    r = recipe(workers=workers, train={"kind": "clean", "folder": photos, "degradations": [NOISE]})
    with pytest.raises(ImageError, match=r"1\.png is not an image") as error:
        Trainer(r, tmp_path / "out").run(progress=False)
    assert "\n" not in str(error.value)
