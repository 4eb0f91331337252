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
from bench.records import Status
from bench.store import DATA_FOLDER, Store
from bench.sweep import slurm
from bench.sweep.chunk import log_folder
from bench.sweep.ray_cluster import run_tasks
from bench.sweep.session import SweepOptions
from bench.sweep.stages import SweepOutcome, conclude, store_orders
from bench.sweep.standing import ORDERS, Standing, State, find_orders, read_standings, to_do
from bench.terminal import Progress
from bench.units import counted

POLL_S = 5.0
DEVICES = {"auto": "cuda", "cuda": "cuda", "cpu": "cpu"}
"""What a sweep on a cluster may be asked to run on; a scheduler chooses which device it is."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """How far the sweeps of a results folder are on a cluster.

    Attributes:
        orders: Of each order, by its name (with its part's, where there are several): how many runs are `done`,
            `running`, `queued`, `lost` and `missing`.
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
    on_gpu = device == "cuda"
    with hold(options.out / ".lock", f"the folder {options.out}"):
        orders = store_orders(config, options.out, device, progress, device_files=options.device_files)
        sweep = _look(orders)
        todo = {
            order: to_do(sweep.standings[order], options.retry, slurm.waiting_for(sweep.queue[order]))
            for order in orders
        }
        left = sum(map(len, todo.values()))
        if sweep.counts["done"] or sweep.queued:
            progress.say(f"{_words(sweep.counts)}; {left} to do")
        if config.launcher.kind == "ray":
            faults = list[str]()
            with interrupt_on_terminate():
                for order in filter(todo.get, orders):
                    faults += run_tasks(order, todo[order], config, progress, on_gpu=on_gpu)
            return _conclude(orders, options, faults)
        if left:
            inputs = {*config.grid.input, *(word for include in config.include for word in include.input or ())}
            cpus = slurm.cores_of(config, inputs)
            jobs = [
                job
                for order in filter(todo.get, orders)
                for job in slurm.submit(order, todo[order], config.launcher, config.name, on_gpu=on_gpu, cpus=cpus)
            ]
            tasks = sum(len(job.chunks) for job in jobs)
            names = ", ".join(job.job_id for job in jobs)
            progress.say(f"submitted {counted(left, 'run')} in {counted(tasks, 'job')} (Slurm {names})")
        elif not sweep.queued and sweep.counts["running"] == 0:
            return _conclude(orders, options)
    if not wait:
        return _left_alone(orders, options.out)
    _watch(orders, progress, poll_s)
    with hold(options.out / ".lock", f"the folder {options.out}"):
        return _conclude(orders, options, [f"Logs: {log_folder(orders[0])}"])


@dataclass(frozen=True, slots=True)
class _Sweep:
    """How far the orders of a sweep are.

    Attributes:
        standings: Of the runs of each order.
        queue: The scheduler's tasks for each order.
    """

    standings: dict[Path, list[Standing]]
    queue: dict[Path, list[slurm.Queued]]

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        counts = [slurm.count_states(self.standings[order], self.queue[order]) for order in self.standings]
        return {word: sum(each[word] for each in counts) for word in counts[0]}

    @property
    def queued(self) -> bool:
        """Whether the scheduler has a task of any order."""
        return any(self.queue.values())


def _look(orders: Sequence[Path]) -> _Sweep:
    return _Sweep({order: read_standings(order) for order in orders}, slurm.read_queue(orders))


def _conclude(orders: Sequence[Path], options: SweepOptions, faults: Sequence[str] = ()) -> SweepOutcome:
    """The outcome of what is finished; `faults` are told where something is not."""
    states = [each.state for order in orders for each in read_standings(order)]
    missing = sum(state is not State.DONE for state in states)
    words = [f"{counted(missing, 'run')} not done: run the same command again", *faults]
    if missing and missing == len(states):
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
    if options.per_device or options.parallel is not None:
        faults.append("--per-device and --parallel are for the devices of one host; a scheduler decides on a cluster")
    if options.calibrations.given:
        faults.append("--calibration: estimates of a sweep on a cluster use no calibration. Remove the option")
    if config.measure.target_frac(DEVICES.get(requested, "cuda")) is not None:
        faults.append(
            "measure.target_interval: repeats until an interval is narrow need one process that sees every result. Set "
            "a number of measure.repeats, and remove target_interval"
        )
    if faults:
        raise ConfigError(faults)
    return DEVICES[requested]


def _left_alone(orders: Sequence[Path], out: Path) -> SweepOutcome:
    counts = _look(orders).counts
    lines = [_words(counts), f"bench sweep --status {out} shows how far it is; the same command, when no job is left, "]
    lines[1] += "starts what is missing and renders the report"
    return SweepOutcome(counts, False, None, str(out / DATA_FOLDER), lines)


def _watch(orders: Sequence[Path], progress: Progress, poll_s: float) -> None:
    """Return when no job of the orders is left; what finishes meanwhile is told."""
    before = _done(orders)
    seen = {run for run, status in before.items() if status is not None}
    progress.start(len(before) - len(seen))
    left = {order for (order, _), status in before.items() if status is None}
    gone = 0
    while gone < 2:  # a task that has just ended may write its last part yet
        time.sleep(poll_s)
        gone = 0 if any(slurm.read_queue(orders).values()) else gone + 1
        now = _done(sorted(left))
        left = {order for (order, _), status in now.items() if status is None}
        for run, status in now.items():
            if status is not None and run not in seen:
                seen.add(run)
                progress.finish(f"run {run[1]}: {status}")


def _done(orders: Sequence[Path]) -> dict[tuple[Path, int], Status | None]:
    """Of each run, by its order and index, the status; None until it is done."""
    return {
        (order, each.index): each.status if each.state is State.DONE else None
        for order in orders
        for each in read_standings(order)
    }


def read_status(folder: Path) -> ClusterStatus:
    """How far the sweeps of a results folder are; `folder` is that of the report or of its data.

    Raises:
        BenchError: The folder holds no order, or Slurm does not answer while jobs of it are not known to be over.
    """
    data = folder / DATA_FOLDER if (folder / DATA_FOLDER).is_dir() else folder
    orders = find_orders(data)
    if not orders:
        raise BenchError(
            f"{folder}: no sweep on a cluster was started here. bench sweep CONFIG --launcher slurm starts one"
        )
    counts, statuses, jobs = {}, dict[str, int](), {}
    standings = {order: read_standings(order) for order in orders}
    unfinished = [order for order in orders if any(each.state is not State.DONE for each in standings[order])]
    queue = slurm.read_queue(unfinished)
    names = {order: str(order.relative_to(data).with_suffix("")).replace(f"{ORDERS}/", "") for order in orders}
    for order, name in names.items():
        counts[name] = slurm.count_states(standings[order], queue.get(order, ()))
        jobs[name] = list(slurm.describe_queue(queue.get(order, ())))
        for each in standings[order]:
            if each.status is not None:
                statuses[each.status] = statuses.get(each.status, 0) + 1
    return ClusterStatus(
        counts, dict(sorted(statuses.items())), jobs, {name: str(log_folder(order)) for order, name in names.items()}
    )


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
