"""What the documents say is so: code and commands run, links and names exist, numbers were measured."""

import functools
import pkgutil
import re
import runpy
import shlex
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
import skimage.data
import torch
import yaml
from PIL import Image
from pydantic import BaseModel

import mirnet_fast
from mirnet_fast import demonstration, evaluation, ops, reference, reporting
from mirnet_fast.cli import main
from mirnet_fast.training import Recipe, degradations, recipe

from .cases import exhaustive
from .foreign import make_torchvision_importable
from .ops.common import needs_kernels

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *DOCS,
    ROOT / "benches" / "results" / "README.md",
    *(ROOT / "mirnet_fast" / "pretrained").glob("*.md"),
]
README, TRAINING = ((ROOT / name).read_text() for name in ("README.md", "docs/training.md"))

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
SMALL = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
MACHINES = reporting.read_results(sorted((ROOT / "benches" / "results").glob("*.json")))


def fenced(text, language=""):
    """The blocks of code in a language; without one they are commands."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in blocks if name == language]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where code finds the files that it names, with a network of few weights as the published one."""
    monkeypatch.chdir(tmp_path)
    torch.save(reference.MIRNet(**SMALL).state_dict(), "model.pth")
    Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(40, 60, 3)).save("photo.jpg")
    small = functools.partial(mirnet_fast.MIRNet, **SMALL)
    small.from_pretrained = mirnet_fast.MIRNet.from_pretrained
    monkeypatch.setattr(mirnet_fast, "MIRNet", small)


def test_code_of_the_readme_runs(folder):
    blocks = fenced(README, "python")
    assert len(blocks) == 3
    names = {"noisy": torch.rand(1, 3, 20, 30)}
    for block in blocks[:2]:
        exec(block, names)
    assert names["clean"].shape == names["noisy"].shape
    names["model"] = reference.MIRNet(**SMALL)
    exec(blocks[2], names)
    assert all(type(module).__module__.startswith("mirnet_fast.reference") for module in names["model"].body)


# Pages whose code takes long, or needs packages of others.
LONG = ("export", "integrations")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=exhaustive if path.stem in LONG else (), id=path.stem)
        for path in DOCS
        if fenced(path.read_text(), "python")
    ],
)
def test_code_of_docs_runs(path, folder, capsys):
    # What a block prints may follow it as text, and then is what it prints.
    pattern = r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    if path.stem == "integrations":
        make_torchvision_importable()
    names, missing = {}, []
    for block, printed in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL):
        capsys.readouterr()
        try:
            exec(block, names)
        except ImportError as error:
            if path.stem not in LONG or not re.search(r"mirnet-fast\[|No module named '\w+'$", str(error)):
                raise
            missing.append(str(error))
        else:
            assert printed in ("", capsys.readouterr().out)
    if missing:
        pytest.skip(f"all but what needs packages of `make test-all` ran: {'; '.join(missing)}")


@every_document
def test_commands_can_be_given(path):
    text = path.read_text()
    lines = [line for block in fenced(text) for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`", text)
    for line in lines:
        begin = re.match(r"mirnet-fast (?=\w)|torchrun .*-m mirnet_fast.cli ", line)
        if begin:
            name, *given = shlex.split(re.sub(r"[\[\]]", " ", line[begin.end() :]), comments=True)
            command = main.commands[name]
            # Raises where there is no such option.
            rest = command.make_parser(click.Context(command)).parse_args(given)[1]
            assert not rest, line


def test_readme_has_every_command():
    assert set(re.findall(r"^mirnet-fast (\w+)", README, re.MULTILINE)) == set(main.commands)


@every_document
def test_make_targets_exist(path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= set(targets)


@every_document
def test_extras_exist(path):
    _, _, extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")
    for named in re.findall(r"mirnet-fast\[([\w,]+)\]", path.read_text()):
        assert set(named.split(",")) <= set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE))


@every_document
def test_names_exist(path):
    for name in re.findall(r"(?:`|^::: )mirnet_fast\.([\w.]+)", path.read_text(), re.MULTILINE):
        pkgutil.resolve_name(f"mirnet_fast.{name}")


def test_reference_has_every_name():
    named = re.findall(r"^::: mirnet_fast\..*?(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(mirnet_fast.__all__) - {"ops", "reference"} <= set(named)
    assert set(ops.OPS) <= set(named)


@every_document
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@every_document
def test_files_exist(path):
    # In backquotes and in commands; NAME is any op.
    folders = "benches|csrc|docs|kernels|mirnet_fast|tests"
    named = re.findall(rf"(?<![\w./])(?:{folders})/[\w./-]*\w", path.read_text())
    made = {"mirnet_fast/preferences.json", "benches/results/NAME.json"}  # by who measures
    files = {name.replace("NAME", op) for name in {*named} - made for op in ops.OPS}
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_variables_exist():
    folders = ("build_support/*.py", "mirnet_fast/**/*.py", "csrc/**/*.cpp")
    source = [ROOT / "setup.py", *(path for folder in folders for path in ROOT.glob(folder))]
    text = "\n".join(path.read_text() for path in source)
    named = {name for path in DOCUMENTS for name in re.findall(r"\b(MIRNET_FAST_\w+)", path.read_text())}
    assert len(named) >= 5
    assert [name for name in named if name not in text] == []


@needs_kernels
def test_the_picture_of_a_plan_is_the_plan():
    script = ROOT / "docs" / "memory_plan.py"
    # Else: make docs
    assert runpy.run_path(str(script))["drawn"]() == script.with_suffix(".svg").read_text()


def test_the_report_is_of_what_was_measured():
    # Else: make docs
    folder = ROOT / "docs" / "report"
    assert (folder / "report.md").read_text() == reporting.page_text(MACHINES)
    digests = reporting.digests(MACHINES)
    assert {path.stem for path in folder.glob("*.svg")} == set(digests)
    assert [n for n, digest in digests.items() if digest not in (folder / f"{n}.svg").read_text()] == []


def test_the_plot_of_traffic_is_up_to_date():
    script = ROOT / "docs" / "traffic.py"
    # Else: make docs
    assert runpy.run_path(str(script))["digest"]() in script.with_suffix(".svg").read_text()


def test_the_photo_is_what_the_denoiser_makes_of_it():
    clean = skimage.data.astronaut().astype(np.float32) / 255
    noisy = demonstration.add_noise(clean, 25, 0)
    restored = demonstration.methods()["mirnet_fast"](noisy, 25)
    script = runpy.run_path(str(ROOT / "docs" / "photo.py"))
    expected = script["side_by_side"](
        *(np.round(255 * p.clip(0, 1)).astype(np.uint8) for p in (noisy, restored))
    )
    shown = np.asarray(Image.open(script["PICTURE"]))
    assert evaluation.psnr(shown / 255, expected / 255) > 30  # what JPEG leaves of the noise
    for text in (README, (ROOT / "docs" / "index.md").read_text()):
        told = [float(number) for number in re.findall(r"([\d.]+) dB", text)]
        assert told == pytest.approx([evaluation.psnr(photo, clean) for photo in (noisy, restored)], abs=0.02)


def test_memory_in_the_readme_was_measured():
    told = re.search(r"(\d+) MB above the weights\s+at (512 x 512), where PyTorch takes (\d+)", README)
    peaks = dict(MACHINES[0].of("network", "peak_mb"))["network 1x3x512x512"]
    assert [peaks["mirnet_fast"], peaks["eager NCHW"]] == [float(told[1]), float(told[3])]


# {heading: body}, backquotes taken away; a heading goes over those below it only to the first of them.
SECTIONS = dict(re.findall(r"^##+ `?(.*?)`?\n(.*?)(?=^##|\Z)", TRAINING, re.MULTILINE | re.DOTALL))


def members(union):
    """{kind: class} of a discriminated union."""
    return {get_args(cls.model_fields["kind"].annotation)[0]: cls for cls in get_args(get_args(union)[0])}


SOURCES = members(recipe.Source)
PARTS = {
    "All fields": Recipe,
    "network": recipe.Network,
    "ablation": recipe.Ablation,
    "validation": recipe.Validation,
    **SOURCES,
}


def default(field):
    if field.is_required():
        return "needed"
    if isinstance(field.default, BaseModel):
        return {}
    return [*field.default] if isinstance(field.default, tuple) else field.default


@pytest.mark.parametrize("heading", PARTS)
def test_training_page_has_every_field_and_default(heading):
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", SECTIONS[heading], re.MULTILINE)
    told = {
        name: yaml.safe_load(cell.strip("`"))
        for names, cell in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    fields = PARTS[heading].model_fields
    assert told == {name: default(field) for name, field in fields.items() if name != "kind"}


def test_training_page_has_every_degradation():
    section = SECTIONS["What spoils clean photos"]
    rows = re.findall(r"^\| `(\w+)` \| ([^|[]+)(?:\[(.*)\])? \|", section, re.MULTILINE)
    told = {kind: [set(re.findall(r"\w+", names)) for names in columns] for kind, *columns in rows}
    assert told == {
        kind: [
            {name for name, field in cls.model_fields.items() if field.is_required() == needed} - {"kind"}
            for needed in (True, False)
        ]
        for kind, cls in members(degradations.Degradation).items()
    }


def test_recipes_of_the_training_page_can_be_read():
    recipes = map(yaml.safe_load, fenced(TRAINING, "yaml"))
    assert {read.train.kind for read in map(Recipe.model_validate, recipes)} == set(SOURCES)
