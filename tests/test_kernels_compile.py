"""Every Triton kernel, compiled for real GPUs: fits, spills nothing, uses what the chip has."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mirnet_fast.ops import OPS

from .audit import compile as audit
from .cases import exhaustive, first_of

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.xdist_group("triton compiler"),  # what one process has compiled, another would again
]


def run(*command):
    """Without the interpreter, which the other tests switch on."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=exhaustive)])
def result(tmp_path_factory, request):
    target = tmp_path_factory.mktemp("audit") / "rows.json"
    options = ["--few"] if request.param == "few" else []
    finished = run("-m", "tests.audit.compile", "--json", target, *options)
    assert target.exists(), finished.stdout + finished.stderr
    return json.loads(target.read_text()) | {"all": request.param == "all"}


def asked(op, channels, dtype, arch, variant="plain", gpu=None, only=None):
    """What a task has rows of."""
    return {(d, arch, dtype, channels) for d in ([only] if only else audit.directions(op, channels))}


@pytest.mark.parametrize("op", (*OPS, *audit.CONVOLUTIONS))
def test_nothing_is_wrong(op, result):
    if op in result["skipped"]:
        pytest.skip(result["skipped"][op])
    found = [text for text in result["problems"] if text.split()[0].strip(":") == op]
    assert not found, "\n".join(found)
    rows = [row for row in result["rows"] if row["op"] == op]
    seen = {(r["direction"], r["arch"], r["dtype"], r["channels"]) for r in rows}
    every = audit.tasks([op], audit.ARCHS, audit.DTYPES, everything=False)
    assert seen == set().union(
        *(asked(*task) for task in (every if result["all"] else audit.few_tasks([op])))
    )


def test_the_budget_is_recorded(result):
    """For the Triton that this runs on; ../Makefile has the two versions that it should hold."""
    if audit.version() not in audit.BUDGET.load():
        pytest.skip(f"no budget for {audit.version()}: python -m tests.audit.compile --write records one")
    assert result["unrecorded"] == 0, "python -m tests.audit.compile --write"


ROW = {
    "op": "blur_pool",
    "direction": "forward",
    "kernel": "resample_kernel",
    "arch": 90,
    "dtype": "float16",
    "channels": 64,
    "variant": "plain",
    "gpu": None,
    "registers": 64,
    "shared": 1000,
    "stack": 0,
    "spills": 0,
    "product": True,
    "tensor_cores": {"HGMMA": 4},
    "loads_128": 8,
    "loads_128_needed": 8,
    "map_loads": {"x": 16},
    "map_stores": {"out": 2},
}
RECORDED = {"blur_pool forward resample_kernel float16 64": {"sm_90": [64, 1000]}}


def test_a_good_row_has_no_problems():
    assert audit.problems(ROW, RECORDED) == []
    assert audit.problems(ROW | {"registers": 72}, RECORDED) == []
    assert audit.problems(ROW | {"registers": 255, "shared": 9999}, None) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": 300_000}, "the chip has 232448"),
        ({"arch": 89, "shared": 102_000}, "the chip has 101376"),
        ({"stack": 8}, "a stack of 8 bytes"),
        ({"spills": 3}, "3 local loads and stores"),
        ({"tensor_cores": {}}, "no tensor cores"),
        ({"dtype": "float32"}, "which is TF32"),
        ({"map_loads": {"x": 16, "y": 4}}, "less than 16 bytes: {'y': 4}"),
        ({"map_loads": {"x": None}, "loads_128": 7}, "7 loads of 16 bytes; its feature maps need 8"),
        ({"registers": 73}, "73 registers; the budget records 64"),
        ({"shared": 1001}, "1001 bytes of shared memory; the budget records 1000"),
    ],
)
def test_a_bad_row_is_found(change, message):
    found = audit.problems(ROW | change, RECORDED)
    assert message in found[0]


def test_a_product_that_is_gone_is_found():
    rows = [
        {**ROW, "op": "dau_attention", "direction": d, "product": d == "forward"}
        for d in ("forward", "backward")
    ]
    assert audit.missing(rows) == ["dau_attention backward: no kernel holds a matrix product"]


def test_spills_and_narrow_loads_of_real_code_are_seen(tmp_path):
    script = tmp_path / "planted.py"
    script.write_text(
        textwrap.dedent("""
            import torch, triton, triton.language as tl
            from tests.audit import compile as audit

            @triton.jit
            def planted(x, out, first, C: tl.constexpr):
                place = tl.arange(0, 128)[:, None] * C + tl.arange(0, C)[None, :]
                values = tl.load(x + place + first)  # from an odd offset
                largest = tl.max(values)  # all values have to wait for it, in 32 registers
                product = tl.dot(values, values)
                tl.store(out + place, (product + (values - largest)).to(tl.float16))

            x = torch.zeros(1, 128, 8, 16, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
            with audit.recorded_launches(80) as launches:
                planted[(1,)](x, x.clone(), 1001, C=128, num_warps=4, maxnreg=32)
            _, arguments, compiled = launches[0]
            row = audit.examined(compiled, arguments)
            assert row["stack"] > 0 and row["spills"] > 0, row
            assert row["product"] and row["tensor_cores"], row
            assert row["map_loads"] == {"x": 2} and row["map_stores"]["out"] == 16, row
            assert row["loads_128_needed"] == 128 * 128 * 2 // (16 * 128) and row["loads_128"] == 0, row
        """)
    )
    finished = run("-c", f"import runpy; runpy.run_path({str(script)!r})")
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_new_size_compiles_no_convolution_anew(tmp_path):
    """Not of images either, whose rows start anywhere."""
    script = tmp_path / "sizes.py"
    script.write_text(
        textwrap.dedent("""
            import torch
            from mirnet_fast.kernels import _configs
            from mirnet_fast.kernels._convolution import packed
            from mirnet_fast.kernels.conv3x3 import conv3x3
            from mirnet_fast.kernels.conv_transpose3x3 import residual_up_tail_of_conv
            from tests.audit import compile as audit

            def image(c, h, w, n=1):
                x = torch.zeros(n, c, h, w, dtype=torch.float16)
                return x.contiguous(memory_format=torch.channels_last)

            def weight(c, d):
                return packed(torch.zeros(d, c, 3, 3, dtype=torch.float16))

            def call(n, h, w):
                for c, d in ((3, 16), (16, 3)):
                    out, x, residual = (image(k, h, w, n) for k in (d, c, d))
                    conv3x3(out, x, weight(c, d), residual=residual)
                small, x = image(3, h, w, n), image(32, h, w, n)[:, 16:]
                conv3x3(image(20, h, w, n)[:, 2:5], x, weight(16, 3), residual=small)
                out = image(3, 2 * h, 2 * w, n)
                residual_up_tail_of_conv(out, x, weight(16, 16), None, small, slope, tail, None)

            tail, slope = torch.zeros(3, 16, 1, 1).half(), torch.zeros(1).half()
            as_of_gpu = audit.circumstances("conv3x3", 90, None, "plain", "float16")
            with as_of_gpu, audit.recorded_launches(90) as launches:
                call(1, 16, 16)
                first = {compiled.hash for *_, compiled in launches}
                for size in ((2, 256, 256), (1, 260, 256), (2, 100, 33), (1, 1, 1), (1, 2, 50), (2, 48, 1)):
                    call(*size)
                    new = {compiled.hash for *_, compiled in launches} - first
                    assert not new, (size, len(new), len(first))
                assert len(first) == 4
        """)
    )
    finished = run("-c", f"import runpy; runpy.run_path({str(script)!r})")
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("archs", first_of([(90,), audit.ARCHS]))
def test_the_launch_that_gathers_weights_spills_nothing(tmp_path, archs):
    script = tmp_path / "gather.py"
    script.write_text(
        textwrap.dedent(f"""
            import torch
            from mirnet_fast.kernels._gather import Gathering
            from tests.audit import compile as audit

            for arch in {archs}:
                gathering = Gathering([torch.zeros(5, dtype=torch.float16)], [None])
                with audit.recorded_launches(arch) as launches:
                    gathering.run()
                [(_, arguments, compiled)] = launches
                row = audit.examined(compiled, arguments)
                assert not row["spills"] and not row["stack"] and row["registers"] <= 96, row
        """)
    )
    finished = run("-c", f"import runpy; runpy.run_path({str(script)!r})")
    assert finished.returncode == 0, finished.stdout + finished.stderr
