"""Recipes that somebody wrote in error or in malice: each gets a sentence."""

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mirnet_fast.cli import main

from .cases import exhaustive
from .trainings import NOISE, YAML, source

NOISE_TEXT = "{kind: gaussian, sigma: [25, 25]}"


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
    "even kernel": (YAML.replace("n_RRG: 1", "kernel_size: 2"), "must be an odd integer; got 2"),
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
