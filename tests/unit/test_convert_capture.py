"""`tools/convert_capture.py`: what a bare script recorded becomes recordings, and what is none is left out with a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.estimators.allocator import Alloc, Event, Free, Mark, replay
from bench.estimators.difference import check_replay
from bench.recordings import OTHER, read_recording

from .made_recordings import GPU, make_recording, stats_of

ROOT = Path(__file__).parents[2]
EVENTS: list[Event] = [Alloc(0, 1000), Mark("0"), Alloc(1, 5 << 20), Free(1), Mark("1"), Alloc(2, 3 << 20)]
DEVICE = {
    "properties": {
        "name": GPU.name,
        "multi_processor_count": 132,
        "major": 9,
        "minor": 0,
        "total_memory": 1 << 37,
        "max_threads_per_multi_processor": 2048,
    },
    "torch": "2.15.0+cu132",
    "cuda": "13.2",
    "cudnn": 92600,
    "smi": "NVIDIA H200, 580.65, rest",
    "flags": {"benchmark": False},
    "sdp": {"flash": True},
    "environment": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"},
}


def line(case: int, **fields: Any) -> dict[str, Any]:
    stats = [stats_of(mark) for mark in replay(EVENTS).marks]
    return {
        "case": case,
        "model": "resnet18",
        "image": [3, 224, 224],
        "classes": 1000,
        "optimizer": "adamw",
        "settings": {"fused": True},
        "batch_size": 8,
        "precision": "bf16",
        "memory_format": "channels_last",
        "status": "ok",
        "free_total_after_context": [1 << 36, 1 << 37],
        "memory_stats": stats,
        **fields,
    }


def write_capture(folder: Path, lines: list[dict[str, Any]], tail: list[tuple[int, int, int]]) -> None:
    recording = make_recording(EVENTS)
    rows = [*zip(recording.actions, recording.addresses, recording.sizes, strict=True), *tail]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    names = ("action", "address", "bytes")
    packed = {f"{item['case']}_{name}": column for item in lines for name, column in zip(names, columns, strict=True)}
    folder.mkdir()
    np.savez_compressed(folder / "events.npz", **packed)
    (folder / "device.json").write_text(json.dumps(DEVICE))
    (folder / "cases.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in lines))


def convert(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "convert_capture.py"), str(folder), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})


def test_cases_become_recordings_of_their_own_loop(tmp_path: Path) -> None:
    settings = {"optimizer": "sgd", "settings": {"momentum": 0.9}}
    lines = [line(0), line(1, **settings), line(2, status="crashed"), line(3, image=[1, 5, 5])]
    write_capture(tmp_path / "capture", lines, [])
    done = convert(tmp_path / "capture", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "case 2 left out: ended crashed" in done.stderr
    assert "case 3 left out: no data set has images of shape (1, 5, 5)" in done.stderr
    found = [read_recording(path) for path in sorted((tmp_path / "out" / "nvidia-h200").iterdir())]
    assert {recording.facts.axes["optimizer"] for recording in found} == {"adamw:fused=true", "sgd_momentum"}
    for recording in found:
        facts = recording.facts
        assert (facts.loop, facts.status, facts.steps) == ("gpu_capture", "ok", 1)
        assert (facts.axes["dataset"], facts.axes["image_size"]) == ("imagenet", 224)
        assert (facts.gpu.driver_version, facts.versions["cudnn"]) == ("580.65", "9.26.0")
        assert facts.variables["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:512"
        assert check_replay(recording).exact


def test_the_request_that_failed_is_found_again(tmp_path: Path) -> None:
    free = replay(EVENTS).final.reserved + (1 << 20)
    item = line(0, status="oom", message="CUDA out of memory", free_total_after_context=[free, 1 << 37])
    write_capture(tmp_path / "capture", [item], [(OTHER, 0, 1 << 34), (1, 0, 1000), (2, 0, 1000)])
    assert convert(tmp_path / "capture", tmp_path / "out").returncode == 0
    (path,) = (tmp_path / "out" / "nvidia-h200").iterdir()
    check = check_replay(read_recording(path))
    assert check.exact, check.parting


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    done = convert(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "not what gpu_capture.py writes" in done.stderr
    assert "Traceback" not in done.stderr
