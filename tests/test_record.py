"""What a training leaves to look at: pictures, TensorBoard's events, and what becomes of them."""

import csv
import resource
import signal
import threading
import time

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mirnet_fast.images import read_photo
from mirnet_fast.training import Trainer, TrainingError, record
from mirnet_fast.training.record import COLUMNS, EVENTS, LOG, SAMPLES, Record

from .trainings import NOISE, SMALL, until, write_photos
from .trainings import recipe as any_recipe


def recipe(**changes):
    return any_recipe(network=SMALL | {"height": 1, "width": 1}, **changes)


def events(folder):
    """What TensorBoard makes of a folder."""
    found = EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    found.Reload()
    return found


def scalars(folder, name):
    return [(event.step, np.float32(event.value)) for event in events(folder).Scalars(name)]


def in_log(folder, name):
    with (folder / LOG).open(newline="") as file:
        return [(int(row["step"]), np.float32(row[name])) for row in csv.DictReader(file) if row[name]]


@pytest.fixture
def validation(tmp_path, monkeypatch):
    """Of three photos, one of them larger than what is shown of it."""
    monkeypatch.setattr(record, "SIDE", 32)
    folder = write_photos(tmp_path / "photos", 2)
    cv2.imwrite(str(folder / "wide.png"), np.full((20, 45, 3), 128, np.uint8))
    return {"source": {"kind": "clean", "folder": folder, "degradations": [NOISE]}, "every": 2}


def next_second():
    """TensorBoard reads the files of a folder by the second in their names."""
    begin = int(time.time())
    while int(time.time()) == begin:
        time.sleep(0.02)


@pytest.mark.parametrize("count", [None, 0, 9])
def test_samples(tmp_path, validation, count):
    if count is not None:
        validation["samples"] = count
    out = tmp_path / "out"
    trainer = Trainer(recipe(validation=validation, steps=3), out)
    trainer.run(progress=False)
    numbered = ["0-0", "1-1", "2-wide"][: 2 if count is None else count]
    expected = [f"{step:07}-{name}.png" for step in (2, 3) for name in numbered]
    assert sorted(path.name for path in out.glob(f"{SAMPLES}/*")) == expected
    assert sorted(events(out).Tags()["images"]) == [f"{SAMPLES}/{name}" for name in numbered]
    if count == 0:
        assert not (out / SAMPLES).exists()
        return
    shown = []
    trainer.validate(lambda *sample: shown.append(sample))
    assert [(step, i) for step, i, *_ in shown] == [(3, i) for i in range(len(numbered))]
    for name, (*_, given, restored, target) in zip(numbered, shown, strict=True):
        left = (target.shape[1] - min(32, target.shape[1])) // 2
        whole = np.hstack([picture[:, left : left + 32] for picture in (given, restored, target)])
        written = read_photo(out / SAMPLES / f"0000003-{name}.png").rgb[0].permute(1, 2, 0).numpy()
        assert written.shape[1] == 3 * min(32, target.shape[1])
        assert np.abs(written - np.clip(whole, 0, 1)).max() <= 0.5001 / 255
        seen = events(out).Images(f"{SAMPLES}/{name}")
        assert [event.step for event in seen] == [2, 3]
        decoded = cv2.imdecode(np.frombuffer(seen[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(decoded[:, :, ::-1], np.round(255 * written))


def test_samples_may_be_changed_while_a_training_goes_on(tmp_path, validation):
    until(Trainer(recipe(validation=validation), tmp_path / "out"), 4)
    trainer = Trainer(recipe(validation=validation | {"samples": 1}), tmp_path / "out")
    trainer.run(progress=False)
    numbers = [path.name[:9] for path in sorted((tmp_path / "out" / SAMPLES).iterdir())]
    assert numbers == ["0000002-0", "0000002-1", "0000004-0", "0000004-1", "0000006-0"]


@pytest.mark.parametrize("name", ["ö" * 200, "\udcff", "a b<c>#", "skimage:cat", "x:y/z.tar.png"])
def test_names_of_samples(tmp_path, name):
    kept = Record(tmp_path)
    picture = np.zeros((4, 4, 3), np.float32)
    picture[0, 0] = np.nan
    kept.add_sample(5, 0, name, picture, picture)
    kept.close()
    [path] = (tmp_path / SAMPLES).iterdir()
    shown = {"skimage:cat": "cat", "\udcff": "?", "x:y/z.tar.png": "z.tar"}.get(name, name[:50])
    assert path.name == f"0000005-0-{shown}.png"
    assert events(tmp_path).Tags()["images"] == [f"{SAMPLES}/0-{shown}"]


def test_events_are_those_of_the_log(tmp_path, validation):
    Trainer(recipe(validation=validation), tmp_path).run(progress=False)
    for name in COLUMNS[1:]:
        assert scalars(tmp_path, name) == in_log(tmp_path, name)
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in scalars(tmp_path, "psnr")] == [2, 4, 6]


def test_later_steps_are_forgotten(tmp_path, validation):
    out = tmp_path / "out"
    until(Trainer(recipe(validation=validation, save_every=3), out), 5)
    with (out / LOG).open("a") as file:  # so that what is repeated differs
        file.write("6,9.0,9.0,,\n")
    half = out / SAMPLES / ".new-0123abcd.png"
    half.write_bytes(b"half a picture")
    next_second()
    Trainer(recipe(validation=validation, save_every=3), out).run(progress=False)
    assert len(list(out.glob(EVENTS))) == 2 and not half.exists()
    for name in COLUMNS[1:]:
        assert scalars(out, name) == in_log(out, name)
    assert [event.step for event in events(out).Images(f"{SAMPLES}/0-0")] == [2, 4, 6]


def test_a_training_that_begins_anew_in_the_folder(tmp_path, validation):
    # The one before had a step 0, and ended before its first checkpoint.
    Trainer(recipe(), tmp_path).save_weights(tmp_path / "w.safetensors")
    until(Trainer(recipe(validation=validation, weights=tmp_path / "w.safetensors"), tmp_path), 3)
    assert [step for step, _ in in_log(tmp_path, "psnr")] == [0, 2]
    next_second()
    Trainer(recipe(validation=validation), tmp_path).run(progress=False)
    for name in COLUMNS[1:]:
        assert scalars(tmp_path, name) == in_log(tmp_path, name)
    assert [step for step, _ in scalars(tmp_path, "psnr")] == [2, 4, 6]


def test_nothing_to_do_leaves_nothing(tmp_path):
    Trainer(recipe(), tmp_path).run(progress=False)
    before = sorted(tmp_path.iterdir())
    Trainer(recipe(), tmp_path).run(progress=False)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def small_files():
    """Files of more than 4000 bytes cannot be written: stands for a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard tells it, too
def test_a_full_disk_ends_the_events(tmp_path, small_files, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # TensorBoard's thread tells it, too
    kept = Record(tmp_path)
    with pytest.raises(TrainingError, match=r"events\.out\.tfevents\.\* cannot be written: .*File too large"):
        for step in range(1, 1000):
            kept.add_row(step, 0.5, 1e-3)
            if step % 10 == 0:
                kept.flush()
    with pytest.raises(TrainingError, match="cannot be written"):
        kept.close()


def test_samples_that_cannot_be_written(tmp_path, validation):
    trainer = Trainer(recipe(validation=validation), tmp_path / "out")
    (tmp_path / "out" / SAMPLES).mkdir()
    (tmp_path / "out" / SAMPLES / "0000002-0-0.png").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"0000002-0-0\.png was not written: No space left"):
        trainer.run(progress=False)
    trainer = Trainer(recipe(validation=validation), tmp_path / "other")
    (tmp_path / "other" / SAMPLES).write_text("")
    with pytest.raises(TrainingError, match=r"samples cannot be written: .*File exists"):
        trainer.run(progress=False)


def test_a_folder_that_has_gone(tmp_path):
    kept = Record(tmp_path / "gone")
    with pytest.raises(TrainingError, match=r"log\.csv cannot be written"):
        kept.add_row(1, 0.5)
    kept.close()
