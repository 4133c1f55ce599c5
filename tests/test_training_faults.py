"""A training meets what is damaged, foreign, locked, full, or killed: a sentence, and nothing is lost."""

import csv
import io
import multiprocessing
import os
import pickle
import signal
import stat
import struct
import time
import zipfile

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mirnet_fast import evaluation, training
from mirnet_fast.cli import main
from mirnet_fast.images import ImageError
from mirnet_fast.training import RecipeError, Trainer, TrainingError, costs, loop, read_recipe
from mirnet_fast.training.data import Photos, generator
from mirnet_fast.training.lock import LockedError, locked

from .cases import exhaustive, first_of
from .test_training import CLEAN, NOISE, SMALL, YAML, files, recipe, until, write_photos

CAT = {"source": {"kind": "clean", "photos": ["skimage:cat"], "degradations": [NOISE]}, "every": 2}
NOISE_TEXT = "{kind: gaussian, sigma: [25, 25]}"
TRAIN = YAML[YAML.index("train:") : YAML.index("steps:")]


def source(text):
    return YAML.replace(TRAIN, f"train: {text}\n")


def degraded(text):
    return YAML.replace(NOISE_TEXT, text)


HOSTILE = {
    # What YAML makes of it.
    "empty": ("", "a recipe is a mapping"),
    "nothing but a remark": ("# to do\n", "a recipe is a mapping"),
    "a number": ("5", "a recipe is a mapping"),
    "no UTF": (b"steps: \xff\xfe\x00\x9f", "r.yaml: "),
    "half of UTF-16": (YAML.encode("utf-16")[:101], "r.yaml"),
    "a picture": (cv2.imencode(".png", np.zeros((4, 4)))[1].tobytes(), "r.yaml"),
    "NUL": (b"\0" * 100, "unacceptable character"),
    "open bracket": ("a: [", "line 1: "),
    "tab": ("train:\n\tkind: clean", "found character '\\t'"),
    "deep nesting": ("a: " + "[" * 1_500, "too many brackets"),
    "deep mapping": ("a: " + "{b: " * 1_500, "too many brackets"),
    "names itself": ("a: &a [*a]", "a: Extra inputs"),
    "names nothing": ("a: *b", "found undefined alias"),
    "code": ("steps: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "a field twice": (YAML + "batch: 4\n", "line 10: batch is there twice"),
    "a list as name": ("[1]: 2", "line 1: while constructing a mapping, found unhashable key"),
    "a number as name": (YAML + "5: 6", "5: Keys should be strings"),
    "integer of many digits": (YAML.replace("400", "9" * 5000), "a value cannot be read: Exceeds the limit"),
    "no date": (YAML.replace("400", "2024-13-45"), "a value cannot be read: month must be in 1..12"),
    "no integer": (YAML.replace("400", "!!int x"), "a value cannot be read: "),
    "no time": (YAML.replace("400", "!!timestamp x"), "a value cannot be read: "),
    "no truth": (YAML.replace("400", "!!bool x"), "a value cannot be read: "),
    # Values.
    "huge steps": (YAML.replace("400", "1" + "0" * 30), "steps: Input should be less than or equal to"),
    "huge float": (YAML + "learning_rate: 1" + "0" * 400, "learning_rate: "),
    "huge seed": (YAML + "seed: 10000000000", "seed: Input should be less than or equal to 4294967295"),
    "huge batch": (YAML.replace("batch: 2", "batch: 2000000000"), "batch: Input should be less than"),
    "huge height": (YAML.replace("n_RRG: 1", "height: 1000000000"), "network.height: Input should be less"),
    "huge channels": (
        YAML.replace("n_feat: 8", "n_feat: 1000000000"),
        "network.n_feat: Input should be less",
    ),
    "many workers": (YAML + "workers: 1000000", "workers: Input should be less than or equal to 1024"),
    "truth as number": (YAML.replace("400", "yes"), "steps: Value error, must be a number; got true"),
    "not a number": (YAML + "learning_rate: .nan", "learning_rate: Input should be a finite number"),
    "infinite": (YAML + "final_learning_rate: .inf", "final_learning_rate: Input should be a finite number"),
    "infinite noise": (degraded("{kind: gaussian, sigma: [0, .inf]}"), "sigma.1: Input should be a finite"),
    "betas": (YAML + "betas: [0.9, 1.5]", "betas.1: Input should be less than 1"),
    "date": (YAML + "clip: 2024-01-01", "clip: Input should be a valid number"),
    "empty range": (degraded("{kind: gaussian, sigma: [40, 10]}"), "must not begin above its end; got 40"),
    "negative": (degraded("{kind: camera, shot: [-1, 0], read: [0, 0]}"), "shot.0: Input should be greater"),
    "quality": (degraded("{kind: jpeg, quality: [90, 200]}"), "quality.1: Input should be less"),
    "zoom": (degraded("{kind: zoom, factor: [0.5, 2]}"), "factor.0: Input should be greater"),
    "no light": (
        degraded("{kind: raw, iso: [9, 9], exposure: [0, 1]}"),
        "exposure.0: Input should be greater than 0",
    ),
    "ISO 0": (degraded("{kind: raw, iso: [0, 100]}"), "iso.0: Input should be greater than 0"),
    "huge ISO": (degraded("{kind: raw, iso: [1, 1.0e+300]}"), "iso.1: Input should be less than or equal"),
    "bits": (degraded("{kind: raw, iso: [9, 9], bits: [10, 99]}"), "bits.1: Input should be less than"),
    "demosaicing": (degraded("{kind: raw, iso: [9, 9], demosaic: [magic]}"), "demosaic.0: Input should be"),
    "no demosaicing": (degraded("{kind: raw, iso: [9, 9], demosaic: []}"), "demosaic: List should have"),
    "no blur": (
        degraded("{kind: correlated, sigma: [1, 1], blur: [0, 1]}"),
        "blur.0: Input should be g",
    ),
    "wide blur": (
        degraded("{kind: sharpen, amount: [1, 1], radius: [1, 1.0e+9]}"),
        "radius.1: Input should be less",
    ),
    "subsampling": (
        degraded("{kind: jpeg, quality: [9, 9], subsampling: ['4:1:1']}"),
        "subsampling.0: Input should be",
    ),
    "no steps": (degraded("{kind: any_order, steps: []}"), "steps: List should have at least 1"),
    "a step too few": (
        degraded("{kind: one_of, steps: [{kind: zoom, factor: [1, 2]}], weights: [1, 2]}"),
        "must have as many weights as steps; got 2 and 1",
    ),
    "no weight": (
        degraded("{kind: one_of, steps: [{kind: zoom, factor: [1, 2]}], weights: [0]}"),
        "weights.0: Input should be greater than 0",
    ),
    "steps of a step": (degraded("{kind: any_order, steps: 5}"), "steps: Input should be a valid list"),
    "steps that are deep": (
        degraded("{kind: chance, share: 1, steps: [" * 8 + "{kind: zoom, factor: [1, 2]}" + "]}" * 8),
        "must be at most 1000 steps, and 8 within each other",
    ),
    "steps within themselves": (
        degraded("&a {kind: chance, share: 1, steps: [*a]}"),
        "must be at most 1000 steps, and 8 within each other",
    ),
    "steps of a few lines": (
        "".join(
            f"{name}: &{name} {{kind: any_order, steps: [{', '.join([of] * 9)}]}}\n"
            for name, of in zip("abcdef", [NOISE_TEXT, "*a", "*b", "*c", "*d", "*e"], strict=True)
        )
        + degraded("*f"),
        "must be at most 1000 steps, and 8 within each other",
    ),
    "target": (YAML.replace("  degr", "  target: noisy\n  degr"), "target: Input should be 'clean' or"),
    "margin": (YAML.replace("  degr", "  margin: -1\n  degr"), "margin: Input should be greater than or"),
    "wide margin": (
        YAML.replace("  degr", "  margin: 300\n  degr"),
        "margins of 300, together a square of 616",
    ),
    "no quality": (degraded("{kind: jpeg, quality: [90, 10]}"), "must not begin above its end; got 90"),
    "greyscale network": (YAML.replace("n_feat", "in_channels: 1, n_feat"), "network.in_channels: Input"),
    "grey result": (YAML.replace("n_feat", "out_channels: 1, n_feat"), "network.out_channels: Input"),
    "even kernel": (
        YAML.replace("n_RRG: 1", "kernel_size: 2"),
        "must be an odd integer; got 2",
    ),
    "stride 3": (YAML.replace("n_RRG: 1", "stride: 3"), "network: these arguments do not fit together"),
    "many faults": (source("{kind: clean, photos: %s, degradations: []}" % ([1] * 99)), "and 95 more"),
    # Photos.
    "no photos": (
        source(f"{{kind: clean, photos: [], degradations: [{NOISE}]}}"),
        "photos: List should have",
    ),
    "no cameras": (source("{kind: realsr, root: ., scale: 2, cameras: []}"), "cameras: Tuple should have"),
    "all photos there are": (YAML.replace("skimage:astronaut", "skimage:download_all"), "no such photo"),
    "no photo": (YAML.replace("skimage:astronaut", "skimage:data_dir"), "not to be had: 'str' object is not"),
    "unknown photo": (
        YAML.replace("skimage:astronaut", "sklearn:moon.jpg"),
        "not to be had: The 'image_name'",
    ),
    "no folder": (source("{kind: pairs, input: a, target: b}"), "a: there is no such folder"),
    "long name": (source("{kind: lol, root: %s}" % ("a" * 300)), "File name too long"),
    "NUL in a name": (source('{kind: lol, root: "\\0"}'), "there is no such folder"),
    "less than a pixel": (YAML.replace("  degr", "  scales: [1.0e-9]\n  degr"), "less than a pixel"),
    "batch of part": (YAML + "accumulate: 4", "must be a multiple of accumulate"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=exhaustive if i % 4 else ()) for i, name in enumerate(HOSTILE)]
)
def test_hostile_recipes_get_a_sentence(tmp_path, name):
    text, message = HOSTILE[name]
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    result = CliRunner().invoke(main, ["train", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.exception
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and message in last
    assert result.stderr.count("Error: ") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "last.pt").exists()


def test_recipes_in_other_encodings(tmp_path):
    text = YAML + "# größer\n"
    (tmp_path / "8.yaml").write_text(text, encoding="utf-8")
    expected = read_recipe(tmp_path / "8.yaml")
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        path = tmp_path / f"{encoding}.yaml"
        path.write_bytes(("\ufeff" * (encoding == "utf-16-le") + text).encode(encoding))
        assert read_recipe(path) == expected


def test_unreadable_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml cannot be read: .*No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_scalars_that_are_numbers_in_other_words(tmp_path):
    (tmp_path / "r.yaml").write_text(YAML + "learning_rate: 1e-3\nema: null\nbetas: [0, 0.5]\n")
    r = read_recipe(tmp_path / "r.yaml")
    assert (r.learning_rate, r.ema, r.betas) == (1e-3, None, (0, 0.5))


# last.pt


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bytes of a last.pt of step 4 of `recipe()`, before the run went on."""
    folder = tmp_path_factory.mktemp("trained")
    until(Trainer(recipe(ema=0.9), folder), 4)
    return (folder / "last.pt").read_bytes()


def goes_on(folder, **changes):
    return Trainer(recipe(**{"ema": 0.9} | changes), folder)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("place", ["alone", "within"])
def test_last_pt_runs_no_code(tmp_path, trained, place):
    code = Code(str(tmp_path / "ran"))
    state = torch.load(io.BytesIO(trained), weights_only=True)
    torch.save(code if place == "alone" else state | {"best": code}, tmp_path / "last.pt")
    with pytest.raises(
        TrainingError, match=r"last\.pt was refused, as it would run code \(\w*\.?open\)"
    ) as error:
        goes_on(tmp_path)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def flipped(data, share):
    """With another bit in the middle of one of its records; between them are bytes that nobody reads."""
    records = zipfile.ZipFile(io.BytesIO(data)).infolist()
    record = records[int(share * len(records))]
    lengths = struct.unpack_from("<HH", data, record.header_offset + 26)  # of name and extra field
    at = record.header_offset + 30 + sum(lengths) + record.file_size // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "text": lambda data: b"nothing",
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-100],
    "a pickle": lambda data: pickle.dumps({"step": 4}),
    **{f"a bit at {share}": lambda data, share=share: flipped(data, share) for share in (0.3, 0.6, 0.9)},
}


@pytest.mark.parametrize("damage", first_of([*DAMAGES], 5))
def test_a_damaged_last_pt_is_named(tmp_path, trained, damage):
    (tmp_path / "last.pt").write_bytes(DAMAGES[damage](trained))
    with pytest.raises(TrainingError, match=r"last\.pt (is|was) .*or remove it to start anew") as error:
        goes_on(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "last.pt").unlink()
    assert goes_on(tmp_path).step == 0


def of_another_shape(state):
    moments = next(iter(state["optimizer"]["state"].values()))
    return {
        "optimizer": state["optimizer"] | {"state": {"conv_in.weight": moments | {"exp_avg": torch.ones(1)}}}
    }


CONTENTS = {
    "weights alone": (lambda state: state["network"], "it has no best, network"),
    "a list": (lambda state: [1], "AttributeError"),
    "no optimizer": (
        lambda state: {k: v for k, v in state.items() if k != "optimizer"},
        "it has no optimizer",
    ),
    "no average": (lambda state: {k: v for k, v in state.items() if k != "average"}, "KeyError: 'average'"),
    "no recipe": (lambda state: state | {"recipe": "{}"}, "is of another version: train: Field required"),
    "other weights": (lambda state: state | {"network": {"a": torch.ones(1)}}, "is damaged: KeyError"),
    "weights of another shape": (
        lambda state: state | {"network": {k: torch.ones(1, 2, 3) for k in state["network"]}},
        "is damaged: RuntimeError",
    ),
    "moments of another shape": (
        lambda state: state | of_another_shape(state),
        "exp_avg of conv_in.weight is",
    ),
    "step of a string": (lambda state: state | {"step": "4"}, "is damaged: ValueError: step '4'"),
    "step from after the end": (lambda state: state | {"step": 99}, "is damaged: ValueError: step 99"),
    "random": (lambda state: state | {"random": (1, 2)}, "is damaged: "),
}


@pytest.mark.parametrize("content", first_of([*CONTENTS], 6))
def test_a_last_pt_of_something_else_is_named(tmp_path, trained, content):
    change, message = CONTENTS[content]
    torch.save(change(torch.load(io.BytesIO(trained), weights_only=True)), tmp_path / "last.pt")
    with pytest.raises(TrainingError, match=r"last\.pt is .*or remove it to start anew") as error:
        goes_on(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_in_the_place_of_last_pt(tmp_path):
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(TrainingError, match=r"last\.pt cannot be read: .*Is a directory"):
        goes_on(tmp_path)


def test_last_pt_of_the_version_before(tmp_path, monkeypatch):
    # It had paths as the recipe gave them, and was written by torch.save to an open file.
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    r = recipe(train={"kind": "clean", "folder": "photos", "degradations": [NOISE]})
    until(Trainer(r, "out"), 4)
    state = torch.load("out/last.pt", weights_only=True)
    with open("out/last.pt", "wb") as file:
        torch.save(state | {"recipe": r.model_dump_json()}, file)
    assert Trainer(r, "out").step == 4


# The same recipe, and another one


def test_the_same_recipe_from_another_folder(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "elsewhere").mkdir()
    text = source(
        f"{{kind: clean, folder: FOLDER, degradations: [{NOISE}]}}".replace("(", "[").replace(")", "]")
    )
    text = text.replace("steps: 400", "steps: 6")
    for name, folder in {"r": "photos", "absolute": tmp_path / "photos", "linked": "./link"}.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    monkeypatch.chdir(tmp_path)
    until(Trainer(read_recipe("r.yaml"), "out"), 5)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in ("../r.yaml", tmp_path / "r.yaml", "../absolute.yaml", "../linked.yaml"):
        assert Trainer(read_recipe(path), tmp_path / "out").step == 5


@pytest.mark.parametrize("changes", [{"workers": 1, "save_every": 1}, {"steps": 8}])
def test_the_same_recipe_in_what_matters(tmp_path, trained, changes):
    (tmp_path / "last.pt").write_bytes(trained)
    trainer = goes_on(tmp_path, **changes)
    assert trainer.step == 4
    assert len(trainer.run(progress=False)) == changes.get("steps", 6) - 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 4}, "another recipe: batch is 2 there and 4 here. So train in"),
        ({"steps": 5}, "steps is 6 there and 5 here"),
        ({"ema": None}, "ema is 0.9 there and None here"),
        ({"network": SMALL | {"n_feat": 16}}, "network.n_feat is 8 there and 16 here"),
        (
            {"train": CLEAN | {"degradations": [NOISE | {"sigma": (5, 5)}]}},
            "train.degradations.0.sigma is (25.0, 25.0) there and (5.0, 5.0) here",
        ),
        ({"validation": CAT}, "; and 6 more. So"),
        ({"train": CLEAN | {"photos": ["skimage:cat"]}}, "train.photos is ['skimage:ast"),
    ],
)
def test_another_recipe_is_told_by_its_fields(tmp_path, trained, changes, message):
    (tmp_path / "last.pt").write_bytes(trained)
    with pytest.raises(TrainingError) as error:
        goes_on(tmp_path, **changes)
    assert message in str(error.value)


# One training in a folder


def holding(folder, then):
    """The number of a process that has the lock of a folder."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with locked(folder):
                then()
                os.write(told, b"!")
                time.sleep(60)
        finally:
            os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return child


def test_one_training_in_a_folder(tmp_path):
    worker = multiprocessing.RawValue("i")

    def start_worker():  # which outlives the training that forked it
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        worker.value = child

    child = holding(tmp_path, start_worker)
    try:
        with pytest.raises(TrainingError, match=rf"another training is running in .*, process {child} of "):
            Trainer(recipe(), tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        assert Trainer(recipe(), tmp_path).step == 0
    finally:
        os.kill(worker.value, signal.SIGKILL)
    assert os.listdir(tmp_path) == []


def test_the_lock_is_for_the_run(tmp_path):
    first, second = Trainer(recipe(), tmp_path), Trainer(recipe(), tmp_path)

    def after(loss, after=first._after):
        after(loss)
        with pytest.raises(TrainingError, match="another training is running"):
            second.run(progress=False)

    first._after = after
    first.run(progress=False)
    with pytest.raises(TrainingError, match="another training has gone on in"):
        second.run(progress=False)
    assert first.run(progress=False) == []
    assert files(tmp_path) == ["last.pt", "log.csv"]


def test_a_lock_that_was_just_taken_away(tmp_path, monkeypatch):
    # Between open and lock the training before ends, and a third one begins.
    import fcntl

    lock, times = fcntl.flock, []

    def slow(file, how):
        if not times:
            times.append(1)
            (tmp_path / ".training").unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locked(tmp_path), pytest.raises(LockedError), locked(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    def none(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="has no locks: see that only one"), locked(tmp_path):
        pass


# The log and the weights


def test_a_run_that_ended_before_its_first_checkpoint(tmp_path):
    Trainer(recipe(), tmp_path / "whole").run(progress=False)
    until(Trainer(recipe(), tmp_path / "parts"), 3)
    Trainer(recipe(), tmp_path / "parts").run(progress=False)
    assert (tmp_path / "parts" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


@pytest.mark.parametrize("torn", first_of(["rows", "", "st", "step,loss,learning_rate,psnr,ssim\r"], 2))
def test_a_log_that_was_torn(tmp_path, trained, torn):
    (tmp_path / "last.pt").write_bytes(trained)
    log = tmp_path / "log.csv"
    rows = ["step,loss,learning_rate,psnr,ssim", *(f"{i},0.5,0.1,," for i in range(1, 12))]
    # Row 12 has lost its second digit.
    log.write_bytes("\r\n".join([*rows, "1"]).encode() if torn == "rows" else torn.encode())
    goes_on(tmp_path).run(progress=False)
    with log.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == ([1, 2, 3, 4, 5, 6] if torn == "rows" else [5, 6])


@pytest.mark.parametrize(
    "content", [b"a;b\r\n1;2\r\n", b"\xff\xfe\0", b"steps taken: 5", b"step,loss\r\nx,1\r\n"]
)
def test_another_log_is_left_alone(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=r"log\.csv is not the log of a training .*move it away"):
        Trainer(recipe(), tmp_path)
    assert (tmp_path / "log.csv").read_bytes() == content


def test_files_have_the_usual_mode(tmp_path):
    os.umask(mask := os.umask(0o027))
    os.umask(0o027)
    try:
        Trainer(recipe(validation=CAT), tmp_path).run(progress=False)
    finally:
        os.umask(mask)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in made} >= {".safetensors", ".pt", ".csv", ".png"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o640}


@pytest.mark.parametrize("name", ["log.csv", "best.safetensors", "last.pt"])
def test_what_cannot_be_written_is_named(tmp_path, name):
    trainer = Trainer(recipe(validation=CAT), tmp_path)

    def after(loss, after=trainer._after):
        if trainer.step == 1 and name == "log.csv":
            (tmp_path / name).symlink_to("/dev/full")
        elif trainer.step == 1:
            (tmp_path / name).mkdir()
        after(loss)

    trainer._after = after
    with pytest.raises(TrainingError, match=rf"{name} cannot be written: .*(No space|is a folder)"):
        trainer.run(progress=False)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "r.yaml").write_text(YAML)
    command = ["train", str(tmp_path / "r.yaml"), "--device", "cpu", "--out", str(tmp_path / "file" / "out")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "Error: " in result.stderr and "cannot be written: " in result.stderr.splitlines()[-1]


def test_a_folder_in_which_nothing_can_be_written(tmp_path, monkeypatch):
    trainer = Trainer(recipe(), tmp_path)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(loop, "locked", refuse)  # root may write anywhere
    for attempt in (lambda: Trainer(recipe(), tmp_path), lambda: trainer.run(progress=False)):
        with pytest.raises(TrainingError, match=r"cannot be written: .*Permission denied"):
            attempt()


# Photos, workers, memory


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


@pytest.mark.parametrize("number", first_of([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
def test_a_signal_to_a_worker(tmp_path, number):
    trainer = Trainer(recipe(workers=1, steps=12, save_every=2), tmp_path)
    after = trainer._after

    def tell(loss):
        after(loss)
        if trainer.step == 3:
            os.kill(multiprocessing.active_children()[0].pid, number)

    trainer._after = tell
    if number == signal.SIGKILL:
        with pytest.raises(TrainingError, match="a process that reads photos ended") as error:
            trainer.run(progress=False)
        assert "\n" not in str(error.value)
        assert Trainer(recipe(steps=12), tmp_path).step >= 2
    else:  # what a terminal or a cluster sends to all
        assert len(trainer.run(progress=False)) == 12
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 5 bytes"),
        MemoryError("Unable to allocate 3 GiB for an array"),
    ],
    ids=["cuda", "cpu", "numpy"],
)
def test_too_little_memory_is_a_sentence(tmp_path, error):
    trainer = Trainer(recipe(), tmp_path)

    def fail(x):
        raise error

    trainer.parallel = fail
    with pytest.raises(TrainingError, match=r"the memory is not enough for a step; .*llocate"):
        trainer.run(progress=False)

    def make(**arguments):
        raise error

    with pytest.raises(TrainingError, match=r"the memory is not enough for the network; .*llocate"):
        Trainer(recipe(), tmp_path, make=make)


def test_other_errors_stay_as_they_are(tmp_path):
    trainer = Trainer(recipe(), tmp_path)

    def fail(x):
        raise RuntimeError("a fault of ours")

    trainer.parallel = fail
    with pytest.raises(RuntimeError, match=r"^a fault of ours$"):
        trainer.run(progress=False)


def test_costs_name_the_network(tmp_path):
    with pytest.raises(RecipeError, match="network: these arguments do not fit together"):
        costs(recipe(network=SMALL | {"stride": 3}))


# Stopped from outside


def command(tmp_path):
    (tmp_path / "r.yaml").write_text(YAML)
    arguments = ["train", str(tmp_path / "r.yaml"), "--device", "cpu", "--out", str(tmp_path / "out")]
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["read_recipe", "Trainer"])
def test_stopped_before_there_is_a_trainer(tmp_path, monkeypatch, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, name, interrupted)
    result = command(tmp_path)
    assert result.exit_code == 130 and result.stderr.endswith("stopped before the first step\n")


@pytest.mark.parametrize(("stop", "place"), [(0, "there"), (2, "step 0"), (7, "step 5")])
def test_stopped_at_once_it_says_from_where_it_goes_on(tmp_path, monkeypatch, stop, place):
    def stopped(trainer, x, y, part):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return x, y

    monkeypatch.setattr(Trainer, "_mixed_up", stopped)
    result = command(tmp_path)
    assert result.exit_code == 130
    assert result.stderr.endswith(f"stopped at step {stop}; the same command goes on from {place}\n")
