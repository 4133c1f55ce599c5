"""mirnet-fast serve: a page on this machine to restore photos."""

import signal
from typing import TYPE_CHECKING

import click

from ._common import Command, device_option

if TYPE_CHECKING:
    import torch


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address that it is bound to.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0: any free one."
)
@click.option("--limit-pixels", type=click.IntRange(1), default=2**27, show_default=True, help="Of a photo.")
@click.option("--limit-bytes", type=click.IntRange(1), default=2**28, show_default=True, help="Of a file.")
@device_option
def serve(host: str, port: int, limit_pixels: int, limit_bytes: int, device: "torch.device") -> None:
    """A page on this machine where one drops photos, sees them before and after, and fetches the results.

    It can be reached from this machine alone, unless --host says otherwise; nothing is sent elsewhere, and
    what was handed in is removed when it ends, by Ctrl-C. Needs Gradio: pip install 'mirnet-fast[serve]'.
    """
    from .. import serving
    from ..images import Limits
    from ..serving.app import is_loopback

    if not is_loopback(host):
        click.echo(
            f"warning: {host} can be reached by other machines: whoever reaches it can use this one, "
            "there is no password, and photos are sent as they are, not encrypted",
            err=True,
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    limits = Limits(pixels=limit_pixels, bytes=limit_bytes)
    try:
        serving.serve(
            host, port, device, limits, lambda address: click.echo(f"{address} is served; Ctrl-C ends it")
        )
    except serving.ServingError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("ended")
