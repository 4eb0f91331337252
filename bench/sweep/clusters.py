"""A sweep whose runs a cluster does: plan here, run there, and read everything back from one results folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.config import SweepConfig
from bench.errors import BenchError, ConfigError, InfrastructureError
from bench.launchers import interrupt_on_terminate
from bench.locks import hold
from bench.store import DATA_FOLDER, Store
from bench.sweep import slurm
from bench.sweep.chunk import log_folder
from bench.sweep.ray_cluster import run_tasks
from bench.sweep.session import SweepOptions
from bench.sweep.stages import SweepOutcome, conclude, store_order
from bench.sweep.standing import ORDERS, State, read_standings, to_do
from bench.terminal import Progress
from bench.units import counted

POLL_S = 5.0
DEVICES = {"auto": "cuda", "cuda": "cuda", "cpu": "cpu"}
"""What a sweep on a cluster may be asked to run on; a scheduler chooses which device it is."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """How far the sweeps of a results folder are on a cluster.

    Attributes:
        orders: Of each order, by its name: how many runs are `done`, `running`, `queued`, `lost` and `missing`.
        statuses: How many finished runs have each status.
        jobs: Of each order, the tasks in the scheduler's queue, in words.
        logs: Of each order, the folder of its jobs' logs.
    """

    orders: dict[str, dict[str, int]]
    statuses: dict[str, int]
    jobs: dict[str, list[str]]
    logs: dict[str, str]


def run_on_cluster(
    config: SweepConfig, options: SweepOptions, progress: Progress, *, wait: bool = False, poll_s: float = POLL_S
) -> SweepOutcome:
    """Start the runs of a plan that the results folder does not hold, and that wait in no queue yet.

    Args:
        config: The sweep; `launcher.kind` is a cluster.
        options: Where results go, and which statuses are tried again.
        progress: Hears of it.
        wait: Whether to stay until no job is left, and render the report then. What is left is not cancelled by Ctrl-C.
        poll_s: Seconds between two looks.

    Returns:
        The outcome of the sweep where everything is finished or was waited for; else how many runs are in each state.

    Raises:
        BenchError: The configuration does not suit a cluster, or the cluster refuses it.
        BusyError: Another process submits into the folder.
    """
    device = _check(config, options)
    with hold(options.out / ".lock", f"the folder {options.out}"):
        order = store_order(config, options.out, device, progress, device_files=options.device_files)
        standings = read_standings(order)
        queue = slurm.read_queue(order)
        todo = to_do(standings, options.retry, slurm.waiting_for(queue))
        counts = slurm.count_states(standings, queue)
        if counts["done"] or queue:
            progress.say(f"{_words(counts)}; {len(todo)} to do")
        if config.launcher.kind == "ray":
            with interrupt_on_terminate():
                faults = run_tasks(order, todo, config, progress, on_gpu=device == "cuda") if todo else []
            return _conclude(order, options, faults)
        if todo:
            jobs = slurm.submit(order, todo, config.launcher, config.name, on_gpu=device == "cuda")
            tasks = sum(len(job.chunks) for job in jobs)
            names = ", ".join(job.job_id for job in jobs)
            progress.say(f"submitted {counted(len(todo), 'run')} in {counted(tasks, 'job')} (Slurm {names})")
        elif not queue and counts["running"] == 0:
            return _conclude(order, options)
    if not wait:
        return _left_alone(order, options.out)
    _watch(order, progress, poll_s)
    with hold(options.out / ".lock", f"the folder {options.out}"):
        return _conclude(order, options, [f"Logs: {log_folder(order)}"])


def _conclude(order: Path, options: SweepOptions, faults: Sequence[str] = ()) -> SweepOutcome:
    """The outcome of what is finished; `faults` are told where something is not."""
    standings = read_standings(order)
    missing = sum(each.state is not State.DONE for each in standings)
    words = [f"{counted(missing, 'run')} not done: run the same command again", *faults]
    if missing and missing == len(standings):
        raise InfrastructureError(". ".join(words))
    outcome = conclude(Store(options.out / DATA_FOLDER), options)
    return replace(outcome, failed=True, summary=[*outcome.summary, *words]) if missing else outcome


def _check(config: SweepConfig, options: SweepOptions) -> str:
    """`cpu` or `cuda`. Raises ConfigError where the sweep cannot be done by machines that are not known yet."""
    faults = []
    requested = options.device or config.launcher.device
    if requested not in DEVICES:
        faults.append(
            f"device {requested}: on a cluster the scheduler chooses the device. Allowed: cuda (or auto), cpu; "
            "name a model of GPU with launcher.gres or launcher.constraint"
        )
    if options.in_process:
        faults.append("--in-process runs its case here, and not on a cluster")
    if config.measure.target_frac(DEVICES.get(requested, "cuda")) is not None:
        faults.append(
            "measure.target_interval: repeats until an interval is narrow need one process that sees every result. Set "
            "a number of measure.repeats, and remove target_interval"
        )
    if faults:
        raise ConfigError(faults)
    return DEVICES[requested]


def _left_alone(order: Path, out: Path) -> SweepOutcome:
    counts = slurm.count_states(read_standings(order), slurm.read_queue(order))
    lines = [_words(counts), f"bench sweep --status {out} shows how far it is; the same command, when no job is left, "]
    lines[1] += "starts what is missing and renders the report"
    return SweepOutcome(counts, False, None, str(out / DATA_FOLDER), lines)


def _watch(order: Path, progress: Progress, poll_s: float) -> None:
    """Return when no job of the order is left; what finishes meanwhile is told."""
    standings = {each.index: each for each in read_standings(order)}
    seen = {index for index, each in standings.items() if each.state is State.DONE}
    progress.start(len(standings) - len(seen))
    gone = 0
    while gone < 2:  # a task that has just ended may write its last part yet
        time.sleep(poll_s)
        queue = slurm.read_queue(order)
        gone = 0 if queue else gone + 1
        for each in read_standings(order):
            if each.state is State.DONE and each.index not in seen:
                seen.add(each.index)
                progress.finish(f"run {each.index}: {each.status}")


def read_status(folder: Path) -> ClusterStatus:
    """How far the sweeps of a results folder are; `folder` is that of the report or of its data.

    Raises:
        BenchError: The folder holds no order, or Slurm does not answer while jobs of it are not known to be over.
    """
    data = folder / DATA_FOLDER if (folder / DATA_FOLDER / ORDERS).is_dir() else folder
    orders = sorted((data / ORDERS).glob("order-*.parquet"))
    if not orders:
        raise BenchError(
            f"{folder}: no sweep on a cluster was started here. bench sweep CONFIG --launcher slurm starts one"
        )
    counts, statuses, jobs = {}, dict[str, int](), {}
    for order in orders:
        standings = read_standings(order)
        unfinished = any(each.state is not State.DONE for each in standings)
        queue = slurm.read_queue(order) if unfinished else []
        counts[order.stem] = slurm.count_states(standings, queue)
        jobs[order.stem] = list(slurm.describe_queue(queue))
        for each in standings:
            if each.status is not None:
                statuses[each.status] = statuses.get(each.status, 0) + 1
    return ClusterStatus(counts, dict(sorted(statuses.items())), jobs, {o.stem: str(log_folder(o)) for o in orders})


def _words(counts: dict[str, int]) -> str:
    """`12 runs: 3 done, 2 running, 7 queued`."""
    parts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{counted(sum(counts.values()), 'run')}: {parts}"


def status_lines(status: ClusterStatus) -> list[str]:
    """A status for the terminal."""
    lines = []
    for order, counts in status.orders.items():
        lines.append(f"{order}  {_words(counts)}")
        lines += [f"  jobs: {line}" for line in status.jobs[order]]
        if counts["lost"] or counts["missing"]:
            lines.append(f"  the same bench sweep command starts what is lost or missing; logs: {status.logs[order]}")
    if status.statuses:
        lines.append("finished: " + ", ".join(f"{count} {word}" for word, count in status.statuses.items()))
    return lines
