"""A training meets what is damaged, foreign, locked, full: a sentence, and nothing is lost."""

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

import pytest
import torch
from click.testing import CliRunner

from mirnet_fast.cli import main
from mirnet_fast.training import Trainer, TrainingError, loop, read_recipe
from mirnet_fast.training.lock import LockedError, locked

from .cases import first_of
from .trainings import CAT, CLEAN, NOISE, SMALL, YAML, files, recipe, source, until, write_photos

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
        ({"validation": CAT}, "; and 7 more. So"),
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


# Memory


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
