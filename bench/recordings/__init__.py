"""Recordings: what torch's CUDA allocator did in a few steps of a case on a real GPU, one Parquet file each.

    recording = read_recording(path)
    recording.facts.gpu.name, recording.facts.memory_stats[-1]["allocated_bytes.all.peak"]
    recording.actions, recording.addresses, recording.sizes

`bench record` writes them, and `tools/convert_capture.py` converts another recorder's files; any machine can replay
them and compare them with the trace. Without torch. Files may come from other people: they contain numbers and JSON, no
code, and a file that cannot be a recording by size or type is refused before it is read.
"""

from bench.recordings.facts import Facts, GpuFacts, case_of
from bench.recordings.files import ADDRESS_UNIT, FREE_COMPLETED, OOM, OTHER, Recording, read_recording, write_recording
from bench.recordings.pack import STATISTICS, pack_history

__all__ = [
    "ADDRESS_UNIT",
    "FREE_COMPLETED",
    "OOM",
    "OTHER",
    "STATISTICS",
    "Facts",
    "GpuFacts",
    "Recording",
    "case_of",
    "pack_history",
    "read_recording",
    "write_recording",
]
