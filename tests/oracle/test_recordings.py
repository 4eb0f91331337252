"""`bench record` under the stub driver, and recordings of real GPUs: the replay is exact, the trace says the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.launchers import LocalLauncher, Outcome
from bench.recordings import FREE_COMPLETED, Recording, read_recording, write_recording
from bench.recordings.files import MARK
from bench.tasks import difference_task
from tests import plugins

from .stub import StubDriver

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REAL = sorted((ROOT / "tests" / "recordings").rglob("*.parquet"))
MEMORY_BYTES = 260_000_000  # room for the two small cases and not for the third
CONFIG = """
name = "recorded"
[grid]
dataset = "cifar10"
model = "resnet18"
optimizer = "sgd_momentum"
batch_size = [16, 1024]
precision = "bf16"
[[include]]
reason = "the founding model"
model = "mlp"
optimizer = "adam"
batch_size = 64
precision = "float32"
"""


def explain(path: Path, *, workspaces: bool = False) -> dict[str, Any]:
    """Without cuDNN's workspaces unless asked for: the stub driver has none."""
    argument = {"path": str(path), "most": 10, "workspaces": workspaces}
    answer = LocalLauncher().run(difference_task, argument, timeout_s=240)
    assert answer.outcome is Outcome.ANSWERED, answer.reason
    return answer.value


def peaks_parting(found: dict[str, Any]) -> dict[str, float]:
    """By how much of the recorded peak the trace is off."""
    return {name: found["trace"][name] / value - 1 for name, value in found["recorded"].items()}


@pytest.mark.skipif(not REAL, reason="no recordings of real GPUs under tests/recordings")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_real_gpus_recording_replays_exactly(path: Path, record_property: Any) -> None:
    found = explain(path, workspaces=True)
    record_property("trace_error", json.dumps(peaks_parting(found) if found["trace"] else None))
    assert found["replay"]["exact"], found["replay"]["parting"]


def environment(driver: StubDriver, tmp: Path, **settings: int) -> dict[str, str]:
    return {**driver.environment("h200", **settings), "PYTHONPATH": str(ROOT), "BENCH_LOCK_DIR": str(tmp / "locks")}


@pytest.fixture(scope="module")
def recorded(
    stub_driver: StubDriver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder and the JSON answer of one `bench record`."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "c.toml").write_text(CONFIG, encoding="utf-8")
    env = environment(stub_driver, folder, memory_bytes=MEMORY_BYTES)
    done = plugins.bench("record", folder / "c.toml", "--out", folder / "out", "--json", env=env)
    assert done.returncode == 0, done.stderr
    yield folder, json.loads(done.stdout)


def files_of(recorded: tuple[Path, dict[str, Any]]) -> dict[str, Path]:
    return {f"{row['model']}-{row['batch_size']}": Path(row["file"]) for row in recorded[1]["cases"]}


def test_every_case_becomes_a_small_file_and_out_of_memory_is_one(recorded: tuple[Path, dict[str, Any]]) -> None:
    answer = recorded[1]
    assert answer["counts"] == {"ok": 2, "oom": 1}
    status = {f"{row['model']}-{row['batch_size']}": row["status"] for row in answer["cases"]}
    assert status == {"resnet18-16": "ok", "resnet18-1024": "oom", "mlp-64": "ok"}
    for path in files_of(recorded).values():
        assert 1000 < path.stat().st_size < 30_000
        facts = read_recording(path).facts
        assert (facts.gpu.name, facts.gpu.multiprocessors, facts.gpu.compute_capability) == ("NVIDIA H200", 132, [9, 0])
        assert facts.memory["free_after_context"] == MEMORY_BYTES
        assert facts.versions["torch"] and facts.versions["cudnn"] and facts.switches["cudnn_benchmark"] is False
        assert (facts.steps, facts.at_failure is None) == ((3, True) if facts.status == "ok" else (0, False))
    assert sorted(path.name for path in (recorded[0] / "out").iterdir() if path.suffix != ".parquet") == [".lock"]


@pytest.mark.parametrize("name", ["mlp-64", "resnet18-16", "resnet18-1024"])
def test_replay_is_exact_and_nothing_differs_from_the_trace(recorded: tuple[Path, dict[str, Any]], name: str) -> None:
    found = explain(files_of(recorded)[name])
    assert found["replay"] == {"exact": True, "marks": 2 if name == "resnet18-1024" else 4, "parting": None}
    assert found["trace"] == found["recorded"]
    assert (found["differences"], found["partings"], found["notes"]) == (0, [], [])
    assert found["recorded_allocations"] > 80


def insert_foreign(recording: Recording, nth: int, nbytes: int) -> Recording:
    """Another block, taken behind the nth allocation of the second step and freed at that step's end."""
    marks = [index for index, action in enumerate(recording.actions) if action == MARK]
    allocations = [index for index in range(marks[1], marks[2]) if recording.actions[index] == 0]
    at, address = allocations[nth] + 1, max(recording.addresses) + 1
    rows = list(zip(recording.actions, recording.addresses, recording.sizes, strict=True))
    rows = [
        *rows[:at],
        (0, address, nbytes),
        *rows[at : marks[2]],
        (1, address, nbytes),
        (FREE_COMPLETED, address, nbytes),
        *rows[marks[2] :],
    ]
    actions, addresses, sizes = (list(column) for column in zip(*rows, strict=True))
    return Recording(recording.facts, actions, addresses, sizes, [])


def test_a_planted_allocation_is_named_with_its_step_and_operator(
    recorded: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "planted.parquet"
    write_recording(insert_foreign(read_recording(files_of(recorded)["mlp-64"]), 0, 777_216), path)
    arguments = ("estimate", "--explain-difference", path, "--cudnn-workspaces", "off")
    done = plugins.bench(*arguments, "--json", env=_plain())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["replay"]["exact"] and "mark 2: requested_bytes.all.peak" in found["replay"]["parting"]
    (parting,) = found["partings"]
    assert (parting["kind"], parting["operator"]) == ("missing from the trace", "aten::addmm")
    assert (parting["step"], parting["phase"], parting["recorded_bytes"]) == (2, "forward", 777_216)
    assert parting["effect_requested_bytes"] > 0
    text = plugins.bench(*arguments, env=_plain()).stdout
    assert "replay of the recording: NOT exact" in text
    assert "1. step 2, forward: aten::addmm: missing from the trace, 777,216 B recorded" in text


def _plain() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def test_another_torch_is_said(recorded: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recording = read_recording(files_of(recorded)["mlp-64"])
    versions = {**recording.facts.versions, "torch": "2.13.0"}
    path = tmp_path / "older.parquet"
    write_recording(replace(recording, facts=recording.facts.model_copy(update={"versions": versions})), path)
    found = explain(path)
    assert found["torch_version"] == "2.13.0"
    assert found["notes"][0].startswith("recorded with torch 2.13.0, traced with the installed ")


def test_what_is_recorded_is_kept_and_what_is_damaged_is_recorded_again(
    recorded: tuple[Path, dict[str, Any]], stub_driver: StubDriver
) -> None:
    folder = recorded[0]
    paths = files_of(recorded)
    before = {name: path.read_bytes() for name, path in paths.items()}
    paths["mlp-64"].write_bytes(before["mlp-64"][:-100])
    env = environment(stub_driver, folder, memory_bytes=MEMORY_BYTES)
    done = plugins.bench("record", folder / "c.toml", "--out", folder / "out", env=env)
    assert done.returncode == 0, done.stderr
    assert "moved aside, to be recorded again: " in done.stderr
    assert "2 recordings already there, 1 to do" in done.stderr
    assert "[1/1] mlp on cifar10, adam, batch 64: ok" in done.stderr
    assert paths["mlp-64"].with_suffix(".damaged").exists()
    paths["mlp-64"].with_suffix(".damaged").unlink()
    assert {name: path.read_bytes() for name, path in paths.items() if name != "mlp-64"} == {
        name: content for name, content in before.items() if name != "mlp-64"
    }
    assert read_recording(paths["mlp-64"]).sizes
