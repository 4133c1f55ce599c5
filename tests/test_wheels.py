"""The source distribution, and wheels that are built from it, in environments that have nothing else of ours.

Objects of this tree's own build go along, so that ninja compiles only what is out of date.
"""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from .building import ROOT, python
from .cases import exhaustive

pytestmark = [exhaustive, pytest.mark.xdist_group("wheels")]

BACKEND = "from setuptools import build_meta; print(build_meta.build_wheel({!r}))"
# torch's libraries as another Python would have them: ours must need nothing of Python.
LOADING = """
import ctypes, importlib.util, pathlib
package = pathlib.Path(importlib.util.find_spec("mirnet_fast").origin).parent
for name in ("libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL({!r} + name, mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(str(package / "libmirnet_fast_cpu.so"))
print(package)
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder that the source distribution unpacks to."""
    folder = tmp_path_factory.mktemp("sdist")
    made = python("setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder)
    assert made.returncode == 0, made.stderr
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


def wheel(unpacked, out, **environment):
    """(the wheel, what its build printed to stderr), as a frontend without isolation makes it."""
    made = python("-c", BACKEND.format(str(out)), cwd=unpacked, **environment)
    assert made.returncode == 0, made.stderr
    return out / made.stdout.splitlines()[-1], made.stderr


@pytest.fixture(scope="module")
def with_kernels(unpacked, tmp_path_factory):
    for folder in ROOT.glob("build/ninja-*"):
        shutil.copytree(folder, unpacked / "build" / folder.name, ignore=shutil.ignore_patterns("lock"))
    made, told = wheel(
        unpacked, tmp_path_factory.mktemp("wheel"), MIRNET_FAST_BUILD="auto", NVCC_APPEND_FLAGS=""
    )
    if "no C++ kernels" in told:
        pytest.skip(f"nothing to compile with: {told.strip()}")
    return made


def environment_of(folder, wheel, interpreter=None):
    """An environment with the wheel; of this Python also with the packages that run the tests."""
    if interpreter is None:
        venv.create(folder, with_pip=False)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    else:
        subprocess.run([interpreter, "-m", "venv", "--without-pip", folder], check=True)
    install = ["-m", "pip", "-q", "--python", folder / "bin/python", "install", "--no-deps", "--no-index"]
    done = python(*install, "--ignore-installed", wheel)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(command, folder, *arguments):
    """From another folder, and with no compiler on the path."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MIRNET_"))}
    done = subprocess.run(
        [command, *map(str, arguments)],
        cwd=folder,
        env={**kept, "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def restores(binaries, folder):
    """What `mirnet-fast` tells and does in a folder: doctor's JSON and stderr."""
    place = run(binaries / "python", folder, "-c", "import mirnet_fast; print(mirnet_fast.__file__)").stdout
    assert Path(place).is_relative_to(binaries.parent)
    small = ("--n-feat", 8, "--n-rrg", 1, "--n-msrb", 1, "--size", 8)
    told = run(binaries / "mirnet-fast", folder, "doctor", "--json", *small)
    pixels = np.random.default_rng(0).integers(0, 255, (13, 18, 3), np.uint8)
    cv2.imwrite(str(folder / "in.png"), pixels)
    run(binaries / "mirnet-fast", folder, "restore", "in.png", "out.png", "--strength", 1)
    restored = cv2.imread(str(folder / "out.png"))
    assert restored.shape == pixels.shape and np.abs(restored.astype(int) - pixels).mean() > 1
    return json.loads(told.stdout), told.stderr


def test_a_wheel_with_kernels_needs_no_compiler(with_kernels, tmp_path):
    machine = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert with_kernels.name.endswith(f"-py3-none-{machine}.whl")
    if torch.version.cuda is None:
        assert with_kernels.stat().st_size < 5e6
    told, warned = restores(environment_of(tmp_path / "venv", with_kernels), tmp_path)
    assert told["libraries"]["cpu"] is None and warned == ""
    assert told["ops"]["cpu"]["float32"]["ops"]["blur_pool"]["runs"] == "cpu"
    assert told["forward"]["planned"]


def test_without_a_compiler_the_source_distribution_is_pure_and_says_so(unpacked, tmp_path):
    made, told = wheel(unpacked, tmp_path, MIRNET_FAST_BUILD="auto", PATH="/nonexistent", CXX="")
    assert made.name.endswith("-py3-none-any.whl")
    assert "mirnet_fast: no C++ kernels, pure Python only: no C++ compiler (g++ or clang++)" in told
    told, warned = restores(environment_of(tmp_path / "venv", made), tmp_path)
    assert "no C++ compiler" in told["libraries"]["cpu"] and warned.count("were not built") == 1
    assert told["ops"]["cpu"]["float32"]["ops"]["blur_pool"]["runs"] == "reference"


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_one_wheel_is_for_every_python(with_kernels, tmp_path, version):
    interpreter = shutil.which(f"python{version}")
    found = interpreter and subprocess.run([interpreter, "-c", ""], capture_output=True)
    if not found or found.returncode:
        pytest.skip(f"there is no python{version}")
    binaries = environment_of(tmp_path / "venv", with_kernels, interpreter)
    libraries = f"{Path(torch.__file__).parent}/lib/"
    place = run(binaries / "python", tmp_path, "-c", LOADING.format(libraries)).stdout
    assert Path(place.strip()).is_relative_to(tmp_path)
