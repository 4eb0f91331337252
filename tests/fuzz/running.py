"""Reading one input under guard, and keeping every different way in which that goes wrong."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import BenchError
from tests.fuzz import guard
from tests.fuzz.targets import Target

_MEMORY_WORDS = ("malloc of size", "realloc of size", "out of memory", "unable to allocate")


def fault_of(target: Target, data: bytes, scratch: Path) -> tuple[str, str] | None:
    """What is wrong with how `data` is read: a short name, the same for the same fault, and the whole story; None: nothing."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    name = story = ""
    with guard.watch(folder) as broken:
        try:
            target.read(data, folder)
        except BenchError as error:
            text = str(error)
            if any(word in text.casefold() for word in _MEMORY_WORDS):
                name, story = "asks for much memory", text
            elif not text.strip():
                name, story = "empty message", repr(error)
        except (Exception, guard.Violation) as error:  # noqa: BLE001 - whatever it is, it is a finding
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/bench/" in frame.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
            name, story = f"{type(error).__name__} in {place}", traceback.format_exc(limit=-14)
    left = sorted(path.name for path in folder.glob("bench-*"))
    shutil.rmtree(folder, ignore_errors=True)
    if broken:
        return broken[0][:60] if "MiB" not in broken[0] else "memory", f"{broken}\n{story}"
    if left:
        return "leaves files behind", str(left)
    return (name, story) if name else None


@dataclass(slots=True)
class Findings:
    """Different faults, the first input of each kept in a file."""

    folder: Path
    target: str
    seen: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, story: str, data: bytes) -> bool:
        """Take one; returns whether it is new."""
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] > 1:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.target}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        (self.folder / f"{stem}.bin").write_bytes(data)
        (self.folder / f"{stem}.txt").write_text(f"{name}\n\n{story}\n", encoding="utf-8", errors="replace")
        return True
