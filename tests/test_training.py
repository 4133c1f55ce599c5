"""Training by a recipe: the mathematics, the samples, going on after whatever has happened."""

import csv
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mirnet_fast import MIRNet, reference
from mirnet_fast.checkpoints import read_state_dict
from mirnet_fast.cli import main
from mirnet_fast.images import ImageError
from mirnet_fast.training import (
    Recipe,
    RecipeError,
    Trainer,
    TrainingError,
    ablated,
    costs,
    read_recipe,
)
from mirnet_fast.training.data import Patches, Photos
from mirnet_fast.training.loop import BEST, charbonnier, learning_rate
from mirnet_fast.training.record import EVENTS, LOG

from .cases import exhaustive, first_of

ROOT = Path(__file__).parents[1]
NOISE = {"kind": "gaussian", "sigma": (25, 25)}
SMALL = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
PHOTOS = ["skimage:astronaut", "skimage:coffee", "skimage:chelsea"]
CLEAN = {"kind": "clean", "photos": PHOTOS, "degradations": [NOISE]}
YAML = """\
network: {n_feat: 8, n_RRG: 1, n_MSRB: 1}
train:
  kind: clean
  photos: ['skimage:astronaut', 'skimage:coffee']
  degradations: [{kind: gaussian, sigma: [25, 25]}]
steps: 400
batch: 2
patch: 16
save_every: 5
"""


def recipe(**changes):
    fields = {
        "network": SMALL,
        "train": {
            "kind": "clean",
            "photos": ["skimage:astronaut", "skimage:coffee", "skimage:chelsea"],
            "degradations": [NOISE],
        },
        "steps": 6,
        "batch": 2,
        "patch": 16,
        "save_every": 4,
    }
    return Recipe.model_validate(fields | changes)


def weights(trainer):
    return list(trainer.network.state_dict().values())


def until(trainer, step):
    """The losses of a run that ends as if killed, once all of that step is done."""

    class Killed(BaseException):
        pass

    losses, after = [], trainer._after

    def stop(loss):
        after(loss)
        losses.append(loss)
        if trainer.step == step:
            raise Killed

    trainer._after = stop
    with pytest.raises(Killed):
        trainer.run(progress=False)
    return losses


def files(folder):
    """The names in a training's folder but those of TensorBoard's events."""
    return sorted(path.name for path in folder.iterdir() if not path.match(EVENTS))


def write_photos(folder, count=2, size=(24, 24), seed=0):
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), draw.integers(0, 256, (*size, 3), np.uint8))
    return folder


def test_charbonnier():
    output, target = torch.tensor([0.0, 3.0]), torch.tensor([0.0, 7.0])
    expected = (1e-3 + math.sqrt(16 + 1e-6)) / 2
    assert abs(float(charbonnier(output, target, 1e-3)) - expected) < 1e-7


def test_learning_rate():
    r = recipe(steps=100, warmup=10, learning_rate=2e-4, final_learning_rate=1e-6)
    rates = [learning_rate(r, step) for step in range(101)]
    assert rates[0] == pytest.approx(2e-5)
    assert max(rates) == rates[10] == pytest.approx(2e-4)
    assert rates[55] == pytest.approx((2e-4 + 1e-6) / 2)
    assert rates[100] == pytest.approx(1e-6)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_defaults_are_the_papers():
    r = Recipe.model_validate(
        {"train": {"kind": "clean", "photos": ["skimage:cat"], "degradations": [NOISE]}}
    )
    assert (r.steps, r.batch, r.patch) == (700_000, 16, 128)
    assert (r.learning_rate, r.final_learning_rate, r.betas, r.epsilon) == (2e-4, 1e-6, (0.9, 0.999), 1e-3)
    network = MIRNet(**r.network.model_dump())
    assert sum(p.numel() for p in network.parameters()) == 31_787_419


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 5", "train: Field required"),
        (YAML + "stepz: 5", "stepz: Extra inputs are not permitted"),
        (YAML.replace("steps: 400", "steps: -1"), "steps: Input should be greater than 0"),
        (YAML.replace("gaussian", "gauss"), "degradations.0: Input tag 'gauss'"),
        (YAML.replace("patch: 16", "patch: 18"), "patch must be a multiple of 4; got 18"),
        (YAML + "shard: true\nprecision: float16", "shard needs precision float32 or bfloat16; got float16"),
        (YAML + "accumulate: 4", "batch, 2, must be a multiple of accumulate, 4"),
        (
            YAML.replace("  photos: ['skimage:astronaut', 'skimage:coffee']\n", ""),
            "either folder or photos must be given",
        ),
        ("- a\n- b", "a mapping of names to values"),
        ("a: [", "r.yaml"),
    ],
)
def test_bad_recipes_name_the_field(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert message in str(error.value)


def test_folders_of_a_recipe_are_below_it(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("train: {kind: pairs, input: noisy, target: /clean}")
    source = read_recipe(path).train
    assert (source.input, source.target) == (tmp_path / "noisy", Path("/clean"))


ABLATIONS = [
    {"skips": False, "dau": False, "skff": "sum"},
    {"skff": "concat"},
    {"skips": False},
    {"dau": False},
    {"skff": "sum"},
]


@pytest.mark.parametrize("ablation", first_of(ABLATIONS, 2))
def test_ablations_train_alike(tmp_path, ablation):
    r = recipe(ablation=ablation, steps=3)
    fast = Trainer(r, tmp_path / "fast", dtype=torch.float64)
    plain = Trainer(r, tmp_path / "reference", make=reference.MIRNet, dtype=torch.float64)
    plain.network.load_state_dict(fast.network.state_dict())
    x = torch.rand(1, 3, 20, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.network(x)
        torch.testing.assert_close(fast.network(x), expected, rtol=1e-9, atol=1e-9)
        published = reference.MIRNet(**SMALL).double()
        published.load_state_dict(fast.network.state_dict(), strict=False)
        assert not torch.allclose(published(x), expected, rtol=1e-3)
    assert np.allclose(fast.run(progress=False), plain.run(progress=False), rtol=1e-10, atol=0)


def test_what_ablations_cost():
    network = {"n_feat": 16, "n_RRG": 1, "n_MSRB": 1}

    def cost(**ablation):
        parameters, flops = costs(recipe(network=network, ablation=ablation))
        made = ablated(MIRNet, **ablation)(**network)
        assert parameters == sum(p.numel() for p in made.parameters())
        return np.array([parameters, flops])

    # Three SKFFs of 16, 32 and 64 channels, the first of which runs twice.
    skff = sum(p.numel() for channels in (16, 32, 64) for p in reference.SKFF(channels).parameters())
    without = cost() - cost(skff="sum")
    assert without[0] == skff
    concat = cost(skff="concat") - cost(skff="sum")
    assert concat[0] == 3 * (16**2 + 32**2 + 64**2)
    assert concat[1] == 2 * 3 * (2 * 16**2 * 16**2 + 32**2 * 8**2 + 64**2 * 4**2)
    units = [reference.DAU(channels) for channels in (16, 32, 64)]
    # The shared PReLU and two convolutions stay of each.
    kept = sum(1 + 2 * 9 * channels**2 for channels in (16, 32, 64))
    assert (cost() - cost(dau=False))[0] == sum(p.numel() for u in units for p in u.parameters()) - kept
    assert np.array_equal(cost(), cost(skips=False))


@exhaustive
def test_what_the_published_network_costs():
    published = {"train": CLEAN, "patch": 256}
    assert costs(Recipe.model_validate(published)) == (31_787_419, 959_891_054_592)


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


def test_fast_and_reference_train_alike(tmp_path):
    # 20 steps in float64.
    r = recipe(steps=20, batch=2, ema=0.9, clip=1.0)
    fast = Trainer(r, tmp_path / "fast", dtype=torch.float64)
    published = Trainer(r, tmp_path / "reference", make=reference.MIRNet, dtype=torch.float64)
    published.network.load_state_dict(fast.network.state_dict())
    published.average.module.load_state_dict(fast.network.state_dict())
    a, b = fast.run(progress=False), published.run(progress=False)
    assert np.allclose(a, b, rtol=1e-10, atol=0)
    for p, q in zip(weights(fast), weights(published), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)
    assert not torch.equal(weights(fast)[0], next(iter(fast.average.module.state_dict().values())))


class Nchw(reference.MIRNet):
    def forward(self, x):
        return super().forward(x.contiguous())


class ChannelsLast(reference.MIRNet):
    def forward(self, x):
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def test_in_float32_the_curves_differ_as_two_runs_of_the_reference_do(tmp_path):
    r = recipe(steps=20, batch=2, patch=32, learning_rate=1e-3)
    curves = {}
    for make in (Nchw, ChannelsLast, MIRNet):
        trainer = Trainer(r, tmp_path / make.__name__, make=make)
        trainer.network.load_state_dict(reference_state())
        curves[make] = np.array(trainer.run(progress=False))
    assert curves[Nchw][-1] < 0.9 * curves[Nchw][0]
    noise, ours = (np.abs(curves[make] / curves[Nchw] - 1).max() for make in (ChannelsLast, MIRNet))
    assert ours <= 2 * noise + 4 * torch.finfo(torch.float32).eps


def reference_state():
    torch.manual_seed(5)
    return reference.MIRNet(**SMALL).state_dict()


@pytest.mark.parametrize("width", first_of([1, 2]))  # with one column some parameters are not used
def test_resumed_is_as_never_stopped(tmp_path, width):
    validation = {"source": {"kind": "clean", "photos": ["skimage:cat"], "degradations": [NOISE]}, "every": 3}
    r = recipe(mixup=0.5, ema=0.9, clip=0.5, validation=validation, network=SMALL | {"width": width})
    whole = Trainer(r, tmp_path / "whole")
    losses = whole.run(progress=False)

    until(Trainer(r, tmp_path / "parts"), 5)
    second = Trainer(r, tmp_path / "parts")
    assert second.step == 4
    assert second.run(progress=False) == losses[4:]
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)
    logs, best = ([tmp_path / run / name for run in ("whole", "parts")] for name in (LOG, BEST))
    assert logs[0].read_bytes() == logs[1].read_bytes()
    torch.testing.assert_close(*map(read_state_dict, best), rtol=0, atol=0)
    rows = list(csv.DictReader((tmp_path / "parts" / "log.csv").open()))
    assert [row["psnr"] != "" for row in rows] == [False, False, True, False, False, True]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"checkpoint_blocks": True}, {"workers": 2}])
def test_the_same_in_another_way(tmp_path, changes):
    expected = Trainer(recipe(), tmp_path / "a", dtype=torch.float64)
    actual = Trainer(recipe(**changes), tmp_path / "b", dtype=torch.float64)
    losses = expected.run(progress=False)
    assert np.allclose(actual.run(progress=False), losses, rtol=1e-10, atol=0)
    for a, b in zip(weights(actual), weights(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_blocks_are_recomputed(tmp_path):
    def calls(**changes):
        seen = []
        trainer = Trainer(recipe(steps=1, **changes), tmp_path / str(len(changes)))
        trainer.network.body[0].body[0].blocks[0][0].register_forward_hook(lambda *_: seen.append(1))
        trainer.run(progress=False)
        return len(seen)

    assert calls(checkpoint_blocks=True) == 2 * calls() > 0


@pytest.mark.parametrize("precision", first_of(["bfloat16", "float16"]))
def test_autocast(tmp_path, precision):
    losses = Trainer(recipe(precision=precision), tmp_path / "low").run(progress=False)
    expected = Trainer(recipe(), tmp_path / "full").run(progress=False)
    assert np.allclose(losses, expected, rtol=0.05)


def test_another_recipe_in_the_folder(tmp_path):
    Trainer(recipe(), tmp_path).run(progress=False)
    with pytest.raises(TrainingError, match=r"last\.pt is of another recipe"):
        Trainer(recipe(batch=4), tmp_path)


def test_a_loss_that_is_not_finite_names_the_photos(tmp_path):
    trainer = Trainer(recipe(save_every=1), tmp_path)
    after = trainer._after

    def poison(loss):
        after(loss)
        if trainer.step == 2:
            with torch.no_grad():
                trainer.network.conv_out.weight.fill_(float("nan"))

    trainer._after = poison
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan; .*(astronaut|coffee|chelsea)"):
        trainer.run(progress=False)
    kept = Trainer(recipe(save_every=1), tmp_path)
    assert kept.step == 2
    assert all(w.isfinite().all() for w in weights(kept))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    # A limit on the size of files stands for the disk's.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from tests.test_training import recipe, Trainer, TrainingError;"
        f"folder = {str(tmp_path)!r};"
        "Trainer(recipe(steps=2, save_every=2), folder).run(progress=False);"
        "trainer = Trainer(recipe(steps=2, save_every=2), folder); trainer.step = 1;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "trainer.save()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "last.pt cannot be written" in done.stderr and "the one before is still there" in done.stderr
    assert files(tmp_path) == ["last.pt", "log.csv"]
    assert Trainer(recipe(steps=2, save_every=2), tmp_path).step == 2


def start(tmp_path, *, text=YAML):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "mirnet_fast.cli",
        "train",
        str(path),
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    return out, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path} after {seconds} s"
        time.sleep(0.05)


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


def test_schema(tmp_path):
    result = CliRunner().invoke(main, ["train", "--schema"])
    assert result.exit_code == 0, result.output
    schema = json.loads(result.stdout)
    validator = jsonschema.validators.validator_for(schema)
    assert validator is jsonschema.Draft202012Validator
    validator.check_schema(schema)
    shipped = list((ROOT / "mirnet_fast" / "pretrained").glob("*.yaml"))
    texts = [YAML, YAML + "weights: a.pth\nkey: b", *(path.read_text() for path in shipped)]
    assert len(texts) > 2
    for text in texts:
        validator(schema).validate(yaml.safe_load(text))
    for text in (YAML + "stepz: 5", YAML.replace("400", "-1"), YAML.replace("gaussian", "gauss"), "steps: 5"):
        assert not validator(schema).is_valid(yaml.safe_load(text))
    fields = {**schema["properties"], **schema["$defs"]["Validation"]["properties"]}
    assert fields["steps"]["description"] == "Updates of the weights."
    undescribed = {name for name, field in fields.items() if not field.keys() & {"description", "$ref"}}
    assert undescribed == {"train", "validation", "seed", "source", "every"}


def in_two_processes(tmp_path, code):
    """Run code, in which `t` is to be a Trainer made by `trainer(**changes)`, under torchrun."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, torch; from tests.test_training import *\n"
        "from mirnet_fast.training import processes\n"
        "def trainer(**changes):\n"
        f"    return Trainer(recipe(**changes), {str(tmp_path / 'two')!r}, device, dtype=torch.float64)\n"
        "torch.set_num_threads(1)\n"
        "with processes('cpu') as device:\n" + textwrap.indent(textwrap.dedent(code), "    ")
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "localhost", "--master-port", str(port), str(script)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
