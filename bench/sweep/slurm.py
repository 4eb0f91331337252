"""A sweep on a Slurm cluster: array jobs of chunks, submitted through submitit, that write into one shared folder.

Each job does the runs of one chunk (`bench.sweep.chunk`). What has become of runs is read from their parts and claims
(`bench.sweep.standing`); Slurm is asked only which jobs still wait or run. A job that is preempted, out of time or lost
with its node leaves what it finished, and the next submission takes what is missing.

Facts of Slurm 22.05 that this follows: an array runs in ascending order of its indices; a job that is put back into the
queue has its output emptied and does its work again (hence `--no-requeue`); `squeue --job` fails for jobs that are
forgotten; an array's largest index is `MaxArraySize` - 1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.config import LauncherSettings, SweepConfig
from bench.errors import BenchError, InfrastructureError, StoreError, nearest, nearest_sentence
from bench.store.parts import commit_bytes
from bench.sweep.chunk import do_chunk, log_folder
from bench.sweep.standing import Standing, State

JOBS = "jobs"
"""Folder beside the parts of a results folder: which job has which runs."""

MAX_ARRAY_SIZE = 1001
"""Slurm's own default, where the cluster does not say."""

RUN_S = 60.0
JOB_S = 600.0
"""The time that a job asks for unless configured: so much a run, and so much for its start."""

LIVE = ("RUNNING", "COMPLETING", "CONFIGURING")
SIGNAL_S = 90
"""Before a job's time limit, when it gets SIGUSR2."""

ASK_S = 60.0


@dataclass(frozen=True, slots=True)
class ArrayJob:
    """An array job.

    Attributes:
        job_id: Slurm's number.
        order: The name of the order's file.
        chunks: Of each task of the array, by its index, the runs `(index, attempt)`.
    """

    job_id: str
    order: str
    chunks: list[list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Queued:
    """A task of an array that is in the queue.

    Attributes:
        task: `JOB_INDEX`.
        state: Slurm's word: PENDING, RUNNING, ...
        reason: Why it waits, or where it runs.
        runs: The indices that it was given.
    """

    task: str
    state: str
    reason: str
    runs: tuple[int, ...]


def submit(
    order: Path, todo: Sequence[tuple[int, int]], settings: LauncherSettings, name: str, *, on_gpu: bool, cpus: int = 1
) -> list[ArrayJob]:
    """Submit runs as array jobs of chunks.

    Args:
        order: The order, in a folder that the nodes see under the same path.
        todo: `(index, attempt)`, in the order of execution.
        settings: Of the launcher.
        name: Of the sweep; the jobs are called by it.
        on_gpu: Whether each job needs a GPU to itself.
        cpus: Cores of each job. One is left to the cluster, which may give more for each GPU.

    Raises:
        BenchError: submitit or sbatch is missing, or Slurm refuses the jobs; what was submitted before that stays.
    """
    submitit = _submitit()
    chunks = [list(todo[start : start + settings.chunk]) for start in range(0, len(todo), settings.chunk)]
    time_s = job_seconds(settings, len(todo))
    executor = submitit.SlurmExecutor(folder=log_folder(order))
    more: dict[str, Any] = {"no-requeue": True}
    if settings.account:
        more["account"] = settings.account
    if on_gpu and settings.gres is None:
        more["gpus-per-node"] = 1
    wanted = {
        "partition": settings.partition,
        "gres": settings.gres,
        "constraint": settings.constraint,
        "setup": settings.setup or None,
        "cpus_per_task": cpus if cpus > 1 else None,
        "srun_args": [f"--cpus-per-task={cpus}"] if cpus > 1 else None,  # srun of 22.05 and newer reads it nowhere else
    }
    executor.update_parameters(
        job_name=f"bench-{name}",
        time=max(1, round(time_s / 60)),
        signal_delay_s=min(SIGNAL_S, int(time_s / 2)),
        array_parallelism=settings.jobs or len(chunks),
        stderr_to_stdout=True,
        additional_parameters=more,
        **{key: value for key, value in wanted.items() if value is not None},
    )
    limit, jobs = array_limit(), []
    device = None if on_gpu else "cpu"
    for start in range(0, len(chunks), limit):
        part = chunks[start : start + limit]
        try:
            made = executor.map_array(
                do_chunk,
                [str(order.resolve())] * len(part),
                part,
                [device] * len(part),
                [not start and not place for place in range(len(part))],
            )
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise InfrastructureError(_refusal(error, settings)) from error
        job = ArrayJob(str(made[0].job_id).partition("_")[0], order.name, part)
        _remember(order, job)
        jobs.append(job)
    return jobs


def job_seconds(settings: LauncherSettings, runs: int) -> float:
    """The time limit of each job for so many runs, in seconds."""
    return settings.time or JOB_S + RUN_S * min(runs, settings.chunk)


def cores_of(config: SweepConfig, inputs: Collection[str]) -> int:
    """Cores that a run needs with any of these inputs: one, and one for each process of a loader, or its threads."""
    workers = config.measure.loader_workers if "loader" in inputs else 0
    return max(config.measure.threads or 1, 1 + workers)


def _submitit() -> Any:
    if shutil.which("sbatch") is None:
        raise BenchError(
            "launcher.kind: slurm needs sbatch, which is not on this machine's PATH. Run the command on a login node "
            "of the cluster, or use --launcher local"
        )
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise BenchError("launcher.kind: slurm needs submitit: pip install 'stepbench[slurm]'") from error
    return submitit


def _refusal(error: Exception, settings: LauncherSettings) -> str:
    """Slurm's words, with the nearest partition where that is what it does not know."""
    words = str(error.stderr if isinstance(error, subprocess.CalledProcessError) else error)
    found = re.findall(r"sbatch: error: (.*)", words) or words.strip().splitlines()[-1:]
    text = f"sbatch refused the jobs: {'; '.join(found)}"
    if settings.partition and "partition" in text:
        known = _ask("sinfo", "--noheader", "--format=%R").split()
        text += f". {nearest_sentence(nearest(settings.partition, known))}Partitions: {', '.join(known) or 'none'}"
    return text


def array_limit() -> int:
    """How many tasks an array of this cluster may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1]) if found else MAX_ARRAY_SIZE)


def _ask(*command: str) -> str:
    """What one of Slurm's commands prints; empty where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _remember(order: Path, job: ArrayJob) -> None:
    folder = order.parent.parent / JOBS
    folder.mkdir(exist_ok=True)
    commit_bytes(json.dumps(asdict(job)).encode(), folder / f"slurm-{job.job_id}-{time.time_ns()}.json")


def jobs_of(order: Path) -> list[ArrayJob]:
    """The jobs that were submitted for an order, oldest first.

    Raises:
        StoreError: A file is damaged, so that nobody knows which runs its job has.
    """
    found = [_read_job(path) for path in sorted((order.parent.parent / JOBS).glob("slurm-*.json"))]
    return [job for job in found if job.order == order.name]


def _read_job(path: Path) -> ArrayJob:
    try:
        return TypeAdapter(ArrayJob).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        job = path.name.split("-")[1]
        raise StoreError(
            f"{path}: cannot be read ({fault}). It says which runs Slurm's job {job} has; finished runs are safe. Wait "
            f"until `squeue --me` shows it no more, or end it with `scancel {job}`; then move the file away and "
            "run the same command again: it submits what is missing"
        ) from error


def read_queue(orders: Sequence[Path]) -> dict[Path, list[Queued]]:
    """The tasks of each order's jobs that wait or run.

    Raises:
        InfrastructureError: Slurm does not answer: what it has in its queue is unknown.
    """
    found: dict[Path, list[Queued]] = {order: [] for order in orders}
    jobs = {job.job_id: (order, job) for order in orders for job in jobs_of(order)}
    if not jobs:
        return found
    command = ["squeue", "--noheader", "--array", "--me", "--format=%F|%K|%T|%r|%N"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or error
        raise InfrastructureError(f"squeue does not say which jobs are in the queue: {str(words).strip()}") from error
    for line in told.splitlines():
        job_id, task, state, reason, nodes = (word.strip() for word in line.split("|"))
        order, job = jobs.get(job_id, (None, None))
        if order is not None and job is not None and task.isdigit() and int(task) < len(job.chunks):
            runs = tuple(index for index, _ in job.chunks[int(task)])
            found[order].append(Queued(f"{job_id}_{task}", state, nodes or reason, runs))
    return found


def waiting_for(queue: Sequence[Queued]) -> frozenset[int]:
    """The indices that jobs in the queue were given."""
    return frozenset(index for task in queue for index in task.runs)


def count_states(standings: Sequence[Standing], queue: Sequence[Queued]) -> dict[str, int]:
    """How many runs are done, running, queued, lost and missing."""
    queued = waiting_for(queue)
    words = Counter(
        "queued" if each.state in (State.MISSING, State.LOST) and each.index in queued else str(each.state)
        for each in standings
    )
    return {word: words.get(word, 0) for word in ("done", "running", "queued", "lost", "missing")}


def describe_queue(queue: Sequence[Queued]) -> Iterator[str]:
    """A line for each state of tasks, with the reasons why they wait or the nodes where they run."""
    for state in dict.fromkeys(task.state for task in queue):
        tasks = [task for task in queue if task.state == state]
        where = ", ".join(f"{reason} ({count})" for reason, count in Counter(t.reason for t in tasks).most_common(4))
        yield f"{len(tasks)} {state.lower()}: {where}"
