"""What `serve` does with photos, and what it says, without its page."""

import os
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirnet_fast import serving
from mirnet_fast.images import Limits
from mirnet_fast.restorer import Restorer
from mirnet_fast.serving import app, work

from ..cli.common import run
from ..gallery.common import noisy, photo, write


@pytest.fixture
def restorer():
    return Restorer(strength=1.0)


def test_photos_are_restored_and_bad_ones_told(restorer, tmp_path):
    given = [
        write(tmp_path / f"in/{name}", noisy(photo(16, 24, len(name))))
        for name in ("a.png", "b/a.png", "large.png")
    ]
    write(given[2], photo(40, 60))
    (tmp_path / "in" / "text.png").write_text("text")
    told, out = [], tmp_path / "out"
    out.mkdir()
    paths = [str(path) for path in (*given, tmp_path / "in" / "text.png")]
    outcome = serving.restored(paths, restorer, out, Limits(pixels=1000), told.append)
    by_input = {record.input: record for record in outcome.records}
    assert [by_input[path].status for path in paths] == ["restored", "restored", "failed", "failed"]
    assert "too large" in by_input[paths[2]].reason and "not an image" in by_input[paths[3]].reason
    assert told == outcome.records
    assert [Path(file).name for file in outcome.files] == ["a.png", "a_1.png"]
    pixels = cv2.imread(str(given[1]))
    assert np.array_equal(cv2.imread(outcome.files[1]), restorer(pixels[:, :, ::-1].copy())[:, :, ::-1])
    assert list(outcome.shown) == ["a.png", "a_1.png"]
    for path in outcome.shown["a.png"]:
        assert cv2.imread(path).shape == (16, 24, 3)
    assert Path(outcome.page).read_text().startswith("<!doctype html>")
    for path in (*outcome.files, outcome.page, *outcome.shown["a.png"]):
        assert Path(path).is_relative_to(out)


def test_old_results_go(restorer, tmp_path):
    path = str(write(tmp_path / "a.png", photo(8, 8)))
    out = tmp_path / "out"
    out.mkdir()
    first = Path(serving.restored([path], restorer, out).files[0]).parents[1]
    serving.restored([path], restorer, out)
    assert first.exists()
    os.utime(first, (0, 0))
    serving.restored([path], restorer, out)
    assert not first.exists() and len(list(out.iterdir())) == 2


def test_the_table_names_no_folder(restorer, tmp_path):
    path = tmp_path / "secret" / "text.png"
    path.parent.mkdir()
    path.write_text("text")
    out = tmp_path / "out"
    out.mkdir()
    [record] = work.restored([str(path)], restorer, out).records
    row = app._row(record)
    assert row[0] == "text.png" and "not an image" in row[1] and "secret" not in " ".join(row)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.2", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_which_addresses_are_of_this_machine_alone(host, own):
    assert app.is_loopback(host) == own


@pytest.fixture
def served(monkeypatch):
    """What `serve` is called with; SIGTERM's handler is put back."""
    calls = []

    def serve(host, port, device, limits, ready):
        calls.append((host, port, limits))
        ready("http://here/")

    monkeypatch.setattr(serving, "serve", serve)
    before = signal.getsignal(signal.SIGTERM)
    yield calls
    signal.signal(signal.SIGTERM, before)


def test_command(served):
    result = run("serve")
    assert (result.exit_code, result.stderr) == (0, "") and "http://here/ is served" in result.stdout
    result = run("serve", "--host", "0.0.0.0", "--port", 0, "--limit-pixels", 5, "--limit-bytes", 6)
    assert "warning: 0.0.0.0 can be reached by other machines" in result.stderr
    assert served == [
        (app.HOST, app.PORT, work.LIMITS),
        ("0.0.0.0", 0, Limits(pixels=5, bytes=6)),
    ]


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    before = signal.getsignal(signal.SIGTERM)
    result = run("serve")
    signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 1 and "pip install 'mirnet-fast[serve]'" in result.output
