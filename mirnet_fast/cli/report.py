"""mirnet-fast report: results of the benchmarks as tables and plots."""

from pathlib import Path

import click


@click.command()
@click.argument(
    "results", nargs=-1, required=True, metavar="RESULTS...", type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="report",
    show_default=True,
    help="Folder.",
)
def report(results: tuple[Path, ...], out: Path) -> None:
    """Speed, memory and error against others, of files that the benchmarks wrote: tables and plots.

    RESULTS are files as `pytest benches --results FILE` writes them. OUT gets report.md and pictures in SVG.
    Where two files have the same row of a machine, that of the quieter run counts. Needs matplotlib:
    pip install 'mirnet-fast[report]'.
    """
    from ..reporting import ResultsError, read_results, write_report

    try:
        machines = read_results(results)
        written = write_report(machines, out)
    except ImportError as error:
        raise click.ClickException(f"{error}: pip install 'mirnet-fast[report]'") from error
    except (ResultsError, OSError) as error:
        raise click.ClickException(str(error)) from error
    rows = sum(len(machine.rows) for machine in machines)
    click.echo(f"{written[0]}: {rows} rows of {len(machines)} machines, {len(written) - 1} pictures")
