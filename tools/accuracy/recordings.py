"""Recordings of a real GPU, where there are any."""

from __future__ import annotations

from tools.accuracy.children import ROOT
from tools.accuracy.page import Part

FOLDER = ROOT / "tests" / "recordings"


def recordings_part() -> Part:
    """What recordings there are, by folder."""
    part = Part("Recordings of a real GPU")
    files = sorted(FOLDER.rglob("*.parquet"))
    if not files:
        part.say("None yet: no recording of a GPU is in `tests/recordings/`.")
        return part
    names = sorted({str(path.parent.relative_to(ROOT)) for path in files})
    part.say(*(f"- `{name}`: {sum(path.parent == ROOT / name for path in files)} recordings" for name in names))
    part.say("How far the estimates are from them is in [h200.md](h200.md), by `python tools/real_gpu.py`.")
    return part
