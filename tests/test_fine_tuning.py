"""A training that begins with weights, or goes on after its end."""

import csv
import shutil

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner

from mirnet_fast import reference, save_checkpoint
from mirnet_fast.checkpoints import read_state_dict
from mirnet_fast.cli import main
from mirnet_fast.pretrained import weights_of
from mirnet_fast.training import RecipeError, Trainer, TrainingError, read_recipe
from mirnet_fast.training.last import LAST
from mirnet_fast.training.loop import BEST, learning_rate
from mirnet_fast.training.record import LOG

from .cases import exhaustive, first_of
from .trainings import SMALL, YAML, in_two_processes, recipe, until
from .trainings import weights as weights_in

TINY = SMALL | {"height": 1, "width": 1}


def write_weights(path, seed=7, **arguments):
    torch.manual_seed(seed)
    save_checkpoint(reference.MIRNet(**TINY | arguments), path)
    return path


@pytest.fixture
def given(tmp_path):
    return write_weights(tmp_path / "given.pth")


@pytest.fixture
def pair(tmp_path):
    """A recipe's source: two folders with a photo each."""
    clean = skimage.data.chelsea()[100:140, 100:150]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    sides = {"input": np.uint8(np.clip(clean + noise, 0, 255)), "target": clean}
    for side, pixels in sides.items():
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / "cat.png"), pixels[:, :, ::-1])
    return {"kind": "pairs", **{side: tmp_path / side for side in sides}}


def begun(**changes):
    """A recipe that leaves the network to its weights, unless told."""
    return recipe(**{"network": {}} | changes)


def rows(folder):
    with (folder / LOG).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ema", first_of([0.9, None]))
def test_step_0_is_what_evaluate_prints(tmp_path, given, pair, ema):
    validation = {"source": pair, "every": 100}
    until(Trainer(begun(weights=given, validation=validation, ema=ema), tmp_path / "out"), 1)
    folders = [str(pair[side]) for side in ("input", "target")]
    arguments = ["--weights", str(given), "--csv", str(tmp_path / "t.csv"), "--device", "cpu"]
    result = CliRunner().invoke(main, ["evaluate", *folders, *arguments])
    assert result.exit_code == 0, result.output
    first = rows(tmp_path / "out")[0]
    with (tmp_path / "t.csv").open(newline="") as file:
        mean = list(csv.DictReader(file))[-1]
    assert first == {"step": "0", "loss": "", "learning_rate": "", "psnr": mean["psnr"], "ssim": mean["ssim"]}
    assert f"PSNR {float(first['psnr']):.2f} dB, SSIM {float(first['ssim']):.4f}" in result.output
    torch.testing.assert_close(*map(read_state_dict, (tmp_path / "out" / BEST, given)), rtol=0, atol=0)


def test_the_average_begins_with_the_weights(tmp_path, given):
    trainer = Trainer(begun(weights=given, ema=0.9, steps=1), tmp_path / "out")
    before = [w.clone() for w in weights_in(trainer)]
    trainer.run(progress=False)
    average = trainer.average.module.state_dict().values()
    for a, b, c in zip(before, weights_in(trainer), average, strict=True):
        torch.testing.assert_close(c, 0.9 * a + 0.1 * b)
    assert not torch.equal(before[0], weights_in(trainer)[0])


FORMS = {
    "pth": write_weights,
    "safetensors": write_weights,
    "within": lambda path: torch.save({"state_dict": torch.load(write_weights(path))}, path),
    "of DDP": lambda path: torch.save(
        {f"module.{name}": value for name, value in torch.load(write_weights(path)).items()}, path
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_every_form_below_the_recipe(tmp_path, given, form):
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pth'}"
    FORMS[form](path)
    text = YAML.replace("network: {n_feat: 8, n_RRG: 1, n_MSRB: 1}", f"weights: {path.name}")
    (tmp_path / "r.yaml").write_text(text)
    trainer = Trainer(read_recipe(tmp_path / "r.yaml"), tmp_path / "out")
    assert trainer.recipe.network == recipe(network=TINY).network
    expected = torch.load(given)
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, expected[name])


def test_last_pt_of_another_training(tmp_path):
    ablation = {"skff": "sum"}
    other = Trainer(recipe(network=TINY, ema=0.9, ablation=ablation, steps=2), tmp_path / "other")
    other.run(progress=False)
    fields = {"weights": tmp_path / "other" / LAST, "ablation": ablation}
    with pytest.raises(RecipeError, match=r"weights: .*several networks.*'average', 'network'"):
        Trainer(begun(**fields), tmp_path / "out")
    expected = {"network": other.network, "average": other.average.module}
    for key, network in expected.items():
        trainer = Trainer(begun(**fields, key=key), tmp_path / key)
        for a, b in zip(weights_in(trainer), network.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RecipeError, match=r"weights: .* does not fit the model"):
        Trainer(begun(**fields | {"ablation": {}}, key="network"), tmp_path / "out")


def test_a_network_that_comes_along(tmp_path):
    # Its two streams allow a patch of 18, the published three would not.
    (tmp_path / "r.yaml").write_text(
        YAML.replace("network: {n_feat: 8, n_RRG: 1, n_MSRB: 1}", "weights: denoise").replace(
            "patch: 16", "patch: 18"
        )
    )
    trainer = Trainer(read_recipe(tmp_path / "r.yaml"), tmp_path / "out")
    assert (trainer.recipe.weights, trainer.recipe.network.n_feat) == ("denoise", 32)
    expected = read_state_dict(weights_of("denoise"))
    assert torch.equal(trainer.network.state_dict()["conv_in.weight"], expected["conv_in.weight"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": {"n_feat": 64}}, r"^network\.n_feat is 8 in the weights and 64 here$"),
        (
            {"network": {"n_feat": 8, "n_RRG": 3, "width": 2}},
            r"^network\.n_RRG is 1 in the weights and 3 here; network\.width is 1 in the weights and 2 here$",
        ),
        (
            {"weights": "denoise_smal"},
            "weights: there is no file denoise_smal, and what comes .* denoise",
        ),
        ({"weights": "."}, "weights: there is no file"),
        ({"weights": __file__}, r"weights: .*test_fine_tuning\.py is not a checkpoint"),
        ({"key": "params"}, "weights: .*there is no 'params'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, given, fields, message):
    with pytest.raises(RecipeError, match=message):
        Trainer(begun(**{"weights": given} | fields), tmp_path / "out")
    assert not (tmp_path / "out" / LAST).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 1}, r"network\.in_channels: Input should be 3"),
        ({"height": 3}, r".*patch must be a multiple of 4; got 18"),
    ],
)
def test_weights_with_which_the_recipe_does_not_work(tmp_path, arguments, message):
    path = write_weights(tmp_path / "w.pth", **arguments)
    with pytest.raises(RecipeError, match=f"weights: {message}"):
        Trainer(begun(weights=path, patch=18), tmp_path / "out")


def test_key_without_weights(tmp_path):
    (tmp_path / "r.yaml").write_text(YAML + "key: params\n")
    with pytest.raises(RecipeError, match="key needs weights"):
        read_recipe(tmp_path / "r.yaml")


def test_arguments_that_the_file_does_not_tell(tmp_path):
    # One name of each shared tensor is all that some files have: the number of columns is open.
    network = reference.MIRNet(**SMALL)
    once = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    state = network.state_dict()
    kept = {name: state[name] for name in once}
    assert len(kept) < len(state)
    torch.save(kept, tmp_path / "once.pth")
    with pytest.raises(RecipeError, match=r"weights: .*give `width`"):
        Trainer(begun(weights=tmp_path / "once.pth"), tmp_path / "out")
    trainer = Trainer(begun(weights=tmp_path / "once.pth", network={"width": 2}), tmp_path / "out")
    assert trainer.recipe.network == recipe(network=SMALL | {"width": 2}).network


def test_going_on_without_the_file(tmp_path, given, pair):
    changes = {"weights": given, "ema": 0.9, "validation": {"source": pair, "every": 2}}
    whole = Trainer(begun(**changes), tmp_path / "whole")
    losses = whole.run(progress=False)
    until(Trainer(begun(**changes), tmp_path / "out"), 5)
    given.unlink()
    with pytest.raises(RecipeError, match="weights: there is no file"):
        Trainer(begun(**changes), tmp_path / "anew")
    trainer = Trainer(begun(**changes), tmp_path / "out")
    assert trainer.run(progress=False) == losses[4:]
    assert (tmp_path / "out" / LOG).read_bytes() == (tmp_path / "whole" / LOG).read_bytes()
    for a, b in zip(weights_in(whole), weights_in(trainer), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(TrainingError, match=r"network\.n_feat is 8 there and 16 here"):
        Trainer(begun(**changes, network={"n_feat": 16}), tmp_path / "out")
    write_weights(given, seed=8)
    with pytest.raises(TrainingError, match="another content than then"):
        Trainer(begun(**changes), tmp_path / "out")


def test_other_weights_are_another_recipe(tmp_path, given):
    until(Trainer(begun(weights=given), tmp_path / "out"), 4)
    write_weights(given)  # the same again
    assert Trainer(begun(weights=given), tmp_path / "out").step == 4
    with pytest.raises(TrainingError, match=r"weights is .*given\.pth there and None here"):
        Trainer(recipe(network=TINY), tmp_path / "out")
    with pytest.raises(TrainingError, match=r"weights is .*given\.pth there and .*copy\.pth here"):
        Trainer(begun(weights=shutil.copy(given, tmp_path / "copy.pth")), tmp_path / "out")
    write_weights(given, seed=8)
    with pytest.raises(TrainingError, match=r"weights, .*given\.pth, has another content than then\. So"):
        Trainer(begun(weights=given), tmp_path / "out")
    write_weights(given, n_feat=16)
    with pytest.raises(TrainingError, match=r"network\.n_feat is 8 there and 16 here; weights, .*content"):
        Trainer(begun(weights=given), tmp_path / "out")


def test_more_steps_after_the_end(tmp_path, pair):
    changes = {"network": TINY, "learning_rate": 1e-3, "warmup": 2, "ema": 0.9}
    changes["validation"] = {"source": pair, "every": 4}
    short = Trainer(recipe(**changes, steps=6), tmp_path / "out")
    short.run(progress=False)
    best = short.best
    longer = recipe(**changes, steps=12)
    trainer = Trainer(longer, tmp_path / "out")
    assert (trainer.step, trainer.best) == (6, best)
    assert len(trainer.run(progress=False)) == 6
    log = rows(tmp_path / "out")
    assert [int(row["step"]) for row in log] == [*range(1, 13)]
    rates = [learning_rate(short.recipe, step) for step in range(6)]
    rates += [learning_rate(longer, step) for step in range(6, 12)]
    assert [float(row["learning_rate"]) for row in log] == rates
    assert rates[6] > 2 * rates[5]  # up again, as half of the new cosine is still to come
    assert [row["step"] for row in log if row["psnr"]] == ["4", "6", "8", "12"]
    assert trainer.best == max(float(row["psnr"]) for row in log if row["psnr"])
    assert Trainer(longer, tmp_path / "out").run(progress=False) == []


@exhaustive
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_begin_with_the_same_weights(tmp_path, given, pair, shard):
    changes = {"weights": str(given), "batch": 4, "ema": 0.9, "network": {}}
    changes |= {"validation": {"source": {k: str(v) for k, v in pair.items()}, "every": 3}}
    in_two_processes(tmp_path, f"trainer(**{changes | {'shard': shard}}).run(progress=False)")
    Trainer(recipe(**changes), tmp_path / "one", dtype=torch.float64).run(progress=False)
    logs = [
        [[float(row[name] or 0) for name in row] for row in rows(tmp_path / run)] for run in ("one", "two")
    ]
    assert len(logs[0]) == 7
    np.testing.assert_allclose(*logs, rtol=1e-6)
