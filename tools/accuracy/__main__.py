"""`python -m tools.accuracy`: every goal of accuracy beside what is reached, as docs/accuracy.md."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tests.oracle.stub import StubDriver, StubUnavailable, build_stub
from tools.accuracy.allocator import grid_part
from tools.accuracy.cases import (
    ODD_SIDES,
    SEED,
    draw_convolutions,
    draw_mlps,
    draw_odd,
    draw_optimizers,
    draw_segmentation,
    draw_switches,
    draw_vision,
)
from tools.accuracy.children import ROOT, Children
from tools.accuracy.compare import compare, versions
from tools.accuracy.cpu import MODELS, cpu_part
from tools.accuracy.others import others_parts
from tools.accuracy.page import Goal, Part, goals_table
from tools.accuracy.recordings import recordings_part
from tools.accuracy.streams import EVENTS, streams_part
from tools.accuracy.timm_models import timm_part

VISION_CASES, LIMIT, WORKSPACE_LIMIT = 250, 0.005, 0.01
QUICK_CASES = 16
DATA = ROOT.parent / "shared" / "data"

HEAD = """# How exact the estimates are

Made by `nox -s accuracy`; do not edit. The same versions and seed give the same page, to the byte.

Peaks are those of two steps after the usual warm-up, as a sweep measures them, in bytes. The truth of the first three
parts is torch's own: an unmodified torch runs the project's step on its real dispatcher and its real caching allocator
over a stub of the CUDA driver, which plays a GPU of these properties and this memory and computes nothing
(`tests/oracle/stub.py`). What only a real GPU can say, cuDNN's and cuBLAS's choices at run time, is not in it.
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--cases",
    type=click.IntRange(8),
    default=VISION_CASES,
    show_default=True,
    help="Cases of torchvision's models; the other parts shrink with it.",
)
@click.option("--quick", is_flag=True, help=f"{QUICK_CASES} cases and short streams, to see that it works.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DATA if DATA.is_dir() else None,
    help="Folder with measurements by others [../shared/data where there is one].",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "docs" / "accuracy.md",
    help="The page [docs/accuracy.md].",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / ".accuracy",
    help="What was found before, by versions and code [.accuracy].",
)
@click.option("--seed", default=SEED, show_default=True, help="Of the choice of cases.")
@click.option("--jobs", type=click.IntRange(1), default=None, help="Child processes at a time [one a core, at most 4].")
def main(cases: int, quick: bool, data: Path | None, output: Path, cache: Path, seed: int, jobs: int | None) -> None:
    """Compare every estimate with its ground truth and write the page.

    \b
    Examples:
      python -m tools.accuracy
      python -m tools.accuracy --quick --output /tmp/accuracy.md
    """  # noqa: D301
    cases = QUICK_CASES if quick else cases
    children = Children(cache.resolve(), jobs or min(4, os.cpu_count() or 1))
    parts = _parts(cases, quick, data.resolve() if data else None, children, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(parts, cases, seed), encoding="utf-8")
    missed = [goal for part in parts for goal in part.goals if goal.met is False]
    click.echo(f"wrote {output}: {len(missed)} goals missed", err=True)
    for goal in missed:
        click.echo(f"missed: {goal.what}: asked {goal.asked}, reached {goal.reached}", err=True)


def _parts(cases: int, quick: bool, data: Path | None, children: Children, seed: int) -> list[Part]:
    models = MODELS[:4] if quick else MODELS
    return [
        *_stub_parts(cases, quick, children, seed),
        cpu_part(children, models),
        *others_parts(data, children),
        recordings_part(),
    ]


def _stub_parts(cases: int, quick: bool, children: Children, seed: int) -> list[Part]:
    """What needs the stub driver; one part that says why where it cannot be had."""
    try:
        driver = build_stub(children.cache / "stub")
    except StubUnavailable as reason:
        goal = Goal("against torch's real allocator", "at least 95.0 % exact", "not run", None)
        return [Part("Against torch's real allocator", [f"Not run: {reason}.", ""], [goal])]
    return [
        _grid(driver, children, cases, seed),
        grid_part(
            compare(draw_mlps(max(8, cases // 4), seed), driver, children, workspaces=False),
            "The founding MLPs, against torch's real allocator",
            "MLPs",
            LIMIT,
            shares=1.0,
        ),
        grid_part(
            compare(draw_odd(max(8, cases // 4), seed), driver, children, workspaces=False),
            "Odd images and batches, against torch's real allocator",
            f"images of {ODD_SIDES[0]} to {ODD_SIDES[-1]} px, batches 1, 3 and 7",
            LIMIT,
        ),
        grid_part(
            compare(draw_switches(max(4, cases * 40 // VISION_CASES), seed), driver, children, workspaces=False),
            "The switches that save memory, alone and in pairs, against torch's real allocator",
            "switches",
            LIMIT,
        ),
        grid_part(
            compare(draw_segmentation(max(8, cases // 8), seed), driver, children, workspaces=False),
            "torchvision's segmentation models, against torch's real allocator",
            "segmentation models",
            LIMIT,
        ),
        grid_part(
            compare(draw_optimizers(max(8, cases // 4), seed), driver, children, workspaces=False),
            "Every optimizer, against torch's real allocator",
            "every optimizer in each of its ways",
            LIMIT,
        ),
        grid_part(
            compare(draw_convolutions(max(4, cases // 6), seed), driver, children, workspaces=True),
            "With cuDNN's workspaces, against torch's real allocator",
            "with cuDNN's deviceless workspaces",
            WORKSPACE_LIMIT,
        ),
        timm_part(driver, children, max(4, cases * 150 // VISION_CASES)),
        streams_part(driver, children, 500 if quick else EVENTS),
    ]


def _grid(driver: StubDriver, children: Children, cases: int, seed: int) -> Part:
    rows = compare(draw_vision(cases, seed), driver, children, workspaces=False)
    models = {row.point.case.model.name for row in rows}
    part = grid_part(rows, "torchvision's models, against torch's real allocator", "torchvision's models", LIMIT)
    part.lines[:0] = [
        f"{len(rows)} cases of {len(models)} models, without cuDNN's workspaces on either side: each model, optimizer, "
        "precision, memory format, batch and device in turn, combined at random.",
        "",
    ]
    return part


def render(parts: list[Part], cases: int, seed: int) -> str:
    """The page."""
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [HEAD, f"Made with {made}; {cases} cases, seed {seed}.", "", "## The goals", ""]
    lines += [*goals_table(goal for part in parts for goal in part.goals), ""]
    for part in parts:
        lines += [f"## {part.title}", "", *part.lines]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
