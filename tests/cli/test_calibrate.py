"""`bench calibrate` as a user runs it, on the CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench
from tests import plugins

CONFIG = """
name = "few"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = ["sgd", "adam"]
batch_size = [64, 1024]
[[include]]
reason = "wider"
model = "mlp:hidden=1024"
optimizer = "sgd"
batch_size = [256, 1024]
[measure]
warmup_steps = 1
measured_steps = 3
min_window = "1 ms"
threads = 1
[data]
fetch = false
"""


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "BENCH_CALIBRATIONS": str(tmp_path / "kept")}


def calibrate(tmp_path: Path, *more: str) -> dict[str, Any]:
    config = tmp_path / "few.toml"
    config.write_text(CONFIG, encoding="utf-8")
    arguments = (*("--device", "cpu", "--repeats", "2", "--minutes", "2", "--json", "--out"), tmp_path / "out")
    done = plugins.bench("calibrate", config, *arguments, *more, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


Calibrated = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calibrated]:
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_TRACE_CACHE", "off")
        patch.setenv("BENCH_LOCK_DIR", str(folder / "locks"))
        patch.setenv("BENCH_LOGS", str(folder / "logs"))
        yield folder, calibrate(folder)


def test_it_measures_every_case_in_fresh_processes(calibrated: Calibrated) -> None:
    folder, found = calibrated
    assert len(found["cases"]) == 6
    assert {case["processes"] for case in found["cases"]} == {2}
    frame = bench.load(folder / "out")
    assert set(frame["status"]) == {"ok"}
    assert len(frame) == 12


def test_its_folder_has_the_report_the_page_and_the_device_file(calibrated: Calibrated) -> None:
    folder, found = calibrated
    assert (folder / "out" / "report.md").exists()
    page = (folder / "out" / "calibration.md").read_text(encoding="utf-8")
    assert "## Noise floor" in page and "each case left out of the fit" in page
    content = json.loads((folder / "out" / "calibration.json").read_text(encoding="utf-8"))
    assert content == {key: value for key, value in found.items() if key not in ("folder", "kept")}
    assert found["ceilings"]["reachable_bandwidth_bytes_per_s"] > 1e8
    assert found["speed"]["before"] is None
    assert found["speed"]["left_out"]["n"] == 6
    assert found["speed"]["model_left_out"]["n"] == 6
    assert found["fit"]["values"].keys() == {
        "calibrated_bandwidth_bytes_per_s",
        "calibrated_float32_flop_per_s",
        "calibrated_dispatch_s",
    }
    assert found["noise"]["degrees"] == 6


def test_estimates_use_it_by_name_of_the_file_and_say_so(calibrated: Calibrated) -> None:
    folder, found = calibrated
    (file,) = [path for path in (folder / "out").glob("*.toml") if path.name not in ("config.toml", "device.toml")]
    case = ("--model", "mlp", "--dataset", "mnist", "--batch-size", "1024", "--device", "cpu", "--json")
    row: dict[str, Any]
    (row,) = json.loads(plugins.bench("estimate", *case, "--calibration", file, env=environment(folder)).stdout)
    (mine,) = [each for each in found["cases"] if (each["optimizer"], each["batch_size"]) == ("sgd", 1024)][:1]
    assert row["estimated_samples_per_s"] == pytest.approx(mine["fitted"])
    assert row["estimated_speed_basis"].endswith(found["device"]["calibration"])
    (row,) = json.loads(plugins.bench("estimate", *case, "--calibration", "off", env=environment(folder)).stdout)
    assert row["estimated_samples_per_s"] is None


def test_a_kept_calibration_serves_a_sweep_whose_estimates_are_made_again(
    calibrated: Calibrated, tmp_path: Path
) -> None:
    folder, _ = calibrated
    (file,) = [path for path in (folder / "out").glob("*.toml") if path.name not in ("config.toml", "device.toml")]
    env = environment(tmp_path)
    arguments = (*("--device", "cpu", "--repeats", "1", "--no-report", "--out"), tmp_path / "swept")
    small = ("--set", "include=[]", "--set", "grid.batch_size=[64]", "--set", "grid.optimizer=sgd")
    plain = plugins.bench("sweep", folder / "few.toml", *arguments, *small, env=env)
    assert plain.returncode == 0, plain.stderr
    assert bench.load(tmp_path / "swept")["estimated_samples_per_s"].isna().all()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.toml").write_bytes(file.read_bytes())
    again = plugins.bench("sweep", folder / "few.toml", *arguments, *small, env=env)
    assert "calibrated with 6 steps" in again.stderr
    frame = bench.load(tmp_path / "swept")
    assert len(frame) == 1 and (frame["estimated_samples_per_s"] > 0).all()
    assert frame["estimated_speed_basis"].str.contains("calibrated with 6 steps").all()


def test_the_same_command_goes_on_and_measures_nothing_twice(calibrated: Calibrated, tmp_path: Path) -> None:
    folder, _ = calibrated
    before = bench.load(folder / "out").set_index("run_key")["started_unix_s"].to_dict()
    ceilings = (folder / "out" / "ceilings.json").read_bytes()
    again = calibrate(folder, "--no-keep", "--repeats", "3")
    after = bench.load(folder / "out").set_index("run_key")["started_unix_s"].to_dict()
    assert after | before == after
    assert {case["processes"] for case in again["cases"]} == {3}
    assert len(after) == 18
    assert (folder / "out" / "ceilings.json").read_bytes() == ceilings
    assert again["kept"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--calibration", "absent.toml"), ("--calibration", "absent.toml", "no such device file")),
        (("--calibration", "off", "--calibration", "other.toml"), ("off",)),
        (("--device", "rtx4090", "--calibration", "shared.toml"), ("shared", "RTX 3090", "RTX 4090", "--device")),
        (("--calibration", "plain.toml"), ("plain.toml", "no calibrated values", "bench calibrate")),
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    plain = 'gpu_name = "NVIDIA GeForce RTX 3090"\nkind = "cuda"\n'
    values = 'calibrated_dispatch_s = 1e-5\n[sources]\ncalibrated_dispatch_s = "calibrated here"\n'
    (tmp_path / "plain.toml").write_text(plain, encoding="utf-8")
    (tmp_path / "shared.toml").write_text(plain + values, encoding="utf-8")
    done = plugins.bench("estimate", "--model", "mlp", "--dataset", "mnist", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr


def test_settings_without_a_configuration_and_a_smaller_card_are_refused(tmp_path: Path) -> None:
    done = plugins.bench("calibrate", "--set", "measure.repeats=3", cwd=tmp_path)
    assert done.returncode == 2 and "CONFIG" in done.stderr
    config = tmp_path / "few.toml"
    config.write_text(CONFIG + '[limits]\ndevice_memory = "8 GiB"\n', encoding="utf-8")
    done = plugins.bench("calibrate", config, "--device", "cpu", "--minutes", "0.1", cwd=tmp_path)
    assert done.returncode == 2 and "limits.device_memory" in done.stderr
