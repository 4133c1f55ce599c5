"""mirnet-fast profile, on small networks and made-up devices."""

import json
import re
import shutil

import pytest
import torch
from torch import nn

import mirnet_fast
from mirnet_fast import profiling, reference
from mirnet_fast.engine import devices
from mirnet_fast.profiling import COMPILED, OURS, OUTSIDE, REFERENCE

from ..cases import exhaustive
from ..ops.common import needs_kernels
from .common import CONFIG, SMALL, run

QUICK = [*SMALL, "--size", "32x16", "--rounds", 1]
NUMBER = r"-?\d+\.\d{3}"
CPU = devices.Device("a CPU", rate=1e9, bandwidth=1e8, launch=1e-6)


@pytest.fixture(autouse=True)
def made_up_device(monkeypatch):
    monkeypatch.setattr(devices, "measured", lambda device, dtype: CPU)


def networks():
    torch.manual_seed(0)
    ours, plain = mirnet_fast.MIRNet(**CONFIG).eval(), reference.MIRNet(**CONFIG).eval()
    plain.load_state_dict(ours.state_dict())
    return {OURS: ours, REFERENCE: plain}


def profiles_of(*ways, image=None, **options):
    image = torch.rand(1, 3, 32, 16) if image is None else image
    return profiling.profiles(networks(), image, CPU, ways, rounds=2, **options)


def check(profile):
    """What holds of every profile."""
    *rows, outside = profile.rows
    assert outside.name == OUTSIDE and outside.seconds == outside.lost
    assert len({row.name for row in rows}) == len(rows) > 1
    assert sum(row.seconds for row in profile.rows) == pytest.approx(profile.total.seconds)
    assert sum(row.calls for row in rows) == profile.total.calls
    lost = [row.seconds if row.lost is None else row.lost for row in rows]
    assert lost == sorted(lost, reverse=True)
    return {row.name: row for row in rows}


@needs_kernels
def test_ours_by_the_kernels_of_a_plan():
    ((profile,), missing) = profiles_of(OURS)
    rows = check(profile)
    assert not missing and (profile.way, profile.steps) == (OURS, "kernels of a plan")
    row = rows["conv3x3 8 -> 8, 16 wide"]
    # Two of the DAU in both columns, those of two downs, and the last of block and group.
    assert row.calls == 2 * 2 + 2 + 2 and row.flops == row.calls * 2 * 9 * 8 * 8 * 32 * 16
    assert 0 < row.floor < row.predicted and row.seconds > 0
    assert rows["skff_select 3 x 8 -> 8, 16 wide"].calls == 2
    for field in ("flops", "nbytes", "floor", "predicted"):
        assert getattr(profile.total, field) == pytest.approx(sum(getattr(r, field) for r in rows.values()))
    assert "channels_last 3 -> 3, 16 wide" in rows


@needs_kernels
def test_ours_layer_by_layer():
    ((profile,), _) = profiles_of(OURS, by_layer=True)
    rows = check(profile)
    # The columns of a stream share a DAU.
    assert rows["dau_attention body.0.body.0.blocks.0.0.conv1x1"].calls == 2
    assert rows["conv3x3 conv_in"].calls == rows["conv3x3 conv_out"].calls == 1
    assert sum(row.flops for row in rows.values()) == profile.total.flops


def test_ours_without_a_plan():
    with mirnet_fast.use_backend("reference"):
        ((profile,), _) = profiles_of(OURS)
    rows = check(profile)
    assert profile.steps.startswith("operators, as there is no plan: the backend is 'reference'")
    assert rows["conv2d"].flops > 0


@needs_kernels
def test_what_our_ops_compute_is_known_outside_of_a_plan():
    unit, x = mirnet_fast.DAU(16).eval(), torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        row = profiling._counted(lambda: unit._fused(x), CPU)["mirnet_fast_cpu::dau_attention"]
    assert row.flops == 2 * 64 * (2 * 50 + 2 * 2 * 16 * 16) + 2 * 2 * 2 * 16 * 2
    # r, x and the result, and the weights.
    assert row.nbytes == 4 * (3 * 2 * 16 * 64 + 50 + 2 * 16 * 2 + 2 * 16 * 16)
    assert row.calls == 1


def test_the_reference_by_operators():
    ((profile,), missing) = profiles_of(REFERENCE)
    rows = check(profile)
    assert not missing and (profile.way, profile.steps) == (REFERENCE, "operators")
    assert (rows["conv2d"].calls, rows["conv_transpose2d"].calls) == (113, 7)
    assert profile.total.flops == rows["conv2d"].flops + rows["conv_transpose2d"].flops
    assert rows["prelu"].flops == 0 and rows["prelu"].nbytes > 2 * 4 * 8 * 32 * 16
    assert rows["prelu"].floor == pytest.approx(rows["prelu"].nbytes / CPU.bandwidth)


def test_torch_compile_is_left_out_with_the_reason(monkeypatch):
    def compile_(network, **options):
        raise RuntimeError("no working C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", compile_)
    found, missing = profiles_of(REFERENCE, COMPILED)
    assert [profile.way for profile in found] == [REFERENCE]
    assert missing == {COMPILED: "RuntimeError: no working C++ compiler"}


def test_what_torch_compile_calls(monkeypatch):
    """Stands in for it: an operator and kernels inside its regions."""

    def compile_(network, **options):
        def run(x):
            with (
                torch.profiler.record_function("Torch-Compiled Region: 0/0"),
                torch.profiler.record_function("## Call CompiledFxGraph abc ##"),
            ):
                for i in range(3):
                    with torch.profiler.record_function(f"graph_0_cpp_fused_add_mul_{i}"):
                        x = x + 1
                return x.mean()

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    ((plain, compiled), missing) = profiles_of(REFERENCE, COMPILED)
    rows = check(compiled)
    assert not missing and {name: row.calls for name, row in rows.items()} == {
        "cpp_fused_add_mul": 3,
        "mean": 1,
    }
    assert rows["mean"].flops is rows["mean"].floor is compiled.total.nbytes is None
    assert compiled.total.flops == plain.total.flops
    assert compiled.total.floor == pytest.approx(plain.total.flops / CPU.rate)


@exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler for torch.compile")
def test_torch_compile_itself():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    image = torch.rand(1, 3, 16, 16)
    ((profile,), missing) = profiling.profiles({REFERENCE: network}, image, CPU, (COMPILED,), rounds=2)
    rows = check(profile)
    assert not missing and any(name.startswith("cpp_fused_") for name in rows)
    assert not any(name.startswith(("Torch-Compiled", "## Call")) for name in rows)
    assert profile.total.flops == 2 * 2 * 9 * 3 * 8 * 256


@needs_kernels
def test_table():
    result = run("profile", *QUICK, "--compare", "reference")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^1x3x32x16, float32; measured: a product of 1 GFLOP/s, a copy of 0.1 GB/s", result.output, re.M
    )
    ours, plain = result.output.split("\nmirnet_fast: ")[1].split("\nreference: ")
    assert re.match(rf"{NUMBER} ms, the median of 1; kernels of a plan\n", ours)
    assert re.search(rf"^  conv3x3 8 -> 8, 16 wide +8( +{NUMBER}){{6}} +\d+ % +{NUMBER}$", ours, re.M)
    assert re.search(rf"^  conv2d +113( +{NUMBER}){{6}} +\d+ % +{NUMBER}$", plain, re.M)
    for part in (ours, plain):
        assert re.search(rf"^  total +\d+( +{NUMBER}){{6}} +\d+ % +{NUMBER}$", part, re.M)
        assert re.search(rf"^  {OUTSIDE} +{NUMBER} +{NUMBER}$", part, re.M)


def test_json(weights):
    result = run("profile", "--weights", weights, "--size", 16, "--rounds", 1, "--json", "--layers")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["size"], told["dtype"], told["missing"]) == ([1, 3, 16, 16], "float32", {})
    assert told["machine"]["torch"] == torch.__version__ and told["device"]["rate"] == CPU.rate
    [profile] = told["profiles"]
    assert profile["way"] == OURS and profile["total"]["seconds"] > 0
    assert {"name", "calls", "seconds", "flops", "nbytes", "floor", "predicted"} == {*profile["rows"][0]}


def test_left_out_is_told(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **options: 1 / 0)
    result = run("profile", *QUICK, "--compare", "compile")
    assert result.exit_code == 0
    assert result.output.endswith("\ntorch.compile is left out: ZeroDivisionError: division by zero\n")


def test_prediction(monkeypatch):
    monkeypatch.setattr(devices, "measured", None)
    size = ["--size", "64x32", "--batch", 2]
    arguments = ["profile", *SMALL, "--predict", "H200", "--dtype", "float16", *size]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    first, _, *rows, total, last = result.output.splitlines()
    assert first == "2x3x64x32, float16, H200: predicted by the cost model, nothing of it measured"
    assert all(re.match(rf"  .+ \d+( +{NUMBER}){{3}} +\d+ %$", row) for row in (*rows, total))
    milliseconds = [float(row.split()[-5]) for row in rows]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert re.match(rf"53 launches, {NUMBER} ms, 0\.\d{{3}} GB for a million pixels above", last)

    told = json.loads(run(*arguments, "--json").output)
    assert told["total"]["calls"] == 53 and told["total"]["seconds"] is None
    gpu = devices.published("H200", torch.float16)
    network = mirnet_fast.MIRNet(**CONFIG)
    expected = profiling.predict(network, (2, 3, 64, 32), torch.float16, gpu)
    assert told["total"]["predicted"] == expected.total.predicted > 53 * gpu.launch
    assert told["peak_bytes"] == expected.peak_bytes


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["--size", "30"], 2, "--size must be multiples of 4; got 30x30"),
        (["--size", "12x"], 2, "'12x' is not HEIGHTxWIDTH in pixels"),
        (["--size", "1x2x3"], 2, "'1x2x3' is not HEIGHTxWIDTH in pixels"),
        (["--size", "0"], 2, "'0' is not HEIGHTxWIDTH in pixels"),
        (["--compare", "onnx"], 2, "'onnx' is not one of reference, compile"),
        (["--dtype", "int8"], 2, "'int8' is not one of"),
        (["--weights", "missing.pth"], 1, "missing.pth: there is no such file"),
        (["--predict", "abacus"], 2, "--predict: there are no figures for 'abacus'; there are for H200"),
        (["--predict", "H200", "--threads", "1"], 2, "--threads is for what runs, and --predict runs"),
        (["--predict", "H200", "--compare", "compile"], 2, "--compare is for what runs"),
        (["--device", "meta"], 2, "'meta' cannot be used"),
    ],
)
def test_errors(arguments, code, match):
    result = run("profile", *([] if "--weights" in arguments else SMALL), *arguments)
    assert result.exit_code == code
    assert match in result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.output.splitlines()) <= 4
