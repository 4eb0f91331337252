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

SUFFIX = ".trace"
MOST_BYTES = 1 << 29
MOST_HELD_BYTES = 1 << 27
"""Of one file when expanded; the largest seen is 2 MB."""

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
    path = folder / f"{key}{SUFFIX}"
    try:
        if path.stat().st_uid != os.getuid():
            return None
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(path.read_bytes(), MOST_HELD_BYTES)
        held = _Reader(io.BytesIO(content)).load() if unpacking.eof else None
        os.utime(path)
    except _UNSOUND:
        return None
    return held if _is_whole(held) else None


_UNSOUND = (
    OSError, zlib.error, pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    OverflowError, MemoryError, ImportError, RecursionError,
)  # fmt: skip
"""What reading a file that nobody wrote so may raise; `pickle` promises no one kind."""


def _is_whole(held: object) -> bool:
    if not isinstance(held, Column | Recording):
        return False
    names = ("entries", "roles", *(("first", "varying") if isinstance(held, Column) else ()))
    kinds = {"entries": list, "roles": dict, "first": int, "varying": list}
    return all(isinstance(getattr(held, name, None), kinds[name]) for name in names)


def keep(key: str | None, held: Held) -> None:
    """Keep `held` under `key`; a folder that cannot be written costs the next caller a recording, no more."""
    folder = trace_cache_folder()
    if key is None or folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_room(folder)
        content = zlib.compress(pickle.dumps(held, protocol=5), LEVEL)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as place:
            new = Path(place, key)
            new.write_bytes(content)
            new.replace(folder / f"{key}{SUFFIX}")


def _make_room(folder: Path) -> None:
    """Drop what was used least lately where all together is too large; only what this module wrote."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob(f"{'[0-9a-f]' * 16}{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            found = path.stat()
            files.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
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
