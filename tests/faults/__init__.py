"""Faults that the tests are there to see, of each part a file. `python -m tests.faults` plants them."""

from . import cpu, cuda, package, triton

FAULTS = [*cuda.FAULTS, *triton.FAULTS, *cpu.FAULTS, *package.FAULTS]
