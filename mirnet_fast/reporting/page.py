"""The report: a page in Markdown, and the pictures that it shows."""

from pathlib import Path

from .._files import replaced
from . import plots
from .results import Machine, ResultsError
from .tables import tables

PAGE = "report.md"
_ABOUT = """\
Made by `mirnet-fast report` of the files that the benchmarks wrote. In bold: the best of a row; of ops, what
is faster than mirnet_fast."""
_CAPTIONS = {
    "speed": "Seconds of a forward of the network",
    "networks": "Time of the network over that of mirnet_fast",
    "memory": "Peak memory of the network above its weights",
    "error": "Error of each way to run the network",
    "ops": "Time of others over that of mirnet_fast, for each op and size",
}


def page_text(machines: list[Machine]) -> str:
    """The page's text."""
    drawn = plots.numbers_of(machines)
    pictures = "\n\n".join(f"![{_CAPTIONS[name]}]({name}.svg)" for name in drawn)
    return (
        "\n\n".join(
            [
                "# Results",
                _ABOUT,
                *([pictures] if pictures else []),
                *(tables(machine) for machine in machines),
            ]
        )
        + "\n"
    )


def digests(machines: list[Machine]) -> dict[str, str]:
    """{name of a picture: what stands in it if it is up to date}."""
    return {name: plots.digest(name, numbers) for name, numbers in plots.numbers_of(machines).items()}


def write_report(machines: list[Machine], folder: str | Path) -> list[Path]:
    """Write page and pictures into a folder, and return their paths, the page first.

    Raises:
        ResultsError: there are no results.
        ImportError: matplotlib is not installed.
        OSError: something cannot be written.
    """
    if not any(machine.rows for machine in machines):
        raise ResultsError("there are no results to report")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots.draw(plots.numbers_of(machines), folder)
    with replaced(folder / PAGE) as new:
        new.write_text(page_text(machines))
    return [folder / PAGE, *pictures]
