"""What `bench estimate --explain-difference` prints: a recording compared with the trace of its case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.terminal import printable
from bench.units import counted

MOST_PRINTED = 10


def explain_difference(path: Path, *, workspaces: bool, as_json: bool) -> None:
    """Compare a recording with the trace, in a separate process, and print the result.

    Args:
        path: The recording.
        workspaces: Whether to count cuDNN's workspaces in the trace.
        as_json: Whether to print JSON.

    Raises:
        StoreError: The file is not a recording.
        BenchError: The comparison is refused, or its process died.
    """
    from bench.cli.root import echo_json
    from bench.client import difference_in_child
    from bench.launchers import LocalLauncher

    found = difference_in_child(LocalLauncher(), path, most=MOST_PRINTED, workspaces=workspaces)
    if as_json:
        echo_json({"recording": str(path), **found})
        return
    for line in explanation_lines(found):
        click.echo(printable(line))


def explanation_lines(found: dict[str, Any]) -> list[str]:
    """The fields of an `estimators.difference.Explanation` as readable lines."""
    lines = [f"{found['case']} on {found['gpu_name']}, torch {found['torch_version']}, ended {found['status']}"]
    check = found["replay"]
    lines.append(
        f"  replay of the recording: exact at {counted(check['marks'], 'mark')}"
        if check["exact"]
        else f"  replay of the recording: NOT exact; {check['parting']}"
    )
    lines.append(f"  {'peak, in bytes':<16} {'recorded':>18} {'trace':>18} {'trace - recorded':>18}")
    for name in ("requested", "allocated", "reserved"):
        recorded, trace = found["recorded"][f"{name}_bytes"], (found["trace"] or {}).get(f"{name}_bytes")
        beside = f"{trace:>18,} {trace - recorded:>+18,}" if trace is not None else f"{'none':>18}"
        lines.append(f"  {name:<16} {recorded:>18,} {beside}")
    lines += _difference_lines(found) if found["differences"] is not None else []
    return [*lines, *(f"  note: {note}" for note in found["notes"])]


def _difference_lines(found: dict[str, Any]) -> list[str]:
    counts = f"{found['recorded_allocations']:,} allocations recorded, {found['traced_allocations']:,} traced"
    if not found["differences"]:
        return [f"  {counts}: no differences"]
    lines = [f"  {counts}; {found['differences']:,} differ. In order, by operator:"]
    for number, parting in enumerate(found["partings"], start=1):
        both = (("recorded_bytes", "recorded"), ("trace_bytes", "traced"))
        sides = [f"{parting[key]:,} B {word}" for key, word in both if parting[key] is not None]
        lines.append(
            f"  {number}. {_place(parting)}: {parting['operator']}: {parting['kind']}, {', '.join(sides)}"
            f"{_times(parting['count'])}"
        )
        if len(parting["operators"]) > 1:
            lines.append(f"     one of {', '.join(parting['operators'])}")
        effects = (f"{name} {parting[f'effect_{name}_bytes']:+,} B" for name in ("requested", "allocated", "reserved"))
        lines.append(f"     fixing it changes the trace's peaks: {', '.join(effects)}")
        if parting["stack"]:
            lines.append(f"     at {' < '.join(parting['stack'].splitlines()[:4])}")
    return lines


def _times(count: int) -> str:
    return "" if count == 1 else f", {count:,} times"


def _place(parting: dict[str, Any]) -> str:
    return "setup" if parting["step"] == 0 else f"step {parting['step']}, {parting['phase']}"
