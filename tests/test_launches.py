"""A plan's launches by Triton's own launcher, on a driver that records them (tests/recording_driver)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import recording_driver
from .cases import exhaustive

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if recording_driver.missing():
    pytest.skip(recording_driver.missing(), allow_module_level=True)

pytestmark = [exhaustive, pytest.mark.xdist_group("launches")]  # one process compiles for all of the tests

ROOT = Path(__file__).parents[1]
# What makes the host wait for a GPU, or copies to or from it.
WAITING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "is_nonzero",
    "equal",
    "_to_copy",
    "tensor",
    "scalar_tensor",
)


@pytest.fixture(scope="module")
def plan():
    """What tests/recording_driver/plan.py prints."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.recording_driver.plan"]
    done = subprocess.run(
        command, cwd=ROOT, env=recording_driver.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def replayed(plan):
    return plan["runs"][1]


def test_each_task_is_one_launch_and_one_brings_the_weights_to_order(plan, replayed):
    kinds = {"conv3x3", "conv1x1", "residual_down_tail", "residual_up_tail", "skff_select", "dau_attention"}
    assert kinds <= set(plan["tasks"])
    assert plan["tasks"].count("residual_up_tail") > 4 * 5 and plan["tasks"].count("skff_select") > 4
    assert replayed["count"] == len(replayed["launches"]) == 1 + len(plan["tasks"])
    first, *others = (set(addresses) for _, addresses in replayed["launches"])
    assert first == {"gathering"}
    assert all("gathering" not in places for places in others)


def test_every_run_launches_the_same(plan, replayed):
    recorded = plan["runs"][0]["launches"]
    # The stand-in for a recording launches as it records, and then replays.
    assert recorded == 2 * replayed["launches"]


def test_the_host_neither_waits_nor_copies(plan):
    for run in plan["runs"]:
        assert (run["waits"], run["copies"], run["refusals"]) == (0, 0, 0)
        assert not {f"aten::{name}" for name in WAITING} & set(run["operators"])


def test_the_driver_gets_addresses_of_known_memory_alone(replayed):
    places = [place for _, addresses in replayed["launches"] for place in addresses]
    assert None not in places
    assert {"plan", "weights", "tables"} <= set(places)


def test_maps_between_the_ends_lie_in_the_plan(replayed):
    # Only the first kernel reads the image; only the last writes, and adds it.
    _, *launches = replayed["launches"]
    ends = [i for i, (_, addresses) in enumerate(launches) if "ends" in addresses]
    assert ends == [0, len(launches) - 1]
    assert all("plan" in addresses for _, addresses in launches)


def test_the_time_of_a_launch_is_told(plan, capsys):
    with capsys.disabled():
        print(f"\n{plan['us_a_launch']:.0f} us of the host a launch, by Python, before a graph replays them")
    assert plan["us_a_launch"] > 0
