"""Published data sets as their authors lay them out, made of little images; their Matlab files."""

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from click.testing import CliRunner

from mirnet_fast import reference
from mirnet_fast.cli import main
from mirnet_fast.images import ImageError, matching_photos
from mirnet_fast.training import Recipe, Trainer, matlab
from mirnet_fast.training.data import Photos

h5py = pytest.importorskip("h5py")

TREES = {
    "sidd": (
        {},
        ["Data/0001_001_S6/0001_NOISY_SRGB_010.PNG", "Data/0002_001_S6/0002_NOISY_SRGB_011.PNG"],
        ["Data/0001_001_S6/0001_GT_SRGB_010.PNG", "Data/0002_001_S6/0002_GT_SRGB_011.PNG"],
    ),
    "realsr": (
        {"scale": 3},
        ["Canon/Train/3/Canon_001_LR3.png", "Nikon/Train/3/Nikon_007_LR3.png"],
        ["Canon/Train/3/Canon_001_HR.png", "Nikon/Train/3/Nikon_007_HR.png"],
    ),
    "lol": (
        {"split": "eval15"},
        ["eval15/low/1.png", "eval15/low/22.png"],
        ["eval15/high/1.png", "eval15/high/22.png"],
    ),
    "fivek": ({}, ["input/a0001.png", "input/a0002.png"], ["expertC/a0001.jpg", "expertC/a0002.jpg"]),
}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((20, 24, 3), value, np.uint8))


@pytest.fixture(params=TREES)
def tree(request, tmp_path):
    options, inputs, targets = TREES[request.param]
    for value, names in ((10, inputs), (200, targets)):
        for i, name in enumerate(names):
            write(tmp_path / name, value + i)
    return {"kind": request.param, "root": tmp_path, **options}, inputs, targets


def source(fields):
    return Recipe.model_validate({"train": fields, "batch": 2, "patch": 16, "steps": 1}).train


def test_pairs(tree):
    fields, inputs, targets = tree
    photos = Photos(source(fields))
    assert photos.names == [
        (fields["root"] / a, fields["root"] / b) for a, b in zip(inputs, targets, strict=True)
    ]
    for i in range(2):
        given, target = photos.pair(i, None)
        assert abs(given.mean() * 255 - 10 - i) < 1 and abs(target.mean() * 255 - 200 - i) < 2


def test_they_train(tree, tmp_path):
    fields, *_ = tree
    network = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
    recipe = Recipe.model_validate({"network": network, "train": fields, "batch": 2, "patch": 16, "steps": 1})
    assert len(Trainer(recipe, tmp_path / "out").run(progress=False)) == 1


def test_a_missing_partner_is_named(tree):
    fields, _, targets = tree
    (fields["root"] / targets[1]).unlink()
    name = targets[1].split("/")[-1]
    with pytest.raises(ImageError, match=name.split(".")[0]):
        Photos(source(fields))


def test_hidden_files_are_left_alone(tree):
    fields, inputs, targets = tree
    expected = Photos(source(fields)).names
    for name in (*inputs, inputs[0], *targets):
        path = fields["root"] / name
        path.with_name(f"._{path.name}").write_bytes(b"of macOS")
        copies = path.parent / ".ipynb_checkpoints"
        copies.mkdir(exist_ok=True)
        (copies / path.name).write_bytes(b"of Jupyter")
    (fields["root"] / inputs[0]).with_name("folder.png").mkdir()
    assert Photos(source(fields)).names == expected


def test_hidden_photos_are_not_trained_on(tmp_path):
    write(tmp_path / ".data" / "a.png", 1)
    for name in ("._a.png", ".b.png", ".ipynb_checkpoints/a-checkpoint.png", "c/.d/e.png"):
        write(tmp_path / ".data" / name, 2)
    noise = {"kind": "jpeg", "quality": [9, 9]}
    folder = {"kind": "clean", "folder": tmp_path / ".data", "degradations": [noise]}
    assert [photo.name for photo, *_ in Photos(source(folder)).names] == ["a.png"]
    write(tmp_path / "input" / "a.png", 1)
    write(tmp_path / "input" / "._b.png", 1)
    assert matching_photos(tmp_path / ".data", tmp_path / "input") == [
        (tmp_path / ".data" / "a.png", tmp_path / "input" / "a.png")
    ]
    with pytest.raises(ImageError, match="no images"):
        Photos(source(folder | {"folder": tmp_path / ".data" / ".ipynb_checkpoints" / ".." / "c"}))


def test_one_camera_without_photos_is_named(tmp_path):
    _, inputs, targets = TREES["realsr"]
    for name in (*inputs, *targets):
        write(tmp_path / name, 1)
    for path in (tmp_path / "Nikon" / "Train" / "3").iterdir():
        path.unlink()
    with pytest.raises(ImageError, match=r"Nikon/Train/3: no \*_LR3\.png in it"):
        source({"kind": "realsr", "root": tmp_path, "scale": 3}).pairs()


def test_two_photos_of_one_name(tmp_path):
    for name in ("input/a.png", "input/a.jpg", "expertC/a.png"):
        write(tmp_path / name, 1)
    with pytest.raises(ImageError, match=r"a\.jpg and .*a\.png: which of the two is a\?"):
        source({"kind": "fivek", "root": tmp_path}).pairs()


def test_a_missing_folder_is_named(tree, tmp_path):
    fields, *_ = tree
    with pytest.raises(ImageError, match=r"none.*: (there is no such folder|no )"):
        Photos(source(fields | {"root": tmp_path / "none"}))


@pytest.fixture
def model():
    """Gives back its input."""
    made = reference.MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)
    torch.nn.init.zeros_(made.conv_out.weight)
    return made


def test_sidd_blocks(tmp_path, model):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    path = tmp_path / "ValidationNoisyBlocksSrgb.mat"
    scipy.io.savemat(path, {matlab.VALIDATION_NOISY: blocks})
    read = matlab.sidd_blocks(path, matlab.VALIDATION_NOISY)
    assert np.array_equal(read, blocks)
    restored = matlab.restored_blocks(model, read)
    assert np.array_equal(restored, blocks)
    matlab.write_sidd_submission(tmp_path / "SubmitSrgb.mat", restored, 1.5)
    content = scipy.io.loadmat(tmp_path / "SubmitSrgb.mat")
    assert content["DenoisedBlocksSrgb"].shape == (2, 3)
    assert np.array_equal(content["DenoisedBlocksSrgb"][1, 2], blocks[1, 2])
    assert content["TimeMPSrgb"].item() == 1.5
    with pytest.raises(
        ImageError, match="holds no ValidationGtBlocksSrgb; it holds ValidationNoisyBlocksSrgb"
    ):
        matlab.sidd_blocks(path, matlab.VALIDATION_CLEAN)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"ValidationNoisyBlocksSrgb\.mat"):
        matlab.sidd_blocks(path, matlab.VALIDATION_NOISY)


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8, 0.99])
def test_a_damaged_file_of_sidd_is_named(tmp_path, share):
    path = tmp_path / "a.mat"
    blocks = np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8, 3), np.uint8)
    scipy.io.savemat(path, {matlab.VALIDATION_NOISY: blocks}, do_compression=True)
    data = path.read_bytes()
    at = int(share * (len(data) - 128))
    # Its first 128 bytes are for people to read.
    for damaged in (data[:at], data[: 128 + at] + b"\xff" * 8 + data[136 + at :]):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=r"a\.mat"):
            matlab.sidd_blocks(path, matlab.VALIDATION_NOISY)


@pytest.mark.parametrize(
    "blocks", [np.ones((1, 1, 8, 8, 3)), np.ones((1, 8, 8, 3), np.uint8), np.ones((0, 1, 8, 8, 3), np.uint8)]
)
def test_blocks_of_another_kind(tmp_path, blocks):
    scipy.io.savemat(tmp_path / "a", {matlab.VALIDATION_NOISY: blocks}, appendmat=False)
    with pytest.raises(
        ImageError, match=r"a: .* must be \(images, blocks, H, W, 3\) uint8; got \(.*\) (uint8|float64)"
    ):
        matlab.sidd_blocks(tmp_path / "a", matlab.VALIDATION_NOISY)


def test_no_submission_of_values_that_are_not_finite(model):
    torch.nn.init.constant_(model.conv_out.weight, float("nan"))
    with pytest.raises(ImageError, match="values that are not finite"):
        matlab.restored_blocks(model, np.ones((1, 1, 8, 8, 3), np.uint8))


def test_a_submission_has_the_name_that_was_asked_for(tmp_path):
    matlab.write_sidd_submission(tmp_path / "Submit", np.ones((1, 1, 8, 8, 3), np.uint8), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["Submit"]


def write_dnd(root, images, boxes):
    (root / "images_srgb").mkdir(exist_ok=True)
    with h5py.File(root / "info.mat", "w") as file:
        references = file.create_dataset("info/boundingboxes", (1, len(images)), dtype=h5py.ref_dtype)
        for i in range(len(images)):
            references[0, i] = file.create_dataset(f"#refs#/{i}", data=boxes.T).ref
    for i, image in enumerate(images):
        with h5py.File(root / "images_srgb" / f"{i + 1:04d}.mat", "w") as file:
            file["InoisySRGB"] = image.T if image.ndim == 2 else image.transpose(2, 1, 0)


def test_files_of_dnd_that_are_not_as_they_should_be(tmp_path, model):
    image, box = np.ones((40, 30, 3), np.float32), np.array([[1, 1, 16, 16]], float)

    def restored(image=image, box=box):
        write_dnd(tmp_path, [image], box)
        matlab.write_dnd_submission(model, tmp_path, tmp_path / "out")

    restored()
    for outside in ([1, 1, 41, 16], [1, 1, 16, 31], [0, 1, 16, 16], [16, 1, 15, 16]):
        with pytest.raises(ImageError, match=r"block 1 of image 1 is rows .* of 40 x 30"):
            restored(box=np.array([outside], float))
    for odd in (np.array([[np.nan, 1, 16, 16]]), np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ImageError, match=r"info\.mat cannot be read as DND's"):
            restored(box=odd)
    for odd in (image[:, :, 0], image[:, :, :2]):
        with pytest.raises(ImageError, match=r"0001\.mat"):
            restored(odd)
    restored()
    path = tmp_path / "images_srgb" / "0001.mat"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ImageError, match=r"0001\.mat cannot be read as DND's"):
        matlab.write_dnd_submission(model, tmp_path, tmp_path / "out")
    path.unlink()
    with pytest.raises(ImageError, match=r"0001\.mat cannot be read as DND's"):
        matlab.write_dnd_submission(model, tmp_path, tmp_path / "out")


def test_old_submission_stays_if_the_new_one_cannot_be_written(tmp_path, model, monkeypatch):
    def full(path, content, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "SubmitSrgb.mat"
    path.write_bytes(b"old")
    monkeypatch.setattr(scipy.io, "savemat", full)
    with pytest.raises(OSError, match="No space"):
        matlab.write_sidd_submission(path, np.zeros((1, 1, 2, 2, 3), np.uint8), 1.5)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_dnd(tmp_path, model):
    draw = np.random.default_rng(0)
    images = [draw.random((40, 30, 3), np.float32) for _ in range(2)]
    # first row, first column, last row, last column, from 1
    boxes = np.array([[1, 1, 16, 16], [9, 5, 40, 28]], float)
    write_dnd(tmp_path, images, boxes)
    matlab.write_dnd_submission(model, tmp_path, tmp_path / "bundled")
    assert sorted(path.name for path in (tmp_path / "bundled").iterdir()) == ["0001.mat", "0002.mat"]
    content = scipy.io.loadmat(tmp_path / "bundled" / "0002.mat")
    assert content["eval_version"].item() == "1.0" and not content["israw"].item()
    cells = content["Idenoised"].ravel()
    assert np.allclose(cells[0], images[1][:16, :16], atol=1e-6)
    assert np.allclose(cells[1], images[1][8:40, 4:28], atol=1e-6)
    with pytest.raises(ImageError, match=r"info\.mat cannot be read as DND's"):
        matlab.dnd_boxes(tmp_path / "images_srgb")


def test_patches(tmp_path):
    draw = np.random.default_rng(0)
    photos = {}
    for kind in ("NOISY", "GT"):
        for i, shape in enumerate([(40, 56, 3), (32, 33, 3)]):
            path = tmp_path / "Data" / f"000{i}_S6" / f"000{i}_{kind}_SRGB_010.PNG"
            path.parent.mkdir(parents=True, exist_ok=True)
            photos[kind, i] = draw.integers(0, 256, shape, np.uint8)
            cv2.imwrite(str(path), photos[kind, i])
    (tmp_path / "r.yaml").write_text("train: {kind: sidd, root: .}")
    command = ["patches", str(tmp_path / "r.yaml"), str(tmp_path / "cut"), "--size", "32", "--stride", "20"]
    result = CliRunner().invoke(main, [*command, "--workers", "2"])
    assert result.exit_code == 0, result.output
    assert "8 pairs of 32 x 32 pixels" in result.output
    # Of the first photo rows from 0 and 8, columns from 0, 20 and 24; of the second columns from 0 and 1.
    expected = {f"0_0000_NOISY_SRGB_010_{y}_{x}.png": (0, y, x) for y in (0, 8) for x in (0, 20, 24)}
    expected |= {f"1_0001_NOISY_SRGB_010_0_{x}.png": (1, 0, x) for x in (0, 1)}
    pairs = {"kind": "pairs", "input": tmp_path / "cut" / "input", "target": tmp_path / "cut" / "target"}
    found = source(pairs).pairs()
    assert sorted(path.name for path, _ in found) == sorted(expected)
    for paths in found:
        i, y, x = expected[paths[0].name]
        for kind, path in zip(("NOISY", "GT"), paths, strict=True):
            assert np.array_equal(cv2.imread(str(path)), photos[kind, i][y : y + 32, x : x + 32])

    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1 and "cut is not empty" in result.output
    command[2] = str(tmp_path / "again")
    result = CliRunner().invoke(main, [*command[:4], "33"])
    assert result.exit_code == 1 and "33 x 32 pixels, smaller than a patch of 33" in result.output
    assert list((tmp_path / "again").iterdir()) == []  # nobody takes the first photo's for all
    result = CliRunner().invoke(main, [*command, "--workers", "2"])
    assert result.exit_code == 0, result.output
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, [*command[:2], str(tmp_path / "file" / "cut"), *command[3:]])
    assert result.exit_code == 1 and "Not a directory" in result.output
    (tmp_path / "r.yaml").write_text(
        "train: {kind: clean, photos: ['skimage:cat'], degradations: [{kind: jpeg, quality: [9, 9]}]}"
    )
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1 and "train has no pairs" in result.output
