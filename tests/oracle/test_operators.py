"""Models of one operator each: the trace equals torch's real allocator to the byte, or says why it has no number."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import warm

from .devices import DEVICES
from .stub import StubDriver

HERE = Path(__file__).parent
OpCase = tuple[str, str, str]
GROUPS = ("activations", "reductions", "shapes", "sampling", "products", "attention", "layers", "segments")
WITHOUT_NUMBER = {
    **dict.fromkeys(("item", "boolean_mask", "nonzero", "branch", "to_host", "unique", "product"), "reads values"),
    **dict.fromkeys(("fourier", "fourier_real"), "cuFFT decides"),
    **dict.fromkeys(("lstm", "lstm_both_ways", "gru", "rnn"), "cuDNN decides"),
    **dict.fromkeys(
        ("inverse", "solve", "cholesky", "eigenvalues", "singular_values", "qr", "determinant"), "cuSOLVER decides"
    ),
    "sort_long": "scratch",
}
"""Operators that no trace can follow, and words of the reason."""


def traced(cases: list[OpCase], device: str, folder: Path) -> list[dict[str, Any]]:
    """What the trace says of each case."""
    played = DEVICES[device]
    machine = [
        played["multiprocessors"],
        played["threads_per_multiprocessor"],
        [played["capability_major"], played["capability_minor"]],
        played["memory_bytes"],
    ]
    task = folder / "trace.json"
    task.write_text(json.dumps({"cases": cases, "device": machine, "operators": True}))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = warm.run([str(task)], environment, script=HERE / "trace_task.py", loaded_with=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def allocated(cases: list[OpCase], device: str, folder: Path, driver: StubDriver) -> list[dict[str, Any]]:
    """What the real allocator says of each case."""
    task = folder / "truth.json"
    task.write_text(json.dumps(cases))
    printed = driver.run_script(HERE / "operators.py", [task], device=device)
    return [json.loads(line) for line in printed.splitlines()]


def check(cases: list[OpCase], device: str, folder: Path, driver: StubDriver) -> None:
    """Compare both, and the reasons of those without a number with what is expected."""
    found = dict(zip(cases, traced(cases, device, folder), strict=True))
    reasons = {case: answer["reason"] for case, answer in found.items() if "reason" in answer}
    assert {case[0] for case in reasons} == {case[0] for case in cases} & set(WITHOUT_NUMBER)
    for case, reason in reasons.items():
        assert WITHOUT_NUMBER[case[0]] in reason, case
    numbered = [case for case in cases if case not in reasons]
    truths = dict(zip(numbered, allocated(numbered, device, folder, driver), strict=True))
    assert {case: found[case] for case in numbered} == truths


@pytest.mark.parametrize("group", GROUPS)
def test_every_operator_is_exact_or_has_a_reason(stub_driver: StubDriver, tmp_path: Path, group: str) -> None:
    from . import operators

    assert set(operators.GROUPS) == set(GROUPS)
    check(operators.cases_of(group), "h200", tmp_path, stub_driver)


@pytest.mark.slow
def test_the_sweep_has_every_operator_that_vision_models_call() -> None:
    """The list is `called.py`'s, of the libraries' versions in its first lines."""
    import torch

    from . import operators
    from .called import CalledOperators, listed

    swept = CalledOperators()
    for case in (case for group in GROUPS for case in operators.cases_of(group)):
        if case[1] == "float32":
            training = operators.Training(case, torch.device("meta"))
            with swept, contextlib.suppress(RuntimeError, NotImplementedError):  # of those that read values
                training.step()
    assert {name: libraries for name, libraries in listed().items() if name not in swept.names} == {}


@pytest.mark.parametrize("device", ["a100-40gb", "rtx3090"])
def test_attention_is_exact_where_kernels_are_others(stub_driver: StubDriver, tmp_path: Path, device: str) -> None:
    from . import operators

    check(operators.cases_of("attention"), device, tmp_path, stub_driver)
