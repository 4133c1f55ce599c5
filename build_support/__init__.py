"""Build of the native parts for setup.py: per-file flags that setuptools cannot express, run by ninja."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
