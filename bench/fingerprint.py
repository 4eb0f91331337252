"""Keys for code: results of different code never pass for repeats of each other."""

from __future__ import annotations

import functools
from pathlib import Path

from bench.records import stable_hash

_PACKAGE = Path(__file__).parent

RUN_CODE = (
    *("worker.py", "workload", "probes/backends", "probes/step_timing.py", "probes/torch_memory.py"),
    "probes/gpu_monitor.py",
)
"""What decides, beside the case's own entries, what a run does and how it is measured."""

ESTIMATE_CODE = ("catalog", "devices", "estimators", "workload")
"""What decides an estimate."""


@functools.cache
def code_key(places: tuple[str, ...]) -> str:
    """16 digits for the text of the package's files and folders named in `places`."""
    texts = {}
    for place in places:
        path = _PACKAGE / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".toml"):
                texts[file.relative_to(_PACKAGE).as_posix()] = file.read_text(encoding="utf-8")
    return stable_hash(texts)
