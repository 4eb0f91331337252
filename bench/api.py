"""Work of the commands in a child process: estimates, fits and everything else that runs a user's model.

The parent never imports torch. If everything needed is already recorded, a bare process answers without torch;
otherwise a fork of the server that has torch imported does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.devices import Device
from bench.errors import BenchError
from bench.estimators.kept import any_kept
from bench.folders import account_log
from bench.launchers import Answer, LocalLauncher, Outcome
from bench.launchers.tasks import estimate_kept_task, estimate_task, fit_kept_task, fit_task
from bench.records import Case, Estimate

FIT_TIMEOUT_S = 600.0  # for one batch size
SILENT_QUESTIONS = 8
"""Time limits without a message after which the process that runs the estimators counts as hanging itself: an estimate
is sent when every estimator has finished, and each may time out twice."""
START_S = 60.0  # for the process to come up


def estimate_in_child(
    launcher: LocalLauncher,
    cases: Sequence[Case],
    device: str | Device,
    *,
    timeout_s: float,
    say: Callable[[str], None],
    log: Path,
    log_name: str | None = None,
    workspaces: bool | None = None,
    variables: Mapping[str, str] | None = None,
    heard: Callable[[], None] = lambda: None,
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
        heard: Called with every estimate that arrives.
    """
    todo = {case.key: case for case in cases}
    kept_in = f"; see {log_name or log}"
    said: set[tuple[str, str]] = set()
    answer: Answer | None = None
    task = estimate_kept_task if any_kept(cases, device) else estimate_task
    while todo:
        made: list[Estimate] = []

        def listen(news: dict[str, Any], made: list[Estimate] = made) -> None:
            estimate = Estimate(**news["estimate"])
            case = todo[estimate.case_key]
            for name, reason in news["lost"].items():
                if (str(case.model), reason) not in said:
                    said.add((str(case.model), reason))
                    say(f"no {name} for {case}: {reason}{kept_in}")
            note = estimate.estimate_note
            made.append(replace(estimate, estimate_note=f"{note}{kept_in}") if news["lost"] else estimate)
            heard()

        argument = {
            "cases": list(todo.values()),
            "device": device,
            "workers": os.cpu_count() or 1,
            "timeout_s": timeout_s,
            "workspaces": counts_workspaces() if workspaces is None else workspaces,
            "variables": dict(variables or {}),
        }
        silence_s = SILENT_QUESTIONS * timeout_s + START_S
        bare = task is estimate_kept_task
        answer = launcher.run(
            task, argument, timeout_s=silence_s, from_last_word=True, log=log, bare=bare, listen=listen
        )
        yield from made
        for estimate in made:
            del todo[estimate.case_key]
        if not made and not bare:
            break
        task = estimate_task
    if todo and answer is not None:
        say(f"no estimate for {len(todo)} cases: {answer.reason}{kept_in}")
        note = f"{answer.reason}{kept_in}"
        yield from (Estimate(case_key=key, estimate_device=str(device), estimate_note=note) for key in todo)


def counts_workspaces() -> bool:
    """Whether estimates include cuDNN's workspaces: unless `BENCH_CUDNN_WORKSPACES` is `off`."""
    return os.environ.get("BENCH_CUDNN_WORKSPACES", "on") != "off"


def fit_in_child(
    launcher: LocalLauncher,
    case: Case,
    device: str | Device,
    fraction: float,
    say: Callable[[str], None],
    *,
    workspaces: bool,
) -> dict[str, Any]:
    """The fields of `estimators.fitting.Fit` as a JSON object. Raises BenchError if the case cannot be traced."""

    def listen(news: dict[str, Any]) -> None:
        say(f"tracing batch {news['batch_size']}")

    argument = {"case": case, "device": device, "fraction": fraction, "workspaces": workspaces}
    if any_kept([case], device):
        answer = launcher.run(
            fit_kept_task, argument, timeout_s=FIT_TIMEOUT_S, from_last_word=True, bare=True, listen=listen
        )
        if answer.outcome is Outcome.ANSWERED and answer.value:
            return answer.value
    return ask_child(launcher, "fit", fit_task, argument, timeout_s=FIT_TIMEOUT_S, listen=listen)


def ask_child(
    launcher: LocalLauncher,
    command: str,
    task: Callable[..., dict[str, Any]],
    argument: dict[str, Any],
    *,
    timeout_s: float,
    listen: Callable[[dict[str, Any]], None] = lambda news: None,
) -> dict[str, Any]:
    """The result of a task that runs a user's model for a command; its output goes to a log of the account.

    Args:
        launcher: Makes the process.
        command: Names the log.
        task: As for `LocalLauncher.run`.
        argument: As for `LocalLauncher.run`.
        timeout_s: Counted from its last message.
        listen: As for `LocalLauncher.run`.

    Raises:
        BenchError: It gave no result; the message has the reason in one line, and the log if there is one.
    """
    with account_log(command) as log:
        answer = launcher.run(task, argument, timeout_s=timeout_s, from_last_word=True, log=log, listen=listen)
        if answer.outcome is Outcome.ANSWERED:
            return answer.value
        kept = log.exists() and log.stat().st_size and answer.outcome is not Outcome.REFUSED
        raise BenchError(answer.reason + (f"; see {log}" if kept else ""))
