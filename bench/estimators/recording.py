"""A training step as plain values: kernels called, storages freed, ends of steps. No torch here.

A recording is made once (`record`), kept once (`kept`) and read by all estimators: memory (`events`), speed
(`speed`), the timeline, and the explanation of differences.

Two recordings of one case at different batch sizes make a `Column`, which serves every other batch size: all that
operators see is affine in the batch size. Memory that kernels allocate for themselves is not, and is computed from
the operators' arguments afterwards (`temporaries`). Batches below `LEAST_BATCH` differ in structure, and each is
recorded separately.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from bench.errors import Unsupported
from bench.estimators.tensors import Spec

LEAST_BATCH = 4
"""Smallest batch that a column serves: operators take other paths where a dimension has size 1 or 2."""

TRACED_BATCHES = (16, 48)
"""Batches at which a column is recorded."""


class Phase(IntEnum):
    """The part of the program that ran."""

    SETUP = 0
    ZERO_GRAD = 1
    FORWARD = 2
    BACKWARD = 3
    OPTIMIZER = 4


class Asks(IntEnum):
    """What a step asks of the GPU that it is recorded for; its recording serves the GPUs that answer alike."""

    NOTHING = 0
    ATTENTION = 1
    """Which kernels of attention run: `AttentionTraits`."""
    CAPABILITY = 2
    """The compute capability."""
    PROPERTIES = 3
    """Anything: the recording serves no other GPU."""


class AttentionTraits(NamedTuple):
    """What torch asks of the compute capability before it chooses a kernel of attention (sdp_utils.cpp).

    Attributes:
        from_volta: 7.0 and newer.
        from_ampere: 8.0 and newer.
        prefers_cudnn: cuDNN's attention goes before flash attention in half precision (check_prefer_cudnn_attention).
            So in torch 2.13 and 2.15; 2.6 and 2.9 take flash attention. What lies between is taken to turn at 2.11.
    """

    from_volta: bool
    from_ampere: bool
    prefers_cudnn: bool

    @classmethod
    def of(cls, compute_capability: tuple[int, int]) -> AttentionTraits:
        """Of a GPU."""
        return cls(compute_capability >= (7, 0), compute_capability >= (8, 0), compute_capability in ((9, 0), (10, 0)))


class Output(NamedTuple):
    """A new storage: its number in the recording, its bytes, and the tensor that it was made for."""

    storage: int
    nbytes: int
    spec: Spec


class Workspaces(NamedTuple):
    """Bytes that the calls of a convolution ask cuDNN for; zeros where none.

    Attributes:
        image: Of the forward's call, or of that for the image's gradient.
        weight: Of the call for the weight's gradient.
    """

    image: int = 0
    weight: int = 0


class Call(NamedTuple):
    """A kernel.

    Attributes:
        operator: Such as `aten::add.Tensor`.
        arguments: In the order of its schema, with tensors as `Spec`s.
        outputs: Its new storages, in order.
        phase: The part of the step that ran.
        written: Places of the arguments that it writes to.
        module: Dotted path of the module that ran (for the outermost its class); None outside all modules.
        workspaces: What it asks of cuDNN, where `workspaces.add_workspaces` has noted it.
    """

    operator: str
    arguments: tuple[Any, ...]
    outputs: tuple[Output, ...]
    phase: Phase
    written: tuple[int, ...] = ()
    module: str | None = None
    workspaces: Workspaces = Workspaces()

    @property
    def sizes(self) -> list[int]:
        """Bytes of its new storages."""
        return [output.nbytes for output in self.outputs]

    @property
    def name(self) -> str:
        """The operator without its namespace and overload, such as `add`."""
        return self.operator.removeprefix("aten::").partition(".")[0]


class Freed(NamedTuple):
    """A storage that died."""

    storage: int


class StepEnd(NamedTuple):
    """The end of a step; step 0 is the setup."""

    step: int


Entry = Call | Freed | StepEnd


@dataclass(frozen=True, slots=True)
class Recording:
    """What happened, in order.

    Attributes:
        entries: Calls, frees, and the end of the setup and of each step.
        roles: What a storage is for (a parameter, a gradient, ...), by its number, where it is not one of a kernel's
            results that come and go.
        holders: The dotted name of the parameter or buffer that a storage holds, or whose gradient or state it is, and
            the optimizer's word for a state (`exp_avg`), else an empty string.
        asks: What the step asks of the GPU, so that it may differ on another.
        derived: What was worked out from calls' arguments, by their identity; shared by recordings that share them.
    """

    entries: Sequence[Entry] = ()
    roles: Mapping[int, str] = field(default_factory=dict)
    holders: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    asks: Asks = Asks.NOTHING
    derived: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def with_entries(self, entries: Sequence[Entry]) -> Recording:
        """The same with other entries."""
        return dataclasses.replace(self, entries=entries)


def sort_frees(entries: Sequence[Entry]) -> list[Entry]:
    """Frees in a row, ordered by number: torch's own order follows addresses, and the allocator does not mind."""
    ordered: list[Entry] = []
    frees: list[Freed] = []
    for entry in entries:
        if type(entry) is Freed:
            frees.append(entry)
            continue
        ordered += sorted(frees)
        frees.clear()
        ordered.append(entry)
    return ordered + sorted(frees)


class NotAffine(Unsupported):
    """Two recordings that cannot be joined: each batch size is recorded separately."""


class Affine(NamedTuple):
    """`start + slope * (batch - first)`."""

    start: int
    slope: int


_families = itertools.count()


@dataclass(frozen=True, slots=True)
class Column:
    """Two recordings as one, for every batch size.

    Attributes:
        first: The batch size that `start` values are of.
        recording: With `Affine` where numbers grow with the batch.
        varying: Places of the entries that hold any.
        family: The same for columns that share their calls' arguments, so that these are evaluated once.
    """

    first: int
    recording: Recording
    varying: Sequence[int]
    family: int = field(default_factory=lambda: next(_families), compare=False)

    def at(self, batch_size: int) -> Recording:
        """The recording at a batch size.

        Raises:
            Unsupported: The batch is smaller than a column serves.
        """
        if batch_size < LEAST_BATCH:
            raise Unsupported(f"traces are joined for batches from {LEAST_BATCH} up; {batch_size} is traced separately")
        entries, distance = list(self.recording.entries), batch_size - self.first
        known, derived = _derived(self.family, distance)
        for place in self.varying:
            entries[place] = _evaluate_entry(entries[place], distance, known)
        return dataclasses.replace(self.recording, entries=entries, derived=derived)


@functools.lru_cache(maxsize=4)
def _derived(family: int, distance: int) -> tuple[dict[int, Any], dict[Any, Any]]:
    """What was evaluated of a family of columns at a batch size, by identity, and what was worked out from that."""
    return {}, {}


def join_column(first: int, one: Recording, second: int, other: Recording) -> Column:
    """Join two recordings of the same case.

    Args:
        first: Batch size of `one`.
        one: A recording.
        second: Batch size of `other`, larger.
        other: Another recording.

    Raises:
        NotAffine: The two differ in structure, so other batch sizes cannot be derived.
    """
    if len(one.entries) != len(other.entries) or one.roles != other.roles:
        raise NotAffine("the step runs differently at another batch size; each is traced separately")
    shared: dict[Any, Any] = {}
    entries = [_join(a, b, second - first, shared) for a, b in zip(one.entries, other.entries, strict=True)]
    varying = [place for place, (entry, old) in enumerate(zip(entries, one.entries, strict=True)) if entry is not old]
    return Column(first, one.with_entries(entries), varying)


def _join(one: Any, other: Any, distance: int, shared: dict[Any, Any]) -> Any:
    """One value from two; equal parts become one object, so that each is evaluated once for a batch size."""
    if one == other and type(one) is type(other):
        return one
    if isinstance(one, tuple) and type(one) is type(other) and len(one) == len(other):
        joined: Any = _like(one, [_join(a, b, distance, shared) for a, b in zip(one, other, strict=True)])
    elif type(one) is int and type(other) is int and (other - one) % distance == 0:
        joined = Affine(one, (other - one) // distance)
    else:
        raise NotAffine(f"the step is not affine in the batch size ({one!r}, {other!r}); each is traced separately")
    return shared.setdefault((type(joined), joined), joined)


def _evaluate_entry(entry: Entry, distance: int, known: dict[int, Any]) -> Entry:
    """An entry at a batch size; see `_evaluate`."""
    if type(entry) is not Call:
        return _evaluate(entry, distance, known)  # type: ignore[no-any-return]
    outputs = [
        Output(storage, _evaluate(nbytes, distance, known), _evaluate(spec, distance, known))
        for storage, nbytes, spec in entry.outputs
    ]
    return Call(entry.operator, _evaluate(entry.arguments, distance, known), tuple(outputs), *entry[3:])


def _evaluate(value: Any, distance: int, known: dict[int, Any]) -> Any:
    """A value at a batch size; `known` holds what was evaluated, by identity, with that."""
    kind = type(value)
    if kind is Affine:
        return value.start + value.slope * distance
    if kind is not tuple and kind is not Spec and not isinstance(value, tuple):
        return value
    found = known.get(id(value))
    if found is None:
        found = known[id(value)] = value, _like(value, [_evaluate(item, distance, known) for item in value])
    return found[1]


def _like(value: tuple[Any, ...], items: Sequence[Any]) -> tuple[Any, ...]:
    """A tuple of the kind of `value`."""
    return tuple(items) if type(value) is tuple else type(value)(*items)


def calls_of(recording: Recording, step: int) -> Iterator[Call]:
    """The calls of one step; 0 is the setup."""
    at = 0
    for entry in recording.entries:
        if type(entry) is StepEnd:
            at = entry.step + 1
        elif type(entry) is Call and at == step:
            yield entry


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """What an estimate needs of a model at one image size.

    Attributes:
        trained: Shapes of the parameters that get gradients, in the model's order.
        parameter_bytes: Of all parameters.
        trained_bytes: Of those that get gradients.
        sample_elements: Numbers in the counted layers' outputs for each sample.
        fixed_elements: Numbers in those outputs that do not grow with the batch (tables of relative positions).
    """

    trained: tuple[tuple[int, ...], ...]
    parameter_bytes: int
    trained_bytes: int
    sample_elements: int
    fixed_elements: int
