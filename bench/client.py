"""The client of child processes: the requests of commands, sweeps and the Python interface, with their time limits.

The parent never imports torch. If everything needed is already recorded, a bare process answers without torch;
otherwise a fork of the server that has torch imported does. A `Launcher` decides which process that is.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.catalog import files
from bench.devices import Device
from bench.devices.calibration import Calibrations
from bench.devices.vendors import formula_alone
from bench.errors import BenchError, BusyError, InfrastructureError
from bench.estimators.kept import any_kept
from bench.folders import account_log
from bench.launchers import Launcher, Outcome, Task
from bench.launchers.local import PRELOAD
from bench.plan import Trial
from bench.probes.host import cpu_model, usable_cores
from bench.records import Case, Choice, Estimate, ImageSpec
from bench.tasks import (
    difference_task,
    estimate_kept_task,
    estimate_task,
    fit_kept_task,
    fit_task,
    guard_task,
    kernels_kept_task,
    kernels_task,
    layers_task,
    models_task,
    place_kept_task,
    place_task,
    recording_task,
    timeline_task,
    trials_task,
    validate_task,
)
from bench.units import counted

if TYPE_CHECKING:
    from bench.estimators.choosing import Placement
    from bench.estimators.fitting import Fit
    from bench.estimators.saving import Saving
    from bench.estimators.timeline import Timeline
    from bench.guard import Guarded
    from bench.validation.estimating import Estimated
    from bench.validation.rows import Measured

START_S = 120.0
"""For a process that reads the machine: it imports torch, from a cold network disk perhaps."""
MODEL_S = 600.0
"""For one answer about somebody's model, from the process's last word on: one estimator on one case, one batch size of
a fit, a timeline, a table of layers, the comparison with a recording."""
RUN_S = 600.0
"""For a few steps on the device, of a case that no configuration gives a limit."""

SILENT_QUESTIONS = 8
"""Time limits without a message after which the process that runs the estimators counts as hanging itself: an estimate
is sent when every estimator has finished, and each may time out twice."""


def estimate_in_child(
    launcher: Launcher,
    cases: Sequence[Case],
    device: str | Device,
    *,
    timeout_s: float = MODEL_S,
    say: Callable[[str], None],
    log: Path,
    log_name: str | None = None,
    workspaces: bool | None = None,
    variables: Mapping[str, str] | None = None,
    heard: Callable[[Mapping[str, str]], None] = lambda lost: None,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[Estimate]:
    """An estimate for each case; if an estimator raises, hangs or dies on one, only its note has the reason.

    Args:
        launcher: Starts the process.
        cases: Each once; estimates arrive in any order.
        device: Name or path of a device file, or a device.
        timeout_s: For one estimator on one case.
        say: Called with a line about each failure.
        log: The file for the process's output, tracebacks included.
        log_name: How notes name the log: its path unless given.
        workspaces: Whether estimates include cuDNN's workspaces; as the environment sets it if None.
        variables: Environment variables that the runs set for themselves, as their protocol has it, in addition to this
            process's environment: `{"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}`, say.
        heard: Called with every estimate that comes: the estimators that were lost on it, and why.
        begin: Called before what takes seconds: before a process with torch is asked for what is not kept.
    """
    workspaces = counts_workspaces() if workspaces is None else workspaces
    todo = {case.key: case for case in cases}
    kept_in = f"; see {log_name or log}"
    said: set[tuple[str, str]] = set()

    def ask_for_all(task: Task, *, bare: bool = False) -> tuple[list[Estimate], str]:
        """What a process made of those to do, and why it made no more."""
        made: list[Estimate] = []

        def listen(news: dict[str, Any]) -> None:
            estimate = Estimate(**news["estimate"])
            case = todo[estimate.case_key]
            _say_new(news["lost"], case, said, lambda line: say(f"{line}{kept_in}"))
            note = f"{estimate.estimate_note}{kept_in}" if news["lost"] else estimate.estimate_note
            made.append(replace(estimate, estimate_note=note))
            heard(news["lost"])

        argument = {
            "cases": list(todo.values()),
            "device": device,
            "workers": os.cpu_count() or 1,
            "timeout_s": timeout_s,
            "workspaces": workspaces,
            "variables": dict(variables or {}),
        }
        silence_s = SILENT_QUESTIONS * timeout_s + START_S
        answer = launcher.run(
            task, argument, timeout_s=silence_s, from_last_word=True, log=log, bare=bare, listen=listen
        )
        for estimate in made:
            del todo[estimate.case_key]
        return made, answer.reason

    if any_kept(cases, device):
        yield from ask_for_all(estimate_kept_task, bare=True)[0]
    if todo:
        begin()
    while todo:
        made, reason = ask_for_all(estimate_task)
        yield from made
        if not made:
            say(f"no estimate for {len(todo)} cases: {reason}{kept_in}")
            for key in todo:
                heard({"estimate": reason})
                yield Estimate(case_key=key, estimate_device=str(device), estimate_note=f"{reason}{kept_in}")
            return


def _say_new(lost: Mapping[str, str], case: Case, said: set[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Say why estimators were lost on a case, each reason once for a model."""
    for name, reason in lost.items():
        if (str(case.model), reason) not in said:
            said.add((str(case.model), reason))
            say(f"no {name} for {case}: {reason}")


def this_cpu() -> Device:
    """The CPU of this machine, as calibrations know it: its model, and the cores that this process may use."""
    from bench.devices import load_device

    return replace(load_device("cpu"), gpu_name=cpu_model() or "CPU", multiprocessors=usable_cores())


def calibrated(device: Device, calibrations: Calibrations) -> Device:
    """A device by name with its calibration, where there is one; a CPU is that of this machine."""
    return calibrations.apply(device, this_cpu() if device.kind == "cpu" else None)


def counts_workspaces() -> bool:
    """Whether estimates include cuDNN's workspaces: unless `BENCH_CUDNN_WORKSPACES` is `off`."""
    return os.environ.get("BENCH_CUDNN_WORKSPACES", "on") != "off"


def estimates_in_order(
    launcher: Launcher,
    cases: Sequence[Case],
    device: str | Device,
    *,
    workspaces: bool,
    say: Callable[[str], None] = lambda line: None,
    heard: Callable[[Mapping[str, str]], None] = lambda lost: None,
    begin: Callable[[], None] = lambda: None,
) -> list[Estimate]:
    """Estimates in the order of `cases`; otherwise as `estimate_in_child`, with a log of the account."""
    with account_log("estimate") as log:
        made = estimate_in_child(
            launcher, cases, device, say=say, log=log, workspaces=workspaces, heard=heard, begin=begin
        )
        by_key = {item.case_key: item for item in made}
    return [by_key[case.key] for case in cases]


def fit_in_child(
    launcher: Launcher,
    case: Case,
    device: str | Device,
    *,
    fraction: float,
    workspaces: bool,
    say: Callable[[str], None] = lambda line: None,
) -> Fit:
    """The batches that a device holds. Raises BenchError where the case cannot be traced."""
    from bench.estimators.fitting import read_fit

    traced: set[int] = set()  # the ends of the context's interval need the same batches once more

    def listen(news: dict[str, Any]) -> None:
        if news["batch_size"] not in traced:
            traced.add(news["batch_size"])
            say(f"tracing batch {news['batch_size']}")

    argument = {"case": case, "device": device, "fraction": fraction, "workspaces": workspaces}
    if any_kept([case], device):
        answer = launcher.run(fit_kept_task, argument, timeout_s=MODEL_S, from_last_word=True, bare=True, listen=listen)
        if answer.outcome is Outcome.ANSWERED and answer.value:
            return read_fit(answer.value)
    return read_fit(ask(launcher, "fit", fit_task, argument, listen=listen))


def placements_in_child(
    launcher: Launcher,
    case: Case,
    devices: Sequence[Device],
    *,
    fraction: float,
    workspaces: bool,
    heard: Callable[[], None] = lambda: None,
    begin: Callable[[int], None] = lambda devices: None,
) -> list[Placement]:
    """A step on each GPU at the batch that is recommended there, in the order of `devices`.

    Those on which neither memory nor speed is estimated have the reason and no process.

    Args:
        launcher: Makes the processes.
        case: The step; its batch size does not matter.
        devices: GPUs, each name once.
        fraction: Of a GPU's memory that the batch may take.
        workspaces: As for `estimate_in_child`.
        heard: Called with every GPU that is answered.
        begin: Called with the number of GPUs before those are asked about that take a process with torch.

    Raises:
        BenchError: The step cannot be traced on any GPU.
    """
    from bench.estimators.choosing import Placement, read_placement

    refused = {device: reason for device in devices if (reason := formula_alone(device))}
    found = {each.name: Placement(each.name, each.power_limit_w, reason=refused[each]) for each in refused}

    def listen(news: dict[str, Any]) -> None:
        if "placement" in news:
            placement = read_placement(news["placement"])
            found[placement.device] = placement
            heard()

    argument = {"case": case, "fraction": fraction, "workspaces": workspaces, "timeout_s": MODEL_S}
    asking = [device for device in devices if device not in refused]
    if any(any_kept([case], device) for device in asking):
        asked = argument | {"devices": asking}
        launcher.run(place_kept_task, asked, timeout_s=MODEL_S, from_last_word=True, bare=True, listen=listen)
    if left := [device for device in asking if device.name not in found]:
        begin(len(left))
        ask(launcher, "choose", place_task, argument | {"devices": left}, listen=listen)
    return [found[device.name] for device in devices]


def saving_in_child(
    launcher: Launcher,
    case: Case,
    device: str | Device,
    *,
    named: Collection[str] = (),
    workspaces: bool,
    say: Callable[[str], None] = lambda line: None,
    heard: Callable[[Mapping[str, str]], None] = lambda lost: None,
    begin: Callable[[int], None] = lambda ways: None,
) -> Saving:
    """The ways to save memory in a step on a GPU, at the case's batch size.

    Args:
        launcher: Makes the processes.
        case: The step as it is.
        device: As for `estimate_in_child`; a GPU.
        named: Axes that are kept as the case has them.
        workspaces: As for `estimate_in_child`.
        say: As for `estimate_in_child`.
        heard: As for `estimate_in_child`.
        begin: Called with the number of ways before those are estimated that are not kept.

    Raises:
        BenchError: The device's memory is unknown, or the step as it is cannot be traced.
    """
    from bench.devices import load_device
    from bench.estimators.saving import Way, choose, list_more_ways, list_ways

    memory = load_device(device).memory_bytes
    if memory is None:
        raise BenchError(f"{device}: its device file lacks memory_bytes")
    more = list_ways(case, named)
    ways, estimates, batch_norm = dict[Case, Way](), list[Estimate](), False
    while more:
        begin_more = functools.partial(begin, len(more))
        estimates += estimates_in_order(
            launcher, list(more), device, workspaces=workspaces, say=say, heard=heard, begin=begin_more
        )
        if not ways:
            batch_norm = _has_batch_norm(launcher, case, device, workspaces=workspaces, traced=estimates[0])
        ways |= more
        saving = choose(ways, estimates, memory, batch_norm=batch_norm)
        more = {way: changes for way, changes in list_more_ways(saving, named).items() if way not in ways}
    return saving


def _has_batch_norm(
    launcher: Launcher, case: Case, device: str | Device, *, workspaces: bool, traced: Estimate
) -> bool:
    """Whether the step of a case that was traced normalises over the batch, from its recording."""
    if traced.trace_peak_allocated_bytes is None:
        return False
    argument = {"case": case, "device": device, "workspaces": workspaces}
    answer = launcher.run(kernels_kept_task, argument, timeout_s=MODEL_S, bare=True)
    found = answer.value.get("operators") or ask(launcher, "fit", kernels_task, argument)["operators"]
    return any("batch_norm" in name for name in found)


def timeline_in_child(launcher: Launcher, case: Case, device: str | Device, *, workspaces: bool) -> Timeline:
    """Memory over a step of the case. Raises BenchError where the case cannot be traced."""
    from bench.estimators.timeline import read_timeline

    argument = {"case": case, "device": device, "workspaces": workspaces}
    return read_timeline(ask(launcher, "timeline", timeline_task, argument))


def layers_in_child(launcher: Launcher, model: Choice, images: ImageSpec) -> dict[str, Any]:
    """The fields of `estimators.layers.ModelLayers`. Raises BenchError."""
    try:
        return ask(launcher, "show", layers_task, {"model": model, "images": images})
    except BenchError as error:
        named = str(error).startswith((model.name, f'model "{model.name}"'))
        raise BenchError(str(error) if named else f"{model}: {error}") from error


def refusals_in_child(
    launcher: Launcher, trials: Sequence[Trial], *, say: Callable[[str], None] = lambda line: None
) -> dict[Trial, str]:
    """Why models cannot take images, for those of the trials that find it; a process that dies ends them early."""
    found: dict[Trial, str | None] = {}

    def ask_for(todo: Sequence[Trial], *, kept: bool) -> None:
        def listen(news: dict[str, Any]) -> None:
            found[todo[news["index"]]] = news["reason"]

        argument = {"trials": todo, "kept": kept}
        with account_log("plan") as log:
            answer = launcher.run(
                trials_task, argument, timeout_s=MODEL_S, from_last_word=True, log=log, bare=kept, listen=listen
            )
        if answer.outcome is not Outcome.ANSWERED:
            say(f"not every model was tried on its images: {answer.reason}")

    ask_for(trials, kept=True)
    if todo := [trial for trial in trials if trial not in found]:
        say(f"trying {counted(len(todo), 'model')} on images that are not of the model's own size or channels")
        ask_for(todo, kept=False)
    return {trial: reason for trial, reason in found.items() if reason}


def use_file(launcher: Launcher, path: Path) -> None:
    """Let this process and its children know the models in a file of the user's; its code runs in a child.

    Raises:
        BenchError: The file cannot be loaded, or has no models: one line, with its path.
    """
    files.check_path(path)
    if files.is_known(path):
        return
    described = files.load_description(path)
    try:
        if described is None:
            described = ask(launcher, "models", models_task, {"path": str(path.absolute())})
            files.keep_description(path, described)
        files.know(path, described)
    except BenchError as error:
        raise BenchError(f"{path}: {error}") from error


def guarded_in_child(
    launcher: Launcher,
    cases: Sequence[Case],
    device: Device,
    *,
    workspaces: bool,
    begin: Callable[[int], None] = lambda cases: None,
    heard: Callable[[], None] = lambda: None,
) -> dict[Case, Guarded | str]:
    """What the guard knows of cases on a GPU: as traced now, or as kept where all that it was read from is the same.

    Args:
        launcher: Makes the process.
        cases: Each once.
        device: A GPU.
        workspaces: As for `estimate_in_child`.
        begin: Called with the number of cases that are not kept, before a process with torch is asked for them.
        heard: Called with every case that comes from there.

    Returns:
        Of each case, or the reason why it cannot be traced.
    """
    from bench.guard import Guarded
    from bench.guard.tracing import keep_traced, load_kept

    found: dict[Case, Guarded | str] = dict(load_kept(cases, device, workspaces=workspaces))
    todo = [case for case in cases if case not in found]
    if not todo:
        return found
    begin(len(todo))

    def listen(news: dict[str, Any]) -> None:
        case = todo[news["index"]]
        if "reason" in news:
            found[case] = news["reason"]
        else:
            found[case] = Guarded.read(news["traced"]["guarded"])
            keep_traced(case, device, news["traced"], workspaces=workspaces)
        heard()

    argument = {"cases": todo, "device": device, "workspaces": workspaces, "timeout_s": MODEL_S}
    reason = ""
    try:
        ask(launcher, "guard", guard_task, argument, listen=listen)
    except InfrastructureError:
        raise
    except BenchError as error:
        reason = str(error)
    return {case: found.get(case, reason or "its process gave no answer") for case in cases}


def difference_in_child(launcher: Launcher, path: Path, *, most: int, workspaces: bool) -> dict[str, Any]:
    """A recording beside the trace of its case: the fields of `estimators.difference.Explanation`.

    Args:
        launcher: Makes the process.
        path: The recording.
        most: Operators to name.
        workspaces: Whether to count cuDNN's workspaces in the trace.

    Raises:
        StoreError: The file is not a recording.
        BenchError: The comparison is refused, or its process died.
    """
    from bench.confined import run_confined

    run_confined(recording_task, str(path))  # any other file is refused before torch is loaded
    argument = {"path": str(path), "most": most, "workspaces": workspaces}
    try:
        return ask(launcher, "explain", difference_task, argument)
    except BenchError as error:
        raise BenchError(f"{path}: {error}") from error


def validate_in_child(
    launcher: Launcher, rows: Sequence[Measured], *, workspaces: bool, heard: Callable[[Estimated], None]
) -> list[Estimated]:
    """An estimate for each row, by line; where a model hangs or kills its process, its rows get the reason instead."""
    from bench.validation.estimating import Estimated, describe, group_rows

    made = list[Estimated]()

    def listen(news: dict[str, Any]) -> None:
        made.append(Estimated(**news["estimated"]))
        heard(made[-1])

    todo = [row for group in group_rows(rows) for row in group]
    while todo:
        argument = {"rows": todo, "workspaces": workspaces}
        answer = launcher.run(validate_task, argument, timeout_s=MODEL_S, from_last_word=True, listen=listen)
        done = {item.line for item in made}
        todo = [row for row in todo if row.line not in done]
        if todo:
            culprit = todo[0].model
            made += [replace(describe(row), note=answer.reason) for row in todo if row.model == culprit]
            todo = [row for row in todo if row.model != culprit]
    return sorted(made, key=lambda item: item.line)


def ask(
    launcher: Launcher,
    command: str,
    task: Task,
    argument: dict[str, Any],
    *,
    listen: Callable[[dict[str, Any]], None] = lambda news: None,
) -> dict[str, Any]:
    """What a task answers that runs somebody's model, within `MODEL_S` of its last word.

    Args:
        launcher: Makes the process.
        command: Names the log of the account that the process prints to.
        task: As in `Job`.
        argument: As in `Job`.
        listen: As in `Job`.

    Raises:
        BenchError: It gave no result; the message has the reason in one line, and the log if there is one.
    """
    with account_log(command) as log:
        answer = launcher.run(task, argument, timeout_s=MODEL_S, from_last_word=True, log=log, listen=listen)
        if answer.outcome is Outcome.ANSWERED:
            return answer.value
        kept = log.exists() and log.stat().st_size and answer.outcome is not Outcome.REFUSED
        raise BenchError(answer.reason + (f"; see {log}" if kept else ""))


def ask_machine(launcher: Launcher, task: Task, argument: dict[str, Any]) -> dict[str, Any]:
    """What a task answers that reads the machine, within `START_S`.

    Raises:
        BenchError: The task refused, with a remedy.
        InfrastructureError: Its process did not start or died; the message says why.
    """
    answer = launcher.run(task, argument, timeout_s=START_S)
    if answer.outcome is Outcome.ANSWERED:
        return answer.value
    if answer.outcome is Outcome.REFUSED:
        raise BenchError(answer.reason)
    if answer.outcome is Outcome.BUSY:
        raise BusyError(answer.reason)
    from bench.launchers.faults import start_fault

    raise InfrastructureError(start_fault(PRELOAD) or f"the worker process does not start: {answer.reason}")
