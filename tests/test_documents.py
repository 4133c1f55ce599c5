"""What the documents say is so: code runs, links, commands and variables exist, numbers were measured."""

import functools
import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

import mirnet_fast
from mirnet_fast import ops, reference
from mirnet_fast.cli import main

from .ops.common import needs_kernels

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / "benches" / "results" / "README.md", *(ROOT / "mirnet_fast" / "pretrained").glob("*.md")]
DOCUMENTS = [ROOT / "README.md", *DOCS, *OTHERS]

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
every_doc = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
SMALL = {"n_feat": 8, "n_RRG": 1, "n_MSRB": 1}
# Columns of the README's tables, as the result files call them.
COLUMNS = {
    "mirnet_fast": "mirnet_fast",
    "OpenVINO": "OpenVINO",
    "torch.compile": "torch.compile",
    "ONNX Runtime": "ONNX Runtime",
    "PyTorch, NCHW": "eager NCHW",
    "PyTorch, channels_last": "eager channels_last",
}


def test_code_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    torch.save(reference.MIRNet(**SMALL).state_dict(), "model.pth")
    monkeypatch.setattr(mirnet_fast, "MIRNet", functools.partial(mirnet_fast.MIRNet, **SMALL))
    names = {"noisy": torch.rand(1, 3, 20, 30)}
    for block in blocks[:2]:
        exec(block, names)
    assert names["clean"].shape == names["noisy"].shape
    names["model"] = reference.MIRNet(**SMALL)
    exec(blocks[2], names)
    assert all(type(module).__module__.startswith("mirnet_fast.reference") for module in names["model"].body)


@every_doc
def test_code_of_docs_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        exec(block, names)


def test_commands_exist():
    named = set(re.findall(r"^mirnet-fast (\w+)", README, re.MULTILINE))
    assert named == set(main.commands)


@every_document
def test_make_targets_exist(path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= set(targets)


@every_document
def test_names_exist(path):
    for name in re.findall(r"`mirnet_fast\.([\w.]+)", path.read_text()):
        pkgutil.resolve_name(f"mirnet_fast.{name}")


@every_document
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@every_doc
def test_files_exist(path):
    # In backquotes and in commands; NAME is any op.
    folders = "benches|csrc|docs|kernels|mirnet_fast|tests"
    named = re.findall(rf"(?<![\w./])(?:{folders})/[\w./-]*\w", path.read_text())
    assert named
    files = {name.replace("NAME", op) for name in named for op in ops.OPS}
    assert [name for name in files if not (ROOT / name).exists()] == []


@needs_kernels
def test_the_picture_of_a_plan_is_the_plan():
    script = ROOT / "docs" / "memory_plan.py"
    # Else: make docs
    assert runpy.run_path(str(script))["drawn"]() == script.with_suffix(".svg").read_text()


def test_variables_exist():
    folders = ("build_support/*.py", "mirnet_fast/**/*.py", "csrc/**/*.cpp")
    source = [ROOT / "setup.py", *(path for folder in folders for path in ROOT.glob(folder))]
    text = "\n".join(path.read_text() for path in source)
    named = set(re.findall(r"\b(MIRNET_FAST_\w+)", README))
    assert len(named) >= 5
    assert [name for name in named if name not in text] == []


def rows_of_tables():
    """(what was run, {column: number}) of the benchmark tables."""
    for table in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        header, _, *lines = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
        if header[1:2] == ["mirnet_fast"]:
            for what, *cells in lines:
                numbers = [float(c.split()[0]) if c else None for c in cells]
                yield what, dict(zip((COLUMNS[name] for name in header[1:]), numbers, strict=True))


@pytest.fixture(scope="module")
def measured():
    """[what the README calls a row of the result files, its numbers by variant]."""
    found = []
    for path in (ROOT / "benches" / "results").glob("*.json"):
        for row in json.loads(path.read_text())["rows"]:
            size = "x".join(map(str, row["size"]))
            seconds = {name: ms / 1e3 for name, ms in row["ms"].items()}
            if row["op"] == "network":
                found.append((f"network, {size}", seconds))
                found.append(("peak memory above the weights, 512 x 512", row.get("peak_mb") or {}))
            elif row["op"] == "training":
                found.append((f"training step, {size}, reduced depth", seconds))
                found.append(("its peak memory", row.get("peak_mb") or {}))
    return found


def test_numbers_were_measured(measured):
    rows = list(rows_of_tables())
    assert len(rows) == 11
    for what, told in rows:
        wanted = {name: number for name, number in told.items() if number is not None}
        candidates = [numbers for name, numbers in measured if name == what]
        assert any(
            all(abs(numbers.get(name, 0) - number) < 0.01001 for name, number in wanted.items())
            for numbers in candidates
        ), what
