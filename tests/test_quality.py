"""The measuring of quality: its tables are whole, its verdicts right, its noise what it says."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from mirnet_fast import MIRNet, evaluation
from mirnet_fast.checkpoints import save_checkpoint

ROOT = Path(__file__).parents[1]
CAT = skimage.data.chelsea()[60:156, 120:228] / 255


def bench(name):
    @pytest.fixture
    def module(monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "benches")
        return __import__(name)

    return module


quality, plain_tools, other_camera, conditions, pictures = map(
    bench, ("quality", "plain_tools", "other_camera", "conditions", "pictures")
)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, part in (("cat", CAT[:33, :40]), ("fur", CAT[40:72, 50:85])):
        Image.fromarray(np.round(255 * part).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def weights(tmp_path):
    """Of a network that gives back its input."""
    network = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    torch.nn.init.zeros_(network.conv_out.weight)
    save_checkpoint(network, tmp_path / "same.safetensors")
    return tmp_path / "same.safetensors"


@pytest.fixture
def told(monkeypatch, plain_tools):
    """The sigmas that BM3D was told; a blur stands in for it. Of the others one setting does."""
    calls = []
    for name, tool in plain_tools.SMOOTHING.items():
        quick = dataclasses.replace(tool, settings=tool.settings[:1])
        monkeypatch.setitem(plain_tools.SMOOTHING, name, quick)

    def blurred(pixels, sigma):
        calls.append(sigma)
        return plain_tools._gaussian_blur(pixels, 0.8)

    monkeypatch.setattr(plain_tools, "bm3d", lambda sigma: plain_tools.Tool(blurred, (sigma,), ("numpy",)))
    return calls


def run(quality, monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(quality, "CACHE", tmp_path / "cache")
    quality.main(list(map(str, arguments)))


def tables(text):
    """{title: {photo: [cells]}}."""
    found = {}
    for title, body in re.findall(r"^### (.*)\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        header, _, *lines = ([c.strip() for c in line.strip("|").split("|")] for line in body.splitlines())
        assert all(len(line) == len(header) for line in lines)
        found[title] = {"": header[1:]} | {line[0]: line[1:] for line in lines}
    return found


def verdicts(text):
    """{what: (verdict, value, where)}."""
    found = re.findall(r"^- (met|missed): (.*): (\S+)(?: \w+)? \((.*)\)$", text, re.MULTILINE)
    return {what: (verdict, float(value), where) for verdict, what, value, where in found}


def test_every_photo_method_and_condition_is_told(
    quality, conditions, photos, weights, told, monkeypatch, tmp_path, capsys
):
    sections = conditions.conditions("denoise")
    arguments = ["--weights", weights, "--photos", photos, "--only", "gaussian,camera,jpeg,clean"]
    run(quality, monkeypatch, tmp_path, *arguments, "--out", tmp_path / "all.csv")
    text = capsys.readouterr().out
    shown = tables(text)
    names = [condition.name for section in sections.values() for condition in section]
    assert list(shown) == [
        *(f"{name} (PSNR in dB, SSIM)" for name in names),
        "no noise at all (dB, grey levels)",
    ]
    for title in list(shown)[:-1]:
        assert list(shown[title]) == ["", "cat", "fur", "mean"]
        assert shown[title][""][:2] == ["before", "network"]
        assert shown[title]["cat"][0] == shown[title]["cat"][1] != shown[title]["cat"][2]
    smoothing = ["Gaussian blur", "bilateral", "non-local means"]
    for name, tools in (
        ("sigma 10", ["BM3D"]),
        ("sigma 25, then JPEG 85", smoothing),
        ("ISO 3200, JPEG 92", smoothing),
        ("another camera, ISO 12800, JPEG 92", ["BM3D", *smoothing]),
    ):
        assert shown[f"{name} (PSNR in dB, SSIM)"][""][2:] == tools
    # As the definitions have it, from the photos' files.
    clean = quality.read(photos)["cat"]
    given, _ = sections["gaussian"][1].spoil(clean, quality.seed_of("cat"))
    score = evaluation.score("", given, clean)
    assert shown["sigma 25 (PSNR in dB, SSIM)"]["cat"][0] == f"{score.psnr:.2f}, {score.ssim:.3f}"
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    [row] = [r for r in rows if [*r.values()][:4] == ["sigma 25", "cat", "before", "psnr"]]
    assert float(row["value"]) == pytest.approx(score.psnr, rel=1e-5)
    assert {row["condition"] for row in rows} == {*names, "clean"}
    # The network changes nothing: neither what is wrong nor what is right.
    for what, (verdict, value, _) in verdicts(text).items():
        expected = "met" if "clean photo" in what or "flat" in what else "missed"
        assert verdict == expected, what
        assert value == 0 or "BM3D" in what or "42 dB" in what
    assert sum(condition.gain is not None for section in sections.values() for condition in section) == 5
    assert len(verdicts(text)) == 5 + 3 + 4


def test_the_tools_run_once_for_all_networks(quality, photos, weights, told, monkeypatch, tmp_path, capsys):
    arguments = [
        "--weights",
        weights,
        "--photos",
        photos,
        "--only",
        "gaussian",
        "--out",
        tmp_path / "new" / "all.md",
    ]
    run(quality, monkeypatch, tmp_path, *arguments)
    assert told == [10, 10, 25, 25, 50, 50]
    first = (tmp_path / "new" / "all.md").read_text()
    assert first == capsys.readouterr().out
    run(quality, monkeypatch, tmp_path, *arguments)
    assert told == [10, 10, 25, 25, 50, 50]
    assert (tmp_path / "new" / "all.md").read_text() == first
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(photos / "cat.png")
    run(quality, monkeypatch, tmp_path, *arguments)
    assert told[6:] == [10, 25, 50]


def test_the_middle_of_the_photos(quality, photos):
    whole, middle = quality.read(photos), quality.read(photos, 34)
    assert [photo.shape for photo in middle.values()] == [(33, 34, 3), (32, 34, 3)]
    assert np.array_equal(middle["cat"], whole["cat"][:, 3:37])


def test_the_worst_case_decides(quality):
    report = quality.Report()
    cells = {"a": 5.0, "b": 3.9, "c": 4.2}
    for holds, bound in ((">=", 3.9), (">=", 4), (">", 3.9), ("<", 5), ("<=", 5)):
        report.ask(
            "x",
            cells,
            getattr(quality.operator, {">=": "ge", ">": "gt", "<": "lt", "<=": "le"}[holds]),
            bound,
        )
    report.ask("none", {}, quality.operator.ge, 1)
    words = [re.match(r"- (\w+): x: (\S+) \((\w)\)", line).groups() for line in report.asked]
    assert words == [
        ("met", "3.9", "b"),
        ("missed", "3.9", "b"),
        ("missed", "3.9", "b"),
        ("missed", "5", "a"),
        ("met", "5", "a"),
    ]


def test_a_network_ahead_of_its_rivals(quality, conditions, told, tmp_path):
    photos = {"cat": np.float32(CAT[:40, :48])}
    for section, perfect in (("gaussian", True), ("gaussian", False)):
        report = quality.Report()
        restore = (lambda rgb: photos["cat"]) if perfect else (lambda rgb: rgb)
        quality.judge(conditions.conditions("denoise")[section], photos, restore, tmp_path, report)
        found = verdicts("\n".join(report.asked))
        assert [verdict for verdict, *_ in found.values()] == ["met" if perfect else "missed"] * 3
    for task, section in (("enhance", "low_light"), ("sharpen", "blurred")):
        report = quality.Report()
        quality.judge(conditions.conditions(task)[section], photos, lambda rgb: rgb, tmp_path, report)
        found = verdicts("\n".join(report.asked))
        # Not ahead of what it was given.
        assert found["PSNR ahead of before everywhere"][:2] == ("missed", 0)
        assert len(found) == 2 * len(conditions.conditions(task)[section][0].rivals)


def test_without_bm3d_the_rest_is_judged(
    quality, plain_tools, photos, weights, monkeypatch, tmp_path, capsys
):
    tool = plain_tools.bm3d(10)
    monkeypatch.setattr(plain_tools, "bm3d", lambda sigma: plain_tools.Tool(tool.run, (sigma,), ("no-bm3d",)))
    run(quality, monkeypatch, tmp_path, "--weights", weights, "--photos", photos, "--only", "gaussian")
    text = capsys.readouterr().out
    assert tables(text)["sigma 10 (PSNR in dB, SSIM)"][""] == ["before", "network"]
    assert "- not judged: BM3D: the package no-bm3d is not installed" in text and "met:" not in text


def test_flat_areas(quality):
    chart = quality.flat_colours()
    # In each square of 64 pixels those 3 x 3 blocks around which there are 8 pixels more.
    assert quality.flatness(chart, chart) == (27 * 9, 0, 0)
    edges = chart.copy()
    edges[:, 57:71] += 0.1
    assert quality.flatness(chart, edges) == (27 * 9, 0, 0)
    moved, striped = chart.copy(), chart.copy()
    moved[:64, :64, 2] += 2 / 255
    striped[100:164:2, :, 1] += 4 / 255
    assert quality.flatness(chart, moved)[1:] == pytest.approx((2, 0))
    assert quality.flatness(chart, striped)[1:] == pytest.approx((2, 2))
    for without in (CAT, chart[:31]):
        blocks, *rest = quality.flatness(without, without)
        assert blocks == 0 and np.isnan(rest).all()
    for image, missed in ((moved, "no colour shift"), (striped, "no pattern")):
        report = quality.Report()
        quality.judge_clean({}, lambda rgb, image=image: image, report)
        assert any(line.startswith("- missed:") and missed in line for line in report.asked)


def test_speed_and_memory(quality, weights, monkeypatch):
    monkeypatch.setattr(quality, "SIDE", 100)
    report = quality.Report()
    monkeypatch.setattr(
        quality.measure, "peak_memory", lambda make, *args: make(*args)() is None or 3 * 2**20
    )
    quality.judge_speed(weights, "denoise", report)
    [cells] = [
        row for name, row in next(iter(tables("\n".join(report.text) + "\n").values())).items() if name
    ]
    assert cells[0] == "300"
    values = {row[3]: float(row[4]) for row in report.rows}
    assert values["mebibytes"] == 300 and 0 < values["seconds"] < 1000
    assert values["megabytes"] == pytest.approx(weights.stat().st_size / 1e6, rel=1e-5)


@pytest.mark.parametrize("scale", [1, 0.01], ids=["much", "little"])
def test_the_network_runs_as_the_command_runs_it(quality, scale):
    """Denoising as strong as the noise is, by what the network takes away; all else in full."""
    network = MIRNet(n_feat=8, n_RRG=1, n_MSRB=1).eval()
    flat = np.full((32, 32, 3), 0.25, np.float32)
    with torch.inference_mode():
        network.conv_out.weight *= scale
        whole = network(torch.from_numpy(flat.transpose(2, 0, 1)[None]))[0].permute(1, 2, 0).numpy()
    assert np.abs(whole - flat).max() > 1e-3 * scale
    np.testing.assert_allclose(quality.restored(network, "sharpen", flat), whole, atol=1e-6)
    denoised = quality.restored(network, "denoise", flat)
    np.testing.assert_allclose(denoised, whole if scale == 1 else flat, atol=0 if scale < 1 else 1e-6)


def test_pictures(quality, photos, weights, told, monkeypatch, tmp_path):
    arguments = ["--weights", weights, "--photos", photos, "--only", "gaussian,clean", "--pictures"]
    run(quality, monkeypatch, tmp_path, *arguments, tmp_path / "p")
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "cat-clean.webp",
        "cat-sigma-25.webp",
        "fur-clean.webp",
        "fur-sigma-25.webp",
    ]


def test_a_picture_shows_each_result_and_its_middle_enlarged(pictures, tmp_path):
    black, white = np.zeros((400, 500, 3)), np.ones((400, 500, 3))
    white[200:, :] = 0.5
    pictures.write(tmp_path / "new", "ISO 3200", "x", {"before": black, "clean": white})
    pixels = np.asarray(Image.open(tmp_path / "new" / pictures.name_of("x", "ISO 3200"))) / 255
    side, label, gap = pictures.SIDE, pictures.LABEL, pictures.GAP
    assert pixels.shape == (label + 2 * side + gap, 2 * side + gap, 3)
    assert pixels[label + 2 : label + side - 2, 2 : side - 2].max() < 0.05
    assert pixels[:label, :side].min() < 0.3  # what it is
    right = pixels[:, side + gap + 2 : -2]
    for top in (label, label + side + gap):
        assert right[top + 4 : top + 118].min() > 0.95 and right[top + 136 : top + side - 4].max() < 0.55


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photos", "nowhere"], "there is no folder nowhere; `make photos` makes photos/held_out"),
        (["--only", "gaussian,nothing"], "denoise has gaussian, camera, jpeg, clean, speed; got nothing"),
        (["--crop", "8"], "must be at least 32 pixels; got 8"),
        (["--out", "x.txt"], "must end in .md or .csv; got x.txt"),
        (["--weights", "none"], "must be one of"),
    ],
)
def test_what_does_not_fit_is_told(quality, photos, weights, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        quality.main(["--weights", str(weights), "--photos", str(photos), *arguments])
    assert stopped.value.code != 0 and message in capsys.readouterr().err


def noisy(camera, photo, seed=0):
    return camera.apply(photo, np.random.default_rng(seed))


def taken(camera, photo):
    return camera.apply(photo, np.random.default_rng(0), noise=False)


def test_the_other_camera_takes_the_photo_that_it_was_given(other_camera):
    for photo in (CAT, CAT[:33, :41], CAT[:2, :2]):
        result = taken(other_camera.OtherCamera(3200), photo)
        assert result.shape == photo.shape and result.dtype == np.float32
        assert result.min() >= 0 and result.max() <= 1
    # Bayer's filter and the converter cost something, but neither colour nor brightness.
    result = taken(other_camera.OtherCamera(100), CAT)
    assert evaluation.psnr(result, CAT) > 33
    assert np.abs((result - CAT).mean((0, 1))).max() < 1 / 255
    for colour in ((0.0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (0.8, 0.3, 0.2), (0.1, 0.4, 0.7)):
        flat = np.broadcast_to(np.array(colour), (12, 12, 3))
        np.testing.assert_allclose(taken(other_camera.OtherCamera(100), flat), flat, atol=0.01)


def test_the_other_cameras_noise_is_seeded(other_camera):
    camera = other_camera.OtherCamera(3200)
    assert np.array_equal(noisy(camera, CAT, 1), noisy(camera, CAT, 1))
    assert not np.array_equal(noisy(camera, CAT, 1), noisy(camera, CAT, 2))
    assert np.array_equal(taken(camera, CAT), camera.apply(CAT, np.random.default_rng(9), noise=False))


def test_the_other_cameras_noise_is_that_of_photons_and_rows(other_camera, monkeypatch):
    seen = []
    monkeypatch.setattr(
        other_camera, "_demosaiced", lambda m: seen.append(m) or np.repeat(m[:, :, None], 3, 2)
    )

    def electrons(iso, exposure, grey):
        noisy(other_camera.OtherCamera(iso, exposure), np.full((600, 600, 3), grey))
        return seen[-1][1::2, ::2] * other_camera.FULL_WELL * 100 / iso  # of green pixels

    readout = electrons(1600, 1, 0)
    read, row = other_camera.READ, other_camera.ROW
    assert readout.mean() == pytest.approx(0, abs=0.2)
    assert readout.var() == pytest.approx(read**2 + row**2, rel=0.05)
    assert readout.mean(1).var() == pytest.approx(row**2 + read**2 / 300, rel=0.3)
    bright = {}
    for iso, exposure in ((400, 1), (1600, 1), (1600, 0.25)):
        bright[iso, exposure] = counted = electrons(iso, exposure, 0.5)
        assert counted.var() - readout.var() == pytest.approx(counted.mean(), rel=0.05)  # Poisson's law
    for other in ((1600, 1), (1600, 0.25)):
        ratio = bright[400, 1].mean() / bright[other].mean()
        assert ratio == pytest.approx(4 if other[1] == 1 else 16, rel=0.01)
    monkeypatch.undo()
    means = [noisy(other_camera.OtherCamera(800, e), np.full((99, 99, 3), 0.5)).mean() for e in (1, 0.25)]
    assert means[0] == pytest.approx(0.5, abs=0.01) and means[1] < 0.3


def test_cameras_are_as_noisy_as_their_setting_says(conditions):
    """With JPEG, at ISO 3200 and 12800, on average."""
    woman = np.float32(skimage.data.astronaut()[60:188, 150:310] / 255)
    ranges = ((27, 30), (21, 24.5))
    for condition, (low, high) in zip(conditions.conditions("denoise")["camera"], 2 * ranges, strict=True):
        found = []
        for photo in (woman, np.float32(CAT)):
            given, target = condition.spoil(photo, 0)
            found.append(evaluation.psnr(given, target))
            again, same = condition.spoil(photo, 0)
            assert np.array_equal(given, again) and np.array_equal(target, same)
            assert not np.array_equal(given, condition.spoil(photo, 1)[0])
            assert evaluation.psnr(target, photo) > 24  # the same scene, developed otherwise
        assert low < np.mean(found) < high, condition.name


def test_plain_tools_do_what_they_are_for(plain_tools, conditions, tmp_path):
    photo = CAT
    given, target = conditions.conditions("denoise")["jpeg"][0].spoil(np.float32(photo), 0)
    before = evaluation.psnr(given, target)
    for tool in plain_tools.SMOOTHING.values():
        assert evaluation.psnr(tool.best(given, target, tmp_path), target) > before + 2
    dark = photo / 4
    for tool in plain_tools.BRIGHTENING.values():
        assert evaluation.psnr(tool.best(dark, photo, tmp_path), photo) > evaluation.psnr(dark, photo) + 3
    gamma = plain_tools.BRIGHTENING["gamma"].best(dark, photo, tmp_path)
    assert (gamma @ [0.299, 0.587, 0.114]).mean() == pytest.approx(0.45, abs=0.005)
    blurred, target = conditions.conditions("sharpen")["blurred"][0].spoil(np.float32(photo), 0)
    [tool] = plain_tools.SHARPENING.values()
    assert evaluation.psnr(tool.best(blurred, target, tmp_path), target) > evaluation.psnr(blurred, target)


def test_the_best_setting_counts(plain_tools, tmp_path):
    tried = []

    def add(pixels, setting):
        tried.append(setting)
        return pixels + np.uint8(setting)

    tool = plain_tools.Tool(add, (1, 7, 3), ("numpy",))
    given = np.full((12, 12, 3), 100 / 255)
    assert np.allclose(tool.best(given, given + 6 / 255, tmp_path), given + 7 / 255)
    assert np.allclose(tool.best(given, given + 2.1 / 255, tmp_path), given + 3 / 255)
    assert tried == [1, 7, 3] * 2


def test_gamma_of_what_it_cannot_brighten(plain_tools, tmp_path):
    black = np.zeros((12, 12, 3))
    assert not plain_tools.BRIGHTENING["gamma"].best(black, black, tmp_path).any()
