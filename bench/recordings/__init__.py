"""Recordings: what torch's CUDA allocator did in a few steps of a case on a real GPU, one Parquet file each.

    recording = read_recording(path)
    recording.facts.gpu.name, recording.facts.memory_stats[-1]["allocated_bytes.all.peak"]
    recording.actions, recording.addresses, recording.sizes

`bench record` makes them, `tools/convert_capture.py` makes them of another recorder's files; every machine can replay
them and compare them with the trace. Free of torch. Files come from other people: they hold numbers and JSON, nothing
that runs, and whatever is larger or other than a recording can be is refused before it is read.
"""

from bench.recordings.facts import Facts, GpuFacts, case_of
from bench.recordings.files import FREE_COMPLETED, OOM, OTHER, Recording, read_recording, write_recording
from bench.recordings.pack import STATISTICS, pack_history

__all__ = [
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
