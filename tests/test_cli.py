"""The command line, on small networks."""

import errno
import os
import pickle
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner

import mirnet_fast
from mirnet_fast import MIRNet, backends, comparison, demonstration, evaluation, pretrained, reference
from mirnet_fast.checkpoints import save_checkpoint
from mirnet_fast.cli import main
from mirnet_fast.ops import OPS

CONFIG = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
SMALL = ["--n-feat", "8", "--n-rrg", "1", "--n-msrb", "1"]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def random_pixels(dtype, *shape):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def identity(tmp_path):
    """A checkpoint of a network that adds nothing to its input."""
    model = reference.MIRNet(**CONFIG)
    torch.nn.init.zeros_(model.conv_out.weight)
    save_checkpoint(model, tmp_path / "identity.pth")
    return tmp_path / "identity.pth"


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    save_checkpoint(MIRNet(**CONFIG), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.fixture
def no_memory(monkeypatch):
    """Without the fresh processes of the memory measurement, which take seconds."""
    monkeypatch.setattr(comparison, "memory", lambda *args: {"reference": 200, "mirnet_fast": 50})


def test_compare_random_weights_and_sample_photo(tmp_path):
    result = run("compare", *SMALL, "--size", 32, "--rounds", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "astronaut, 32 x 32" in result.output
    assert "weights: random" in result.output and "nothing is restored" in result.output
    for stage in ("conv_in", "body.0", "conv_out", "output"):
        assert re.search(rf"^  {re.escape(stage)} +\d\.\d\de-\d\d +\d\.\d\de-\d\d$", result.output, re.M)
    assert re.search(r"^  mirnet_fast +\d+\.\d+ s +\d+ MiB$", result.output, re.M)
    last = result.output.splitlines()[-1]
    assert re.match(r"agree \(.*\); mirnet_fast is [\d.]+ times as fast, peak memory [\d.]+ times; ", last)
    assert str(tmp_path / "out" / "mirnet_fast.png") in last
    pictures = [read(tmp_path / "out" / f"{n}.png") for n in ("reference", "mirnet_fast", "difference")]
    assert all(picture.shape == (32, 32, 3) for picture in pictures)
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1
    assert pictures[0].std() > 10
    assert pictures[2].max() > 127  # amplified


def test_compare_own_photo_and_weights(tmp_path, weights, no_memory):
    cv2.imwrite(str(tmp_path / "in.png"), random_pixels(np.uint16, 13, 18, 1))
    result = run(
        "compare", tmp_path / "in.png", "--weights", weights, "--size", "full", "--rounds", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "18 x 13 pixels" in result.output
    assert "random" not in result.output and str(weights) in result.output
    assert "peak memory 0.25 times" in result.output.splitlines()[-1]
    assert read(tmp_path / "out" / "reference.png").shape == (13, 18, 3)


def test_compare_crops_the_centre(tmp_path, identity, no_memory):
    pixels = random_pixels(np.uint8, 20, 30, 3)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    result = run(
        "compare", tmp_path / "in.png", "--weights", identity, "--size", 8, "--rounds", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert np.array_equal(read(tmp_path / "out" / "mirnet_fast.png"), pixels[6:14, 11:19])
    assert "times 1\n" in result.output  # no difference, nothing to amplify


def test_compare_fails_where_they_disagree(tmp_path, monkeypatch, no_memory):
    class Wrong(MIRNet):
        def forward(self, x):
            return super().forward(x) + 1e-5

    monkeypatch.setattr(comparison, "MIRNet", Wrong)
    result = run("compare", *SMALL, "--size", 16, "--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("DO NOT AGREE")
    assert re.search(r"^  output .* DISAGREES$", result.output, re.M)
    assert not re.search(r"^  conv_out .* DISAGREES$", result.output, re.M)


def test_compare_says_that_memory_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "memory", lambda *args: {"reference": None, "mirnet_fast": 50})
    result = run("compare", *SMALL, "--size", 16, "--rounds", 1, "--out", tmp_path)
    assert result.exit_code == 0
    assert "peak memory not measured" in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["missing.png"], 1, "missing.png: there is no such file"),
        (["--weights", "missing.pth"], 1, "missing.pth: there is no such file"),
        (["--size", "wide"], 2, "neither a number of pixels"),
        (["--size", "-4"], 2, "neither a number of pixels"),
        (["--rounds", "0"], 2, "0 is not in the range"),
        (["--device", "abacus"], 2, "cannot be used"),
        (["--device", "mps"], 2, "'mps' cannot be used: "),
        (["--device", "meta"], 2, "'meta' cannot be used: Cannot copy out of meta tensor"),
        (["--device", "hpu"], 2, "'hpu' cannot be used: No module"),
    ],
)
def test_compare_errors(arguments, code, match):
    result = run("compare", *SMALL, *arguments)
    assert result.exit_code == code
    assert match in result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.output.splitlines()) <= 4  # how it is used, and one sentence


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
    assert result.output.count("would overwrite the input") == 2
    assert (tmp_path / "in.png").read_bytes() == before


def test_restore_replaces_a_link_to_another_picture(tmp_path, identity):
    for name in ("in.png", "other.png"):
        cv2.imwrite(str(tmp_path / name), random_pixels(np.uint8, 5, 5, 3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "in.png").symlink_to(tmp_path / "other.png")
    before = (tmp_path / "other.png").read_bytes()
    result = run("restore", tmp_path / "in.png", tmp_path / "out", "--weights", identity)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "other.png").read_bytes() == before
    assert not (tmp_path / "out" / "in.png").is_symlink()


def test_restore_looks_at_each_name_a_few_times(tmp_path, identity, monkeypatch):
    names, seen = [f"{i}.png" for i in range(200)], []
    for name in names:
        (tmp_path / name).touch()
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: seen.append(args) or stat(*args, **kwargs))
    monkeypatch.setattr("mirnet_fast.cli._restore_file", lambda model, path, target, *rest: target.touch())
    arguments = [*(tmp_path / name for name in names), tmp_path / "out", "--weights", identity]
    for _ in range(2):  # without and with results of the same names
        seen.clear()
        result = run("restore", *arguments)
        assert result.exit_code == 0 and "restored 200 of 200" in result.output
        assert len(seen) < 10 * len(names)


def test_restore_after_an_error_of_the_disk(tmp_path, identity, monkeypatch):
    inputs = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path in inputs:
        cv2.imwrite(str(path), random_pixels(np.uint8, 5, 5, 3))
    read_bytes = Path.read_bytes

    def fail(path):
        if path == inputs[1]:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    result = run("restore", *inputs, tmp_path / "out", "--weights", identity)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"error: {inputs[1]} cannot be read: Input/output error" in result.output
    assert "restored 2 of 3 images" in result.output


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError("no memory")])
def test_restore_goes_on_whatever_a_file_does(tmp_path, identity, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("mirnet_fast.cli._restore_file", fail)
    result = run("restore", tmp_path / "a.png", tmp_path / "b.png", tmp_path, "--weights", identity)
    assert result.exit_code == 1 and "restored 0 of 2" in result.output
    assert f"error: {tmp_path / 'b.png'}: {error}" in result.output


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
    assert result.output.splitlines()[-1] == f"stopped; restored 1 of 3 images to {tmp_path / 'out'}"
    assert os.listdir(tmp_path / "out") == ["a.png"]


def test_restore_of_a_folder(tmp_path, identity):
    result = run("restore", tmp_path, tmp_path / "out", "--weights", identity)
    assert result.exit_code == 1
    assert f"error: {tmp_path} is a folder; name the files in it" in result.output


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
        result = run("restore", tmp_path / "in.png", tmp_path / "out.png", "--weights", identity)
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
    assert result.exit_code == 1 and "of another input" in result.output
    assert read(tmp_path / "out/in.png").mean() == 10


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
    assert "weights: denoise_small, which comes with mirnet-fast" in result.output
    restored = read(tmp_path / "out.png")[:, :, ::-1].astype(np.float32) / 255
    assert evaluation.psnr(restored, clean) > evaluation.psnr(noisy, clean) + 6
    assert f"{tmp_path / 'noisy.png'}: noise of 2" in result.output and "strength 1.00\n" in result.output
    for arguments in (["--task", "denoise"], ["--strength", 1], ["--weights", pretrained.weights_of()]):
        assert run("restore", tmp_path / "noisy.png", tmp_path / "as.png", *arguments).exit_code == 0
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
    shipped = {"denoise": pretrained.weights_of()}
    monkeypatch.setattr(pretrained, "tasks", lambda: shipped)
    for task in ("enhance", "denoise_small", ""):
        result = run(*arguments, "--task", task)
        assert result.exit_code == 2
        assert f"--task must be one of those that come along, denoise; got {task!r}" in result.output
    both = run(*arguments, "--task", "denoise", "--weights", weights)
    assert both.exit_code == 2 and "--task and --weights both choose the network" in both.output

    shipped["enhance"] = weights
    automatic = run(*arguments, "--task", "enhance", "--strength", "auto")
    assert automatic.exit_code == 2 and "--strength auto goes by the noise" in automatic.output
    assert not (tmp_path / "out.png").exists()
    result = run(*arguments, "--task", "enhance")
    assert result.exit_code == 0, result.output
    assert "weights: net, which comes with mirnet-fast, for the task enhance" in result.output
    assert "strength" not in result.output
    assert run(*arguments[:2], tmp_path / "as.png", "--weights", weights).exit_code == 0
    assert np.array_equal(read(tmp_path / "as.png"), read(tmp_path / "out.png"))


def test_demo(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    photo = tmp_path / "clean.jpg"
    cv2.imwrite(str(photo), skimage.data.astronaut()[100:164, 100:180, ::-1])
    result = run("demo", photo, "--sigma", 20, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "80 x 64 pixels, Gaussian noise of sigma 20/255, saved in 8 bits" in result.output
    table = re.findall(r"^  (noisy|mirnet_fast|non-local means) +([\d.]+) dB +0\.\d{4}", result.output, re.M)
    assert [name for name, _ in table] == ["noisy", "mirnet_fast", "non-local means"]
    gain = float(table[1][1]) - float(table[0][1])
    printed = re.search(
        r"^([+-][\d.]+) dB; before \| after \| clean: .*before_after_clean\.png$", result.output, re.M
    )
    assert float(printed[1]) == pytest.approx(gain, abs=0.011) and gain > 4
    assert "BM3D was not compared" in result.output
    names = ["before_after_clean.png", "clean.png", "mirnet_fast.png", "noisy.png", "non-local_means.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    shown = [read(tmp_path / "out" / f"{name}.png") for name in ("noisy", "mirnet_fast", "clean")]
    assert np.array_equal(read(tmp_path / "out" / "before_after_clean.png"), np.concatenate(shown, 1))
    # The photo that is shown is the one that was restored.
    again = run("restore", tmp_path / "out" / "noisy.png", tmp_path / "again.png")
    assert again.exit_code == 0, again.output
    assert np.array_equal(read(tmp_path / "again.png"), read(tmp_path / "out" / "mirnet_fast.png"))


def test_demo_compares_with_bm3d_where_it_is(tmp_path, monkeypatch):
    seen = []

    def bm3d_rgb(noisy, deviation):
        seen.append(deviation)
        return np.full_like(noisy, 0.5)

    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d_rgb=bm3d_rgb))
    photo = tmp_path / "clean.png"
    cv2.imwrite(str(photo), np.full((16, 16, 3), 51, np.uint8))
    result = run("demo", photo, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert seen == [25 / 255]
    # 0.5, rounded to 8 bits, for 51 / 255.
    assert re.search(rf"^  BM3D +{-20 * np.log10(128 / 255 - 0.2):.2f} dB", result.output, re.M)
    assert "not compared" not in result.output


def test_demo_of_a_cameras_noise(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    photo = tmp_path / "clean.png"
    cv2.imwrite(str(photo), skimage.data.astronaut()[100:164, 100:180, ::-1])
    results = [run("demo", photo, "--iso", iso, "--out", tmp_path / str(iso)) for iso in (100, 12800, 12800)]
    assert [result.exit_code for result in results] == [0, 0, 0], results[0].output
    assert (
        "80 x 64 pixels, noise of a camera at ISO 12800, demosaiced, JPEG of quality 92" in results[1].output
    )
    before = [float(re.search(r"^  noisy +([\d.]+) dB", result.output, re.M)[1]) for result in results]
    assert before[0] - before[1] > 10 and before[1] == before[2]
    # Both photos went through the camera: what it does apart from noise is in both.
    assert np.array_equal(read(tmp_path / "100" / "clean.png"), read(tmp_path / "12800" / "clean.png"))
    assert not np.array_equal(read(tmp_path / "100" / "clean.png"), read(photo))
    assert run("demo", "--iso", 0).exit_code == 2


def test_demo_of_a_photo_too_small_to_judge(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    cv2.imwrite(str(tmp_path / "in.png"), np.zeros((5, 5, 3), np.uint8))
    result = run("demo", tmp_path / "in.png", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "needs 11 x 11 pixels; got 5 x 5" in result.output


def test_make_demo_writes_no_picture_over_another():
    recipe = (Path(__file__).parents[1] / "Makefile").read_text().split("\ndemo: build\n")[1].split("\n\n")[0]
    folders = re.findall(r"--out (\S+)", recipe)
    assert len(folders) == 3 and len(set(folders)) == 3
    weights = re.search(r"compare --weights (\S+)", recipe)[1]
    assert (Path(__file__).parents[1] / weights).is_file()


def test_demo_errors(tmp_path):
    result = run("demo", tmp_path / "none.png")
    assert result.exit_code == 1 and "none.png: there is no such file" in result.output
    assert run("demo", "--sigma", -1).exit_code == 2


def test_doctor():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert torch.__version__ in result.output and np.__version__ in result.output
    assert "backend: automatic" in result.output
    for section in ("cpu, float32", "cpu, bfloat16"):
        lines = result.output.split(section)[1]
        assert all(op in lines for op in OPS)
    chosen = backends.pick("blur_pool", "cpu", torch.float32)
    assert re.search(rf"^  {chosen}: .*blur_pool", result.output, re.M)
    for backend, reason in backends.explain("blur_pool", "cpu", torch.float32):
        assert reason is None or f"not {backend}: {reason}" in result.output


@pytest.mark.parametrize("computes", [True, False])
def test_doctor_tells_whether_bfloat16_is_computed_in(monkeypatch, computes):
    monkeypatch.setattr(backends, "cpu_computes", lambda dtype: computes)
    section = run("doctor").output.split("cpu, bfloat16")[1].split("cpu, float16")[0]
    wanted = "computed in bfloat16; " if computes else "computed in float32 and stored in bfloat16"
    assert wanted in section


def test_doctor_with_a_chosen_backend():
    with backends.use_backend("reference"):
        result = run("doctor")
    assert "backend: reference" in result.output
    assert re.search(rf"^  reference: .*{OPS[0]}", result.output, re.M)
    assert "was chosen explicitly" in result.output


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_doctor_names_the_load_error(monkeypatch, kind):
    monkeypatch.setattr(f"mirnet_fast._native._{kind}_library_error", "libbroken.so could not be loaded")
    assert "libbroken.so could not be loaded" in run("doctor").output


def test_doctor_tells_what_is_known_of_the_cuda_kernels(monkeypatch):
    monkeypatch.setattr("mirnet_fast._native._cuda_library_error", None)
    assert re.search(r"CUDA kernels: loaded; .*never run on a GPU", run("doctor").output)


def in_command(tmp_path, *lines):
    """What a process prints that is called as the installed command is."""
    script = tmp_path / "mirnet-fast"
    root = Path(mirnet_fast.__file__).parents[1]
    script.write_text("\n".join(["import sys", f"sys.path.insert(0, {str(root)!r})", *lines]))
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_no_torch(tmp_path):
    printed = in_command(
        tmp_path,
        "from mirnet_fast.cli import main",
        "for name in ['', *main.commands]:",
        "    main([*name.split(), '--help'], standalone_mode=False)",
        "print(sorted({'torch', 'numpy', 'scipy', 'skimage', 'cv2', 'PIL'} & set(sys.modules)))",
    )
    assert printed.splitlines()[-1] == "[]"
    assert printed.count("Usage: ") == 1 + len(main.commands)


def test_package_is_whole_in_the_command_too(tmp_path):
    printed = in_command(
        tmp_path,
        "import mirnet_fast, pickle, mirnet_fast.kernels",
        "assert 'torch' not in sys.modules",
        "assert set(mirnet_fast.__all__) <= set(dir(mirnet_fast))",
        "from mirnet_fast import MIRNet",
        "import mirnet_fast.accelerate",
        "model = pickle.loads(pickle.dumps(MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)))",
        "print(type(model) is MIRNet, callable(mirnet_fast.accelerate), callable(mirnet_fast.ops.blur_pool))",
        "print(hasattr(mirnet_fast, 'nothing'))",
    )
    assert printed.split() == ["True", "True", "True", "False"]


def test_package_exports_all_that_it_names():
    assert all(getattr(mirnet_fast, name) is not None for name in mirnet_fast.__all__)
    assert callable(mirnet_fast.accelerate) and set(mirnet_fast.__all__) <= set(dir(mirnet_fast))
    model = pickle.loads(pickle.dumps(MIRNet(**CONFIG)))
    assert type(model) is mirnet_fast.MIRNet
