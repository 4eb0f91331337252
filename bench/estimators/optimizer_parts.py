"""One recording of a model for several optimizers: the part of each is recorded apart and put into it.

The forward and backward of a step do not depend on the optimizer: it is handed parameters with gradients, and what it
does lies between the last kernel of the backward and the end of the step. So an optimizer's steps can be recorded over
bare parameters, with gradients that somebody else made, and be put in the place of another's in a whole recording.

That this gives what recording the whole would is checked, not assumed. First the optimizer of the whole recording is
recorded apart too: put back in its own place, it must give the whole recording. Then each part must make nothing before
its first step, free only what it made itself, and let all gradients die between two steps. Whatever differs is recorded
whole. So are steps in which the optimizer works within the backward (`update`), works on what the gradient scaler made
(fp16), or keeps its gradients (`zero_grad`); and optimizers of other packages, which may hook into the backward.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch

from bench import catalog
from bench.estimators.fake_cuda import block_of, spec_of
from bench.estimators.fake_cuda.memory import DTYPES
from bench.estimators.record import CaseTraining, record_case
from bench.estimators.recording import Call, Column, Entry, Freed, Output, Phase, Recording, StepEnd
from bench.estimators.temporaries import Machine
from bench.estimators.tensors import Spec
from bench.records import Case, Choice, Protocol


class Trained(NamedTuple):
    """A parameter after a step.

    Attributes:
        name: Dotted, in the model.
        storage: Its number.
        spec: Of the parameter.
        gradient: Storage and spec; None where it got none.
    """

    name: str
    storage: int
    spec: Spec
    gradient: tuple[int, Spec] | None


Steps = list[list[Trained]]
"""The trained parameters after each step."""


class PartDiffersError(Exception):
    """An optimizer's part does not go in another's place."""


class WholeTraining(CaseTraining):
    """The workload of a case that notes its parameters after each step."""

    def __init__(self, case: Case, device: torch.device, noted: Steps) -> None:
        """Build as `CaseTraining`; `noted` receives the parameters."""
        super().__init__(case, Protocol(), device)
        self._noted = noted

    def step(self) -> None:
        """See `Training`."""
        super().step()
        self._noted.append(_trained(self.model))


class _PartTraining:
    """An optimizer over bare parameters."""

    def __init__(self, case: Case, trained: Sequence[Trained], device: torch.device, noted: Steps) -> None:
        entry, options = catalog.optimizer(case.optimizer.name), case.optimizer.options
        if entry.refuse_reason is not None and entry.refuse_reason([each.spec.shape for each in trained], options):
            raise PartDiffersError
        self.model, self.batch = _Bare(trained, device), ()
        self.optimizer = entry.build(list(self.model.parameters()), **options)
        self._noted = noted

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model()
        self.optimizer.step()
        self._noted.append(_trained(self.model))


class _Bare(torch.nn.Module):
    """Parameters alone; the forward makes their gradients."""

    def __init__(self, trained: Sequence[Trained], device: torch.device) -> None:
        super().__init__()
        self._made = [each.gradient and each.gradient[1] for each in trained]
        for name, _, spec, _ in trained:
            self._parameters[name] = torch.nn.Parameter(_empty(spec, device))  # `register_parameter` refuses dots

    def forward(self) -> None:
        for parameter, gradient in zip(self.parameters(), self._made, strict=True):
            parameter.grad = gradient and _empty(gradient, parameter.device)


def _empty(spec: Spec, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(spec.shape, spec.strides, dtype=DTYPES[spec.dtype], device=device)


def _trained(model: torch.nn.Module) -> list[Trained]:
    return [
        Trained(
            name,
            block_of(parameter),
            spec_of(parameter),
            None if parameter.grad is None else (block_of(parameter.grad), spec_of(parameter.grad)),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


@dataclass(slots=True)
class Whole:
    """A column in which the optimizer's part can be replaced.

    Attributes:
        case: Its case.
        machine: The GPU and torch.
        column: As recorded.
        steps: Its parameters.
        fits: Whether its own part, recorded apart, gives the column again; None before that was tried.
    """

    case: Case
    machine: Machine
    column: Column
    steps: Steps
    fits: bool | None = None

    def serves(self, case: Case, machine: Machine) -> bool:
        """Whether a case differs in nothing but the optimizer, and both work behind the backward only."""
        alike = (replace(case, optimizer=self.case.optimizer), machine) == (self.case, self.machine)
        known = not any(catalog.is_external("optimizer", each.optimizer.name) for each in (case, self.case))
        return alike and known and (case.update, case.zero_grad) == ("step", "none") and case.precision != "fp16"

    def with_optimizer(self, optimizer: Choice) -> Column:
        """The column with another optimizer.

        Raises:
            PartDiffersError: It has to be recorded whole.
            Exception: Whatever the optimizer raises.
        """
        if self.fits is None:
            self.fits = False
            own = _joined(self, *self._record(self.case.optimizer))
            self.fits = own.recording == renumber(self.column.recording)
        if not self.fits:
            raise PartDiffersError
        return _joined(self, *self._record(optimizer))

    def _record(self, optimizer: Choice) -> tuple[Recording, Steps]:
        """The optimizer's part alone, and its parameters."""
        noted: Steps = []
        case = replace(self.case, optimizer=optimizer)
        build = lambda device: _PartTraining(case, self.steps[0], device, noted)  # noqa: E731
        return record_case(case, self.machine, build=build), noted


def renumber(recording: Recording) -> Recording:
    """The same with storages numbered from 1 in the order of their births."""
    numbers = _Numbers()
    entries = [numbers.take(entry) for entry in recording.entries]
    roles, holders = _renamed(recording.roles, numbers.new), _renamed(recording.holders, numbers.new)
    return dataclasses.replace(recording, entries=entries, roles=roles, holders=holders)


Value = TypeVar("Value")


def _renamed(by_storage: Mapping[int, Value], new: Mapping[int, int]) -> dict[int, Value]:
    return {new[storage]: value for storage, value in by_storage.items() if storage in new}


class _Numbers:
    """New numbers of storages, by the old ones; `count` is shared between the recordings that become one."""

    def __init__(self, count: Iterable[int] | None = None) -> None:
        self.new: dict[int, int] = {}
        self._count = iter(count or itertools.count(1))

    def take(self, entry: Entry) -> Entry:
        """The entry under its new numbers."""
        if type(entry) is Freed:  # of a storage without bytes, nobody has seen the birth
            return Freed(self._number(entry.storage))
        if type(entry) is not Call or not entry.outputs:
            return entry
        outputs = tuple([Output(self._number(each.storage), each.nbytes, each.spec) for each in entry.outputs])
        return entry._replace(outputs=outputs)

    def _number(self, storage: int) -> int:
        number = self.new.get(storage)
        if number is None:
            number = self.new[storage] = next(self._count)
        return number


def _joined(whole: Whole, part: Recording, steps: Steps) -> Column:
    """The whole column with the part of an optimizer in the place of its own. Raises PartDiffersError."""
    recording = whole.column.recording
    wholes, parts = _split(recording.entries), _split(part.entries)
    if [_specs(step) for step in steps] != [_specs(step) for step in whole.steps] or len(wholes) != len(parts):
        raise PartDiffersError
    _check_setup(parts[0], steps[0])
    count = itertools.count(1)
    of_whole, of_part = _Numbers(count), _Numbers(count)
    varies = set(whole.column.varying)
    entries: list[Entry] = []
    varying: list[int] = []
    dropped, own = set[int](), set[int]()
    at = 0
    for number, (mine, other) in enumerate(zip(wholes, parts, strict=True)):
        cut = _optimizer_begins(mine) if number else len(mine)
        for place, entry in enumerate(mine[:cut], at):
            if place in varies:
                varying.append(len(entries))
            entries.append(of_whole.take(entry))
        at += len(mine)
        if not number:
            continue
        before = (steps[number - 2], whole.steps[number - 2]) if number > 1 else ([], [])
        tail = _optimizer_begins(other)
        _check_step(mine, cut, before[1], dropped, bare=False)
        _check_step(other, tail, before[0], own, bare=True)
        entries += [of_part.take(entry) for entry in other[tail:]]
    made = Recording(
        entries,
        {**_renamed(recording.roles, of_whole.new), **_renamed(part.roles, of_part.new)},
        {**_renamed(recording.holders, of_whole.new), **_renamed(part.holders, of_part.new)},
        max(recording.asks, part.asks),
    )
    return dataclasses.replace(whole.column, recording=made, varying=varying)


def _split(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    """The setup and each step, with their ends."""
    ends = [0, *(place + 1 for place, entry in enumerate(entries) if type(entry) is StepEnd)]
    return [entries[start:end] for start, end in itertools.pairwise(ends)]


def _specs(trained: Sequence[Trained]) -> list[tuple[str, Spec, Spec | None]]:
    return [(each.name, each.spec, each.gradient and each.gradient[1]) for each in trained]


def _check_setup(part: Sequence[Entry], trained: Sequence[Trained]) -> None:
    """The parameters are made and nothing else."""
    made = [entry for entry in part if type(entry) is Call]
    if len(part) != len(made) + 1 or len(made) != len(trained):
        raise PartDiffersError


def _optimizer_begins(step: Sequence[Entry]) -> int:
    """The place of the optimizer's first kernel, or of the step's end; all kernels behind it are its own."""
    phases = [(place, entry.phase) for place, entry in enumerate(step) if type(entry) is Call]
    begins = next((place for place, phase in phases if phase is Phase.OPTIMIZER), len(step) - 1)
    if any(phase is not Phase.OPTIMIZER for place, phase in phases if place > begins):
        raise PartDiffersError
    return begins


def _check_step(step: Sequence[Entry], begins: int, before: Sequence[Trained], own: set[int], *, bare: bool) -> None:
    """Gradients of the step `before` die ahead of the first kernel; the optimizer alone frees its `own` storages.

    Where the parameters are `bare`, nothing happens ahead of the optimizer but that gradients die and are made.
    """
    kernels = [place for place, entry in enumerate(step[:begins]) if type(entry) is Call]
    gradients = {each.gradient[0] for each in before if each.gradient}
    freed = {entry.storage for entry in step[:begins] if type(entry) is Freed}
    first = {entry.storage for entry in step[: min(kernels, default=begins)] if type(entry) is Freed}
    if not gradients <= first or freed & own or (bare and freed != gradients):
        raise PartDiffersError
    for entry in step[begins:]:
        if type(entry) is Call:
            own.update(output.storage for output in entry.outputs)
        elif type(entry) is Freed and entry.storage not in own:
            raise PartDiffersError
