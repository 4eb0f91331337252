"""Results folders in, a report's folder out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench import __version__
from bench.analysis import damaged_parts, judge, summarise_cases
from bench.errors import StoreError
from bench.report import figures, sections, theme
from bench.report.contents import Contents
from bench.report.drawing import Drawing
from bench.report.hardware import Hardware, compare_machines, find_baseline
from bench.report.html import Image, render_html
from bench.report.kinds import FigureKind, Section
from bench.report.markdown import render_markdown
from bench.report.numbers import to_csv
from bench.report.seam import found
from bench.store import DATA_FOLDER, Loaded, Notes, consolidate, planned_runs, read_results


def render_report(paths: Sequence[Path], target: Path, *, baseline: str | None = None) -> Path:
    """Render the results under `paths` into the folder `target`; the same results give the same bytes.

    Written are `report.md`, `index.html` (self-contained), `table.csv` (one row a case), `config.toml` and
    `device.toml` where the sweep noted its configuration and its GPU and, for every figure, `figures/<name>.png` with
    `figures/<name>.csv` beside it. Files of an earlier rendering are replaced. Results that lie below `target` get
    their consolidated file, if they need one.

    Args:
        paths: Folders that `bench sweep` wrote, or folders that hold several of them.
        target: The report's folder, made if it is not there; its name is the report's where the sweep noted none.
        baseline: The machine that the others are held against where there are several: its name, a part of it that
            only one has, or its results folder's name; the first unless given.

    Returns:
        The path of the page to open, `index.html`.

    Raises:
        StoreError: A path holds no results or no planned run, or `target` cannot be written.
        BenchError: `baseline` names no machine of the results, or more than one.
    """
    loaded = read_results(*paths)
    loaded.warn()
    page = render_loaded(loaded, target, baseline=baseline)
    for folder in loaded.folders:
        if folder.resolve().is_relative_to(target.resolve()):  # one's own results; others' are only read
            consolidate(folder)
    return page


def render_loaded(loaded: Loaded, target: Path, *, baseline: str | None = None) -> Path:
    """Render results that were read already. Otherwise as `render_report`; nothing beside the report is written."""
    contents = _contents(loaded, target.resolve().name, baseline)
    with theme.style():
        drawings = _draw(contents)
        images = {name: Image(theme.save(item.figure), theme.save(item.figure, dark=True)) for name, item in drawings}
    contents = dataclasses.replace(contents, drawings=dict(drawings))
    built = [(section.title, list(section.build(contents))) for section in all_sections()]
    built = [(title, blocks) for title, blocks in built if blocks]
    title = f"{contents.title}: memory and speed of training steps"
    files = {f"figures/{name}.png": image.light for name, image in images.items()}
    files |= {f"figures/{name}.csv": to_csv(item.numbers).encode() for name, item in drawings}
    files |= {name: text.encode() for name, text in (contents.configs | contents.devices).items()}
    files["table.csv"] = to_csv(contents.summary).encode()
    files["report.md"] = render_markdown(title, built).encode()
    files["index.html"] = render_html(title, built, images, __version__).encode()
    _write(target, files)
    return target / "index.html"


def all_figures() -> list[FigureKind]:
    """Every figure of `figures/`, in its order."""
    return found(figures, "FIGURE")


def all_sections() -> list[Section]:
    """Every section of `sections/`, in its order."""
    return found(sections, "SECTION")


def _contents(loaded: Loaded, name: str, baseline: str | None) -> Contents:
    """What the report `name` is made of, before anything is drawn."""
    frame, noted = planned_runs(loaded), loaded.notes
    summary = summarise_cases(frame)
    return Contents(
        name,
        frame,
        summary,
        judge(loaded.frame, summary=summary).joined(damaged_parts(loaded)),
        [note.values for note in noted],
        sources=list(_folders(noted)),
        hardware=_hardware(frame, summary, noted, baseline),
    )


def _hardware(
    frame: pd.DataFrame, summary: pd.DataFrame, noted: Sequence[Notes], baseline: str | None
) -> Hardware | None:
    """The machines beside each other, where there are several or a baseline was asked for."""
    names = dict(zip(summary["environment_key"], summary["machine"], strict=True))
    machines = list(dict.fromkeys(map(str, summary["machine"])))
    folders = {name: [str(names[key]) for key in keys if key in names] for name, keys in _folders(noted).items()}
    chosen = find_baseline(baseline, machines, folders)
    return compare_machines(frame, summary, chosen) if len(machines) > 1 else None


def _folders(noted: Sequence[Notes]) -> dict[str, list[str]]:
    """The environments of each results folder, by the folder's own name."""
    folders: dict[str, list[str]] = {}
    for note in noted:
        place = note.folder.parent if note.folder.name == DATA_FOLDER else note.folder
        folders.setdefault(place.resolve().name, []).append(note.environment_key)
    return folders


def _draw(contents: Contents) -> list[tuple[str, Drawing]]:
    drawn = [kind.draw(contents) for kind in all_figures()]
    return [(item.name, item) for item in drawn if item is not None]


def _write(target: Path, files: dict[str, bytes]) -> None:
    """Replace each file as a whole, and remove figures of an earlier rendering that are not drawn any more."""
    try:
        (target / "figures").mkdir(parents=True, exist_ok=True)
        for stale in sorted((target / "figures").iterdir()):
            if stale.suffix in (".png", ".csv") and f"figures/{stale.name}" not in files:
                stale.unlink()
        for name, content in files.items():
            temporary = target / f"{name}.part"
            temporary.write_bytes(content)
            temporary.replace(target / name)
    except OSError as error:
        raise StoreError(f"{target}: the report cannot be written ({error.strerror or error})") from error
