"""`bench plan`: what a configuration would run, and what that asks of a cluster."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import (
    config_argument,
    device_option,
    json_option,
    launcher_option,
    models_option,
    read_config,
    set_option,
)
from bench.errors import BenchError
from bench.terminal import printable
from bench.units import counted, format_duration

if TYPE_CHECKING:
    from bench.config import SweepConfig
    from bench.devices import Device
    from bench.records import Case, Estimate


@click.command()
@config_argument
@set_option
@models_option
@device_option
@launcher_option("Say how many jobs there are and how long they may take.")
@click.option(
    "--for",
    "targets",
    multiple=True,
    metavar="DEVICE",
    help="A device on offer (bench list devices): say what memory each case needs there, and if it fits. Repeatable.",
)
@click.option(
    "--emit",
    type=click.Choice(["slurm", "k8s"]),
    help="Print a job script or a pod for one case, the one that needs the most memory, and nothing else; with --out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Store the runs in FOLDER too, in their order, for other machines to do: see docs/clusters.md.",
)
@json_option
def plan(
    config: Path | None,
    overrides: tuple[str, ...],
    device: str,
    launcher: str | None,
    targets: tuple[str, ...],
    emit: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """List the cases of a configuration without running them.

    With --launcher, --for or --emit, --json is an object: what the plan needs, and its cases.

    \b
    Examples:
      bench plan
      bench plan configs/gpu.toml --json
      bench plan --set 'grid.batch_size=[64, 128]' --device cuda
      bench plan configs/gpu.toml --launcher slurm --for h100_sxm --for a100_80gb
      bench plan configs/gpu.toml --emit k8s --for h100_sxm --out /shared/gpu
      bench plan configs/gpu.toml --device cuda --out /shared/gpu
    """
    if emit is not None and out is None:
        raise BenchError(
            f"--emit {emit}: needs --out FOLDER, where the order is stored that the job reads and its results go: a "
            "folder that the nodes see under the same path"
        )
    if launcher is not None:
        overrides = (*overrides, f"launcher.kind={launcher}")
    checked = read_config(config, overrides)
    kind = "cuda" if targets and device == "auto" else kind_of(device, checked)
    if launcher is None and not targets and emit is None:
        print_plan(checked, kind, as_json=as_json)
    else:
        _print_demands(checked, kind, targets, emit, out, as_json=as_json)
    if out is not None:
        from bench.sweep.stages import store_orders
        from bench.terminal import Progress

        with Progress(quiet=as_json or emit is not None, bar=False) as progress:
            orders = store_orders(checked, out, kind, progress)
        for order in orders:
            click.echo(printable(f"order: {order}"), err=as_json or emit is not None)


def _print_demands(
    config: SweepConfig, kind: str, targets: tuple[str, ...], emit: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Print what a plan needs of a cluster, after its cases; or a request for one case."""
    from dataclasses import asdict

    from bench.cli.root import echo_json
    from bench.devices import load_device
    from bench.devices.vendors import formula_alone
    from bench.sweep.requests import REQUESTS, choose_demand, demand_lines, find_demands

    devices = [load_device(name) for name in dict.fromkeys(targets)]
    reasons = {device.name: reason for device in devices if (reason := formula_alone(device))}
    if emit is not None and reasons:
        raise BenchError(f"--emit: a request asks for GPUs of NVIDIA, and {', '.join(reasons)} is none. Remove --for")
    demands = find_demands(config, kind, _estimates(config, kind, devices), reasons)
    if emit is not None and out is not None:
        request = REQUESTS[emit](config, choose_demand(demands), kind, str(out.resolve()))
        if as_json:
            echo_json({"request": request})
        else:
            click.echo(request, nl=False)
    elif as_json:
        cases = {each.case.key: each for each in demands.cases}
        rows = _case_rows(config, kind)
        for row in rows:
            if each := cases.get(row["case_key"]):
                known = {name: value for name, value in asdict(each).items() if name not in ("case", "name")}
                row.update(known, fits_nowhere=each.fits_nowhere)
        told = {name: value for name, value in asdict(demands).items() if name != "cases"}
        echo_json({**told, "cases": rows})
    else:
        print_plan(config, kind, as_json=False)
        for line in demand_lines(demands):
            click.echo(printable(line))


def _estimates(config: SweepConfig, kind: str, devices: list[Device]) -> dict[str, list[Estimate]]:
    """By device, an estimate of each case that is not skipped. Raises BenchError."""
    from bench.client import counts_workspaces, estimates_in_order
    from bench.launchers import LocalLauncher
    from bench.terminal import Progress

    for device in devices:
        if device.is_gpu != (kind != "cpu"):
            raise BenchError(f"--for {device.name}: a {device.kind} device, and the plan is for {kind}; see --device")
    if not devices:
        return {}
    cases = [case for case, reason in _cases(config, kind).items() if reason is None]
    launcher = LocalLauncher()
    with Progress(quiet=True, bar=False) as progress:
        return {
            device.name: estimates_in_order(launcher, cases, device, workspaces=counts_workspaces(), say=progress.say)
            for device in devices
        }


def _case_rows(config: SweepConfig, kind: str) -> list[dict[str, Any]]:
    return [{**case.axes, "case_key": case.key, "skip_reason": reason} for case, reason in _cases(config, kind).items()]


def _cases(config: SweepConfig, kind: str) -> dict[Case, str | None]:
    """Every case with the reason why it is skipped; models of other packages are tried on their images."""
    from bench.client import refusals_in_child
    from bench.launchers import LocalLauncher
    from bench.plan import build_cases

    say = functools.partial(click.echo, err=True)
    return build_cases(config, kind, functools.partial(refusals_in_child, LocalLauncher(), say=say))


def print_plan(config: SweepConfig, kind: str, *, as_json: bool) -> None:
    """Print every case with its key, and why cases are skipped on that kind of device."""
    from bench import catalog
    from bench.cli.root import echo_json
    from bench.plan import describe, name_planned

    if as_json:
        echo_json(_case_rows(config, kind))
        return
    cases = _cases(config, kind)
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


def kind_of(device: str, config: SweepConfig) -> str:
    """The kind of device that a request means on this machine, or on the cluster that the configuration names."""
    from bench.probes.nvml import list_gpus
    from bench.probes.selection import likely_kind
    from bench.records import ACCELERATORS

    if device == "auto":
        device = config.launcher.device
    if device == "auto":
        return "cuda" if config.launcher.kind != "local" or list_gpus() else likely_kind()
    kind = device.partition(":")[0]
    return kind if kind in ("cpu", *ACCELERATORS) else "cuda"


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
