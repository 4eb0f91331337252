"""The real `bench sweep` with tiny cases: killed at random moments, and met by a second one on another device."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

import bench
from tests import plugins
from tests.chaos.processes import check_gone
from tests.oracle.stub import StubUnavailable, build_stub

ROOT = Path(__file__).parents[2]
RUNS = 8
IMPORT_S = 120.0  # a fork server that still imports torch ends after that, on a busy machine
CONFIG = """
name = "real"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = ["sgd", "adam"]
batch_size = [16, 64]
input = ["synthetic"]
[measure]
repeats = 2
warmup_steps = 1
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""


def kill_command(seed: int, count: int, folder: Path) -> Counter[str]:
    """Kill the command `count` times, resuming each time, a new folder whenever one is finished."""
    generator, done = random.Random(seed), Counter[str]()
    config = folder / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    whole_s = 0.0
    while done["kills"] < count:
        out = folder / f"out-{done['sweeps']}"
        started = time.monotonic()
        while _run(config, out, generator.uniform(0.5, whole_s) if whole_s and done["kills"] < count else None):
            done["kills"] += 1
        whole_s = whole_s or time.monotonic() - started
        frame = bench.load(out)
        if len(frame) != RUNS or set(frame["status"]) != {"ok"} or frame["run_key"].duplicated().any():
            raise AssertionError(f"{out}: {frame[['status', 'reason']]}")
        done["sweeps"] += 1
        done["runs"] += len(frame)
    return done


def _run(config: Path, out: Path, kill_after_s: float | None) -> bool:
    """Run or resume; whether it was killed. What was finished before is there afterwards, byte for byte."""
    before = {path: path.read_bytes() for path in (out / "data" / "runs").glob("*.parquet")}
    command = [sys.executable, "-m", "bench", "sweep", str(config), "--device", "cpu", "--out", str(out), "--no-report"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        family: list[psutil.Process] = []
        try:
            process.wait(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        code = process.wait()
        said.seek(0)
        text = said.read().decode()
    check_gone(*(member.pid for member in family), within_s=IMPORT_S)
    if code not in (0, -9) or "Traceback" in text:
        raise AssertionError(f"left with {code}: {text}")
    if lost := [path.name for path, data in before.items() if not path.exists() or path.read_bytes() != data]:
        raise AssertionError(f"{out}: lost or changed: {lost}")
    return code == -9


def share_devices(seed: int, count: int, folder: Path) -> Counter[str]:
    """A sweep on the CPU and one on the stub driver's GPU in one folder: at once one is refused, in turn both are kept."""
    config, out, done = folder / "c.toml", folder / "out", Counter[str]()
    config.write_text(CONFIG, encoding="utf-8")
    try:
        driver = build_stub(folder / "stub")
    except StubUnavailable as reason:
        return Counter({f"skipped: {reason}": 1})
    stub = {**os.environ, **driver.environment("h200"), "BENCH_CUDNN_WORKSPACES": "off"}
    stub["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), stub.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "bench", "sweep", str(config), "--device", "cpu", "--out", str(out), "--no-report"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / ".lock.holder").exists() and first.poll() is None:
        time.sleep(0.05)
    second = ["sweep", config, "--device", "cuda", "--out", out, "--no-report"]
    refused = plugins.bench(*second, env=stub)
    if refused.returncode != 2 or f"is in use by process {first.pid} on" not in refused.stderr:
        raise AssertionError(f"{refused.returncode}: {refused.stderr}")
    done["refused at once"] += 1
    first.wait()
    after = plugins.bench(*second, env=stub)
    frame = bench.load(out)
    kept = frame[frame["planned"]].groupby("device")["status"].agg(lambda group: sorted(set(group))).to_dict()
    if after.returncode or kept != {"cpu": ["ok"], "cuda": ["ok"]} or len(frame) != 2 * RUNS:
        raise AssertionError(f"{after.returncode}: {kept}\n{after.stderr}")
    done["devices in one folder"] += 2
    return done
