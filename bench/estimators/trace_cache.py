"""Recorded steps on disk: what was recorded once need not be again, on this account, with this code and this torch.

A file is a Python pickle, compressed, of which only this package's few record types are taken back; what is damaged,
foreign or of other code counts as absent. The folder is `~/.cache/bench/traces`, or the environment's
`BENCH_TRACE_CACHE`, which `off` turns off. It is kept under `MOST_BYTES` by dropping what was used least lately.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import pickle
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from bench import catalog, fingerprint
from bench.estimators import recording, tensors, trace_column
from bench.estimators.recording import Recording
from bench.estimators.trace_column import Column
from bench.folders import trace_cache_folder
from bench.plan import image_spec
from bench.records import Case, stable_hash

MOST_BYTES = 1 << 29
LEVEL = 1
"""Of zlib's: 0.5 MB of a ResNet-50 become 50 KB within 10 ms."""

RECORDING_CODE = (
    "estimators/fake_cuda", "estimators/recording.py", "estimators/tensors.py", "estimators/trace.py",
    "estimators/trace_cache.py", "estimators/trace_case.py", "estimators/trace_column.py", "records/case.py",
    "workload",
)  # fmt: skip
"""What decides, beside the case's own entries and torch, what is recorded; temporaries are worked out afterwards."""

_TYPES: dict[tuple[str, str], type] = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (recording.Call, recording.Phase, Recording, tensors.Spec, Column, trace_column.Affine)
}

Held = Column | Recording


def cache_key(case: Case, compute_capability: tuple[int, int], batch_sizes: Sequence[int]) -> str | None:
    """What names a recording of `case` at `batch_sizes`; None where an outside package's code takes part, unseen."""
    entries: tuple[tuple[catalog.Kind, str], ...] = (
        ("model", case.model.name), ("dataset", case.dataset.name), ("optimizer", case.optimizer.name)
    )  # fmt: skip
    if any(catalog.is_external(kind, name) for kind, name in entries):
        return None
    axes = {axis: str(getattr(case, axis)) for axis in ("model", "optimizer", "precision", "memory_format")}
    images = image_spec(case.dataset, case.image_size)
    versions = [importlib.metadata.version(name) for name in ("torch", "torchvision")]
    code = [fingerprint.code_key(RECORDING_CODE), *(catalog.code_key(kind, name) for kind, name in entries)]
    return stable_hash([code, versions, sys.version_info[:2], axes, str(images), compute_capability, list(batch_sizes)])


def load(key: str | None) -> Held | None:
    """What was kept under `key`; None where nothing is, or nothing sound."""
    folder = trace_cache_folder()
    if key is None or folder is None:
        return None
    path = folder / key
    try:
        held = _Reader(io.BytesIO(zlib.decompress(path.read_bytes()))).load()
        os.utime(path)
    except (OSError, zlib.error, pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, AttributeError):
        return None
    return held if isinstance(held, Column | Recording) else None


def keep(key: str | None, held: Held) -> None:
    """Keep `held` under `key`; a folder that cannot be written costs the next caller a recording, no more."""
    folder = trace_cache_folder()
    if key is None or folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
            file.write(zlib.compress(pickle.dumps(held, protocol=5), LEVEL))
        Path(file.name).replace(folder / key)


def _make_room(folder: Path) -> None:
    """Drop the oldest files where all together are too large."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir() if path.is_file())
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


class _Reader(pickle.Unpickler):
    """Takes back the types of a recording and no others: a file never runs code."""

    def find_class(self, module: str, name: str) -> Any:
        kind = _TYPES.get((module, name))
        if kind is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a recording")
        return cast(Any, kind)
