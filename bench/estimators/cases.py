"""Every estimator on a list of cases: what a row of the store holds beside its measurement.

A model, an optimizer or a data set may come from anybody and do anything. So each estimator of each case is a question
of its own: what raises, hangs or dies leaves that question without an answer, and its reason in the case's note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import catalog
from bench.devices import Device, load_device
from bench.devices.vendors import formula_alone, unlisted
from bench.errors import BenchError, Unsupported, describe_failure
from bench.estimators.collector import collector_off
from bench.estimators.formula import estimate_formula
from bench.estimators.kept import only_kept, recorded_on, recording_of
from bench.estimators.memory import Target, estimate_trace, workspaces_of
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.roofline import count_flops, estimate_speed, kernels_of
from bench.forks import Lost, Work, work_apart, write_traceback
from bench.plan import image_spec
from bench.records import Case, Estimate, ImageSpec, join_notes

SHARED_FROM = 3
"""Batch sizes of one column from which two recordings for all of them are cheaper than one for each."""


@dataclass(frozen=True, slots=True)
class Question:
    """One estimator on one case.

    Attributes:
        case: Any.
        estimator: A name of `_ESTIMATORS`.
        shared: Whether other batch sizes of the case are asked for too.
    """

    case: Case
    estimator: str
    shared: bool = False

    def __str__(self) -> str:
        """What is asked, for people."""
        return f"{self.estimator} of {self.case}"


@dataclass(frozen=True, slots=True)
class Named:
    """What estimates are for, by the name that was given for it.

    Attributes:
        name: Of a device.
        device: A GPU of NVIDIA or a calibrated CPU; None if it is neither, or nothing is known of it.
        workspaces: Whether the trace counts cuDNN's workspaces.
        notes: What is to be said of every estimate.
    """

    name: str
    device: Device | None
    workspaces: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, device: str | Device, *, workspaces: bool) -> Named:
        """The target of a device, of the name of a device file, or of the path of one."""
        try:
            known = load_device(device)
        except BenchError as error:
            other = unlisted(str(device))
            reason = formula_alone(other) if other else None
            return cls(str(device), None, workspaces, (reason or str(error),))
        if reason := formula_alone(known):
            return cls(str(device), None, workspaces, (reason,))
        if not known.is_gpu:
            return cls(str(device), known if known.calibration else None, workspaces)
        note = settings_in_force().unknown_total(known.name) if known.memory_bytes is None else None
        return cls(str(device), known, workspaces, (note,) if note else ())

    def target(self, case: Case) -> Target:
        """With the settings in force; torch may be asked for them, so each estimator does so for itself."""
        assert self.device is not None
        return Target.of(recorded_on(self.device), workspaces=self.workspaces, allocator=case.allocator)


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: fields of `Estimate`, and what is to be noted beside them."""

    fields: dict[str, Any]
    note: str | None = None


def estimate_apart(
    cases: Sequence[Case], device: str | Device, *, workers: int, timeout_s: float, workspaces: bool = True
) -> Iterator[tuple[Estimate, dict[str, str]]]:
    """Estimates in an order of their own, made in forks of this process; those of one model come together.

    Args:
        cases: As for `estimate_cases`.
        device: As for `estimate_cases`.
        workers: How many forks at a time.
        timeout_s: For one estimator on one case.
        workspaces: As for `estimate_cases`.

    Returns:
        Each with the estimators that were lost, and why.
    """
    named = Named.of(device, workspaces=workspaces)
    open_: dict[Case, dict[str, Found | Lost]] = {case: {} for case in cases}
    asked = Counter(question.case for question in _questions(cases, named))
    work: Work[Question] = Work(
        do=lambda question, alone: _answer(replace(question, shared=question.shared and not alone), named),
        shares=lambda question: question.shared,
        kin=lambda question: (question.case.model, question.case.optimizer, question.estimator),
        describe=str,
        timeout_s=timeout_s,
    )
    for question, answer in work_apart(work, _groups(_questions(cases, named)), workers):
        open_[question.case][question.estimator] = answer
        if len(open_[question.case]) == asked[question.case]:
            answers = open_.pop(question.case)
            lost = {name: found.reason for name, found in answers.items() if isinstance(found, Lost)}
            yield _estimate(question.case, named, answers), lost


def estimate_cases(cases: Sequence[Case], device: str | Device, *, workspaces: bool = True) -> Iterator[Estimate]:
    """Estimates one by one in the order of `cases`, in this process: for code that can be trusted with it.

    One that is refused, or that raises, has nulls and the reason in its note.

    Args:
        cases: Any number, each once; models are built without memory.
        device: The name of a device file, the path of one, or a device. On a CPU that is not calibrated, on
            a GPU that is not NVIDIA's, and for a name that no file has, only the formula gives numbers.
        workspaces: Whether the trace counts cuDNN's workspaces.
    """
    named = Named.of(device, workspaces=workspaces)
    answers: dict[Case, dict[str, Found | Lost]] = {}
    for question in _questions(cases, named):
        try:
            found: Found | Lost = _answer(question, named)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is its own case's outcome
            write_traceback(error)
            found = Lost(describe_failure(error))
        answers.setdefault(question.case, {})[question.estimator] = found
        if question.estimator == _estimators_of(named)[-1]:
            yield _estimate(question.case, named, answers.pop(question.case))


def estimate_kept(cases: Sequence[Case], device: str | Device, *, workspaces: bool = True) -> Iterator[Estimate]:
    """The estimates, in the order of `cases`, that follow from what is kept alone: in milliseconds, without torch.

    A case of which anything would have to be recorded, or whose code raises, is left out: it is asked elsewhere.
    Arguments are those of `estimate_cases`.
    """
    named = Named.of(device, workspaces=workspaces)
    with only_kept():
        for case in cases:
            try:
                answers: dict[str, Found | Lost] = {
                    name: _answer(Question(case, name), named) for name in _estimators_of(named)
                }
            except Exception:  # noqa: BLE001 - `NotKept`, or what a child that can be watched is to find out
                continue
            yield _estimate(case, named, answers)


def _estimators_of(named: Named) -> tuple[str, ...]:
    if named.device is None:
        return ("formula",)
    return tuple(name for name in _ESTIMATORS if name != "trace" or named.device.is_gpu)


def _questions(cases: Iterable[Case], named: Named) -> list[Question]:
    columns = Counter(map(_column_key, cases))
    return [
        Question(case, name, shared=name != "formula" and columns[_column_key(case)] >= SHARED_FROM)
        for case in cases
        for name in _estimators_of(named)
    ]


def _column_key(case: Case) -> Case:
    """What cases share that differ in nothing but the batch size and the data path."""
    return replace(case, batch_size=1, input="synthetic")


def _groups(questions: Iterable[Question]) -> list[list[Question]]:
    """Those whose convolutions and kernels are alike, so that both are worked out once; the largest groups first.

    In each the batch sizes follow each other, since what is worked out is kept for a few of them only.
    """
    groups: dict[tuple[object, ...], list[Question]] = {}
    for question in questions:
        case = question.case
        name = (
            *(case.model, case.dataset, case.image_size, case.precision, case.memory_format),
            *(case.accumulation, case.checkpointing),
        )
        groups.setdefault(name, []).append(question)
    ordered = [sorted(group, key=lambda question: question.case.batch_size) for group in groups.values()]
    return sorted(ordered, key=len, reverse=True)


def _answer(question: Question, named: Named) -> Found:
    """What an estimator says; a refusal is an answer too.

    Raises:
        Exception: Whatever the case's model, optimizer or data set raises.
    """
    try:
        images = image_spec(question.case.dataset, question.case.image_size)
        with collector_off():
            return _ESTIMATORS[question.estimator](question, named, images)
    except BenchError as error:
        return Found({}, str(error))


def _formula(question: Question, named: Named, images: ImageSpec) -> Found:
    return Found(estimate_formula(question.case, images))


def _trace(question: Question, named: Named, images: ImageSpec) -> Found:
    target = named.target(question.case)
    made = estimate_trace(question.case, target, shared=question.shared)
    sizes = workspaces_of(question.case, target, shared=question.shared) if target.workspaces else ()
    assumption = catalog.optimizer(question.case.optimizer.name).assumption
    return Found(made, join_notes(sizes if isinstance(sizes, str) else None, assumption))


def _speed(question: Question, named: Named, images: ImageSpec) -> Found:
    assert named.device is not None
    recording = recording_of(question.case, named.target(question.case).machine, shared=question.shared)
    peak = named.device.peak_flop_per_s(question.case.precision)
    try:
        speed = estimate_speed(recording, question.case, named.device)
    except Unsupported as error:  # of the device: what the step computes is known all the same
        return Found({"step_flop": round(count_flops(kernels_of(recording))), "peak_flop_per_s": peak}, str(error))
    return Found(
        {
            "step_flop": round(speed.flops),
            "peak_flop_per_s": peak,
            "least_step_time_s": speed.least_time_s,
            "estimated_step_time_s": speed.step_time_s,
            "estimated_samples_per_s": speed.samples_per_s,
            "estimated_samples_per_s_low": speed.samples_per_s_low,
            "estimated_samples_per_s_high": speed.samples_per_s_high,
            "estimated_speed_basis": speed.basis,
        }
    )


_ESTIMATORS: dict[str, Callable[[Question, Named, ImageSpec], Found]] = {
    "formula": _formula,
    "trace": _trace,
    "speed": _speed,
}


def _estimate(case: Case, named: Named, answers: dict[str, Found | Lost]) -> Estimate:
    """The answers as one estimate; estimators that were lost for the same reason are named together."""
    fields: dict[str, Any] = {}
    notes: list[str | None] = list(named.notes)
    lost: dict[str, list[str]] = {}
    for name in _estimators_of(named):
        answer = answers[name]
        if isinstance(answer, Lost):
            lost.setdefault(answer.reason, []).append(name)
        else:
            fields |= answer.fields
            notes.append(answer.note)
    notes += [f"no {_either(names)}: {reason}" for reason, names in lost.items()]
    return replace(Estimate(case_key=case.key, estimate_device=named.name), estimate_note=join_notes(*notes), **fields)


def _either(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
