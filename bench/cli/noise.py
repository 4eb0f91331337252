"""`bench noise`: which differences can be seen on this machine, what disturbs it, and what to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.cli.axes import batch_size_option, config_of_axes, with_axes
from bench.cli.options import device_option, json_option, read_config, set_option
from bench.terminal import printable
from bench.units import counted

FEWEST_MINUTES = 0.1


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path), metavar="[CONFIG]")
@set_option
@with_axes
@batch_size_option
@device_option
@click.option(
    "--minutes",
    type=click.FloatRange(FEWEST_MINUTES, 600),
    default=10.0,
    show_default=True,
    help="What all of it may take.",
)
@click.option(
    "--repeats", type=click.IntRange(2, 1000), default=40, show_default=True, help="The most fresh processes per case."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for results [reports/noise-DEVICE]."
)
@click.option("--keep/--no-keep", default=True, show_default=True, help="Let bench env and later sweeps know of it.")
@json_option
def noise(
    config: Path | None,
    overrides: tuple[str, ...],
    device: str,
    minutes: float,
    repeats: int,
    out: Path | None,
    keep: bool,
    as_json: bool,
    **axes: tuple[Any, ...],
) -> None:
    """Measure which differences can be seen on this machine.

    Runs a few typical cases again and again in fresh processes, in turn, and compares them with themselves. Says which
    difference in throughput can be seen with 3, 5 and 10 processes per side, what disturbs the runs, and what to set.
    The results are those of an ordinary sweep; the same command resumes after an interruption. CONFIG or --model and
    the other axes name cases of your own.

    \b
    Examples:
      bench noise
      bench noise --device cuda --minutes 3 --json
      bench noise --model resnet18 --dataset cifar10 --batch-size 128
      bench noise configs/default.toml --out reports/noise-here

    \b
    Exit codes: 0 measured, 1 a case failed or too few were measured, 2 wrong usage or configuration, 130 interrupted.
    """
    from bench.cli.root import echo_json
    from bench.errors import EXIT_FAILED_CASES
    from bench.sweep.noise import NoiseOptions, measure_noise
    from bench.terminal import Progress

    if config is None and overrides:
        raise click.UsageError("--set changes a value of CONFIG: name one")
    if config is not None and any(axes.values()):
        raise click.UsageError("CONFIG cannot be combined with --model and the other axes; use --set to change it")
    cases = read_config(config, overrides) if config is not None else config_of_axes(axes, "noise")
    options = NoiseOptions(out=out, device=device, minutes=minutes, repeats=repeats, config=cases, keep=keep)
    with Progress(quiet=as_json) as progress:
        found = measure_noise(options, progress)
    if as_json:
        echo_json({"folder": str(found.folder), "kept": str(found.kept) if found.kept else None, **found.content})
    else:
        for line in _lines(found.content):
            click.echo(printable(line))
        click.echo(printable(f"results: {found.folder}"))
    if found.failed:
        raise SystemExit(EXIT_FAILED_CASES)


def _lines(content: dict[str, Any]) -> list[str]:
    """The outcome for the terminal."""
    found = content["noise"]
    if found is None:
        return [f"{content['device']}: no case was measured twice. Allow more --minutes"]
    over = f"{counted(content['measured_runs'], 'run')} of {counted(len(content['cases']), 'case')}"
    low, high = _percent(found["low"]), _percent(found["high"])
    lines = [
        f"{content['device']}: {over}; processes of a case differ by {_percent(found['spread_frac'])} (95 %: {low} to "
        f"{high})",
        "differences in throughput that comparing one case finds in 4 of 5 tries:",
    ]
    lines += [
        f"  {each['processes']:>2} processes per side: {_percent(each['frac'])} (95 %: {_percent(each['low'])} to "
        f"{_percent(each['high'])})"
        for each in found["visible"]
    ]
    if len(content["cases"]) > 1:
        lines.append("by case, between processes, and what 5 per side find:")
        lines += [
            f"  {each['model']} on {each['dataset']}, batch {each['batch_size']}, {each['precision']}: "
            f"{_percent(each['spread_frac'])}; {_percent(five)}"
            for each in content["cases"]
            for five in [side["frac"] for side in each["visible"] if side["processes"] == 5]
        ]
    lines.append("what disturbs it:" if content["disturbances"] else "what disturbs it: nothing found in these runs")
    for each in content["disturbances"]:
        lines += [f"  {each['code']}: {each['what']}", f"    {each['remedy']}"]
    if content["advice"]:
        lines.append("settings of the machine:")
        for each in content["advice"]:
            lines += [f"  {each['code']}: {each['what']}", f"    {each['remedy']}"]
    if content["settings"]["overrides"]:
        lines.append("for sweeps: " + " ".join(f"--set {each}" for each in content["settings"]["overrides"]))
    return lines


def _percent(frac: float) -> str:
    return f"{frac * 100:.2g} %" if frac <= 1 else "over 100 %"


GROUP = "Measure"
COMMANDS = (noise,)
