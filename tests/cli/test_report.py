"""What `restore` prints, in a terminal and elsewhere."""

import io
import json
import re
import sys

import pytest

from mirnet_fast.cli._report import NAMED, Report, printable
from mirnet_fast.collection import FAILED, RESTORED, SKIPPED, Record, Summary

NAME = "[bold]new\nline\x1b[31m\udcff " + "long" * 40 + ".png"
SHOWN = r"[bold]new\nline\x1b[31m\udcff " + "long" * 40 + ".png"


class Terminal(io.StringIO):
    def isatty(self):
        return True


everywhere = pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["piped", "terminal"])


def told(monkeypatch, stream, as_json=False):
    """(stdout, stderr, records)."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    out, err = stream(), stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    summary, report = Summary(seconds=2.0), Report(4, "out", as_json)
    records = [
        Record(NAME, "b.png", RESTORED, None, 3000, 2000, 2, 12_000_000, 1.5, 7.25, 0.5, notes=("a note",)),
        Record("c.png", "d.png", RESTORED, None, 10, 20, 1, 200, 0.1, None, 1.0),
        Record("e.png", "f.png", SKIPPED, "f.png is there already"),
        Record(NAME, "g.png", FAILED, f"{NAME} is bad"),
    ]
    with report:
        for record in records:
            summary.add(record)
            report.tell(record)
    report.end(summary)
    monkeypatch.undo()
    return out, err, records


def plain(text):
    """Without what moves the cursor, colours, and the bar."""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", text) if line and "━" not in line]


@everywhere
def test_lines(monkeypatch, stream):
    out, err, _ = told(monkeypatch, stream)
    lines = plain(out.getvalue()) + plain(err.getvalue())
    assert sorted(lines) == sorted(
        [
            f"{SHOWN} -> b.png: 3000 x 2000, 2 pages, noise of 7.2/255, strength 0.50, 1.5 s",
            "c.png -> d.png: 10 x 20, 0.1 s",
            f"warning: {SHOWN}: a note",
            f"error: {SHOWN} is bad",
            "restored 2 of 4 images to out, skipped 1 (--overwrite makes anew what is there), 1 failed; "
            "2.0 s, 6.00 megapixels a second",
            f"  failed: {SHOWN} is bad",
        ]
    )
    assert ("━" in err.getvalue()) == err.isatty() and "━" not in out.getvalue()


@everywhere
def test_json(monkeypatch, stream):
    out, err, records = told(monkeypatch, stream, as_json=True)
    *files, summary = map(json.loads, out.getvalue().splitlines())
    assert [row["input"] for row in files] == [record.input for record in records]
    assert [row.pop("kind") for row in files] == ["file"] * 4 and summary["kind"] == "summary"
    assert files[0]["notes"] == ["a note"] and files[0]["noise"] == 7.25
    assert (summary["restored"], summary["skipped"], summary["failed"], summary["left"]) == (2, 1, 1, 0)
    assert summary["megapixels_a_second"] == 6
    assert f"error: {SHOWN} is bad" in plain(err.getvalue())


def test_many_failures_are_named_in_part(capsys):
    summary = Summary(failed=[Record(f"{i}", None, FAILED, f"{i}: bad") for i in range(NAMED + 3)], left=2)
    summary.stopped = "no space is left for results"
    Report(NAMED + 5, "", False).end(summary)
    first, *named, last = capsys.readouterr().out.splitlines()
    assert first == (
        f"no space is left for results; restored 0 of {NAMED + 5} images, {NAMED + 3} failed, "
        "2 left for another run; 0.0 s"
    )
    assert len(named) == NAMED and last == "  and 3 more; --json names them all"


def test_printable():
    assert printable("фото 🙂 a'b\"c\\d") == "фото 🙂 a'b\"c\\d"
    assert printable(" \t\u200b") == r" \t\u200b"
