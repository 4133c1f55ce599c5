"""Results of the benchmarks as tables and plots: speed, memory and error against others.

`read_results` takes the files that `pytest benches --results FILE` writes, `write_report` makes a page in
Markdown and pictures in SVG of them.
"""

from .page import digests, page_text, write_report
from .results import Machine, ResultsError, read_results

__all__ = ["Machine", "ResultsError", "digests", "page_text", "read_results", "write_report"]
