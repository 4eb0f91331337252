"""From a recording to the operators that differ from the trace of its case, made by the loop that was recorded.

Only making the trace needs torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.devices import Device, match_device
from bench.errors import Unsupported
from bench.estimators.allocator import Alloc, Event, Mark, ReplayError, replay
from bench.estimators.difference.alignment import align, blocks_of
from bench.estimators.difference.exactness import (
    ReplayCheck,
    allocator_config,
    check_replay,
    recorded_events,
    settings_of,
)
from bench.estimators.difference.partings import Kind, Mismatch, PairedStreams, Parting, peaks_when_mended
from bench.estimators.events import events_by_entry
from bench.estimators.memory import cudnn_plans
from bench.estimators.recording import Call, StepEnd
from bench.estimators.recording import Recording as Trace
from bench.estimators.temporaries import Machine
from bench.estimators.workspaces import add_workspaces
from bench.plan import image_spec
from bench.recordings import Facts, Recording, case_of
from bench.records import Case, Protocol

if TYPE_CHECKING:
    import torch

BESIDE = 4
"""Operators named where a difference lies between two of them."""


def attribute_events(recording: Trace, machine: Machine) -> tuple[list[Event], list[int]]:
    """The events of `build_events`, and for each the index of its entry; marks reset nothing."""
    found = list(events_by_entry(recording, machine))
    events = [Mark(event.label) if isinstance(event, Mark) else event for _, event in found]
    return events, [place for place, _ in found]


class Places:
    """Where in the step an entry lies."""

    def __init__(self, recording: Trace) -> None:
        """Number the steps."""
        self._entries = recording.entries
        self._steps: list[int] = []
        step = 0
        for entry in recording.entries:
            self._steps.append(step)
            step += type(entry) is StepEnd

    def step(self, entry: int) -> int:
        """The step, from 1; 0 is the setup."""
        return self._steps[entry] if 0 <= entry < len(self._steps) else 0

    def phase(self, entry: int) -> str:
        """The part of the step that a call lies in."""
        found = self._entries[entry] if 0 <= entry < len(self._entries) else None
        return found.phase.name.lower() if type(found) is Call else "setup"

    def operators(self, first: int, last: int) -> tuple[str, ...]:
        """The operators of the calls from one entry to another, both included: the first few, and the last."""
        names: list[str] = []
        for entry in self._entries[max(first, 0) : last + 1]:
            if type(entry) is Call and (not names or names[-1] != entry.operator):
                names.append(entry.operator)
        return tuple(names if len(names) <= BESIDE else [*names[: BESIDE - 1], names[-1]])


def trace_of(facts: Facts, case: Case, machine: Machine) -> Trace:
    """Record the case over memory that does not exist, as many steps as were recorded.

    Raises:
        Unsupported: It cannot be traced, or cannot run.
        UnknownNameError: Unknown data set, model or optimizer.
    """
    from bench.estimators.record import record_case, record_training

    held, protocol = replace(case, input="synthetic"), Protocol(seed=42 if facts.seed is None else facts.seed)
    steps = facts.steps + (facts.status == "oom")
    if facts.loop == "bench":
        return record_case(held, machine, protocol, steps)
    return record_training(
        lambda device: _CaptureTraining(held, protocol, device), steps, machine.compute_capability, machine.properties
    )


def add_planned_workspaces(trace: Trace, facts: Facts, device: Device) -> tuple[Trace, str | None]:
    """The trace with cuDNN's workspaces; or as it is and why, where the installed cuDNN cannot be asked."""
    plans = cudnn_plans(device)
    if isinstance(plans, str):
        return trace, f"the trace excludes cuDNN's workspaces: {plans}"
    tf32 = bool(facts.switches.get("cudnn_tf32", facts.axes["precision"] == "tf32"))
    return add_workspaces(trace, plans, tf32=tf32), None


def version_notes(facts: Facts) -> list[str]:
    """What to say where the recording was made with other versions than those installed."""
    import torch

    notes = []
    recorded, installed = facts.versions.get("torch"), str(torch.__version__)
    if recorded != installed:
        notes.append(
            f"recorded with torch {recorded}, traced with the installed {installed}: the order of kernels is the "
            "installed version's, the rules of the allocator and of workspaces are the recorded one's"
        )
    recorded, number = facts.versions.get("cudnn"), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if number and recorded != (installed := cudnn_name(number)):
        notes.append(f"recorded with cuDNN {recorded}; workspaces, where they count, are the installed {installed}'s")
    return notes


def cudnn_name(number: int) -> str:
    """`9.26.0` for 92600, and `8.9.7` for 8907 (cudnn_version.h: CUDNN_VERSION)."""
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


class _CaptureTraining:
    """The loop of `gpu_capture`: its step is the workload's, but its batch is laid out on the device, not before.

    A step's output and loss live until the optimizer of the next step is done, not until its backward is.
    """

    def __init__(self, case: Case, protocol: Protocol, device: torch.device) -> None:
        import torch

        from bench.workload import build_workload

        images = image_spec(case.dataset, case.image_size)
        self._workload = build_workload(case, images, protocol, device)
        self.model, self.optimizer = self._workload.model, self._workload.optimizer
        layout = torch.channels_last if case.memory_format == "channels_last" else torch.contiguous_format
        batch = case.micro_batch_size
        made = torch.randn(batch, *images.shape).to(device).contiguous(memory_format=layout)
        self.batch = (made, torch.randint(images.classes, (batch, *images.target_shape)).to(device))

    def step(self) -> None:
        """See `record.Training`."""
        kept = self._workload.kept
        self._workload.step(itertools.repeat(self.batch))
        del kept


MOST = 10
"""Operators named unless more are asked for."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peaks in bytes over setup and all steps."""

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the comparison came to.

    Attributes:
        case: In words.
        case_key: Of the case.
        gpu_name: The GPU.
        status: `ok` or `oom`.
        loop: Whose loop ran.
        torch_version: Of the recording.
        replay: Whether the recording's own replay is exact.
        recorded: As torch reported at the end.
        trace: Of the trace; None if there is none, and a note says why.
        recorded_allocations: Of the recording, up to where memory ran out.
        traced_allocations: Of the trace.
        differences: Allocations that differ, over all steps; None without a trace.
        partings: The first places at which they do, by operator.
        notes: What a reader must know beside it.
    """

    case: str
    case_key: str
    gpu_name: str
    status: str
    loop: str
    torch_version: str
    replay: ReplayCheck
    recorded: Peaks
    trace: Peaks | None
    recorded_allocations: int
    traced_allocations: int | None
    differences: int | None
    partings: tuple[Parting, ...]
    notes: tuple[str, ...]


def explain_recording(
    recording: Recording, where: str = "recording", *, most: int = MOST, workspaces: bool = True
) -> Explanation:
    """Check a recording's replay, trace its case and compare; in a separate process.

    Args:
        recording: Of the case.
        where: Its file, for messages.
        most: How many operators to name.
        workspaces: Whether to count cuDNN's workspaces in the trace.

    Raises:
        BenchError: The recording contradicts itself, or its allocator settings cannot be replayed.
    """
    from bench.estimators.kept import machine_of

    facts = recording.facts
    device, case = device_of(facts), case_of(facts, where)
    machine = machine_of(device, settings_of(facts))
    try:
        trace = trace_of(facts, case, machine)
    except Unsupported as error:
        return _blank(recording, where, f"this case cannot be traced: {error}")
    notes = version_notes(facts)
    if workspaces:
        trace, reason = add_planned_workspaces(trace, facts, device)
        notes += [reason] if reason else []
    found = compare(recording, trace, machine, where, most=most)
    return replace(found, notes=(*found.notes, *notes))


def device_of(facts: Facts) -> Device:
    """The recording's GPU: its device file, where there is one, with what the recording itself knows in its place."""
    gpu = facts.gpu
    major, minor = gpu.compute_capability
    known = match_device(gpu.name, gpu.total_bytes) or Device(name=gpu.name, gpu_name=gpu.name, kind="cuda")
    return replace(
        known,
        multiprocessors=gpu.multiprocessors,
        compute_capability=(major, minor),
        memory_bytes=gpu.total_bytes,
        max_threads_per_multiprocessor=gpu.threads_per_multiprocessor or known.max_threads_per_multiprocessor,
    )


def compare(
    recording: Recording, trace: Trace, machine: Machine, where: str = "recording", *, most: int = MOST
) -> Explanation:
    """Compare a recording with a trace of the same case.

    Raises:
        BenchError: The recording contradicts itself.
    """
    facts = recording.facts
    blank = _blank(recording, where)
    events, origins = attribute_events(trace, machine)
    events, traced = _peaks_of(events, facts)
    try:
        recorded = recorded_events(recording)
    except ReplayError:  # the check of the replay says so
        return replace(blank, trace=traced)
    one, other = blocks_of(events), blocks_of(_without_failures(recorded, facts))
    comparison = PairedStreams(one, other, align(one, other), ends_early=facts.status == "oom")
    naming = _Naming(comparison, Places(trace), [origins[block.event] for block in one.blocks], recording)
    return replace(
        blank,
        trace=traced,
        traced_allocations=len(one.blocks),
        recorded_allocations=len(other.blocks),
        differences=len(comparison.differences),
        partings=naming.partings(most),
    )


def _blank(recording: Recording, where: str, *notes: str) -> Explanation:
    """All that can be said without a trace."""
    facts = recording.facts
    last = facts.last_stats
    case = case_of(facts, where)
    if case.input != "synthetic":
        notes = (
            *notes,
            f"the case reads {case.input} batches; the trace assumes one batch that is already on the device",
        )
    if facts.status == "oom" and facts.at_failure is None:
        notes = (*notes, "torch's report at the failure was not kept; recorded peaks are those of the last mark")
    return Explanation(
        case=str(case),
        case_key=facts.case_key,
        gpu_name=facts.gpu.name,
        status=facts.status,
        loop=facts.loop,
        torch_version=facts.versions.get("torch") or "unknown",
        replay=check_replay(recording),
        recorded=Peaks(*(last.get(f"{kind}_bytes.all.peak", 0) for kind in ("requested", "allocated", "reserved"))),
        trace=None,
        recorded_allocations=sum(action == 0 for action in recording.actions),
        traced_allocations=None,
        differences=None,
        partings=(),
        notes=notes,
    )


def _peaks_of(events: list[Event], facts: Facts) -> tuple[list[Event], Peaks]:
    """The trace's events up to where its memory runs out, and its peaks there."""
    result = replay(events, allocator_config(facts, limited=facts.status == "oom"))
    if result.out_of_memory is not None:
        events = events[: result.out_of_memory.event_index]
    final = result.final
    return events, Peaks(final.peak_requested, final.peak_allocated, final.peak_reserved)


def _without_failures(events: list[Event], facts: Facts) -> list[Event]:
    """Without requests that were never met; the last event of a recording that ran out of memory is one."""
    met = [event for event in events if not (isinstance(event, Alloc) and event.optional)]
    return met[:-1] if facts.status == "oom" and met and isinstance(met[-1], Alloc) else met


class _Naming:
    """Gives differences the names of their operators and groups them."""

    def __init__(self, comparison: PairedStreams, places: Places, origins: Sequence[int], recording: Recording) -> None:
        """`origins` holds the entry of each of the trace's allocations."""
        self._comparison, self._places, self._origins, self._recording = comparison, places, origins, recording
        self._config = replace(allocator_config(recording.facts, limited=False), capacity_bytes=None)
        self._allocations = [
            index for index, action in enumerate(recording.actions) if action == 0 and recording.sizes[index] > 0
        ]
        self._partners = {right: left for left, right in comparison.pairs}

    def partings(self, most: int) -> tuple[Parting, ...]:
        """The first groups of differences, each with what mending it would do."""
        groups: dict[tuple[Kind, tuple[str, ...], str], list[Mismatch]] = {}
        for difference in self._comparison.differences:
            first, last = self._entries(difference)
            key = (difference.kind, self._places.operators(first, last), self._places.phase(first))
            groups.setdefault(key, []).append(difference)
        plain = peaks_when_mended(self._comparison, (), self._config) if groups else (0, 0, 0)
        return tuple(self._parting(group, plain) for group in list(groups.values())[:most])

    def _parting(self, group: list[Mismatch], plain: tuple[int, int, int]) -> Parting:
        difference = group[0]
        first, last = self._entries(difference)
        operators = self._places.operators(first, last) or ("the setup",)
        mended = peaks_when_mended(self._comparison, group, self._config)
        requested, allocated, reserved = (new - old for new, old in zip(mended, plain, strict=True))
        trace, recorded = self._comparison.trace.blocks, self._comparison.recorded.blocks
        return Parting(
            difference.kind,
            operators[0],
            operators,
            self._places.phase(first),
            self._places.step(first),
            len(group),
            None if difference.trace is None else trace[difference.trace].size,
            None if difference.recorded is None else recorded[difference.recorded].size,
            requested,
            allocated,
            reserved,
            self._stack(difference),
        )

    def _entries(self, difference: Mismatch) -> tuple[int, int]:
        """First and last entry of the trace between which a difference lies."""
        if difference.trace is not None:
            origin = self._origins[difference.trace]
            return origin, origin
        assert difference.recorded is not None
        before = difference.recorded - 1
        while before >= 0 and before not in self._partners:
            before -= 1
        place = self._partners[before] if before >= 0 else -1
        first = self._origins[place] if place >= 0 else 0
        last = self._origins[place + 1] if place + 1 < len(self._origins) else first
        return first, last

    def _stack(self, difference: Mismatch) -> str | None:
        if difference.recorded is None or not self._recording.stacks:
            return None
        return self._recording.stacks[self._allocations[difference.recorded]] or None
