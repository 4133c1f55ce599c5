"""mirnet-fast restore, on small networks."""

import errno
import json
import os
import re
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from mirnet_fast import MIRNet, demonstration, evaluation, inference, pretrained, reference
from mirnet_fast.checkpoints import save_checkpoint
from mirnet_fast.collection.job import Job
from mirnet_fast.images import Origin, Page, read_photo
from mirnet_fast.pretrained import network_in

from ..cases import first_of
from .common import CONFIG, random_pixels, read, run


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (16, 16)])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 4)])
def test_restore_keeps_size_and_kind(tmp_path, identity, size, dtype, channels):
    pixels = random_pixels(dtype, *size, channels)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    result = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", identity)
    assert result.exit_code == 0, result.output
    written = read(tmp_path / "out.png")
    assert written.dtype == dtype
    assert np.array_equal(written.reshape(pixels.shape), pixels)


def test_restore_runs_the_network(tmp_path, weights):
    pixels = random_pixels(np.uint8, 12, 16, 3)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    result = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", weights)
    assert result.exit_code == 0, result.output
    torch.manual_seed(3)
    model = reference.MIRNet(**CONFIG)
    rgb = torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = (model(rgb).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()[:, :, ::-1]
    assert np.abs(read(tmp_path / "out.png") - expected).max() <= 1
    assert np.abs(pixels - expected).max() > 5


def test_restore_goes_on_after_a_bad_file(tmp_path, identity):
    names = ["first.png", "bad.png", "last.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), random_pixels(np.uint8, 5, 5, 3))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "new" / "folder"
    inputs = [tmp_path / name for name in (*names, "missing.png")]
    result = run("restore", *inputs, out, "--weights", identity)
    assert result.exit_code == 1
    assert "bad.png is not an image" in result.output
    assert "missing.png: there is no such file" in result.output
    assert "restored 2 of 4 images" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["first.png", "last.png"]


def test_restore_never_overwrites_an_input(tmp_path, identity):
    (tmp_path / "a").mkdir()
    for name in ("a/in.png", "in.png"):
        cv2.imwrite(str(tmp_path / name), random_pixels(np.uint8, 5, 5, 3))
    before = (tmp_path / "in.png").read_bytes()
    result = run("restore", tmp_path / "a/in.png", tmp_path / "in.png", tmp_path, "--weights", identity)
    assert result.exit_code == 1
    assert result.stderr.count("would overwrite the input") == 2
    assert (tmp_path / "in.png").read_bytes() == before


def test_restore_replaces_a_link_to_another_picture(tmp_path, identity):
    for name in ("in.png", "other.png"):
        cv2.imwrite(str(tmp_path / name), random_pixels(np.uint8, 5, 5, 3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "in.png").symlink_to(tmp_path / "other.png")
    before = (tmp_path / "other.png").read_bytes()
    arguments = ["restore", tmp_path / "in.png", tmp_path / "out", "--weights", identity]
    assert "skipped 1" in run(*arguments).output and (tmp_path / "out" / "in.png").is_symlink()
    result = run(*arguments, "--overwrite")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other.png").read_bytes() == before
    assert not (tmp_path / "out" / "in.png").is_symlink()


def test_restore_looks_at_each_name_a_few_times(tmp_path, identity, monkeypatch):
    names, seen = [f"{i}.png" for i in range(200)], []
    for name in names:
        (tmp_path / name).touch()
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: seen.append(args) or stat(*args, **kwargs))
    monkeypatch.setattr(Job, "run", lambda self, *rest: self)
    monkeypatch.setattr(Job, "write", lambda self: Path(self.item.output).touch() or self)
    monkeypatch.setattr(
        "mirnet_fast.collection.job.Pages", lambda *args: [Page(np.zeros((1, 1, 3), "u1"), Origin())]
    )
    (tmp_path / "out").mkdir()
    arguments = [*(tmp_path / name for name in names), tmp_path / "out", "--weights", identity]
    for _ in range(2):  # without and with results of the same names
        seen.clear()
        run("restore", *arguments)
        assert len(seen) < 10 * len(names)
    assert len(os.listdir(tmp_path / "out")) == 200


def test_restore_after_an_error_of_the_disk(tmp_path, identity, monkeypatch):
    inputs = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path in inputs:
        cv2.imwrite(str(path), random_pixels(np.uint8, 5, 5, 3))
    opened = Path.open

    def fail(path, *args, **kwargs):
        if path == inputs[1]:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    result = run("restore", *inputs, tmp_path / "out", "--weights", identity)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"error: {inputs[1]} cannot be read: Input/output error" in result.output
    assert "restored 2 of 3 images" in result.output


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MemoryError("no memory"), KeyError("a bug")]
)
def test_restore_goes_on_whatever_a_file_does(tmp_path, identity, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("mirnet_fast.collection.job.Pages", fail)
    result = run("restore", tmp_path / "a.png", tmp_path / "b.png", tmp_path / "out", "--weights", identity)
    assert result.exit_code == 1 and "restored 0 of 2" in result.output
    assert f"error: {tmp_path / 'b.png'}: " in result.output and str(error.args[-1]) in result.output


def test_restore_says_what_was_done_before_ctrl_c(tmp_path, identity, monkeypatch):
    inputs = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path in inputs:
        cv2.imwrite(str(path), random_pixels(np.uint8, 5, 5, 3))
    forward, calls = MIRNet.forward, []

    def interrupted(self, x):
        calls.append(x)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(MIRNet, "forward", interrupted)
    result = run("restore", *inputs, tmp_path / "out", "--weights", identity)
    assert result.exit_code == 130
    said = f"interrupted; restored 1 of 3 images to {tmp_path / 'out'}, 2 left for another run; "
    assert result.output.splitlines()[-1].startswith(said)
    assert os.listdir(tmp_path / "out") == ["a.png"]


def test_restore_of_a_folder_without_images(tmp_path, identity):
    (tmp_path / "in").mkdir()
    result = run("restore", tmp_path / "in", tmp_path / "out", "--weights", identity)
    assert result.exit_code == 3
    assert f"warning: {tmp_path / 'in'}: no images in it" in result.stderr
    assert not (tmp_path / "out").exists()


def test_restore_into_a_folder_with_a_dot(tmp_path, identity):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 5, 5, 3))
    result = run("restore", tmp_path / "in.png", f"{tmp_path}/v1.2/", "--weights", identity)
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path / "v1.2") == ["in.png"]


def test_restore_on_a_full_disk_keeps_the_old_result(tmp_path, identity):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 64, 64, 3))
    (tmp_path / "out.png").write_bytes(b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))
    try:
        result = run(
            "restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", identity, "--overwrite"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert result.exit_code == 1 and "out.png was not written: File too large" in result.output
    assert (tmp_path / "out.png").read_bytes() == b"old"


def test_restore_never_overwrites_another_result(tmp_path, identity):
    for folder, value in (("a", 10), ("b", 20)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "in.png"), np.full((4, 4, 3), value, np.uint8))
    result = run(
        "restore", tmp_path / "a/in.png", tmp_path / "b/in.png", tmp_path / "out", "--weights", identity
    )
    assert (
        result.exit_code == 1 and result.stderr.count(f"the result would be {tmp_path / 'out/in.png'}") == 2
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "match"), [("out.jpg", "16 bits"), ("out.xyz", "cannot write .xyz")])
def test_restore_checks_the_format_first(tmp_path, identity, name, match, monkeypatch):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint16, 5, 5, 3))
    monkeypatch.setattr(MIRNet, "forward", lambda self, x: pytest.fail("ran the network"))
    result = run("restore", tmp_path / "in.png", tmp_path / name, "--weights", identity)
    assert result.exit_code == 1 and match in result.output
    assert not (tmp_path / name).exists()


def test_restore_names_the_file_that_does_not_fit_in_memory(tmp_path, identity, monkeypatch):
    def out_of_memory(self, x):
        raise RuntimeError("not enough memory")

    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 5, 5, 3))
    monkeypatch.setattr(MIRNet, "forward", out_of_memory)
    result = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", identity)
    assert result.exit_code == 1 and f"{tmp_path / 'in.png'}: not enough memory" in result.output


def test_restore_errors_of_the_checkpoint(tmp_path, identity):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 5, 5, 3))
    arguments = ["restore", tmp_path / "in.png", tmp_path / "out.png"]
    (tmp_path / "bad.pth").write_bytes(b"bad")
    save_checkpoint(MIRNet(1, 1, **CONFIG), tmp_path / "grey.pth")
    for weights, options, match in [
        (tmp_path / "bad.pth", [], "damaged"),
        (tmp_path / "grey.pth", [], "not a network from RGB"),
        (identity, ["--n-feat", 12], "made with n_feat=8, not 12"),
        (identity, ["--width", 3], "made with width=2, not 3"),
        (identity, ["--height", 2], "made with height=3, not 2"),
    ]:
        result = run(*arguments, "--weights", weights, *options)
        assert result.exit_code == 1 and match in result.output
    assert not (tmp_path / "out.png").exists()


def test_restore_takes_the_network_that_the_key_names(tmp_path, identity):
    state = torch.load(identity)
    spoiled = {name: value + 1 for name, value in state.items()}
    path, photo, result = tmp_path / "net.pt", tmp_path / "in.png", tmp_path / "out.png"
    torch.save({"params": spoiled, "params_ema": state}, path)
    cv2.imwrite(str(photo), random_pixels(np.uint8, 9, 10, 3))
    refused = run("restore", photo, result, "--weights", path)
    assert refused.exit_code == 1 and not result.exists()
    assert "several networks; choose one by its key: 'params', 'params_ema'" in refused.output
    assert run("restore", photo, result, "--weights", path, "--key", "params_ema").exit_code == 0
    assert np.array_equal(read(result), read(photo))
    assert run("compare", photo, "--key", "params_ema").exit_code == 2


def test_restore_runs_no_other_network_than_the_checkpoints(tmp_path, identity):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 9, 10, 3))
    refused = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", identity, "--width", 3)
    assert refused.exit_code == 1 and "made with width=2, not 3" in refused.output


def test_restore_output_below_a_file(tmp_path, identity):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 5, 5, 3))
    result = run("restore", tmp_path / "in.png", identity / "out.png", "--weights", identity)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)


def test_restore_without_weights(tmp_path):
    clean = skimage.data.astronaut()[100:200, 100:180].astype(np.float32) / 255
    noisy = demonstration.add_noise(clean, 25, seed=0)
    cv2.imwrite(str(tmp_path / "noisy.png"), np.round(255 * noisy[:, :, ::-1]).astype(np.uint8))
    result = run("restore", tmp_path / "noisy.png", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert "weights: denoise, which comes with mirnet-fast" in result.output
    restored = read(tmp_path / "out.png")[:, :, ::-1].astype(np.float32) / 255
    assert evaluation.psnr(restored, clean) > evaluation.psnr(noisy, clean) + 6
    assert ", noise of 2" in result.output and "strength 1.00, " in result.output
    for arguments in (["--task", "denoise"], ["--strength", 1], ["--weights", pretrained.weights_of()]):
        told = ["restore", tmp_path / "noisy.png", tmp_path / "as.png", "--overwrite", *arguments]
        assert run(*told).exit_code == 0
        assert (tmp_path / "as.png").read_bytes() == (tmp_path / "out.png").read_bytes()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "brick", "camera"])
def test_restore_leaves_a_clean_photo_as_it_is(tmp_path, name):
    pixels = getattr(skimage.data, name)()
    pixels = pixels[tuple(slice((side - 240) // 2, (side + 240) // 2) for side in pixels.shape[:2])]
    cv2.imwrite(str(tmp_path / "clean.png"), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    result = run("restore", tmp_path / "clean.png", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    clean, restored = (read(tmp_path / f"{file}.png").astype(np.float32) / 255 for file in ("clean", "out"))
    assert evaluation.psnr(restored, clean) > 42
    assert 255 * np.abs(restored - clean).mean() < 1


def test_restore_makes_as_much_of_the_change_as_it_is_told(tmp_path, weights):
    pixels = random_pixels(np.uint16, 20, 24, 3)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    made = {}
    for strength in ("", 0, 0.5, 1, "auto"):
        told = ["--strength", strength] if strength != "" else []
        told.append("--overwrite")
        result = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", weights, *told)
        assert result.exit_code == 0, result.output
        assert ("strength 1.00" in result.output) == (strength == "auto")
        made[strength] = read(tmp_path / "out.png").astype(float)
    assert np.array_equal(made[0], pixels) and np.array_equal(made[1], made["auto"])
    assert np.array_equal(made[1], made[""]) and np.abs(made[1] - pixels).max() > 1000
    inside = (made[1] > 0) & (made[1] < 65535)  # elsewhere the change was more
    assert np.abs(made[0.5] - (pixels + made[1]) / 2)[inside].max() <= 1


@pytest.mark.parametrize("strength", ["-0.1", "1.01", "nan", "inf", "much", "", "0,5"])
def test_restore_refuses_other_strengths(tmp_path, identity, strength):
    result = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--strength", strength)
    assert result.exit_code == 2
    assert f"{strength!r} is neither a number from 0 to 1 nor 'auto'" in result.output


def test_restore_by_task(tmp_path, weights, monkeypatch):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint8, 20, 24, 3))
    arguments = ["restore", tmp_path / "in.png", tmp_path / "out.png"]
    tasks = {"denoise": pretrained.weights_of()}
    monkeypatch.setattr(pretrained, "tasks", lambda: tasks)
    for task in ("enhance", "denoise_large", ""):
        result = run(*arguments, "--task", task)
        assert result.exit_code == 2
        assert f"--task must be one of those that come along, denoise; got {task!r}" in result.output
    both = run(*arguments, "--task", "denoise", "--weights", weights)
    assert both.exit_code == 2 and "--task and --weights both choose the network" in both.output

    tasks["enhance"] = weights
    automatic = run(*arguments, "--task", "enhance", "--strength", "auto")
    assert automatic.exit_code == 2 and "--strength auto goes by the noise" in automatic.output
    assert not (tmp_path / "out.png").exists()
    result = run(*arguments, "--task", "enhance")
    assert result.exit_code == 0, result.output
    assert "weights: net, which comes with mirnet-fast, for the task enhance" in result.output
    assert "strength" not in result.output
    assert run(*arguments[:2], tmp_path / "as.png", "--weights", weights).exit_code == 0
    assert np.array_equal(read(tmp_path / "as.png"), read(tmp_path / "out.png"))


def test_restore_into_another_format(tmp_path, identity):
    pixels = random_pixels(np.uint8, 9, 10, 3)
    for name in ("a.png", "b.bmp"):
        cv2.imwrite(str(tmp_path / name), pixels)
    inputs = [tmp_path / "a.png", tmp_path / "b.bmp", tmp_path / "out"]
    result = run("restore", *inputs, "--format", "tif", "--weights", identity)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path / "out")) == ["a.tif", "b.tif"]
    assert np.array_equal(read(tmp_path / "out" / "b.tif"), pixels)
    other = run("restore", *inputs, "--format", "xyz", "--weights", identity)
    assert other.exit_code == 2 and "--format must be one of avif, bmp," in other.output
    one = run("restore", inputs[0], tmp_path / "c.png", "--format", "tif", "--weights", identity)
    assert one.exit_code == 2 and "c.png has a suffix of its own" in one.output


def test_restore_salvages_what_it_is_told_to(tmp_path, identity):
    smooth = cv2.resize(random_pixels(np.uint8, 5, 5, 3), (64, 64))
    cv2.imwrite(str(tmp_path / "in.jpg"), smooth)
    data = (tmp_path / "in.jpg").read_bytes()
    (tmp_path / "in.jpg").write_bytes(data[: len(data) * 7 // 10])
    arguments = ["restore", tmp_path / "in.jpg", tmp_path / "out.jpg", "--weights", identity]
    refused = run(*arguments)
    assert refused.exit_code == 1 and "in.jpg is damaged: the end of the image is not there" in refused.output
    assert not (tmp_path / "out.jpg").exists()
    result = run(*arguments, "--salvage")
    assert result.exit_code == 0, result.output
    assert f"warning: {tmp_path / 'in.jpg'}: damaged (the end of the image" in result.stderr
    assert np.abs(read(tmp_path / "out.jpg")[:16].astype(int) - smooth[:16]).mean() < 8


def test_restore_page_by_page(tmp_path, identity):
    frames = random_pixels(np.uint8, 3, 12, 10, 3)
    cv2.imwritemulti(str(tmp_path / "in.tif"), list(frames))
    arguments = ["--weights", identity, "--strength", "auto"]
    result = run("restore", tmp_path / "in.tif", tmp_path / "out.tif", *arguments)
    assert result.exit_code == 0, result.output
    assert "10 x 12, 3 pages, noise of" in result.output
    assert np.array_equal(cv2.imreadmulti(str(tmp_path / "out.tif"))[1], frames)
    cv2.imwritemulti(str(tmp_path / "in.tif"), [frames[0], frames[1][:6]])
    result = run("restore", tmp_path / "in.tif", tmp_path / "other.tif", *arguments)
    assert result.exit_code == 1 and "in.tif: its pages differ in size or kind" in result.output
    assert not (tmp_path / "other.tif").exists()


def test_restore_in_tiles_tells_how_far_from_exact(tmp_path, weights):
    cv2.imwrite(str(tmp_path / "large.png"), random_pixels(np.uint8, 41, 50, 3))
    cv2.imwrite(str(tmp_path / "small.png"), random_pixels(np.uint8, 30, 32, 3))
    arguments = [
        "restore",
        tmp_path / "large.png",
        tmp_path / "small.png",
        tmp_path / "out",
        "--weights",
        weights,
    ]
    result = run(*arguments, "--tile", 32)
    assert result.exit_code == 0, result.output
    told = re.findall(r"(\w+)\.png: in tiles, so not exact: off by about (.*), measured", result.stdout)
    assert [name for name, _ in told] == ["large"]
    assert re.fullmatch(r"\d+\.\d\d/255 on average, \d+\.\d/255 at most", told[0][1])
    by_tiles = read(tmp_path / "out" / "large.png")
    result = run(*arguments, "--tile", 32, "--overwrite", "--json", "--strength", 0.5)
    large, small, _ = map(json.loads, result.stdout.splitlines())
    assert 0 < large["mean_difference"] < large["largest_difference"] < 255
    rgb = read_photo(tmp_path / "large.png").rgb
    found = inference.tile_difference(network_in(weights), rgb, 32)
    assert large["mean_difference"] == pytest.approx(found.mean / 2, rel=1e-3)
    assert small["mean_difference"] is small["largest_difference"] is None
    run(*arguments, "--overwrite")
    apart = np.abs(read(tmp_path / "out" / "large.png").astype(int) - by_tiles)
    assert 0 < apart.max() < 40


@pytest.mark.parametrize("others", first_of([[], ["--ray", "auto"]]))
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", 16], "--tile must be at least 32, pixels a side; got 16"),
        (["--tile", 64, "--memory", "2G"], "--tile and memory exclude each other"),
        (["--tile", "many"], "Invalid value for '--tile'"),
    ],
)
def test_tiles_that_cannot_be(tmp_path, weights, options, message, others):
    result = run("restore", tmp_path, tmp_path / "out", "--weights", weights, *options, *others)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()
