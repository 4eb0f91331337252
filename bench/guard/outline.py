"""A training step's memory in lines that can be kept beside the code and compared: what is alive, and what is asked.

An `Outline` has the peaks of a settled step and, for the last step that was traced, every allocation with the operator
and the module that made it, and where it was freed. It holds no addresses and no order of frees, so two outlines of the
same step are equal, and a change of the step changes the lines of the operators it touches. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import Unsupported
from bench.estimators.allocator import Alloc, Free
from bench.estimators.collector import collector_off
from bench.estimators.events import TracePeaks, events_by_entry
from bench.estimators.memory import Target, record_for, replay_on, trace_columns, trace_events, workspaces_of
from bench.estimators.recording import Call, StepEnd
from bench.estimators.timeline import OUTSIDE
from bench.records import TRACE_PARTS

if TYPE_CHECKING:
    from bench.estimators.recording import Recording
    from bench.records import Case

KEPT = "kept"
"""Where a block is freed that outlives the step."""
_LIVES_ON = ("parameters", "optimizer_state", "batch")
"""Categories of what a step finds and leaves; the rest of what it finds was left by the step before."""


class Line(NamedTuple):
    """Allocations of one operator that are freed at one place, or what lies there before the step.

    Attributes:
        phase: `forward`, `backward`, ... of the step; of what lies there, its category.
        module: Dotted path of the module, or `loss`, `optimizer`, `zero_grad`.
        operator: That allocated, with `scratch` or `workspace` for memory that is no tensor; of what lies there, the
            optimizer's word for a state, or empty.
        size_bytes: Asked for, all together.
        blocks: How many allocations.
        until: The phase and module at which they are freed; `kept`, or empty for the operator's own module and phase.
    """

    phase: str
    module: str
    operator: str
    size_bytes: int
    blocks: int
    until: str

    @property
    def place(self) -> tuple[str, str, str]:
        """What made them."""
        return self.phase, self.module, self.operator

    def __str__(self) -> str:
        """`forward layer1.0.bn1 native_batch_norm`."""
        return " ".join(filter(None, self.place))


@dataclass(frozen=True, slots=True)
class Outline:
    """One training step, as far as memory goes.

    Attributes:
        peak_allocated_bytes: As `torch.cuda.max_memory_allocated` of a settled step.
        peak_reserved_bytes: Likewise.
        parts: The allocated peak by category, in bytes.
        peak_at: The operator that allocates last before the allocated peak, with phase and module.
        standing: What the step finds, by category, module and name.
        step: What it asks for, in order.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    parts: Mapping[str, int]
    peak_at: str
    standing: tuple[Line, ...]
    step: tuple[Line, ...]

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Outline:
        """From its fields as JSON carries them. Raises TypeError, ValueError or KeyError of what is no outline."""
        lines = {name: tuple(_read_line(line) for line in fields[name]) for name in ("standing", "step")}
        sizes = [fields[name] for name in ("peak_allocated_bytes", "peak_reserved_bytes")]
        parts = dict(fields["parts"])
        if not all(type(size) is int for size in (*sizes, *parts.values())) or not isinstance(fields["peak_at"], str):
            raise ValueError("not an outline")
        return cls(sizes[0], sizes[1], parts, fields["peak_at"], **lines)


def _read_line(line: Sequence[Any]) -> Line:
    made = Line(*line)
    if [type(item) for item in made] != [str, str, str, int, int, str]:
        raise ValueError("not a line of an outline")
    return made


def outline_case(case: Case, target: Target, *, shared: bool = False) -> Outline:
    """The outline of a case's step on a GPU; where it must be recorded, in a separate process.

    Args:
        case: Any.
        target: What it is traced for.
        shared: As for `memory.estimate_trace`.

    Raises:
        BenchError: As `memory.estimate_trace`; or cuDNN's workspaces count and are not known.
    """
    with collector_off():
        if target.workspaces and isinstance(reason := workspaces_of(case, target, shared=shared), str):
            raise Unsupported(f"cuDNN's workspaces are to count, and are not known: {reason}")
        peaks = replay_on(target, trace_events(case, target, shared=shared))
        return _outline(record_for(case, target, shared=shared), target, peaks)


class _Block(NamedTuple):
    """A live allocation: its event, and the place of its call."""

    event: Alloc
    call: int


def _outline(recording: Recording, target: Target, peaks: TracePeaks) -> Outline:
    ends = [place for place, entry in enumerate(recording.entries) if type(entry) is StepEnd]
    begin, end = ends[-2], ends[-1]
    live: dict[int, _Block] = {}
    standing: list[_Block] = []
    asked: list[_Block] = []
    freed: dict[int, int] = {}
    call = -1
    is_begun = False
    allocated = highest = peak_call = 0
    entries = recording.entries
    calls = _calls_before(entries)
    for place, event in events_by_entry(recording, target.machine):
        call = calls[place]
        if place > begin and not is_begun:
            is_begun, standing = True, list(live.values())
            allocated = highest = sum(block.event.size for block in standing)
        if isinstance(event, Alloc) and event.size > 0:
            live[event.id] = _Block(event, call)
            if is_begun:
                asked.append(live[event.id])
            allocated += event.size
            if allocated > highest and place <= end:
                highest, peak_call = allocated, call
        elif isinstance(event, Free) and (block := live.pop(event.id, None)) is not None:
            allocated -= block.event.size
            if is_begun:
                freed[event.id] = call
    naming = _LineNames(recording, freed)
    columns = trace_columns(peaks)
    return Outline(
        peak_allocated_bytes=peaks.allocated_bytes,
        peak_reserved_bytes=peaks.reserved_bytes,
        parts={part: columns[f"trace_{part}_bytes"] for part in TRACE_PARTS},
        peak_at=" ".join(naming.made_by(peak_call)) if peak_call else "",
        standing=tuple(_grouped(map(naming.standing_line, standing))),
        step=tuple(naming.step_lines(asked)),
    )


def _calls_before(entries: Sequence[object]) -> list[int]:
    """For each entry, the place of the last call up to it; -1 before the first."""
    places, call = [], -1
    for place, entry in enumerate(entries):
        if type(entry) is Call:
            call = place
        places.append(call)
    return places


def _grouped(lines: Iterable[Line]) -> Iterator[Line]:
    """What lies there, one line for what is alike but in size, sorted; what lives on comes first."""
    sums: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for line in lines:
        key = (*line.place, line.until)
        size, count = sums.get(key, (0, 0))
        sums[key] = size + line.size_bytes, count + line.blocks
    order = {category: place for place, category in enumerate(_LIVES_ON)}
    for key in sorted(sums, key=lambda key: (order.get(key[0], len(order)), key)):
        yield Line(*key[:3], *sums[key], key[3])


class _LineNames:
    """Gives allocations their lines."""

    def __init__(self, recording: Recording, freed: Mapping[int, int]) -> None:
        """`freed` has the place of the call at which a block is freed within the step."""
        self._recording, self._freed = recording, freed

    def made_by(self, place: int) -> tuple[str, str, str]:
        """Phase, module and operator of a call."""
        call = self._recording.entries[place]
        assert type(call) is Call
        return call.phase.name.lower(), call.module or OUTSIDE[call.phase], call.name

    def standing_line(self, block: _Block) -> Line:
        """The line of a block that the step finds."""
        category = block.event.category or "temporaries"
        name, word = self._recording.holders.get(block.event.id, ("", ""))
        until = self._until(block, None)
        if category == "batch":
            return Line(category, name, "", block.event.size, 1, until)
        if name and category in ("parameters", "gradients", "optimizer_state"):
            return Line(category, name.rpartition(".")[0] or name, word, block.event.size, 1, until)
        _, module, operator = self.made_by(block.call)
        return Line(category, module, operator, block.event.size, 1, until)

    def step_lines(self, blocks: Iterable[_Block]) -> Iterator[Line]:
        """Of what the step asks for, in order; allocations of one call that are freed together make one line."""
        groups: dict[tuple[int, str, str], list[int]] = {}
        for block in blocks:
            phase, module, operator = self.made_by(block.call)
            if block.event.id < 0:
                operator += " workspace" if block.event.category == "workspaces" else " scratch"
            key = (block.call, operator, self._until(block, (phase, module)))
            groups.setdefault(key, []).append(block.event.size)
        for (call, operator, until), sizes in groups.items():
            phase, module, _ = self.made_by(call)
            yield Line(phase, module, operator, sum(sizes), len(sizes), until)

    def _until(self, block: _Block, own: tuple[str, str] | None) -> str:
        place = self._freed.get(block.event.id)
        if place is None:
            return KEPT
        phase, module, _ = self.made_by(place)
        return "" if (phase, module) == own else " ".join(dict.fromkeys((phase, module)))
