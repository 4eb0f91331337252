"""Files with the memory of cases as it was accepted: JSON to be kept beside the code and read in its differences.

A file holds each case under its name, sorted, with the environment that it was traced in: versions decide the order of
kernels and the rules of the allocator, so a comparison can say whether they differ. One line of an outline is one line
of the file. Writing replaces the file as a whole, under a lock: processes that write at once lose nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.guard.outline import Outline
from bench.locks import hold, run_lock_path

FORMAT = 1
MOST_BYTES = 1 << 27
_WRITE_WAIT_S = 120.0
_ABOUT = "What training steps take in GPU memory, traced by stepbench. Compare and renew: bench guard, or pytest."


@dataclass(frozen=True, slots=True)
class Guarded:
    """One case as it was traced.

    Attributes:
        case: Its axes as text, and the `device`.
        environment: Versions and settings that decide a trace, beside the model's own code.
        code: 16 digits for the model's own files; empty if it has none.
        outline: Of its step.
        samples_per_s: By the roofline, for information; None if unknown. It is not kept in files.
    """

    case: Mapping[str, str]
    environment: Mapping[str, str]
    code: str
    outline: Outline
    samples_per_s: float | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Guarded:
        """From its fields as JSON carries them. Raises TypeError, ValueError or KeyError of anything else."""
        case, environment, code = fields["case"], fields["environment"], fields["code"]
        texts = [code, *case.values(), *environment.values()]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("not a case")
        speed = fields.get("samples_per_s")
        return cls(dict(case), dict(environment), code, Outline.read(fields), speed)

    def fields(self) -> dict[str, Any]:
        """As `read` takes them, without the speed: in the order of the file, outline last."""
        outline = self.outline
        return {
            "case": dict(self.case),
            "code": self.code,
            "environment": dict(sorted(self.environment.items())),
            "parts": dict(outline.parts),
            "peak_allocated_bytes": outline.peak_allocated_bytes,
            "peak_at": outline.peak_at,
            "peak_reserved_bytes": outline.peak_reserved_bytes,
            "standing": [list(line) for line in outline.standing],
            "step": [list(line) for line in outline.step],
        }


def read_baselines(path: Path) -> dict[str, Guarded]:
    """The cases of a file by name; none if there is no such file.

    Raises:
        StoreError: The file cannot be read, is not one of baselines, or was written by a newer version.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    renew = "Restore it from version control, or delete it and write it anew with --update"
    if b"\n<<<<<<< " in content:
        raise StoreError(f"{path}: has conflict markers of a merge. Take either side, then write it anew with --update")
    try:
        read: Any = json.loads(content) if len(content) <= MOST_BYTES else None
        version = read["format"]
        if type(version) is int and version > FORMAT:
            raise StoreError(f"{path}: format {version} is newer than this version of bench reads ({FORMAT}). Upgrade")
        return {name: Guarded.read(fields) for name, fields in read["cases"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: not a file of memory baselines. {renew}") from error


def update_baselines(path: Path, cases: Mapping[str, Guarded], *, only: Collection[str] | None = None) -> bool:
    """Put cases into a file, which keeps its others; returns whether the file changed.

    Args:
        path: Made if absent, with its folder.
        cases: By name.
        only: The names that stay in the file; all unless given.

    Raises:
        StoreError: It cannot be read or written.
        BusyError: Another process has held it for too long.
    """
    digits = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with hold(run_lock_path(f"baselines-{digits}"), str(path), _WRITE_WAIT_S):
        held = {**read_baselines(path), **cases}
        text = _text({name: item for name, item in held.items() if only is None or name in only})
        try:
            with contextlib.suppress(FileNotFoundError):
                if path.read_text(encoding="utf-8") == text:
                    return False
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, text)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
    return True


def _replace(path: Path, text: str) -> None:
    """Write a file beside it, whole and on the disk, and give it its name."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # as any file that a program writes; mkstemp makes it private
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _text(cases: Mapping[str, Guarded]) -> str:
    """The file: sorted, two spaces a level, and a list of an outline's line on one line."""
    tree = {"about": _ABOUT, "cases": {name: cases[name].fields() for name in sorted(cases)}, "format": FORMAT}
    return "\n".join(_lines(tree, "")) + "\n"


def _lines(value: Any, indent: str) -> list[str]:
    inner = f"{indent}  "
    if isinstance(value, dict) and value:
        blocks = [(f"{inner}{json.dumps(key, ensure_ascii=False)}: ", item) for key, item in value.items()]
        opened, closed = "{", "}"
    elif isinstance(value, list) and value and isinstance(value[0], list):
        blocks = [(inner, item) for item in value]
        opened, closed = "[", "]"
    else:
        return [json.dumps(value, ensure_ascii=False)]
    lines = [opened]
    for number, (start, item) in enumerate(blocks):
        first, *rest = _lines(item, inner)
        lines += [f"{start}{first}", *rest]
        lines[-1] += "," if number < len(blocks) - 1 else ""
    return [*lines, f"{indent}{closed}"]
