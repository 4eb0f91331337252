"""A sweep on a Ray cluster: a task a run, handed out in the order of the plan, and read back by the driver.

A task starts `bench run-planned` in a child and returns bytes: what came of the run, and its part. Where the results
folder is shared the part is there already; elsewhere the node works in a folder of its own and the driver links the
part into place, which happens once whoever comes first.

Facts of Ray that this follows: a task whose process ends by `sys.exit` is run again (hence a child, whose exit code is
data, and `max_retries=0`). A request that no node can satisfy waits for ever (hence the look at the nodes first). A
host that vanished is noticed after minutes (hence a time limit of our own). Tasks of one function and one shape of
resources start in the order in which they came (hence one function). A value over 100 KiB stays on its node (hence
plans are returned only while the driver lacks them). Workers have `OMP_NUM_THREADS` and a niceness of Ray's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from bench.config import SweepConfig
from bench.errors import BenchError, InfrastructureError, describe_failure, first_line
from bench.records import Status
from bench.store.parts import commit_bytes, typed_errors
from bench.sweep.standing import ORDERS
from bench.terminal import Progress
from bench.units import counted

MOST_LOST = 2
"""How often a run is started again after its task was lost with its node, its worker or in time."""

REACH_S = 10.0
MOST_BUSY = 30
BUSY_S = 5.0
START_S = 600.0
"""Beyond a run's own time limit: for starting Python and torch on a node, and for the way back."""

_OURS = ("OMP_NUM_THREADS", "CUDA_DEVICE_ORDER")


@dataclass(slots=True)
class _Flight:
    """A run that was handed out."""

    index: int
    attempt: int
    lost: int = 0
    busy: int = 0
    estimates: bool = False
    since: float = field(default_factory=time.monotonic)


def do_run(
    order_name: str,
    order: bytes,
    folder: str,
    index: int,
    attempt: int,
    known: Sequence[str],
    device: str | None,
    estimates: bool,
) -> dict[str, Any]:
    """One run on this node; returns what came of it, and the files that the driver may lack, as bytes.

    Args:
        order_name: Of the order's file.
        order: Its content.
        folder: The results folder, if this node sees it under this path.
        index: The run's position in the order.
        attempt: Which attempt.
        known: SHA-256 of the plans that other folders than the driver's have sent it.
        device: As for `bench run-planned`.
        estimates: Whether to make the estimates of the order for this device too.
    """
    shared = Path(folder) / ORDERS / order_name
    place = shared
    if not _is_same(shared, order):
        name = hashlib.sha256(order).hexdigest()[:16]
        place = Path(tempfile.gettempdir()) / f"bench-ray-{os.getuid()}" / name / "data" / ORDERS / order_name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not _is_same(place, order):
            with contextlib.suppress(FileExistsError):
                commit_bytes(order, place)
    command = [
        sys.executable,
        "-m",
        "bench",
        "run-planned",
        str(place),
        str(index),
        "--attempt",
        str(attempt),
        "--json",
    ]
    command += ["--device", device] if device else []
    command += ["--estimates"] if estimates else []
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=_usual_priority)
    try:
        (result,) = json.loads(done.stdout)
    except ValueError:
        words = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        return {"error": f"bench run-planned: {words[0]}"}
    answer: dict[str, Any] = {"result": json.dumps(result)}
    if place != shared and result["part"]:
        data = place.parents[1]
        part = data / "runs" / f"{result['part']}.parquet"
        if part.exists():
            answer["part"] = part.read_bytes()
        plans = [path.read_bytes() for path in sorted(data.glob("plan-*.parquet"))]
        answer["estimates"] = {
            path.name: path.read_bytes() for path in (data / "estimates").glob("*.parquet") if estimates
        }
        answer["plans"] = [plan for plan in plans if hashlib.sha256(plan).hexdigest() not in known]
    return answer


def _is_same(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _usual_priority() -> None:
    with contextlib.suppress(OSError):  # raising it back takes rights
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def run_tasks(
    order: Path, todo: Sequence[tuple[int, int]], config: SweepConfig, progress: Progress, *, on_gpu: bool
) -> list[str]:
    """Do these runs on the cluster; returns a line for each that could not be done.

    Args:
        order: The order.
        todo: `(index, attempt)`, in the order of execution.
        config: Of the sweep.
        progress: Hears of each run.
        on_gpu: Whether each run has a GPU to itself.

    Raises:
        BenchError: Ray is missing, no cluster is found, or no node of it has what a run needs.
        KeyboardInterrupt: On Ctrl-C; what runs then is ended, and what was finished is kept.
    """
    with _connected(config.launcher.address) as ray:
        resources = config.launcher.resources
        needs = {**({"CPU": 1.0, "GPU": 1.0} if on_gpu else _whole_node(ray.nodes(), resources)), **resources}
        slots = _count_slots(ray.nodes(), needs)
        progress.say(f"Ray: {counted(slots, 'run')} at one time on {counted(len(_alive(ray.nodes())), 'node')}")
        return _Driver(ray, order, config, progress, needs, on_gpu=on_gpu).run(todo)


class _Driver:
    """Hands out runs and reads back what comes of them."""

    def __init__(
        self,
        ray: Any,
        order: Path,
        config: SweepConfig,
        progress: Progress,
        needs: Mapping[str, float],
        *,
        on_gpu: bool,
    ) -> None:
        self._ray, self._order, self._progress, self._needs = ray, order, progress, needs
        custom = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
        self._task = ray.remote(do_run).options(
            max_retries=0, num_cpus=needs.get("CPU", 1), num_gpus=needs.get("GPU", 0), resources=custom or None
        )
        self._content = ray.put(order.read_bytes())
        self._device = None if on_gpu else "cpu"
        self._limit_s = config.limits.run_timeout + START_S
        self._flights: dict[Any, _Flight] = {}
        self._waiting: deque[tuple[float, _Flight]] = deque()
        self._faults: list[str] = []
        self._plans: set[str] = set()
        self._estimated = False

    def run(self, todo: Sequence[tuple[int, int]]) -> list[str]:
        self._progress.start(len(todo))
        left = deque(_Flight(*run) for run in todo)
        try:
            while left or self._waiting or self._flights:
                while self._waiting and self._waiting[0][0] <= time.monotonic():
                    left.appendleft(self._waiting.popleft()[1])
                window = 2 * max(1, sum(_slots(self._ray.nodes(), self._needs)))  # nodes come and go
                while left and len(self._flights) < window:
                    self._start(left.popleft())
                if not self._flights:
                    time.sleep(0.5)
                    continue
                for handle in self._ray.wait(list(self._flights), timeout=1.0)[0]:
                    self._land(handle, self._flights.pop(handle))
                self._give_up_overdue()
        finally:
            for handle in self._flights:
                self._ray.cancel(handle, force=True)
        return self._faults

    def _start(self, flight: _Flight) -> None:
        flight.since = time.monotonic()
        place = (self._order.name, self._content, str(self._order.parent.parent.resolve()))
        # one task at a time, until one has come back: the first may be lost
        flight.estimates = not self._estimated and not any(each.estimates for each in self._flights.values())
        about = (flight.index, flight.attempt, sorted(self._plans), self._device, flight.estimates)
        handle = self._task.remote(*place, *about)
        self._flights[handle] = flight

    def _land(self, handle: Any, flight: _Flight) -> None:
        try:
            answer = self._ray.get(handle, timeout=60)
        except self._ray.exceptions.RayTaskError as error:  # an exception of `do_run` itself: it would come again
            self._fail(flight, describe_failure(getattr(error, "cause", None) or error))
            return
        except self._ray.exceptions.RayError as error:
            self._lost(flight, type(error).__name__)
            return
        if "error" in answer:
            self._fail(flight, answer["error"])
            return
        result = json.loads(answer["result"])
        self._keep(result, answer)
        if result["came"] in ("busy", "claimed"):
            flight.busy += 1
            if flight.busy > MOST_BUSY:
                self._fail(flight, result["reason"])
            else:
                self._waiting.append((time.monotonic() + BUSY_S, flight))
            return
        self._estimated = self._estimated or flight.estimates
        told = result["status"] or ("finished before" if result["came"] == "present" else result["came"])
        again = f" (started {flight.lost + 1} times)" if flight.lost else ""
        self._progress.finish(f"run {flight.index}: {told}{again}")
        if result["status"] == Status.THROTTLED and flight.attempt == 0:
            self._progress.start(1)
            self._waiting.append((0.0, _Flight(flight.index, 1)))

    def _keep(self, result: dict[str, Any], answer: Mapping[str, Any]) -> None:
        """Link what the driver lacks into its folder."""
        folder = self._order.parent.parent
        for plan in answer.get("plans", ()):
            digest = hashlib.sha256(plan).hexdigest()
            if digest not in self._plans:
                self._plans.add(digest)
                _add_plan(folder, plan)
        files = {folder / "estimates" / name: data for name, data in answer.get("estimates", {}).items()}
        if "part" in answer:
            files[folder / "runs" / f"{result['part']}.parquet"] = answer["part"]
        for path, data in files.items():
            with typed_errors(path):
                path.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                commit_bytes(data, path)

    def _give_up_overdue(self) -> None:
        for handle, flight in list(self._flights.items()):
            # a task waits for a free device for as long as the runs before it take
            if time.monotonic() - flight.since > 3 * self._limit_s:
                del self._flights[handle]
                self._ray.cancel(handle, force=True)
                self._lost(flight, f"no answer within {3 * self._limit_s:.0f} s")

    def _lost(self, flight: _Flight, why: str) -> None:
        flight.lost += 1
        if flight.lost > MOST_LOST:
            self._fail(flight, f"lost {flight.lost} times ({why})")
            return
        self._progress.say(f"run {flight.index}: lost ({why}); it is started again")
        self._waiting.append((0.0, flight))

    def _fail(self, flight: _Flight, why: str) -> None:
        self._faults.append(f"run {flight.index}: {why}")
        self._progress.finish(f"run {flight.index}: not done: {why}")


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`, or to a new one on this host that ends with the context."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise BenchError("launcher.kind: ray needs Ray: pip install 'stepbench[ray]'") from error
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        _reach(address)
        # without an address, Ray would take that of RAY_ADDRESS, or a cluster that somebody runs on this host
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", namespace="bench")
    except (ImportError, OSError, OverflowError, RuntimeError, ValueError) as error:
        why = (first_line(error) or type(error).__name__).rstrip(".")
        if address is None:
            raise InfrastructureError(f"Ray starts no cluster on this host: {why}") from error
        raise InfrastructureError(
            f"launcher.address: no Ray cluster at {address} can be used: {why}. Start one (ray start --head), or leave "
            "the address out, for one on this host that ends with the sweep"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Connect to `HOST:PORT` or `ray://HOST:PORT` once: Ray tries for minutes. Raises OSError."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d{1,5})/?", address or "")
    if found:
        socket.create_connection((found[1], int(found[2])), REACH_S).close()


def _add_plan(folder: Path, plan: bytes) -> None:
    """Store a node's plan under the next number, unless it is there already."""
    paths = sorted(folder.glob("plan-*.parquet"))
    if any(_is_same(path, plan) for path in paths):
        return
    for number in count(int(paths[-1].stem.removeprefix("plan-")) + 1 if paths else 1):
        with contextlib.suppress(FileExistsError):
            commit_bytes(plan, folder / f"plan-{number:04d}.parquet")
            return


def _alive(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [node for node in nodes if node["Alive"]]


def _whole_node(nodes: Sequence[Mapping[str, Any]], resources: Mapping[str, float]) -> dict[str, float]:
    """What a run on the CPU asks for: all processors of the largest node, so that no other starts beside it."""
    each = [node["Resources"] for node in _alive(nodes)]
    able = [has for has in each if all(has.get(name, 0.0) >= amount for name, amount in resources.items())]
    return {"CPU": max([1.0, *(has.get("CPU", 0.0) for has in able)])}


def _slots(nodes: Sequence[Mapping[str, Any]], needs: Mapping[str, float]) -> list[int]:
    """How many runs each node can do at one time."""
    return [
        min(int(node["Resources"].get(name, 0.0) // amount) for name, amount in needs.items()) for node in _alive(nodes)
    ]


def _count_slots(nodes: Sequence[Mapping[str, Any]], needs: Mapping[str, float]) -> int:
    """How many runs the nodes can do at one time. Raises BenchError where no node can do any."""
    if counts := sum(_slots(nodes, needs)):
        return counts
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
    offered = [
        ", ".join(
            f"{amount:g} {name}"
            for name, amount in sorted(node["Resources"].items())
            if not name.startswith(("node:", "memory", "object_store"))
        )
        or "nothing"
        for node in _alive(nodes)
    ]
    has_gpu = any(node["Resources"].get("GPU") for node in _alive(nodes))
    cpu = "" if has_gpu or "GPU" not in needs else ". To measure on CPUs instead: --device cpu"
    raise BenchError(
        f"no node of the Ray cluster has what a run needs ({wanted}). Nodes have: {'; '.join(sorted(set(offered)))}. "
        f"Change launcher.resources, or add such a node{cpu}"
    )
