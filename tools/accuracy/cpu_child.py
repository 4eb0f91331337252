"""Real steps on the CPU beside their traces: `python cpu_child.py TASK.json`.

Each item is the axes of a case; prints `[index, answer]` with the bytes by the run and by the trace (see
`tests.oracle.cpu_profile`): before the first step and after each, and the highest of each step.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.oracle.cpu_profile import compare_on_cpu
from tools.accuracy.cases import case_of


def main() -> None:
    """Run every case of the task."""
    for index, axes in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        run, trace = compare_on_cpu(case_of(axes))
        print(json.dumps([index, {"run": asdict(run), "trace": asdict(trace)}]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
