"""Fifty sweeps on one device and one folder, and how soon those leave that come too late."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAVE_WITHIN_S = 2.0  # from the moment that a process is ready to sweep

SWEEP = """
import sys, time
from pathlib import Path
from bench.errors import BusyError
from tests.chaos.fake_sweep import FakeLauncher, fake_config, run_fake_sweep
class Slow(FakeLauncher):
    def perform(self, job):
        if self.asked:
            print("holds", flush=True)
            time.sleep(600)
        return super().perform(job)
out, ends = Path(sys.argv[1]), sys.argv[2] == "ends"
config = fake_config(cases=2, repeats=1)
print("ready", flush=True)
for _ in sys.stdin:  # a line a try
    start = time.monotonic()
    try:
        run_fake_sweep(out, config, FakeLauncher() if ends else Slow(), conclude=False)
        print("ran", flush=True)
    except BusyError as error:
        print(f"left {time.monotonic() - start:.3f} {error}", flush=True)
"""


def crowd_one_folder(seed: int, count: int, folder: Path) -> Counter[str]:
    """`count` sweeps at once on one folder: one holds it, the others leave in time, and name it when they try again."""
    return _crowd([folder / "out"] * count)


def crowd_one_device(seed: int, count: int, folder: Path) -> Counter[str]:
    """The same with a folder for each sweep, so that the device is what they meet at."""
    return _crowd([folder / f"out-{number}" for number in range(count)])


def _crowd(places: list[Path]) -> Counter[str]:
    sweeps = [_start(place, "stays") for place in places]
    try:
        for sweep in sweeps:
            if _line(sweep) != "ready":
                raise AssertionError("a sweep did not start")
        _go(sweeps)
        said = [_line(sweep) for sweep in sweeps]
        holders = [sweep for sweep, line in zip(sweeps, said, strict=True) if line == "holds"]
        if len(holders) != 1:
            raise AssertionError(f"{len(holders)} sweeps at once: {said}")
        pid = holders[0].pid
        left = [_check_leaver(line, pid, known=False) for line in said if line != "holds"]
        late = [sweep for sweep in sweeps if sweep is not holders[0]]
        again = []
        for sweep in late:  # the holder has said that it holds, so each of these finds its name
            _go([sweep])
            again.append(_check_leaver(_line(sweep), pid, known=True))
        os.kill(holders[0].pid, signal.SIGKILL)
        holders[0].wait()
    finally:
        for sweep in sweeps:
            sweep.kill()
            sweep.communicate()
    free_after_s = _run_after(places[0])
    return Counter(
        {
            "sweeps at once": len(sweeps),
            "left": len(left),
            "left, naming the holder": sum(named for _, named in left),
            "tried again and left, naming the holder": sum(named for _, named in again),
            "slowest to leave, in ms": round(max(left_s for left_s, _ in [*left, *again]) * 1000),
            "the next ran after a kill, in ms": round(free_after_s * 1000),
        }
    )


def _start(place: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SWEEP, str(place), how]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(sweep: subprocess.Popen[str]) -> str:
    assert sweep.stdout is not None
    return sweep.stdout.readline().strip()


def _go(sweeps: list[subprocess.Popen[str]]) -> None:
    for sweep in sweeps:
        assert sweep.stdin is not None
        sweep.stdin.write("\n")
        sweep.stdin.flush()


def _check_leaver(line: str, holder: int, *, known: bool) -> tuple[float, bool]:
    """Hold what a sweep said that came too late against who holds.

    Args:
        line: What it said.
        holder: The process that holds.
        known: Whether the holder had written its name before this one tried.

    Returns:
        How long it took to leave, in seconds, and whether it named the holder.

    Raises:
        AssertionError: It left late, named another, or named nobody though the holder was known.
    """
    found = re.match(r"left ([\d.]+) the (folder|device) .* is in use by (another process|process (\d+) on )", line)
    if found is None:
        raise AssertionError(f"a sweep that came too late said: {line!r}")
    named = found[4] is not None
    if (named or known) and found[4] != str(holder):
        raise AssertionError(f"named {found[3]}, held by {holder}")
    if float(found[1]) > LEAVE_WITHIN_S:
        raise AssertionError(f"left after {found[1]} s, at the {'second' if known else 'first'} try")
    return float(found[1]), named


def _run_after(place: Path) -> float:
    """Seconds that a sweep takes where the last one was killed. Raises AssertionError where it is refused."""
    sweep = _start(place, "ends")
    _line(sweep)
    started = time.monotonic()
    _go([sweep])
    said = _line(sweep)
    sweep.communicate()
    if said != "ran":
        raise AssertionError(f"after the holder was killed: {said}")
    return time.monotonic() - started
