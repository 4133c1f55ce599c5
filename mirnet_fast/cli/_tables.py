"""Tables, headings and JSON of the commands.

In a terminal rich lays them out to its width, with colours unless NO_COLOR is set. Elsewhere they are plain
text, a line a row: as wide as they need, whatever COLUMNS says, and nothing is cut or folded.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED = 80  # columns; more where a row needs them
_WIDEST = 100_000
_INDENT = 2


def json_option(help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--json", "as_json", is_flag=True, help=help)


def print_json(values: Mapping[str, Any]) -> None:
    """As JSON, dataclasses by their fields, and null for NaN and infinities, which JSON has not."""
    click.echo(json.dumps(_proper(values), indent=2))


def heading(text: str) -> None:
    _print(text, style="bold")


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and what they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(str(value)))
    _print(table)


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    spare: Sequence[str] = (),
    style: Callable[[Sequence[object]], str] = lambda row: "",
) -> None:
    """Rows below their head; the first column to the left, the others, of numbers, to the right.

    Args:
        head: names of the columns.
        rows: cells, as many each as there are names.
        spare: columns that a narrow terminal does without, those first that come first.
        style: function of a row, rich's style of it.
    """
    from rich.table import Table
    from rich.text import Text

    def table_without(left_out: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        shown = [place for place, name in enumerate(head) if name not in left_out]
        for place in shown:
            justify = "right" if place else "left"
            # Of an empty column rich measures 0 and prints 1, at the cost of another.
            table.add_column(
                Text(head[place]), justify=justify, no_wrap=place > 0, overflow="fold", min_width=1
            )
        for row in rows:
            table.add_row(*(Text(str(row[place])) for place in shown), style=style(row))
        return table

    rows, console = list(rows), _console()
    table = table_without(())
    for count in range(1, len(spare) + 1):
        if not console.is_terminal or _widths(console, table).maximum <= console.width - _INDENT:
            break
        table = table_without(spare[:count])
    _print(table)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _widths(console: "Console", table: "Table") -> Any:
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(width=_WIDEST), table)


def _print(what: Any, style: str = "") -> None:
    from rich.padding import Padding

    console = _console()
    shown = what if isinstance(what, str) else Padding(what, (0, 0, 0, _INDENT), expand=False)
    if console.is_terminal:
        console.print(shown, style=style)
        return
    if isinstance(what, str):
        click.echo(what)
        return
    console.width = max(PIPED, _widths(console, what).maximum + _INDENT)
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _proper(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _proper(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_proper(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
