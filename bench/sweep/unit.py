"""One planned run on whatever machine a launcher chose: the unit of sweeps on clusters.

A launcher stores an *order* once: the runs of a plan in their shuffled order, and all that a machine must know to do
any of them. It then starts `bench run-planned ORDER INDEX` as often and wherever it likes; the index is the run's
position in the order. What such a process is told, and what it leaves behind, are files alone: the order, claims and
parts. It may be killed at any moment, started twice, or started for a run that is finished long since.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench import catalog
from bench.client import use_file
from bench.config import SweepConfig, check_config
from bench.devices import Device, device_from_mapping, device_toml
from bench.errors import BenchError, BusyError, DeviceError, StoreError
from bench.launchers import Launcher, Outcome
from bench.plan import case_code_key
from bench.probes.machine_facts import MachineFacts, read_machine_facts
from bench.probes.selection import DeviceChoice, usable_device
from bench.records import AXES, Case, DataFacts, Measurement, Planned, Status, columns
from bench.store import Store, schema
from bench.store.parts import build_table, commit, notes_of, read, rows_hash
from bench.sweep.claims import HEARTBEAT_S, MOST_TRIES, Claim, claim_run, clear_finished
from bench.sweep.estimates import estimate_planned
from bench.sweep.journal import MAX_ATTEMPTS, environment_of
from bench.sweep.runs import Flight, write_plan
from bench.sweep.session import Seat, Session, SweepOptions, held_device, held_devices, read_environment
from bench.sweep.standing import CLAIMS, ORDERS
from bench.terminal import Progress

MOST_RUNS = 10_000
"""Of one order, which every process that does a run reads: see `stages.store_orders`."""


MOST_NAMED = 4


class Came(StrEnum):
    """What came of asking for a run."""

    MEASURED = "measured"  # it has a part now, whatever its status
    PRESENT = "present"  # it had one, or needs none: nothing was done
    CLAIMED = "claimed"  # a live process has it: nothing was done
    BUSY = "busy"  # the device was not free: nothing was done


@dataclass(frozen=True, slots=True)
class Result:
    """What came of asking for a run.

    Attributes:
        came: In a word.
        part: The name of the run's part, without its ending; None where it needs none.
        status: Of the run, if it was measured now.
        reason: Of the status, or why nothing was done.
    """

    came: Came
    part: str | None = None
    status: Status | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """The runs of a plan for machines to come.

    Attributes:
        path: The file.
        runs: In the order of execution; the index of each is its position.
        codes: The key of the code of each case where the order was made, by case key.
        config: Of the sweep.
        device: `cpu` or `cuda`.
        spread: What repeats are spread over: a key of `records.SPREADS`, or None.
        device_files: The user's own device files.
        notes: For readers of results.
    """

    path: Path
    runs: tuple[Planned, ...]
    codes: Mapping[str, str]
    config: SweepConfig
    device: str
    spread: str | None
    device_files: tuple[Device, ...]
    notes: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The results folder."""
        return self.path.parent.parent


def write_order(
    store: Store,
    plan: Sequence[Planned],
    config: SweepConfig,
    device: str,
    *,
    sources: dict[str, str] | None = None,
    spread: str | None = "hosts",
    device_files: Sequence[Device] = (),
    notes: dict[str, Any] | None = None,
) -> Path:
    """Store a plan for machines to come; the same plan gives the same file.

    Args:
        store: The results folder, which exists.
        plan: Every run, in the order of execution; positions count from 0.
        config: The sweep.
        device: `cpu` or `cuda`: what the plan was made for.
        sources: `files` or `synthetic`, by case key, of the cases that read images.
        spread: What repeats of a case may be spread over: a key of `records.SPREADS`, or None.
        device_files: The user's own device files.
        notes: For readers of results: as `Store.write_plan` takes them.

    Raises:
        StoreError: The disk cannot write it.
    """
    rows = [
        {
            "case_key": run.case.key,
            **run.case.axes,
            "repeat": run.repeat,
            "position": run.position,
            "skip_reason": run.skip_reason,
            "code_key": run.code_key,
            "case_code_key": case_code_key(run.case),
            "data_source": (sources or {}).get(run.case.key),
            **asdict(run.data),
        }
        for run in plan
    ]
    facts = {
        "config": {**config.as_json(), "data": config.data.model_dump(exclude_none=True)},
        "device": device,
        "spread": spread,
        "models": [str(path) for path in catalog.files.paths()],
        "device_files": {str(file): device_toml(file) for file in device_files},
        "notes": notes or {},
        "protocol_key": config.protocol.key,
    }
    table = build_table(rows, schema.ORDER, "order", facts)
    folder = store.folder / ORDERS
    folder.mkdir(exist_ok=True)
    path = folder / f"order-{rows_hash([*rows, facts])[:16]}.parquet"
    with contextlib.suppress(FileExistsError):  # the same order again
        commit(table, path)
    return path


def find_order(path: Path) -> Path:
    """The order at `path`, or the only one of the results folder there. Raises StoreError."""
    if path.is_file():
        return path
    found = sorted(path.glob(f"**/{ORDERS}/order-*.parquet"))
    if len(found) == 1:
        return found[0]
    names = [str(order) for order in found[:MOST_NAMED]] + ["..."] * (len(found) > MOST_NAMED)
    what = f"{len(found)} orders; name one of {', '.join(names)}" if found else "holds no order"
    raise StoreError(f"{path}: {what}. bench plan CONFIG --out FOLDER writes one")


def read_order(path: Path, launcher: Launcher) -> Order:
    """An order, whose own model files are then known to this process.

    Raises:
        BenchError: It cannot be read, or needs what this machine does not have.
    """
    table = read(path, "order")
    facts = notes_of(table)
    for file in facts["models"]:
        use_file(launcher, Path(file))
    return Order(
        path,
        tuple(map(_planned, table.to_pylist())),
        dict(zip(table["case_key"].to_pylist(), table["case_code_key"].to_pylist(), strict=True)),
        check_config(facts["config"], str(path)),
        facts["device"],
        facts["spread"],
        tuple(
            device_from_mapping(name, tomllib.loads(text), str(path)) for name, text in facts["device_files"].items()
        ),
        facts["notes"],
    )


def _planned(row: dict[str, Any]) -> Planned:
    axes = {axis: row[axis] for axis in AXES}
    for kind in ("dataset", "model", "optimizer"):
        axes[kind] = catalog.parse_choice(kind, axes[kind])
    facts = DataFacts(**{name: row[name] for name in columns(DataFacts)})
    return Planned(Case(**axes), row["repeat"], row["position"], row["skip_reason"], row["code_key"], facts)


class RunUnit:
    """The runs of an order that this process does, one by one, on one device."""

    def __init__(self, order: Order, session: Session) -> None:
        """Take the order, and the session on the device; see `open_unit`."""
        self.order, self.session = order, session

    def run(self, index: int, attempt: int | None = None) -> Result:
        """Do one run, unless it is finished or another process does it.

        Args:
            index: The run's position in the order.
            attempt: Which attempt; by default the first, or the second where the first was throttled.

        Raises:
            BenchError: The order has no such run, or this machine cannot do it.
            KeyboardInterrupt: On Ctrl-C or SIGTERM; the run can be claimed again at once.
        """
        if not 0 <= index < len(self.order.runs):
            raise BenchError(f"{self.order.path}: no run {index}; it has 0 to {len(self.order.runs) - 1}")
        run, journal, store = self.order.runs[index], self.session.journal, self.session.store
        if run.skip_reason is not None:
            return Result(Came.PRESENT, reason=run.skip_reason)
        attempt = self._next_attempt(run) if attempt is None else attempt
        part = journal.part(run, attempt)
        if _path(store, part).exists():
            clear_finished(store.folder / CLAIMS, part)
            return Result(Came.PRESENT, part)
        claim = claim_run(store.folder / CLAIMS, part)
        if claim is None:
            return Result(Came.CLAIMED, part, reason="another process does this run")
        if _path(store, part).exists():  # finished between the two looks
            claim.close()
            return Result(Came.PRESENT, part)
        try:
            measurement = self._measure(run, attempt, claim)
            seat = self.session.seats[0]
            store.write_run(
                run, attempt, self.session.config.protocol, measurement, environment_of(run, seat.environment)
            )
        except BusyError as error:
            claim.drop()
            return Result(Came.BUSY, part, reason=str(error))
        except FileExistsError:  # one who was taken for lost has come back
            claim.close()
            return Result(Came.PRESENT, part)
        except BaseException:
            claim.drop()
            raise
        claim.close()
        return Result(Came.MEASURED, part, measurement.status, measurement.reason)

    def estimate(self) -> None:
        """Store the estimates of the whole order for this device, as far as they are missing."""
        estimate_planned(self.session)

    def _next_attempt(self, run: Planned) -> int:
        """The first attempt, or the one after those that were throttled; the last one where no more follow."""
        for attempt in range(MAX_ATTEMPTS - 1):
            path = _path(self.session.store, self.session.journal.part(run, attempt))
            if not path.exists() or read(path, "run")["status"][0].as_py() != Status.THROTTLED:
                return attempt
        return MAX_ATTEMPTS - 1

    def _measure(self, run: Planned, attempt: int, claim: Claim) -> Measurement:
        if claim.number >= MOST_TRIES:
            reason = f"{MOST_TRIES} tries were lost: each time the process or its machine was gone without a word"
            return Measurement(status=Status.CRASHED, reason=reason, lost_tries=claim.number)
        launcher = self.session.launcher
        flight = Flight(self.session, self.session.seats[0], run, attempt)
        while True:
            handle = launcher.submit(flight.job)
            try:
                while not launcher.wait([handle], HEARTBEAT_S):
                    claim.beat()
            finally:
                launcher.cancel([handle])
            assert handle.answer is not None
            if handle.answer.outcome is Outcome.BUSY:
                raise BusyError(handle.answer.reason)
            if (measurement := flight.land(handle.answer)) is not None:
                return replace(measurement, lost_tries=claim.number)


@contextlib.contextmanager
def open_unit(order: Order, launcher: Launcher, progress: Progress, *, device: str | None = None) -> Iterator[RunUnit]:
    """Have this machine's one visible device for runs of an order.

    Args:
        order: The order.
        launcher: Starts the processes that measure.
        progress: Hears of trouble.
        device: One device, as `bench sweep` takes it; then any number may be visible. By default the one visible GPU,
            or the CPU.

    Raises:
        BusyError: The device is in use.
        DeviceError: Not exactly one GPU is visible, or it cannot be used.
        BenchError: The order does not fit this machine: other code, other devices.
    """
    _refuse_other_code(order)
    store = Store(order.folder)
    store.create()
    requested = device or order.device
    with contextlib.ExitStack() as held:
        if device is not None:
            choice, *more = held.enter_context(held_devices(device, launcher.warm))
            if more:
                raise DeviceError(f"{device}: a process does its runs on one device")
        else:
            choose = _only_device if order.device == "cuda" else usable_device
            choice = held.enter_context(held_device(order.device, choose, launcher.warm))
        limits = order.config.limits
        environment, gpu = read_environment(
            launcher, choice, order.device_files, limits.device_memory, host_limit_bytes=limits.host_memory
        )
        environment = replace(environment, spread=order.spread)
        options = SweepOptions(order.folder.parent, requested, report=False, device_files=order.device_files)
        seats = [Seat(choice, environment, gpu, alone=True)]
        session = Session(order.config, options, progress, launcher, store, environment, choice, gpu, seats=seats)
        session.plan, session.notes = list(order.runs), dict(order.notes)
        write_plan(session)
        yield RunUnit(order, session)


def _only_device(requested: str, facts: MachineFacts) -> DeviceChoice:
    """The one visible GPU. Raises DeviceError where the launcher left none or several visible."""
    choice = usable_device(requested, facts)
    seen = facts.torch or read_machine_facts().torch
    count = len(facts.visible) or (seen.device_count if seen else 0)
    if count != 1:
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        told = "is not set" if variable is None else f'is "{variable}"'
        raise DeviceError(
            f"{count} GPUs are visible, and a run needs exactly one to itself: CUDA_VISIBLE_DEVICES {told}. Ask the "
            "scheduler for one GPU a task (--gres=gpu:1, num_gpus=1), or name the device with --device"
        )
    return choice


def _refuse_other_code(order: Order) -> None:
    """Refuse runs whose code is another here than where the order was made: they would be other runs."""
    for run in {run.case: run for run in order.runs if run.skip_reason is None}.values():
        if case_code_key(run.case) != order.codes[run.case.key]:
            raise BenchError(
                f"{order.path}: made with other code than is installed here ({Path(catalog.__file__).parents[1]}), as "
                f"far as {run.case} goes. Install the same version on both machines, or plan again"
            )


def _path(store: Store, part: str) -> Path:
    return store.runs_folder / f"{part}.parquet"
