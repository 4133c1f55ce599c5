"""Images that are not in memory as a whole: by rows, in strips, and where memory runs out."""

import cv2
import numpy as np
import pytest
import torch

from mirnet_fast import MIRNet, Restorer, inference, noise
from mirnet_fast.collection import How, Item, job, pipeline, restore_file, restore_files
from mirnet_fast.engine import strip_run
from mirnet_fast.images import read_photo

from ..image_files import random_pixels


@pytest.fixture
def model(one_thread):
    torch.manual_seed(3)
    return MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()


@pytest.fixture
def item(tmp_path):
    pixels = cv2.resize(random_pixels(np.uint16, 12, 9, 4), (200, 260))
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    return Item(str(tmp_path / "in.png"), str(tmp_path / "out.png"))


@pytest.mark.parametrize("memory", [None, "6M"])
def test_by_rows(model, item, monkeypatch, memory):
    restorer = Restorer(model, device="cpu", strength="auto", memory=memory)
    whole = restore_file(item, restorer)
    wanted, seen = read_photo(item.output), []
    monkeypatch.setattr(job, "BY_ROWS", 1000)
    monkeypatch.setattr(pipeline, "WHOLE", {"cpu": 0})
    monkeypatch.setattr(job.Page, "photo", lambda self: pytest.fail("all of it was asked for"))
    summary = restore_files(
        [item], restorer, How(overwrite=True), seen.append, watch=lambda *told: seen.append(told)
    )
    assert summary.restored == 1
    monkeypatch.undo()
    made = read_photo(item.output)
    assert (made.rgb - wanted.rgb).abs().max() < 2e-4 and np.array_equal(made.alpha, wanted.alpha)
    (_, part, forecast), *watched, record = seen
    assert part == 0 and (forecast.strips > 1) == (memory is not None)
    assert [told[1] for told in watched] == sorted(told[1] for told in watched) and watched[-1][
        1
    ] == pytest.approx(1)
    assert record.noise == pytest.approx(whole.noise, rel=0.05) and record.strength == whole.strength == 1


@pytest.mark.parametrize("size", [(16, 16), (17, 300), (1000, 20), (900, 1300), (15, 40)])
def test_noise_is_told_by_windows_of_an_image(size):
    generator = torch.Generator().manual_seed(0)
    image = 0.5 + 0.03 * torch.randn(1, 3, *size, generator=generator)
    windows = noise.sampled(lambda begin, end: image[:, :, begin:end], *size)
    assert len(windows) <= 16 and max(windows.shape[2:]) <= 192
    together, whole = noise.together(windows), torch.full_like(image, 0.5)
    assert together.numel() == windows.numel() and torch.equal(together[..., : windows.shape[3]], windows[:1])
    found = noise.estimate(together, torch.full_like(together, 0.5))
    torch.testing.assert_close(found, noise.estimate(image, whole), rtol=0.03, atol=0)


def test_out_of_memory_is_retried_in_strips_and_said(model, item, monkeypatch):
    restorer, seen = Restorer(model, device="cpu"), []
    assert restore_file(item, restorer).notes == ()
    right = read_photo(item.output)
    error = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.\nTraceback")

    def full(*arguments):
        seen.append(arguments)
        raise error

    monkeypatch.setattr(inference, "in_one_piece", full)
    record = restore_file(item, restorer, How(overwrite=True))
    assert record.status == "restored" and len(seen) == 1
    (note,) = record.notes
    assert note.startswith("out of memory; done in strips within ") and note.endswith(" MB")
    assert (read_photo(item.output).rgb - right.rgb).abs().max() < 2e-4

    monkeypatch.setattr(strip_run, "run", full)
    record = restore_file(item, restorer, How(overwrite=True))
    assert record.status == "failed" and 3 <= len(seen) < 12 and record.notes == ()
    assert (
        record.reason
        == f"{item.input}: DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
    )


def test_another_error_is_not_retried(model, item, monkeypatch):
    seen = []

    def fail(*arguments):
        seen.append(arguments)
        raise RuntimeError("a bug")

    monkeypatch.setattr(inference, "in_one_piece", fail)
    record = restore_file(item, Restorer(model, device="cpu"))
    assert record.status == "failed" and record.reason.endswith(": a bug") and len(seen) == 1


def test_memory_that_is_none():
    with pytest.raises(ValueError, match=r"memory must be bytes or text .*got 'much'"):
        Restorer(MIRNet(n_feat=8, n_RRG=1, n_MSRB=1), memory="much")
