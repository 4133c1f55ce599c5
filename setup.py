"""Build of the native parts, which build_support describes and ninja runs.

MIRNET_FAST_BUILD chooses what is compiled: `auto` (default: what can be built and run here), `none`
(pure Python), `cpu` (the C++ kernels, or an error that names what is missing), `cuda` (the CUDA kernels
too, or an error, whether torch can run them or not).
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pip leaves it out

from build_support.commands import commands
from build_support.plan import Plan

plan = Plan(os.environ.get("MIRNET_FAST_BUILD") or "auto")
setup(
    packages=[*find_packages(include=["mirnet_fast*"]), "mirnet_fast.kernels"],
    package_dir={"mirnet_fast.kernels": "kernels"},
    ext_modules=[Extension(name, sources=[]) for name in plan.extensions],
    cmdclass=commands(plan),
)
