"""What a recipe may say, and what the network that it names costs."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mirnet_fast import MIRNet, reference
from mirnet_fast.cli import main
from mirnet_fast.training import Recipe, RecipeError, ablated, costs, read_recipe

from .cases import exhaustive
from .trainings import CLEAN, NOISE, ROOT, SMALL, YAML, recipe


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


def test_costs_name_the_network(tmp_path):
    with pytest.raises(RecipeError, match="network: these arguments do not fit together"):
        costs(recipe(network=SMALL | {"stride": 3}))


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
