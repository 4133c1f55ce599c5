"""What setup.py decides about the CUDA kernels."""

from itertools import pairwise
from pathlib import Path

import pytest

from build_support import ninja_file, toolchain
from build_support import plan as planning
from build_support.plan import CUDA_LIBRARY, LIBRARY, Plan, Wrong, cuda_architectures
from build_support.toolchain import cuda_of, find_nvcc

from .building import script


@pytest.fixture
def torch_with_cuda(tmp_path):
    """The folder of a torch that says so."""
    folder = tmp_path / "site-packages" / "torch"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip = None\n")
    return folder


def toolkit(home, knows="80 86 89 90 100 120", works=True):
    """A folder that passes for a CUDA toolkit."""
    (home / "bin").mkdir(parents=True)
    (home / "lib64").mkdir()
    (home / "lib64" / "libcudart_static.a").touch()
    names = " ".join(f"sm_{name}" for name in knows.split())
    answers = f"""
    case "$*" in
      *--list-gpu-code*) printf '%s\\n' {names} ;;
      *--version*) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
      *--dryrun*) echo '#$ TOP={home}/bin/..' >&2 ;;
      *-E*) {"cat > /dev/null" if works else "echo 'error: unsupported GNU version!' >&2; exit 1"} ;;
    esac"""
    return script(home / "bin" / "nvcc", answers)


def planned(monkeypatch, torch, choice="auto", **environment):
    """The plan where C++ can be compiled, for a torch in this folder."""
    monkeypatch.setattr(planning, "find_compiler", lambda: ("g++", "x86_64"))
    monkeypatch.setattr(planning, "find_torch", lambda: ("2.13.0", str(torch)))
    monkeypatch.setattr(planning, "find_ninja", lambda: ["ninja"])
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return Plan(choice)


def test_auto_builds_the_cuda_kernels_where_torch_has_cuda(tmp_path, monkeypatch, torch_with_cuda):
    toolkit(tmp_path / "cuda")
    plan = planned(monkeypatch, torch_with_cuda, CUDA_HOME=tmp_path / "cuda")
    assert plan.extensions == [LIBRARY, CUDA_LIBRARY]
    names = "sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, compute_100"
    assert f"CUDA kernels with nvcc 13.0.88 for {names}" in plan.notes
    assert cuda_of(torch_with_cuda) == "13.0"


def test_auto_leaves_the_cuda_kernels_out_where_torch_has_no_cuda(tmp_path, monkeypatch, torch_with_cuda):
    (torch_with_cuda / "version.py").write_text("cuda: Optional[str] = None\n")
    home = toolkit(tmp_path / "cuda") and tmp_path / "cuda"
    plan = planned(monkeypatch, torch_with_cuda, CUDA_HOME=home)
    assert plan.extensions == [LIBRARY]
    assert (len(plan.notes), plan.left_out) == (1, {})
    plan = planned(monkeypatch, torch_with_cuda, "cuda", CUDA_HOME=home)
    assert CUDA_LIBRARY in plan.extensions
    assert plan.failure is None


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_without_nvcc(tmp_path, monkeypatch, torch_with_cuda, choice):
    plan = planned(monkeypatch, torch_with_cuda, choice, CUDA_HOME=tmp_path)
    assert CUDA_LIBRARY not in plan.extensions
    why = f"no bin/nvcc in {tmp_path}, which CUDA_HOME names"
    assert f"no CUDA kernels: {why}" in plan.notes
    assert plan.told()["left_out"] == {"cuda": why}
    expected = None if choice == "auto" else f"MIRNET_FAST_BUILD=cuda cannot be met: {why}"
    assert plan.failure == expected


def test_an_nvcc_that_does_not_suit_the_compiler(tmp_path, monkeypatch, torch_with_cuda):
    path = toolkit(tmp_path / "cuda", works=False)
    plan = planned(monkeypatch, torch_with_cuda, "cuda", CUDA_HOME=tmp_path / "cuda")
    assert f"{path} does not work: error: unsupported GNU version!" in plan.failure


def test_nvcc_is_looked_for_on_the_path_and_beside_torch(tmp_path, monkeypatch, torch_with_cuda):
    path = toolkit(torch_with_cuda.parent / "nvidia" / "cu13")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        assert find_nvcc("g++", torch_with_cuda).command == f"{path} -ccbin g++"
    path = toolkit(tmp_path / "on the path")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: path)
    found = find_nvcc("ccache g++", torch_with_cuda)
    assert found.command == f"'{path}'"
    assert found.libraries == str(tmp_path / "on the path" / "lib64")


KNOWN = {"75", "80", "86", "89", "90", "100", "120"}


@pytest.mark.parametrize(
    ("wanted", "knows", "expected"),
    [
        ("", KNOWN, "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_100"),
        ("", KNOWN - {"100", "120"}, "sm_80 sm_86 sm_89 sm_90 compute_80"),
        ("8.0;9.0a;12.0+PTX", KNOWN, "sm_80 sm_90a sm_120 compute_120"),
        ("8.6 10.0f", KNOWN, "sm_86 sm_100f"),
        (" 9.0a+PTX ; 9.0a ", KNOWN, "sm_90a compute_90a"),
        ("7.5;8.0", KNOWN, "sm_80"),
    ],
)
def test_architectures(wanted, knows, expected):
    names, note = cuda_architectures(wanted, knows)
    assert " ".join(names) == expected
    assert (note == "not for 7.5: the kernels need 8.0 or newer") == ("7.5" in wanted)


@pytest.mark.parametrize(
    ("wanted", "entry"), [("9,0", "9,0"), ("Hopper", "Hopper"), ("8.0;13.0", "13.0"), ("8.0+ptx", "8.0+ptx")]
)
@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_a_wrong_list_of_architectures_is_named(
    tmp_path, monkeypatch, torch_with_cuda, wanted, entry, choice
):
    toolkit(tmp_path / "cuda")
    given = {"CUDA_HOME": tmp_path / "cuda", "TORCH_CUDA_ARCH_LIST": wanted}
    plan = planned(monkeypatch, torch_with_cuda, choice, **given)
    assert plan.failure.startswith(
        f"TORCH_CUDA_ARCH_LIST={wanted!r}: {entry!r} is none of what nvcc knows (8.0 "
    )


def test_architectures_that_are_all_too_old():
    with pytest.raises(Wrong, match=r"TORCH_CUDA_ARCH_LIST='7.5': the CUDA kernels need 8.0"):
        cuda_architectures("7.5", KNOWN)


def test_the_cuda_library_is_linked_against_torch_or_a_stub_of_its_name(
    tmp_path, monkeypatch, torch_with_cuda
):
    toolkit(tmp_path / "cuda")
    given = {"CUDA_HOME": tmp_path / "cuda", "TORCH_CUDA_ARCH_LIST": "8.0;12.0+PTX"}
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/op.cu").touch()
    monkeypatch.setattr(ninja_file, "ROOT", tmp_path)
    for cuda in ("'13.0'", "None"):
        (torch_with_cuda / "version.py").write_text(f"cuda: Optional[str] = {cuda}\n")
        plan = planned(monkeypatch, torch_with_cuda, "cuda", **given)
        assert ninja_file.write_ninja(plan, "b")[CUDA_LIBRARY] == "b/libmirnet_fast_cuda.so"
        lines = (tmp_path / "b/build.ninja").read_text().splitlines()
        flags = {a.split(":")[0].removeprefix("build b/"): b for a, b in pairwise(lines)}
        compiled = flags["sm_80-sm_120-compute_120/csrc/cuda/op.cu.o"]
        assert "arch=compute_80,code=sm_80" in compiled
        assert "arch=compute_100,code=sm_120" in compiled
        assert "arch=compute_120,code=compute_120" in compiled
        assert " -ltorch_cuda " in flags["libmirnet_fast_cuda.so"]
        assert ("stub/libtorch_cuda.so" in flags) == (cuda == "None")
        assert "-Lb/stub" in flags["libmirnet_fast_cuda.so"] or cuda != "None"
