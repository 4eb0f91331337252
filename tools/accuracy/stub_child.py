"""The project's training step on torch's real allocator, under the stub driver: `python stub_child.py TASK.json`.

Each item is the axes of a case, which runs in a process forked from one that has torch loaded and CUDA untouched.
Prints `[index, answer]` for each: the allocator's peaks in bytes (see `run`); `{"oom": true}`; or
`{"impossible": reason}` where torch refuses the step. Random numbers are not drawn: the stub's copies move zeros
whatever they are.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision.models  # noqa: F401  loaded before the forks, so that it is loaded once

from bench import catalog
from bench.errors import Unsupported
from bench.plan import image_spec
from bench.records import Case, Protocol
from bench.records.variables import allocator_variables
from bench.workload import build_workload, numeric_modes
from bench.workload.inputs import build_inputs
from tests.oracle.step import directions_kept
from tools.accuracy.cases import case_of

STEPS = 3


def leave_values_alone() -> None:
    """Skip the drawing of random numbers, which takes most of the time and decides nothing here."""
    for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    torch.randn = lambda *shape, generator=None, **options: torch.empty(*shape, **options)


def run(case: Case) -> dict[str, Any]:
    """The case's peaks in bytes: of two steps after the usual warm-up, and (`early_`) of the second and third step."""
    protocol, device = Protocol(), torch.device("cuda", 0)
    os.environ |= allocator_variables(case.allocator, os.environ)
    torch.cuda.init()  # type: ignore[no-untyped-call]
    found: dict[str, Any] = {}
    with numeric_modes(case, protocol), directions_kept():
        workload = build_workload(case, image_spec(case.dataset, case.image_size), protocol, device)
        inputs = build_inputs(case, catalog.describe_dataset(case.dataset), protocol, device)
        for number in range(1, protocol.warmup_steps + 3):
            workload.step(inputs)
            if number == STEPS:
                found |= read_peaks("early_")
            if number in (1, protocol.warmup_steps):
                torch.cuda.reset_peak_memory_stats()
    return found | read_peaks("")


def read_peaks(prefix: str) -> dict[str, int]:
    """The peaks in bytes since the last reset."""
    stats = torch.cuda.memory_stats()
    return {f"{prefix}{name}": stats[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")}


def answer_each(find: Callable[[Any], dict[str, Any]]) -> None:
    """Print `[index, answer]` for each item of the task, each found in a forked child; one that dies has `failed`."""
    leave_values_alone()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "answer.json")
        for index, item in enumerate(json.loads(Path(sys.argv[1]).read_text())):
            status = _find_apart(find, item, place)
            answer = json.loads(place.read_text()) if status == 0 else {"failed": f"ended with wait status {status}"}
            print(json.dumps([index, answer]), flush=True)  # noqa: T201


def _find_apart(find: Callable[[Any], dict[str, Any]], item: Any, place: Path) -> int:
    """Write the answer in a forked child; returns its wait status."""
    child = os.fork()
    if not child:
        code = 1
        try:
            place.write_text(json.dumps(find(item)))
            code = 0
        except BaseException:  # noqa: BLE001  a forked child must not return into the parent's code
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def answer(item: Any) -> dict[str, Any]:
    """The peaks of a case, or why there are none."""
    try:
        return run(case_of(item))
    except torch.cuda.OutOfMemoryError:
        return {"oom": True}
    except (ValueError, Unsupported) as error:
        return {"impossible": str(error)}


if __name__ == "__main__":
    answer_each(answer)
