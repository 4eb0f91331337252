"""Recording cases one by one in fresh processes; existing recordings are kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import catalog, fingerprint
from bench.client import RUN_S
from bench.errors import DeviceError, StoreError
from bench.launchers import Answer, Launcher, LocalLauncher, Outcome, interrupt_on_terminate
from bench.locks import hold
from bench.plan import data_facts, name_planned
from bench.probes.machine_facts import MachineFacts
from bench.probes.selection import DeviceChoice, usable_device
from bench.recordings import read_recording
from bench.records import Case, Choice, Environment, Protocol, Status, stable_hash
from bench.store.parts import typed_errors
from bench.sweep.session import gpu_of, held_device, read_environment
from bench.tasks import record_task
from bench.terminal import Progress
from bench.units import counted, format_bytes

_CODE = ("recorder.py", "workload", "recordings")


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What a recording needs besides its cases.

    Attributes:
        out: Folder for the files; None for one named after the GPU below `recordings`.
        device: `auto`, `cuda` or `cuda:N`.
        steps: Training steps per case.
        stacks: Whether to keep Python's call stack at each event.
        limit_bytes: Memory of the smaller card that the GPU plays; None for its own.
        timeout_s: For each case.
    """

    out: Path | None = None
    device: str = "auto"
    steps: int = 3
    stacks: bool = False
    limit_bytes: int | None = None
    timeout_s: float = RUN_S


@dataclass(slots=True)
class Recorded:
    """The outcome.

    Attributes:
        folder: The folder of the files.
        rows: One per case, with `case`, `status`, `reason`, `file` (None if there is none) and `kept` (from earlier).
    """

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Cases by status."""
        return dict(sorted(Counter(str(row["status"]) for row in self.rows).items()))

    @property
    def failed(self) -> bool:
        """Whether any case that can run was not recorded."""
        return any(row["file"] is None and row["status"] != Status.SKIPPED for row in self.rows)


def refuse_cpu(requested: str) -> None:
    """Raise DeviceError for `cpu`, and for other kinds that have no such allocator."""
    if requested.partition(":")[0] not in ("auto", "cuda"):
        raise DeviceError("device: recordings need torch's CUDA allocator; give cuda or cuda:N on a machine with a GPU")


def choose_gpu(requested: str, facts: MachineFacts) -> DeviceChoice:
    """The GPU to record on. Raises DeviceError if there is none."""
    choice = usable_device("auto", facts)
    if choice.kind != "cuda":
        raise DeviceError(
            f"no GPU to record on: {choice.reason}. Recordings need torch's CUDA allocator. To compare existing ones "
            "here: bench estimate --explain-difference FILE. See: bench env"
        )
    return choice if requested == "auto" else usable_device(requested, facts)


def record_cases(cases: Sequence[Case], options: RecordOptions, progress: Progress) -> Recorded:
    """Record every case that the folder does not hold yet.

    Raises:
        BenchError: No GPU, or it or the folder cannot be used; finished files are kept.
        KeyboardInterrupt: On Ctrl-C or SIGTERM; finished files are kept.
    """
    refuse_cpu(options.device)
    launcher = LocalLauncher()
    with interrupt_on_terminate(), held_device(options.device, choose_gpu, launcher.warm) as choice:
        environment, _ = read_environment(launcher, choice, limit_bytes=options.limit_bytes)
        folder = options.out or Path("recordings") / _slug(environment.gpu_name or "gpu")
        with typed_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with hold(folder / ".lock", f"the folder {folder}"):
            return _record_missing(cases, options, progress, launcher, environment, choice, folder)


def _record_missing(
    cases: Sequence[Case],
    options: RecordOptions,
    progress: Progress,
    launcher: Launcher,
    environment: Environment,
    choice: DeviceChoice,
    folder: Path,
) -> Recorded:
    found = Recorded(folder)
    names = name_planned(cases)
    todo = []
    for case in cases:
        key = recording_key(case, environment, options)
        path = folder / f"{_slug(case.label())}-{key}.parquet"
        if status := _status_of(path, key, progress):
            found.rows.append({"case": case, "status": status, "reason": None, "file": path, "kept": True})
        else:
            todo.append((case, key, path))
    if found.rows:
        progress.say(f"{counted(len(found.rows), 'recording')} already there, {len(todo)} to do")
    progress.start(len(todo))
    for case, key, path in todo:
        progress.begin(names[case])
        argument = {
            "case": case,
            "environment": environment,
            **gpu_of(choice),
            "steps": options.steps,
            "stacks": options.stacks,
            "protocol": Protocol(device_memory_bytes=options.limit_bytes),
            "key": key,
            "target": str(path),
        }
        found.rows.append(row := _record_one(launcher, argument, path, options.timeout_s))
        progress.finish(_line(names[case], row))
    return found


def _record_one(launcher: Launcher, argument: dict[str, Any], path: Path, timeout_s: float) -> dict[str, Any]:
    """One case in a fresh process; if it failed, what it printed is kept next to its file."""
    log = path.with_suffix(".log")
    log.unlink(missing_ok=True)
    answer = launcher.run(record_task, argument, timeout_s=timeout_s, log=log)
    row = {"case": argument["case"], **_outcome(answer), "file": path if path.exists() else None, "kept": False}
    if row["file"] is not None or row["status"] == Status.SKIPPED or not log.stat().st_size:
        log.unlink(missing_ok=True)
    return row


def recording_key(case: Case, environment: Environment, options: RecordOptions) -> str:
    """The key of a recording; equal if the second would only repeat the first."""
    entries: tuple[tuple[catalog.Kind, Choice], ...]
    entries = (("model", case.model), ("dataset", case.dataset), ("optimizer", case.optimizer))
    code = [fingerprint.code_key(_CODE), *(catalog.code_key(kind, choice.name) for kind, choice in entries)]
    data = [found] if (found := data_facts(case.dataset).known) else []
    card = [options.limit_bytes] if options.limit_bytes is not None else []
    return stable_hash([case.key, code, environment.key, options.steps, options.stacks, *data, *card])


def _status_of(path: Path, key: str, progress: Progress) -> str | None:
    """The status of the recording at `path`; None if there is none. A damaged one is moved aside."""
    if not path.exists():
        return None
    try:
        facts = read_recording(path).facts
    except StoreError as error:
        progress.say(f"moved aside, to be recorded again: {error}")
        path.rename(path.with_suffix(".damaged"))
        return None
    return facts.status if facts.recording_key == key else None


def _outcome(answer: Answer) -> dict[str, Any]:
    if answer.outcome is Outcome.ANSWERED:
        return {"reason": None, **answer.value}
    status = {Outcome.TIMED_OUT: Status.TIMEOUT, Outcome.DIED: Status.CRASHED}.get(answer.outcome, Status.FAILED)
    return {"status": status, "reason": answer.reason}


def _line(name: str, row: dict[str, Any]) -> str:
    what = f"{name}: {row['status']}"
    if "events" not in row:
        return f"{what}: {(row['reason'] or '')[:160]}"
    allocated, reserved = (format_bytes(row[f"peak_{name}_bytes"]) for name in ("allocated", "reserved"))
    peaks = f"allocated {allocated}, reserved {reserved}"
    return f"{what}, {counted(row['events'], 'event')}, {peaks}, file {format_bytes(row['file'].stat().st_size)}"


def _slug(text: str) -> str:
    """A file name: lower-case letters, digits, dots and dashes, at most 80."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:80] or "case"
