"""The page of `serve`: by Gradio's own client, and in Chromium."""

import base64
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirnet_fast import serving
from mirnet_fast.images import Limits
from mirnet_fast.restorer import Restorer

from ..browser import PATIENCE, Watch, chromium, needs_browser
from ..cases import exhaustive
from ..foreign import needs
from ..gallery.common import noisy, photo, write

pytestmark = [needs("gradio"), exhaustive, pytest.mark.xdist_group("browser")]

LIMITS = Limits(pixels=10_000, bytes=100_000)


@pytest.fixture(scope="module")
def address():
    """Of a page that is served; at its end nothing is left."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")
        found, stop, ready = [], threading.Event(), threading.Event()

        def note(url):
            found.append(url)
            ready.set()

        thread = threading.Thread(
            target=serving.serve,
            kwargs={"port": 0, "limits": LIMITS, "ready": note, "stop": stop},
            daemon=True,
        )
        thread.start()
        assert ready.wait(120)
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
        yield found[0].rstrip("/")
        stop.set()
        thread.join(60)
        assert not thread.is_alive() and not folder.exists()


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    from gradio_client import Client

    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("fetched")))


def restore(client, *paths, task="denoise", by_noise=False, strength=1.0):
    from gradio_client import handle_file

    given = [handle_file(str(path)) for path in paths]
    return client.predict(given, task, by_noise, strength, api_name="/restore")


def expected(path, strength):
    pixels = cv2.imread(str(path))[:, :, ::-1].copy()
    return Restorer(strength=strength)(pixels)[:, :, ::-1]


@pytest.mark.parametrize(("by_noise", "strength", "meant"), [(False, 0.5, 0.5), (True, 0.5, "auto")])
def test_photos_come_back_restored(client, tmp_path, by_noise, strength, meant):
    path = write(tmp_path / "a.png", noisy(photo()))
    shown, _, files, table = restore(client, path, by_noise=by_noise, strength=strength)
    assert [Path(file).name for file in files] == ["a.png", "before_and_after.html"]
    assert np.array_equal(cv2.imread(files[0]), expected(path, meant))
    assert len(shown) == 2
    [row] = table["data"]
    assert row[:3] == ["a.png", "restored", "60 x 40"] and (row[3] != "") == by_noise


def test_what_is_no_photo_or_too_large_is_told(client, tmp_path):
    good, large = write(tmp_path / "a.png", photo()), write(tmp_path / "large.png", photo(120, 120))
    text = tmp_path / "<b>text.png"
    text.write_text("text")
    _, _, files, table = restore(client, good, large, text)
    assert [Path(file).name for file in files] == ["a.png", "before_and_after.html"]
    results = [row[1] for row in table["data"]]
    assert results[0] == "restored" and "too large" in results[1] and "is not an image" in results[2]
    assert "/" not in results[2]
    _, _, files, table = restore(client, text)
    assert not files and len(table["data"]) == 1


def test_a_file_of_too_many_bytes_is_not_taken(client, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    path = write(tmp_path / "bytes.png", pixels)
    assert path.stat().st_size > LIMITS.bytes
    with pytest.raises(Exception, match=r"(?i)maximum|too large|413"):
        restore(client, path)


@pytest.mark.parametrize("photos", [[], ["a.png"] * 101])
def test_too_few_and_too_many_are_told(client, tmp_path, photos):
    path = write(tmp_path / "a.png", photo(8, 8))
    with pytest.raises(Exception, match=r"Drop photos first|101 photos are too many"):
        restore(client, *[path for _ in photos])


def test_files_of_the_machine_are_not_to_be_had(address, tmp_path):
    secret = tmp_path / "secret.png"
    write(secret, photo())
    given = [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}]
    call = f"{address}/gradio_api/call/restore"
    body = json.dumps({"data": [given, "denoise", False, 1.0]}).encode()
    asked = urllib.request.Request(call, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=30) as answer:
        told = answer.read().decode()
    assert "event: error" in told and "event: complete" not in told and "webp" not in told
    for path in (secret, Path("/etc/passwd")):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=30)
        assert error.value.code in (403, 404)


def test_the_address_and_what_the_page_may_load(address):
    host, port = address.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection((_other_address(), int(port)), timeout=5)
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    strange = urllib.request.Request(address, headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(strange, timeout=30)
    assert error.value.code == 400


def _other_address():
    """Another one of this machine: of 127.0.0.0/8, which are all its own."""
    return "127.0.0.2"


def drop(page, *paths):
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    data = page.evaluate_handle(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, text] of files) {
                data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            }
            return data;
        }""",
        files,
    )
    page.get_by_text("Drop File Here").dispatch_event("drop", {"dataTransfer": data})


@needs_browser
def test_in_a_browser(address, tmp_path):
    path = write(tmp_path / "größe.png", noisy(photo()))
    text = tmp_path / "text.txt"
    text.write_text("text")
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(PATIENCE)
        watch = Watch(page)
        page.goto(address)
        page.get_by_role("button", name="Restore").wait_for()
        drop(page, path, text)
        page.locator("a[download='größe.png']").wait_for()
        page.get_by_label("Strength by the noise of each photo").uncheck()
        page.get_by_role("button", name="Restore").click()
        page.locator("a[download='before_and_after.html']").wait_for()
        with page.expect_download() as download:
            page.locator("a[download='größe.png']").last.click()
        fetched = cv2.imdecode(np.fromfile(download.value.path(), np.uint8), cv2.IMREAD_COLOR)
        original = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        wanted = Restorer(strength=1.0)(original[:, :, ::-1].copy())[:, :, ::-1]
        assert np.array_equal(fetched, wanted)
        page.get_by_test_id("cell-1-1").get_by_text("text.txt is not an image").wait_for()
        elsewhere = [url for url in watch.requests if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
        # Gradio says on its own behalf that something is not implemented.
        assert [c for c in watch.complaints if "Method not implemented" not in c] == []
