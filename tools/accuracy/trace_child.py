"""The trace estimate of some cases: `python trace_child.py TASK.json`.

Each item is `[axes of a case, device, workspaces]`; prints `[index, answer]`: the peaks of a settled step in bytes,
or `{"refused": reason}`, also where the step cannot run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.devices import load_device
from bench.errors import BenchError
from bench.estimators.memory import Target, trace_peaks
from tools.accuracy.cases import case_of


def estimate(axes: dict[str, Any], device: str, workspaces: bool) -> dict[str, Any]:
    """The estimate of one case."""
    try:
        case = case_of(axes)
        target = Target.of(load_device(device), workspaces=workspaces, allocator=case.allocator)
        peaks = trace_peaks(case, target)
    except (BenchError, ValueError) as error:  # torch refuses to normalise one value a channel with a ValueError
        return {"refused": str(error)}
    return {"requested": peaks.requested_bytes, "allocated": peaks.allocated_bytes, "reserved": peaks.reserved_bytes}


def main() -> None:
    """Estimate every case of the task."""
    for index, item in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        print(json.dumps([index, estimate(*item)]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
