"""A training as a command, in several processes, and stopped from outside."""

import csv
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mirnet_fast import training
from mirnet_fast.cli import main
from mirnet_fast.training import Trainer, TrainingError, read_recipe
from mirnet_fast.training.failures import can_be_written, failures_told

from .cases import exhaustive, first_of
from .trainings import NOISE, YAML, files, in_two_processes, recipe, start, until, wait_for


def test_command(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        YAML.replace("steps: 400", "steps: 2")
        + "validation: {source: {kind: clean, photos: ['skimage:cat'], degradations: "
        "[{kind: jpeg, quality: [9, 9]}]}}"
    )
    result = CliRunner().invoke(main, ["train", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "from step 0" in result.output and "best validation: " in result.output
    assert files(tmp_path / "out") == ["best.safetensors", "last.pt", "log.csv", "samples"]
    path.write_text("steps: 2")
    result = CliRunner().invoke(main, ["train", str(path)])
    assert result.exit_code == 1 and "train: Field required" in result.output


def test_killed_in_the_middle(tmp_path):
    out, process = start(tmp_path)
    wait_for(out / "last.pt")
    time.sleep(0.5)  # anywhere in an epoch, perhaps in a write
    process.send_signal(signal.SIGKILL)
    process.communicate()
    half = out / ".new-0123abcd.pt"
    half.write_bytes(b"half a checkpoint")  # as if killed in the middle of a write
    r = read_recipe(tmp_path / "r.yaml")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process that was killed
    try:
        resumed = Trainer(r, out)
        assert not half.exists()
        stopped = resumed.step
        assert stopped >= 5 and stopped % 5 == 0
        with (out / "log.csv").open() as file:
            curve = [float(row["loss"]) for row in csv.DictReader(file)]
        assert len(curve) == stopped
        curve += until(resumed, stopped + 3)
        assert curve == until(Trainer(r, tmp_path / "whole"), stopped + 3)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("number", first_of([signal.SIGINT, signal.SIGTERM]))
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, number):
    out, process = start(tmp_path, text=YAML.replace("save_every: 5", "save_every: 100000"))
    wait_for(out / "log.csv")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    trainer = Trainer(read_recipe(tmp_path / "r.yaml"), out)
    assert 1 <= trainer.step < 400
    assert f"stopped at step {trainer.step};" in errors


@pytest.mark.parametrize("way", first_of([{"shard": True, "accumulate": 2}, {"accumulate": 2}]))
def test_two_processes_are_one_with_their_batches_together(tmp_path, way):
    # Stopped after the checkpoint of step 4 and resumed.
    cat = {"kind": "clean", "photos": ["skimage:cat"], "scales": [0.2], "degradations": [NOISE]}
    validation = {"source": cat, "every": 3}
    changes = {"batch": 4, "ema": 0.9, "clip": 0.5, "validation": validation}
    in_two_processes(
        tmp_path,
        f"""
        changes = {changes | way}
        losses = until(trainer(**changes), 5)[:4]
        t = trainer(**changes)
        assert t.step == 4
        assert (t.world, hasattr(t.network, "unshard")) == (2, changes.get("shard", False))
        losses += t.run(progress=False)
        if t.rank == 0:
            torch.save(losses, {str(tmp_path / "losses.pt")!r})
        """,
    )
    one = Trainer(recipe(**changes), tmp_path / "one", dtype=torch.float64)
    assert np.allclose(one.run(progress=False), torch.load(tmp_path / "losses.pt"), rtol=1e-10, atol=0)
    two = Trainer(recipe(**changes, **way), tmp_path / "two", dtype=torch.float64)
    for a, b in ((one.network, two.network), (one.average, two.average)):
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    assert two.best == pytest.approx(one.best, abs=1e-9)


@exhaustive
def test_one_of_two_processes_is_told_to_stop(tmp_path):
    in_two_processes(
        tmp_path,
        """
        t = trainer(shard=True)
        after = t._after
        def tell(loss):
            after(loss)
            if t.step == 2 and t.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        t._after = tell
        with pytest.raises(KeyboardInterrupt):
            t.run(progress=False)
        assert t.step == 3
        """,
    )
    assert Trainer(recipe(shard=True), tmp_path / "two", dtype=torch.float64).step == 3


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


def test_a_worker_may_end_while_something_is_written(tmp_path):
    with (
        pytest.raises(TrainingError, match="a process that reads photos ended"),
        failures_told("it"),
        can_be_written(tmp_path),
    ):
        raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")


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
