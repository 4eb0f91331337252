"""A report compared with its data: rendered again into a temporary folder, and compared byte by byte."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.analysis.findings import Finding, found_elsewhere
from bench.report.render import render_loaded
from bench.store import Loaded

REPORT_FILES = ("report.md", "index.html", "table.csv")
_FIGURE_ENDINGS = (".png", ".csv")


def check_report(report: Path, results: Loaded, baseline: str | None = None) -> list[Finding]:
    """What of the report in the folder `report` is not what its data make; empty where all of it is.

    Each figure's numbers are computed again from the store, and each picture drawn again: a number or a line that was
    changed by hand, or that another version of the harness wrote, is named with its file.

    Args:
        report: The report's folder. A file that is absent there is named; files that no report has are left alone.
        results: Its data.
        baseline: As it was given to `bench report`.

    Raises:
        StoreError: There is nothing to report.
    """
    with tempfile.TemporaryDirectory(prefix="bench-check-") as made:
        fresh = Path(made) / report.resolve().name
        render_loaded(results, fresh, baseline=baseline)
        names = sorted({*_names(fresh), *_names(report)})
        differing = [name for name in names if _bytes(fresh / name) != _bytes(report / name)]
        missing = [name for name in differing if not (report / name).is_file()]
        drawn = [name for name in differing if name.startswith("figures/") and name not in missing]
        rest = [name for name in differing if name not in missing and name not in drawn]
    files = {"figure_differs": drawn, "report_differs": rest, "report_incomplete": missing}
    return [found_elsewhere(code, files=", ".join(names)) for code, names in files.items() if names]


def _names(folder: Path) -> list[str]:
    """The report's own files in a folder: the fixed ones, configurations and figures."""
    figures = [path for path in (folder / "figures").glob("*") if path.suffix in _FIGURE_ENDINGS]
    fixed = [folder / name for name in REPORT_FILES]
    found = [
        path
        for path in (*fixed, *folder.glob("config*.toml"), *folder.glob("device*.toml"), *figures)
        if path.is_file()
    ]
    return [path.relative_to(folder).as_posix() for path in found]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
