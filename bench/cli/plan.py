"""`bench plan`: what a configuration would run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import config_argument, device_option, json_option, models_option, read_config, set_option
from bench.terminal import printable
from bench.units import counted, format_duration

if TYPE_CHECKING:
    from bench.config import SweepConfig


@click.command()
@config_argument
@set_option
@models_option
@device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Store the runs in FOLDER too, in their order, for other machines to do: see docs/clusters.md.",
)
@json_option
def plan(config: Path | None, overrides: tuple[str, ...], device: str, out: Path | None, as_json: bool) -> None:
    """List the cases of a configuration without running them.

    \b
    Examples:
      bench plan
      bench plan configs/gpu.toml --json
      bench plan --set 'grid.batch_size=[64, 128]' --device cuda
      bench plan configs/gpu.toml --device cuda --out /shared/gpu
    """
    checked = read_config(config, overrides)
    print_plan(checked, device, as_json=as_json)
    if out is not None:
        from bench.sweep.stages import store_order
        from bench.terminal import Progress

        with Progress(quiet=as_json, bar=False) as progress:
            order = store_order(checked, out, kind_of(device), progress)
        click.echo(printable(f"order: {order}"), err=as_json)


def print_plan(config: SweepConfig, device: str, *, as_json: bool) -> None:
    """Print every case with its key, and why cases are skipped."""
    from bench import catalog
    from bench.cli.root import echo_json
    from bench.client import refusals_in_child
    from bench.launchers.local import LocalLauncher
    from bench.plan import build_cases, describe, name_planned

    kind = kind_of(device)
    say = functools.partial(click.echo, err=True)
    cases = build_cases(config, kind, functools.partial(refusals_in_child, LocalLauncher(), say=say))
    if as_json:
        echo_json([{**case.axes, "case_key": case.key, "skip_reason": reason} for case, reason in cases.items()])
        return
    for dataset in dict.fromkeys(case.dataset for case in cases):
        for remark in () if catalog.is_external("dataset", dataset.name) else describe(dataset).notes:
            click.echo(printable(f"{dataset}: {remark}"), err=True)
    names = name_planned(cases)
    for case, reason in cases.items():
        mark = click.style(f"skipped: {reason}", dim=True) if reason else ""
        click.echo(printable(f"{case.key}  {names[case]}  ") + mark)
    for model in dict.fromkeys(case.model for case in cases):
        if note := catalog.model_note(model):
            click.echo(printable(f"{model}: {note}"))
    skipped = sum(reason is not None for reason in cases.values())
    runs = _runs(config, kind, len(cases) - skipped)
    click.echo(f"{config.name}: {counted(len(cases), 'case')}, {skipped} skipped; {runs}")


def kind_of(device: str) -> str:
    """`cpu` or `cuda`, as a request means it on this machine."""
    from bench.probes.nvml import list_gpus

    if device == "auto":
        return "cuda" if list_gpus() else "cpu"
    return "cpu" if device.startswith("cpu") else "cuda"


def _runs(config: SweepConfig, kind: str, cases: int) -> str:
    """How many runs the cases take: one number, or the minimum and maximum if repeats depend on the intervals."""
    measure = config.measure
    target_frac = measure.target_frac(kind)
    if target_frac is None:
        return f"{counted(cases * measure.repeats, 'run')} ({counted(measure.repeats, 'repeat')} per case) on {kind}"
    budget = f", or {format_duration(measure.time_budget)} in total" if measure.time_budget else ""
    return (
        f"at least {cases * measure.least_repeats} runs, at most {cases * measure.most_repeats} "
        f"({measure.least_repeats} per case, and up to {measure.most_repeats} until its interval is within "
        f"±{target_frac * 100:g} %{budget}) on {kind}"
    )


GROUP = "Measure"
COMMANDS = (plan,)
