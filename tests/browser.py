"""A headless Chromium, where there is one, that a test drives by Playwright."""

import contextlib
import importlib.util
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

# As Debian and others call it.
_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium (of Debian: apt-get install chromium) and playwright, of `make test-all`",
)

PATIENCE = 120_000  # milliseconds, for machines that have much to do


@contextlib.contextmanager
def chromium():
    """Playwright's Browser."""
    from playwright.sync_api import sync_playwright

    # Root may start it without its own sandbox only; what it opens here is made here.
    options = ["--force-color-profile=srgb", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page complains of, and what it asks for, from now on."""

    def __init__(self, page):
        self.complaints, self.requests = [], []
        page.on("console", lambda message: self._tell(message.type, message.text))
        page.on("pageerror", lambda error: self._tell("error", str(error)))
        page.on("dialog", lambda dialog: self._tell("dialog", dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))

    def _tell(self, kind, text):
        if kind not in ("log", "info", "debug"):
            self.complaints.append(f"{kind}: {text}")


def pixels_of(element):
    """(H, W, 3) uint8 of what is to be seen of a Page or a Locator."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))
