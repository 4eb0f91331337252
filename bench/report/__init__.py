"""Results as a report for people: Markdown with figures, one self-contained HTML page, and every number as CSV.

`figures/` and `sections/` are seams: a new figure or section is one new file there, and no list names it.
"""

from bench.report.render import render_report
from bench.report.terminal import summary_lines

__all__ = ["render_report", "summary_lines"]
