"""The page in Chromium: keys, fingers, pixels, and that it keeps to itself."""

import re

import numpy as np
import pytest

from mirnet_fast.gallery import Comparison, entries, write_gallery

from ..browser import PATIENCE, Watch, chromium, needs_browser, pixels_of
from ..cases import exhaustive
from .common import HOSTILE, noisy, photo, write

pytestmark = [needs_browser, exhaustive, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def photos():
    clean = photo(48, 64)
    return {"before": noisy(clean), "after": noisy(clean, 4), "clean": clean}


@pytest.fixture(scope="module")
def gallery(photos, tmp_path_factory):
    """A page of three photos: of a hostile name, with a clean one; one more; and a large one with parts."""
    folder = tmp_path_factory.mktemp("gallery")
    paths = {name: write(folder / f"{name}.png", pixels) for name, pixels in photos.items()}
    large = [write(folder / f"large_{i}.png", noisy(photo(300, 400), 9 * i)) for i in (1, 0)]
    compared = [
        Comparison(HOSTILE, **paths, seconds=1.25, notes=(HOSTILE,)),
        Comparison("second", paths["before"], paths["after"]),
        Comparison("large", *large),
    ]
    page = folder / "hostile '\"<b>& größe.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "FULL_PIXELS", 100_000)
        patch.setattr(entries, "LADDER", (entries.Rung(200, 2, 64),))
        written = write_gallery(page, compared, title=HOSTILE)
    assert (written.photos, written.whole) == (3, 2)
    return page


class Opened:
    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.watch = Watch(self.page)
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.getElementById('left').complete")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    @property
    def divider(self):
        """Where it is, in percent of the photo."""
        return int(self.page.get_attribute("#divider", "aria-valuenow"))

    def tags(self):
        return self.text("#tag-left"), self.text("#tag-right")

    def box(self, selector):
        return self.page.locator(selector).bounding_box()

    def touch(self, kind, *points):
        """A finger at each of the points, as the screen tells it."""
        if not hasattr(self, "session"):
            self.session = self.context.new_cdp_session(self.page)
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})


@pytest.fixture
def opened(browser, gallery):
    one = Opened(browser, gallery)
    yield one
    one.context.close()
    assert one.watch.complaints == []
    assert {url.partition(":")[0] for url in one.watch.requests} <= {"file", "data"}
    assert [url for url in one.watch.requests if url.startswith("file:")] == [gallery.as_uri()]


@pytest.fixture
def phone(browser, gallery):
    one = Opened(
        browser,
        gallery,
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
    )
    yield one
    one.context.close()
    assert one.watch.complaints == []


def test_what_is_told(opened, photos):
    assert opened.page.title() == opened.text("h1") == HOSTILE
    assert opened.text("#name") == opened.text("#notes li") == HOSTILE
    assert opened.text("#size") == "64 × 48 pixels, 0.0 MP"
    told = {row[0]: row[1:] for row in (line.split("\t") for line in opened.text("#scores").splitlines())}
    psnr = [
        -10 * np.log10(np.mean((photos[n] / 255 - photos["clean"] / 255) ** 2)) for n in ("before", "after")
    ]
    assert [float(cell) for cell in told["PSNR dB"][:2]] == pytest.approx(psnr, abs=0.006)
    assert "Time\n1.25 s" in opened.text("#facts")
    opened.press("n")
    assert opened.text("#name") == "second" and not opened.page.is_visible("#scores")
    assert "Time" not in opened.text("#facts")


def test_keys(opened):
    assert opened.divider == 50 and opened.tags() == ("Before", "After")
    opened.press("ArrowRight", "ArrowRight", "ArrowUp")
    assert opened.divider == 56
    opened.press("Shift+ArrowLeft", "ArrowDown")
    assert opened.divider == 44
    opened.press("Space")
    assert opened.divider == 100 and opened.text("#live") == "Showing Before"
    opened.press("Space")
    assert opened.divider == 0 and opened.text("#live") == "Showing After"
    opened.press("1", "+")
    assert opened.text("#zoom") == "200 %"
    opened.press("-")
    assert opened.text("#zoom") == "100 %"
    opened.press("p")  # there is none before the first
    assert opened.text("#counter") == "1 / 3"
    opened.press("n", "n", "n")
    assert opened.text("#counter") == "3 / 3" and opened.text("#live") == "Photo 3 of 3: large"
    opened.press("p", "p", "m")
    assert opened.tags() == ("After", "Clean")
    opened.press("m", "m")
    assert opened.tags() == ("Error before", "Error after") and opened.page.is_visible("#legend")
    opened.press("?")
    assert opened.page.is_visible("#keys")
    opened.press("n", "Escape")
    assert not opened.page.is_visible("#keys") and opened.text("#counter") == "1 / 3"


def test_everything_can_be_reached_by_tab(opened):
    reached = set()
    for _ in range(30):
        opened.press("Tab")
        reached.add(
            opened.page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
            )
        )
    assert {
        "Divider",
        "Next photo",
        "Before | After",
        "Difference",
        "Zoom in",
        "Fit",
        "second",
        "large",
    } <= reached
    opened.page.get_by_role("button", name="Difference").focus()
    opened.press("Space")  # presses the button, and does not toggle
    assert opened.tags()[0] == "Changed" and not opened.page.is_visible("#divider")


@pytest.mark.parametrize("ratio", [1, 2])
def test_zoom_shows_the_very_pixels(browser, gallery, photos, ratio):
    opened = Opened(browser, gallery, device_scale_factor=ratio)
    opened.press("1", "+", "+", "+", "End")
    assert opened.text("#zoom") == "800 %"
    assert (
        opened.page.evaluate("getComputedStyle(document.getElementById('left')).imageRendering")
        == "pixelated"
    )
    for name, key in (("before", "End"), ("after", "Home")):
        opened.press(key)
        opened.page.wait_for_timeout(100)
        box = opened.box("#left")
        edges = [box[side] * ratio for side in ("x", "y", "width", "height")]
        assert edges == pytest.approx([round(edge) for edge in edges], abs=0.01)
        left, top, wide, high = map(round, edges)
        assert (high, wide) == (8 * 48, 8 * 64)
        # The middle: tags lie above, and the divider stands at a side.
        expected = photos[name].repeat(8, 0).repeat(8, 1)[high // 4 : -high // 4, wide // 4 : -wide // 4]
        screen, (high, wide) = pixels_of(opened.page), expected.shape[:2]
        top, left = top + high // 2, left + wide // 2
        # All of them are drawn where the box says, or a pixel of the screen beside it.
        found = [
            np.array_equal(screen[y : y + high, x : x + wide], expected)
            for y in range(top - 1, top + 2)
            for x in range(left - 1, left + 2)
        ]
        assert sum(found) == 1
    opened.context.close()


def test_mouse(opened):
    stage, photo_box = opened.box("#stage"), opened.box("#left")
    y = stage["y"] + stage["height"] / 2
    opened.page.mouse.click(photo_box["x"] + photo_box["width"] / 4, y)
    assert abs(opened.divider - 25) <= 1
    handle = opened.box("#divider")
    opened.page.mouse.move(handle["x"] + handle["width"] / 2, y)
    opened.page.mouse.down()
    opened.page.mouse.move(photo_box["x"] + 0.7 * photo_box["width"], y, steps=4)
    opened.page.mouse.up()
    assert abs(opened.divider - 70) <= 1
    before = opened.text("#zoom")
    opened.page.mouse.wheel(0, -600)
    opened.page.wait_for_function("(text) => document.getElementById('zoom').innerText !== text", arg=before)
    at = opened.box("#left")
    x = stage["x"] + stage["width"] / 4
    opened.page.mouse.move(x, y)
    opened.page.mouse.down()
    opened.page.mouse.move(x + 30, y + 20, steps=3)
    opened.page.mouse.up()
    moved = opened.box("#left")
    assert abs(moved["x"] - at["x"] - 30) <= 1 and abs(moved["y"] - at["y"] - 20) <= 1
    assert abs(opened.divider - 70) <= 1
    opened.page.mouse.dblclick(x, y)
    assert opened.box("#left") == photo_box


def test_fingers(phone):
    photo_box = phone.box("#left")
    y = photo_box["y"] + photo_box["height"] / 2

    def across(share):
        return photo_box["x"] + share * photo_box["width"]

    phone.touch("touchStart", (across(0.5), y))
    for share in (0.4, 0.3, 0.2):
        phone.touch("touchMove", (across(share), y))
    phone.touch("touchEnd")
    assert abs(phone.divider - 20) <= 1
    assert phone.page.evaluate("scrollY") == 0
    zoom = float(phone.text("#zoom").split()[0])
    phone.touch("touchStart", (across(0.4), y))
    phone.touch("touchStart", (across(0.4), y), (across(0.6), y))
    for spread in (0.2, 0.3, 0.4):
        phone.touch("touchMove", (across(0.5 - spread), y), (across(0.5 + spread), y))
    phone.touch("touchEnd")
    assert float(phone.text("#zoom").split()[0]) == pytest.approx(4 * zoom, rel=0.05)
    left = phone.box("#left")["x"]
    phone.touch("touchStart", (200, y))
    phone.touch("touchMove", (230, y))
    phone.touch("touchEnd")
    assert phone.box("#left")["x"] == pytest.approx(left + 30, abs=1)


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1600])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_nothing_sticks_out(browser, gallery, width, scheme):
    opened = Opened(browser, gallery, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for _ in range(3):
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        bar = opened.box(".bar")
        assert bar["x"] >= 0 and bar["x"] + bar["width"] <= width
        opened.press("n")
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    assert opened.watch.complaints == []
    opened.context.close()


def test_parts_of_a_large_photo(opened):
    opened.press("n", "n")
    assert "Shown as\n200 × 150" in opened.text("#facts")
    opened.page.get_by_role("button", name="Part 2, pixel for pixel").click()
    assert opened.page.get_attribute("#views button:nth-child(3)", "aria-pressed") == "true"
    opened.press("1")
    assert opened.box("#left")["width"] == 64
    opened.press("v")
    assert opened.page.get_attribute("#views button:nth-child(1)", "aria-pressed") == "true"


def test_reduced_motion(browser, gallery):
    durations = {}
    for motion in ("reduce", "no-preference"):
        opened = Opened(browser, gallery, reduced_motion=motion)
        durations[motion] = opened.page.evaluate(
            "getComputedStyle(document.getElementById('fit')).transitionDuration"
        )
        opened.context.close()
    assert durations["reduce"] == "0s" != durations["no-preference"]
