"""`python -m tests.chaos`: one campaign, or all of them within a budget of minutes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.chaos import shim
from tests.chaos.fake_sweep import BRIEF, quiet_places

Campaign = Callable[[int, int, Path], Counter[str]]

UNDER_SHIM = ("boundaries", "refusals")
LEFT_OUT = "skipped: "
"""So begins what a campaign counts that it could not try here, and why."""

CAMPAIGNS = {
    "kills": ("tests.chaos.kills:kill_at_random", 20),
    "command": ("tests.chaos.commands:kill_command", 2),
    "devices": ("tests.chaos.commands:share_devices", 1),
    "boundaries": ("tests.chaos.boundaries:kill_at_every_call", 40),
    "refusals": ("tests.chaos.boundaries:refuse_every_call", 60),
    "processes": ("tests.chaos.processes:kill_each_in_turn", 1),
    "folder": ("tests.chaos.crowd:crowd_one_folder", 50),
    "device": ("tests.chaos.crowd:crowd_one_device", 50),
    "hosts": ("tests.chaos.sharing:share_folder", 4),
    "host": ("tests.chaos.host:trouble_host", 1),
    "model": ("tests.chaos.model:explore", 5),
    "slots": ("tests.chaos.devices:sweep_killed", 2000),
    "units": ("tests.chaos.devices:units_killed", 2000),
    "scale": ("tests.chaos.scale:sweep_many_cases", 500),
    "orders": ("tests.chaos.cluster_scale:order_cluster", 2000),
    "cluster": ("tests.chaos.cluster_scale:sweep_cluster", 200),
    "damage": ("tests.chaos.damage:damage_parts", 500),
}
"""By name: the function, and how much of it is one round. It raises AssertionError where a promise is broken."""


def main() -> int:
    """Run what was requested; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("campaign", nargs="?", choices=[*CAMPAIGNS, "all"], default="all")
    parser.add_argument("--seed", type=int, default=1, help="of everything random [1]")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all campaigns together [10]; each has a round")
    parser.add_argument("--count", type=int, help="of one campaign, instead of a budget")
    parser.add_argument("--brief", action="store_true", help="leave reports out, which take seconds each")
    given = parser.parse_args()
    if given.brief:
        os.environ[BRIEF] = "1"
    if given.campaign != "all" and given.count is not None:
        print(json.dumps(run_campaign(given.campaign, given.seed, given.count)))
        return 0
    chosen = list(CAMPAIGNS) if given.campaign == "all" else [given.campaign]
    done = {name: repeat_within(name, given.seed, given.minutes * 60 / len(chosen)) for name in chosen}
    print(verdict(done))
    return None in done.values()


def verdict(done: Mapping[str, Counter[str] | None]) -> str:
    """The last line: which promises were broken, and what could not be tried and why.

    Args:
        done: What each campaign did; None where it broke a promise.
    """
    broken = [name for name, total in done.items() if total is None]
    left = [
        f"{name}: {what.removeprefix(LEFT_OUT)}"
        for name, total in done.items()
        for what in total or ()
        if what.startswith(LEFT_OUT)
    ]
    said = f"broken: {', '.join(broken)}" if broken else "all promises kept"
    return f"{said}; {LEFT_OUT}{'; '.join(left)}" if left else said


def run_campaign(name: str, seed: int, count: int) -> dict[str, int]:
    """One campaign in this process, in a folder of its own that goes afterwards; returns what it did."""
    if name in UNDER_SHIM:
        if shim.compiler() is None:
            return {f"{LEFT_OUT}faults of the operating system need Linux and a C compiler (cc)": 1}
        shim.preload()
    module, _, function = CAMPAIGNS[name][0].partition(":")
    with tempfile.TemporaryDirectory(prefix=f"chaos-{name}-") as folder:
        quiet_places(Path(folder))
        campaign: Campaign = getattr(importlib.import_module(module), function)
        return dict(campaign(seed, count, Path(folder)))


UNITS = ("in ms", "in KiB", "us a run", "of the first")
"""How a figure ends that is no count: of several rounds, the largest is told."""


def repeat_within(name: str, seed: int, budget_s: float) -> Counter[str] | None:
    """Rounds of a campaign, each with the next seed, as long as another fits its time; at least one. Says what was done.

    Returns:
        What all rounds together did; None where one of them broke a promise.
    """
    started, total, rounds = time.monotonic(), Counter[str](), 0
    while not rounds or (time.monotonic() - started) * (rounds + 1) / rounds < budget_s:
        command = [sys.executable, "-m", "tests.chaos", name, "--seed", str(seed + rounds)]
        done = subprocess.run([*command, "--count", str(CAMPAIGNS[name][1])], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            print(f"{name}: broken with --seed {seed + rounds}; see above", flush=True)
            return None
        for what, count in json.loads(done.stdout).items():
            total[what] = max(total[what], count) if what.endswith(UNITS) else total[what] + count
        rounds += 1
    figures = ", ".join(f"{count:,} {what}" for what, count in sorted(total.items()))
    print(f"{name}: {rounds} rounds in {time.monotonic() - started:.0f} s: {figures}", flush=True)
    return total


if __name__ == "__main__":
    sys.exit(main())
