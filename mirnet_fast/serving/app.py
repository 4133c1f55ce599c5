"""The page and its server, by Gradio: for this machine alone if not told otherwise; nothing is sent out."""

import ipaddress
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import pretrained
from ..images import Limits
from ..restorer import Restorer
from .work import LIMITS, restored

HOST, PORT = "127.0.0.1", 7860
FILES = 100  # at once
WAITING = 20  # requests, at most, while one is at work
TITLE = "mirnet_fast"
_COLUMNS = {"file": "20%", "result": "40%", "size": "13%", "noise": "9%", "strength": "9%", "seconds": "9%"}
# Everything comes from the server itself; Gradio's page has its scripts and styles inside.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)


class ServingError(RuntimeError):
    """The page cannot be served; the message says why."""


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(
    host: str = HOST,
    port: int = PORT,
    device: Any = None,
    limits: Limits = LIMITS,
    ready: Callable[[str], object] = lambda address: None,
    stop: threading.Event | None = None,
) -> None:
    """Serve the page until `stop` is set, or for ever.

    What is handed in and what comes of it lies in a temporary folder, which goes with the server.

    Args:
        host: the address that it is bound to.
        port: of that; 0 for one that is free.
        device: where the networks run, as of `Restorer`.
        limits: what is too large to be handed in.
        ready: called with the page's address.

    Raises:
        ServingError: Gradio is not installed, or the address or port cannot be had.
    """
    stop = threading.Event() if stop is None else stop
    with tempfile.TemporaryDirectory(prefix="mirnet_fast-") as folder:
        gradio = _gradio(folder)
        page = page_of(gradio, folder, device, limits)
        try:
            page.queue(max_size=WAITING).launch(**_options(gradio, host, port, limits))
        except OSError as error:
            raise ServingError(f"{host}:{port} cannot be served: {error}") from error
        try:
            ready(page.local_url)
            stop.wait()
        finally:
            page.close(verbose=False)


def _gradio(folder):
    # Both are read when Gradio is imported, or when it starts.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        import gradio
    except ImportError as error:
        raise ServingError(f"Gradio is not there ({error}): pip install 'mirnet-fast[serve]'") from error
    return gradio


def _options(gradio, host, port, limits):
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A page elsewhere whose name leads here must not reach what only this machine is to reach.
    hosts = ["127.0.0.1", "localhost", "[::1]", host] if is_loopback(host) else ["*"]
    middleware = [Middleware(_Policy), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
    system = ["system-ui", "sans-serif"]
    return {
        "server_name": host,
        "server_port": port or _free_port(host),
        "max_file_size": limits.bytes,
        "app_kwargs": {"middleware": middleware},
        "theme": gradio.themes.Base(
            primary_hue="amber", neutral_hue="neutral", font=system, font_mono=["ui-monospace", "monospace"]
        ),
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "show_error": False,
        "quiet": True,
        "prevent_thread_lock": True,
    }


def _free_port(host):
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host.strip("[]"), 0))
        return probe.getsockname()[1]


class _Policy:
    """Middleware of ASGI: each answer says what the page may load, and from where."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with(message):
            if message["type"] == "http.response.start":
                more = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in more.items()),
                ]
            await send(message)

        await self.app(scope, receive, send_with)


def page_of(gradio: Any, folder: str | Path, device: Any = None, limits: Limits = LIMITS) -> Any:
    """The page, Gradio's Blocks."""
    networks, tasks = {}, list(pretrained.tasks())

    def run(paths, task, by_noise, strength, progress):
        if not paths:
            raise gradio.Error("Drop photos first.", print_exception=False, duration=4)
        if len(paths) > FILES:
            raise gradio.Error(
                f"{len(paths)} photos are too many at once; the limit is {FILES}.", print_exception=False
            )
        if task not in networks:
            networks[task] = Restorer(task, device=device).network
        chosen = "auto" if by_noise and task == pretrained.DEFAULT else float(strength)
        restorer = Restorer(networks[task], device=device, strength=chosen)
        count = iter(range(1, len(paths) + 1))

        def tell(record):
            progress((next(count), len(paths)), desc=Path(record.input).name, unit="photos")

        progress((0, len(paths)), unit="photos")
        outcome = restored(paths, restorer, folder, limits, tell)
        names = list(outcome.shown)
        choice = gradio.Dropdown(names, value=names[0] if names else None, visible=len(names) > 1)
        files = [*outcome.files, *([outcome.page] if outcome.page else [])]
        return (
            outcome.shown,
            outcome.shown[names[0]] if names else None,
            choice,
            files or None,
            [_row(record) for record in outcome.records],
        )

    def restore(paths, task, by_noise, strength, progress=gradio.Progress()):  # noqa: B008
        try:
            return run(paths, task, by_noise, strength, progress)
        except gradio.Error:
            raise
        except Exception as error:  # memory, a disk that is full: said on the page, and the server goes on
            raise gradio.Error(str(error) or type(error).__name__, print_exception=False) from error

    most = f"up to {limits.pixels / 1e6:.0f} megapixels and {limits.bytes / 1e6:.0f} MB each"
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 7200)) as page:
        shown = gradio.State({})
        gradio.Markdown(f"# Restore photos\nThey stay on the machine that serves this page: {most}.")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                photos = gradio.File(label="Photos", file_count="multiple", height=180)
                task = gradio.Dropdown(tasks, value=pretrained.DEFAULT, label="Task", interactive=True)
                by_noise = gradio.Checkbox(True, label="Strength by the noise of each photo")
                strength = gradio.Slider(0, 1, 1, step=0.05, label="Strength", interactive=False)
                button = gradio.Button("Restore", variant="primary")
            with gradio.Column(scale=3, min_width=360):
                slider = gradio.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    interactive=False,
                    max_height=640,
                    buttons=["fullscreen"],
                )
                choice = gradio.Dropdown([], label="Shown", visible=False, interactive=True)
                files = gradio.File(label="Results", file_count="multiple", interactive=False)
        table = gradio.Dataframe(
            headers=list(_COLUMNS),
            column_widths=[*_COLUMNS.values()],
            datatype="str",
            label="What was done",
            interactive=False,
            wrap=True,
        )

        def strength_of(task, by_noise):
            noisy = task == pretrained.DEFAULT
            return gradio.Checkbox(visible=noisy), gradio.Slider(interactive=not (noisy and by_noise))

        for control in (task, by_noise):
            control.change(strength_of, [task, by_noise], [by_noise, strength], api_visibility="private")
        button.click(
            restore,
            [photos, task, by_noise, strength],
            [shown, slider, choice, files, table],
            api_name="restore",
            concurrency_limit=1,
            concurrency_id="network",
        )
        choice.input(lambda pairs, name: pairs.get(name), [shown, choice], slider, api_visibility="private")
    return page


def _row(record):
    """For the table, as text; where the file lies is nothing to whoever handed it in."""
    name = Path(record.input).name
    told = "; ".join([record.reason or record.status, *record.notes])
    number = "" if record.strength is None else f"{record.strength:.2f}"
    return [
        name,
        told.replace(record.input, name),
        f"{record.width} x {record.height}" if record.width else "",
        "" if record.noise is None else f"{record.noise:.1f}",
        number,
        f"{record.seconds:.1f}",
    ]
