"""Tables, JSON and bars: in a terminal and piped."""

import io
import json
import re
import sys

import pytest

from mirnet_fast import _progress
from mirnet_fast.cli import _tables

LONG = "-std=c++17 " * 12 + "end"
HEAD = ("", "calls", "ms", "GFLOP")
SHOWN = f"""
from mirnet_fast._progress import followed
from mirnet_fast.cli._tables import heading, print_pairs, print_table
heading("part [red]one[/red]")
print_pairs([("flags", {LONG!r}), ("path", "/tmp/[bold]x :smile:")])
rows = [("conv3x3 64 -> 128, 256 wide", 8, "123.456", "1.500"), ("total", 8, "99.000", "")]
print_table({HEAD!r}, rows, ("GFLOP", "calls"), lambda row: "bold red" if row[0] == "total" else "")
for i in followed("abc", 3, "photos"): pass
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """Function of a width and of variables of the environment: what the lines above print in a terminal."""

    def run(width, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLUMNS": str(width), **environment}.items():
            monkeypatch.setenv(name, value)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        exec(SHOWN, {})
        return terminal.getvalue()

    return run


def bare(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_gets_colours_and_what_fits(printed):
    told = printed(48)
    lines = [line.rstrip() for line in bare(told).splitlines()]
    assert "\x1b[36m" in told and re.search(r"\x1b\[1;31m", told)
    assert "part [red]one[/red]" in lines and "  path   /tmp/[bold]x :smile:" in lines
    assert "                               calls       ms" in lines  # without GFLOP
    assert re.search(r"^  conv3x3 64 -> 128, 256 wide      8  123\.456$", "\n".join(lines), re.M)
    assert sum("c++17" in line for line in lines) > 3 and "3/3 photos" in bare(told)


def test_no_color(printed):
    told = printed(120, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", told) and "GFLOP" in told
    assert "123.456  1.500" in bare(told)


@pytest.fixture
def columns_of_20(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")


def test_piped_it_is_plain_and_whole(capsys, columns_of_20):
    exec(SHOWN, {})
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines() == [
        "part [red]one[/red]",
        f"  flags  {LONG}",
        "  path   /tmp/[bold]x :smile:",
        "                               calls       ms  GFLOP",
        "  conv3x3 64 -> 128, 256 wide      8  123.456  1.500",
        "  total                            8   99.000",
    ]


def test_a_column_of_nothing_costs_no_other_anything(capsys):
    _tables.print_table(("", "a", ""), [("conv_out", "1", ""), ("in", "2", "")])
    assert capsys.readouterr().out.splitlines() == ["            a", "  conv_out  1", "  in        2"]


def test_json_has_nothing_that_json_has_not(capsys):
    _tables.print_json({"a": [float("inf"), float("nan"), 1.5], "b": {1: None}, "c": (True,)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "b": {"1": None}, "c": [True]}


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter([0, 30, 61, 70])  # when it begins, and after each
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock, 70))
    with _progress.Progress(9, "steps", done=5, lines=True) as bar:
        monkeypatch.setattr(bar._bar, "update", lambda *args, **options: None)
        for loss in "abcd":
            bar.advance(f"loss {loss}")
    assert capsys.readouterr().err == "7 of 9 steps loss b\n9 of 9 steps loss d\n"
    with _progress.Progress(2, "steps", shown=False, lines=True) as bar:
        bar.advance()
        bar.advance()
    assert capsys.readouterr() == ("", "")
