"""Estimates beside what a real GPU did: `python tools/real_gpu.py [--folder tests/recordings/nvidia-h200]`.

Prints Markdown: the errors of the trace over the recordings of FOLDER, and those of the roofline over the measured
steps of FOLDER/steps.csv (one row a process; `median_step_ms` over `steps` steps), without and with
FOLDER/calibration.toml. Needs no GPU; the operators are those of the installed torch.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

import bench
from bench.devices import Device, load_device
from bench.launchers import LocalLauncher, Outcome
from bench.tasks import difference_task

FIGURES = ("requested_bytes", "allocated_bytes", "reserved_bytes")


def explain(path: Path) -> dict[str, Any]:
    """What `bench estimate --explain-difference` finds in one recording."""
    argument = {"path": str(path), "most": 1, "workspaces": True}
    answer = LocalLauncher().run(difference_task, argument, timeout_s=240)
    if answer.outcome is not Outcome.ANSWERED:
        raise click.ClickException(f"{path}: {answer.reason}")
    return dict(answer.value)


def memory_rows(paths: Iterable[Path]) -> list[list[str]]:
    """A row for each recording: is the replay exact, events that differ, errors of the trace in percent."""
    rows, errors = [], dict[str, list[float]]()
    for path in paths:
        found = explain(path)
        parts = [found["trace"][name] / found["recorded"][name] - 1 for name in FIGURES]
        for name, value in zip(FIGURES, parts, strict=True):
            errors.setdefault(name, []).append(abs(value))
        case = path.stem.rsplit("-", 1)[0]
        rows.append(
            [
                case,
                "yes" if found["replay"]["exact"] else "no",
                str(found["differences"]),
                *(f"{100 * part:+.2f} %" for part in parts),
            ]
        )
    for label, reduce in (("median", statistics.median), ("worst", max)):
        rows.append([f"**{label}**", "", "", *(f"{100 * reduce(errors[name]):.2f} %" for name in FIGURES)])
    return rows


def speed_errors(steps: Sequence[dict[str, str]], device: Device) -> list[float]:
    """For each measured process the relative error of the estimated samples/s."""
    known: dict[tuple[str, ...], float] = {}
    errors = []
    for row in steps:
        axes = tuple(
            row[name] for name in ("model", "dataset", "optimizer", "batch_size", "precision", "memory_format")
        )
        if axes not in known:
            model, dataset, optimizer, batch, precision, layout = axes
            found: Any = bench.estimate(
                model,
                dataset=dataset,
                optimizer=optimizer,
                batch_size=int(batch),
                device=device,
                workspaces=False,
                precision=precision,
                memory_format=layout,  # type: ignore[arg-type]  # checked by `estimate`
            )
            known[axes] = found.estimated_step_time_s
        errors.append(float(row["median_step_ms"]) / 1e3 / known[axes] - 1)
    return errors


def speed_rows(steps: Sequence[dict[str, str]], device: Device) -> list[list[str]]:
    """A row for each group of processes: n, median of the absolute errors, p90, worst, and mean."""
    errors = speed_errors(steps, device)
    groups = {"all": errors}
    for row, error in zip(steps, errors, strict=True):
        small = row["model"] == "mlp"
        groups.setdefault("MLPs (host-bound)" if small else row["precision"], []).append(error)
    rows = []
    for name, values in groups.items():
        ordered = sorted(values, key=abs)
        p90 = (
            statistics.quantiles([abs(value) for value in values], n=10, method="inclusive")[-1]
            if len(values) > 1
            else abs(values[0])
        )
        rows.append(
            [
                name,
                str(len(values)),
                *(f"{100 * value:.0f} %" for value in (statistics.median(map(abs, values)), p90)),
                *(f"{100 * value:+.0f} %" for value in (ordered[-1], statistics.fmean(values))),
            ]
        )
    return rows


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command(help=__doc__)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("tests/recordings/nvidia-h200"),
)
@click.option("--device", default="h200")
def main(folder: Path, device: str) -> None:
    """Print the tables; see the module."""
    header = ["recording", "replay exact", "events that differ", "requested", "allocated", "reserved"]
    click.echo(table(header, memory_rows(sorted(folder.glob("*.parquet")))) + "\n")
    with (folder / "steps.csv").open(encoding="utf-8", newline="") as file:
        steps = list(csv.DictReader(file))
    for title, name in (("Without a calibration", device), ("With calibration.toml", str(folder / "calibration.toml"))):
        columns = ["samples/s", "n", "median", "p90", "worst", "mean"]
        click.echo(f"{title}:\n\n{table(columns, speed_rows(steps, load_device(name)))}\n")


if __name__ == "__main__":
    main()
