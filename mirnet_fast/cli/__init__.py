"""The command `mirnet-fast`, one file a command.

Torch, SciPy and what needs them are imported in their functions: --help shall not take
seconds.
"""

import click

from .._version import __version__
from . import (
    compare,
    demo,
    doctor,
    evaluate,
    export,
    gallery,
    patches,
    profile,
    report,
    restore,
    serve,
    submit,
    train,
)


@click.group()
@click.version_option(__version__)
def main() -> None:
    """MIRNet image restoration on fused kernels."""


for command in (
    compare.compare,
    demo.demo,
    restore.restore,
    serve.serve,
    evaluate.evaluate,
    gallery.gallery,
    export.export,
    submit.submit,
    profile.profile,
    report.report,
    train.train,
    patches.patches,
    doctor.doctor,
):
    main.add_command(command)
