"""NVML that is silent, hangs or calls the GPU lost, and a GPU that is shared: whole sweeps, with the stub as the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench.analysis import judge, summarise_cases
from bench.locks import device_lock_path, hold
from bench.probes.nvml import hash_uuid
from tests import plugins
from tests.oracle.stub import StubDriver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UUID = "GPU-11111111-2222-3333-4444-555555555555"
CONTEXT, OTHERS = 500 << 20, 5_000_000_000
CONFIG = """
name = "nvml"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = [8]
[measure]
repeats = 1
warmup_steps = 2
measured_steps = 4
min_window = "500 ms"
order = "sequential"
[data]
fetch = false
"""


@pytest.fixture
def sweep(stub_driver: StubDriver, tmp_path: Path) -> Any:
    """Run `bench sweep` under the stub with NVML, and with the settings given, into one folder."""
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")

    def run(
        *arguments: str, missing: bool = False, visible: str | None = None, **settings: int | str
    ) -> subprocess.CompletedProcess[str]:
        wait_s = "5" if "hang" in str(settings.get("nvml_fault")) else "30"  # a busy machine takes a second to import
        env = {
            **os.environ,
            **stub_driver.environment("h200", uuid=UUID, nvml=1, context_bytes=CONTEXT, **settings),
            "BENCH_CUDNN_WORKSPACES": "off",
            "BENCH_NVML_TIMEOUT": wait_s,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        if missing:
            del env["LD_LIBRARY_PATH"]
        done = plugins.bench("sweep", config, "--no-report", "--out", tmp_path / "out", *arguments, env=env)
        assert "Traceback" not in done.stdout + done.stderr
        assert not [path for path in tmp_path.rglob("*.*") if path.is_file() and UUID.encode() in path.read_bytes()]
        return done

    return run


LONG = ("--set", "measure.measured_steps=5000")
"""For windows that are long enough for a reading of energy, whatever the warm-up promised."""


def rows(tmp_path: Path) -> pd.DataFrame:
    """What came of it, in the order of the plan."""
    return bench.load(tmp_path / "out").sort_values("position").reset_index(drop=True)


def test_every_reading_of_nvml_comes_to_its_column(sweep: Any, tmp_path: Path) -> None:
    assert sweep(*LONG).returncode == 0
    (row,) = rows(tmp_path).to_dict("records")
    held = row["peak_reserved_bytes"] + CONTEXT
    assert (row["device_used_bytes"], row["device_used_total_bytes"], row["device_used_before_bytes"]) == (
        held,
        held,
        0,
    )
    assert (row["context_bytes"], row["other_process_count"]) == (CONTEXT, 0)
    assert pd.isna(row["nvml_error"])
    assert row["wall_window_s"] > 0.5
    assert row["energy_window_j"] == 1.0  # the stub's counter adds a joule a reading: two readings, one at each end
    assert (row["sm_clock_start_hz"], row["memory_clock_end_hz"]) == (1755e6, 3201e6)
    assert (row["temperature_start_c"], row["power_end_w"], row["power_limit_w"]) == (55.0, 512.0, 700.0)
    assert (pd.isna(row["power_window_w"]), pd.isna(row["power_sample_count"])) == (True, True)  # it keeps no samples
    assert (row["pcie_generation"], row["pcie_width"], row["vbios"]) == (5, 16, "96.00.89.00.01")
    assert row["gpu_uuid_hash"] == hash_uuid(UUID)


def test_energy_that_the_samples_of_power_contradict_is_flagged_and_left_out(sweep: Any, tmp_path: Path) -> None:
    assert sweep(*LONG, sampled_milliwatt=400_000).returncode == 0  # of a counter that tells some 8 W
    frame = rows(tmp_path)
    (row,) = frame.to_dict("records")
    assert (row["energy_window_j"], row["power_window_w"], row["power_sample_count"]) == (1.0, 400.0, 100)
    assert "energy_unconfirmed" in row["flags"]
    assert summarise_cases(frame)["joules_per_sample"].isna().all()
    assert "energy_unconfirmed" in {finding.code for finding in judge(frame).found}


def test_a_driver_whose_nvml_does_not_start_is_said_once_and_costs_the_readings_alone(
    sweep: Any, tmp_path: Path
) -> None:
    silent = sweep(nvml_fault="nvmlInitWithFlags:18")
    assert silent.returncode == 0
    assert silent.stderr.count("no readings from NVML (NVML does not start: ") == 1
    (row,) = rows(tmp_path).to_dict("records")
    assert (row["status"], row["gpu_name"]) == ("ok", "NVIDIA H200")
    assert pd.isna(row["driver_version"])
    assert pd.isna(row["device_used_total_bytes"])
    again = sweep()  # mended: what was measured without is kept apart, and the sweep says so
    assert again.returncode == 0
    assert "New runs are stored separately" in again.stderr
    assert "driver_version unknown -> 580.95.05" in again.stderr
    assert "power_limit_w unknown -> 700.0" in again.stderr
    frame = rows(tmp_path)
    assert list(frame["status"]) == ["ok", "ok"]
    assert frame["environment_key"].nunique() == 2


def test_without_the_library_of_nvml_a_gpu_that_is_asked_for_is_measured(sweep: Any, tmp_path: Path) -> None:
    done = sweep("--device", "cuda", missing=True)
    assert done.returncode == 0
    assert "no readings from NVML (NVML does not start: NVML Shared Library Not Found): clocks" in done.stderr
    (row,) = rows(tmp_path).to_dict("records")
    assert (row["status"], row["gpu_uuid_hash"]) == ("ok", hash_uuid(UUID))
    assert pd.isna(row["nvml_error"])  # nothing was to be read
    assert row["flags"].tolist() in ([], ["host_bound"])
    assert row["peak_allocated_bytes"] == row["trace_peak_allocated_bytes"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "nvmlDeviceGetTotalEnergyConsumption:hang:3",
            "NVML gave no answer to reading the energy counter; it is not queried again",
        ),
        ("nvmlDeviceGetHandleByUUID:hang", "NVML gave no answer to opening the GPU within 5 s"),
        ("nvmlDeviceGetClockInfo:999", "nvmlDeviceGetClockInfo: Unknown Error"),
    ],
)
def test_a_reading_that_never_comes_flags_the_run_and_leaves_its_figures(
    sweep: Any, tmp_path: Path, fault: str, said: str
) -> None:
    assert sweep(nvml_fault=fault).returncode == 0
    frame = rows(tmp_path)
    (row,) = frame.to_dict("records")
    assert row["status"] == "ok"
    assert "nvml_silent" in row["flags"]
    assert said in row["nvml_error"]
    assert row["peak_allocated_bytes"] == row["trace_peak_allocated_bytes"]
    assert pd.isna(row["sm_clock_end_hz"])
    (found,) = [finding for finding in judge(frame) if finding.code == "nvml_silent"]
    assert "NVML did not answer, at least in part, in 1 of 1 run" in found.text


def test_a_gpu_that_is_lost_costs_one_run_stops_the_sweep_and_resume_does_the_rest(sweep: Any, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    fault = {"lost_file": str(lost), "fault_at": 20, "fault_code": "-,46", "fault_mark": str(tmp_path / "mark")}
    stopped = sweep("--repeats", "4", **fault)
    assert stopped.returncode == 1
    assert "3 worker processes in a row ended before the case began: the GPU cannot be initialised: " in stopped.stderr
    frame = rows(tmp_path)
    assert list(frame["status"]) == ["ok", "failed", "interrupted", "interrupted"]
    assert "GPU is lost" in frame["nvml_error"][1]
    gone = sweep("--repeats", "4", lost_file=str(lost))
    assert gone.returncode == 2
    assert "GPU is lost" in gone.stderr
    lost.unlink()
    assert sweep("--repeats", "4", "--retry", "failed", lost_file=str(lost)).returncode == 0
    frame = rows(tmp_path)
    assert sorted(frame["status"]) == ["failed", "ok", "ok", "ok", "ok"]
    well = frame[frame["status"] == "ok"]
    assert well["peak_reserved_bytes"].nunique() == well["device_used_total_bytes"].nunique() == 1


def test_another_process_on_the_gpu_is_seen_and_its_memory_is_not_taken_for_the_runs(
    sweep: Any, tmp_path: Path
) -> None:
    assert sweep(others_bytes=OTHERS, others_pid=4242).returncode == 0
    frame = rows(tmp_path)
    (row,) = frame.to_dict("records")
    assert (row["other_process_count"], row["device_used_before_bytes"], row["context_bytes"]) == (1, OTHERS, CONTEXT)
    assert row["device_used_total_bytes"] - row["device_used_bytes"] == OTHERS
    assert row["peak_allocated_bytes"] == row["trace_peak_allocated_bytes"]
    assert "contaminated" in [finding.code for finding in judge(frame)]


def test_a_gpu_that_others_fill_gives_an_oom_and_the_next_run_a_clean_start(sweep: Any, tmp_path: Path) -> None:
    room = 20 << 20  # for the context and a little
    others = 150_754_820_096 - CONTEXT - room
    assert sweep(others_bytes=others, others_pid=4242).returncode == 1
    (row,) = rows(tmp_path).to_dict("records")
    assert (row["status"], row["device_used_before_bytes"]) == ("oom", others)
    assert sweep("--retry", "oom").returncode == 0
    again = rows(tmp_path).set_index("attempt").loc[1]
    assert (again["status"], again["device_used_before_bytes"], again["alloc_retries"]) == ("ok", 0, 0)
    assert again["peak_reserved_bytes"] == again["trace_peak_reserved_bytes"]


def test_one_lock_holds_a_gpu_whether_or_not_nvml_tells_its_uuid(sweep: Any) -> None:
    with hold(device_lock_path(hash_uuid(UUID)), "the device"):
        for fault in ({}, {"nvml_fault": "nvmlInitWithFlags:18"}):
            refused = sweep(**fault)
            assert refused.returncode == 2
            assert "is in use" in refused.stderr


COUNTS = """
import json, os, sys
import torch
from bench.probes.nvml import read_gpu_listing, visible_gpus
gpus = read_gpu_listing().gpus
found = {}
for value in json.loads(sys.argv[1]):
    os.environ["CUDA_VISIBLE_DEVICES"] = value
    found[value] = [len(visible_gpus(gpus)), torch.cuda.device_count()]
print(json.dumps(found))
"""


def test_torch_counts_the_gpus_that_are_visible_here(stub_driver: StubDriver, tmp_path: Path) -> None:
    forms = [
        "0",
        "0 1",
        "0;1",
        " 0",
        "0,",
        "0,1",
        "-1",
        "0,-1,1",
        "0,0",
        "1,0",
        UUID,
        UUID[:9],
        f"{UUID},0",
        "0x1",
        "1e3",
        "foo,0",
        "",
        "GPU-2",
    ]
    (tmp_path / "counts.py").write_text(COUNTS, encoding="utf-8")
    env = {
        **os.environ,
        **stub_driver.environment("h200", uuid=UUID, nvml=1),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, str(tmp_path / "counts.py"), json.dumps(forms)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {value: ours for value, (ours, _) in found.items()} == {
        value: torchs for value, (_, torchs) in found.items()
    }
    assert {value for value, (ours, _) in found.items() if ours} == {
        "0",
        "0 1",
        "0;1",
        " 0",
        "0,",
        "0,1",
        "0,-1,1",
        UUID,
        UUID[:9],
        f"{UUID},0",
        "0x1",
    }


@pytest.mark.parametrize("value", ["0 1", "0;1", UUID[:12]])
def test_a_sweep_runs_on_the_gpu_that_torch_reads_from_an_odd_list(sweep: Any, tmp_path: Path, value: str) -> None:
    done = sweep(visible=value)
    assert done.returncode == 0, done.stderr
    assert "no readings from NVML" not in done.stderr
    (gpu_hash,) = set(bench.load(tmp_path / "out")["gpu_uuid_hash"])
    assert gpu_hash == hash_uuid(UUID)
