"""Calibrations: what is fitted to measured steps, which device it is used for, and the noise floor beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.analysis.calibration import memory_errors, recommend
from bench.devices import Device, device_toml, load_device, load_device_file
from bench.devices.calibration import NONE, Calibrations, keep_calibration, reckoned, with_calibration
from bench.errors import DeviceError, Unsupported
from bench.estimators.calibrating import Step, fit_calibration, step_time_s
from bench.estimators.kept import machine_of, recorded_on, recording_of
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.roofline import estimate_speed, kernels_of
from bench.records import Case, Choice
from bench.stats import judge_ratios, median_interval, noise_floor, processes_for
from bench.stats.noise import visible_frac

CARD = load_device("rtx3090")
MLP = Case(Choice("mnist"), Choice("mlp"), Choice("adam"), 64)
NET = Case(Choice("cifar10"), Choice("resnet18"), Choice("sgd_momentum"), 64)
WIDE = Case(Choice("cifar10"), Choice("mlp", (("hidden", 8192),)), Choice("sgd"), 8192)
CASES = [
    MLP,
    replace(MLP, batch_size=4096),
    replace(NET, batch_size=512),
    replace(NET, batch_size=2048, precision="fp16"),
    WIDE,
    replace(WIDE, precision="fp16"),
]
TRUE = {
    "calibrated_bandwidth_bytes_per_s": 0.7,
    "calibrated_float32_flop_per_s": 0.8,
    "calibrated_fp16_flop_per_s": 0.5,
    "calibrated_dispatch_s": 2.0,
}
SOURCES = dict.fromkeys(TRUE, "calibrated with 6 steps measured on the test's card")


def times_on(device: Device) -> list[float]:
    found = []
    for case in CASES:
        recording = recording_of(case, machine_of(recorded_on(device), settings_in_force()))
        found.append(estimate_speed(recording, case, device).step_time_s)
    return found


def calibrated(device: Device = CARD, **more: object) -> Device:
    start: dict[str, float] = {
        "calibrated_bandwidth_bytes_per_s": 9.36e11,
        "calibrated_float32_flop_per_s": 3.5e13,
        "calibrated_fp16_flop_per_s": 7e13,
        "calibrated_dispatch_s": 15e-6,
    }
    values: dict[str, object] = {key: start[key] * factor for key, factor in TRUE.items()}
    sources = dict(device.sources) | SOURCES
    return replace(device, sources=tuple(sources.items()), **(values | more))  # type: ignore[arg-type]


def as_steps(times: list[float]) -> list[Step]:
    return [Step(case, time_s) for case, time_s in zip(CASES, times, strict=True)]


@pytest.fixture(scope="module")
def fitted_steps() -> list[Step]:
    return as_steps(times_on(calibrated()))


def test_the_fit_finds_the_rates_behind_the_steps(fitted_steps: list[Step]) -> None:
    before = times_on(CARD)
    found = fit_calibration(fitted_steps, CARD, workspaces=False)
    truth = calibrated()
    for key in TRUE:
        assert found.values[key] == pytest.approx(getattr(truth, key), rel=0.15), key
    for each, before_s in zip(found.predicted, before, strict=True):
        assert each.before_s == pytest.approx(before_s)
        assert each.fitted_s == pytest.approx(each.measured_s, rel=0.05)


def test_a_step_that_was_left_out_is_predicted_worse_than_one_that_was_fitted(fitted_steps: list[Step]) -> None:
    odd = [replace(fitted_steps[0], step_time_s=fitted_steps[0].step_time_s * 3), *fitted_steps[1:]]
    first, *others = fit_calibration(odd, CARD, workspaces=False).predicted
    assert first.fitted_s is not None and first.left_out_s is not None
    assert abs(math.log(first.left_out_s / first.measured_s)) > abs(math.log(first.fitted_s / first.measured_s)) + 0.1
    assert first.model_left_out_s is not None
    assert all(each.left_out_s is not None for each in others)


def test_too_few_steps_give_no_fit_and_a_case_that_cannot_be_estimated_says_why(fitted_steps: list[Step]) -> None:
    unknown = Step(replace(NET, compile="default"), 1.0)
    found = fit_calibration([unknown, *fitted_steps[:2]], CARD, workspaces=False)
    assert found.values == {}
    assert "compile" in (found.predicted[0].reason or "")
    assert found.predicted[1].fitted_s is None


def test_the_fit_reckons_as_the_estimate_does() -> None:
    for device in (CARD, calibrated(), calibrated(calibrated_dispatch_s=1e-3), cpu()):
        for case in CASES[:3]:
            recording = recording_of(case, machine_of(recorded_on(device), settings_in_force()))
            kernels: Mapping[object, int] = Counter(kernel for _, kernel in kernels_of(recording))
            whole = estimate_speed(recording, case, device).step_time_s if device.kind == "cuda" else None
            mine = step_time_s(kernels, case, device)  # type: ignore[arg-type]
            assert mine == pytest.approx(whole or estimate_speed(recording, case, device).step_time_s)


def cpu() -> Device:
    values = {
        "gpu_name": "Sample CPU 7",
        "multiprocessors": 4,
        "calibrated_bandwidth_bytes_per_s": 2e10,
        "calibrated_float32_flop_per_s": 1e11,
        "calibrated_dispatch_s": 1e-5,
    }
    sources = (("multiprocessors", "measured: cores"), *((key, SOURCES[key]) for key in TRUE if key in values))
    return replace(load_device("cpu"), sources=sources, **values)


def test_a_calibrated_cpu_has_an_estimate_and_says_so_and_another_names_the_remedy() -> None:
    recording = recording_of(MLP, machine_of(recorded_on(cpu()), settings_in_force()))
    found = estimate_speed(recording, MLP, cpu())
    assert "calibrated with 6 steps" in found.basis
    assert found.step_time_s == pytest.approx(found.device_time_s)  # who asks also computes: nothing is hidden
    assert found.device_time_s > found.kernel_count * 1e-5
    with pytest.raises(Unsupported, match="bench calibrate"):
        estimate_speed(recording, MLP, load_device("cpu"))


def test_estimates_reckon_with_calibrated_rates_and_keep_the_rated_ones() -> None:
    device = calibrated()
    assert reckoned(device).memory_bandwidth_bytes_per_s == device.calibrated_bandwidth_bytes_per_s
    assert reckoned(device).peak_fp16_flop_per_s == device.calibrated_fp16_flop_per_s
    assert device.peak_fp16_flop_per_s == CARD.peak_fp16_flop_per_s
    assert reckoned(CARD) == CARD


def test_a_precision_without_a_calibrated_rate_is_named() -> None:
    case = replace(NET, precision="tf32")
    recording = recording_of(case, machine_of(CARD, settings_in_force()))
    assert "not calibrated for tf32" in estimate_speed(recording, case, calibrated()).basis


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CALIBRATIONS", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_a_kept_calibration_is_found_by_the_name_of_its_device_alone(folder: Path) -> None:
    path = keep_calibration(calibrated())
    assert path is not None and path.parent == folder
    found = Calibrations().apply(CARD)
    assert found.name == "rtx3090" and found.calibration == SOURCES["calibrated_dispatch_s"]
    assert found.calibrated_dispatch_s == calibrated().calibrated_dispatch_s
    assert Calibrations().apply(load_device("rtx4090")).calibration is None
    assert NONE.apply(CARD) == CARD
    smaller = replace(CARD, memory_bytes=8 << 30)
    assert Calibrations().apply(smaller).calibration is None


def test_of_several_the_gpus_own_is_taken_and_damaged_files_are_passed_over(folder: Path) -> None:
    keep_calibration(calibrated(gpu_uuid_hash="aaaaaaaaaaaa", launch_overhead_s=None))
    keep_calibration(replace(calibrated(gpu_uuid_hash="bbbbbbbbbbbb"), calibrated_dispatch_s=5e-6))
    (folder / "damaged.toml").write_text("kind = ", encoding="utf-8")
    (folder / "plain.toml").write_text(device_toml(CARD), encoding="utf-8")
    for uuid, expected in (("aaaaaaaaaaaa", 30e-6), ("bbbbbbbbbbbb", 5e-6)):
        assert Calibrations().apply(CARD, uuid_hash=uuid).calibrated_dispatch_s == pytest.approx(expected)


def test_switched_off_nothing_is_kept_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CALIBRATIONS", "off")
    assert keep_calibration(calibrated()) is None
    assert Calibrations().apply(CARD) == CARD


def test_a_calibration_that_was_named_for_another_device_is_refused() -> None:
    given = Calibrations((calibrated(),))
    given.refuse_unused([CARD, load_device("h200")])
    with pytest.raises(DeviceError, match=r"--calibration: rtx3090 is for NVIDIA GeForce RTX 3090.*NVIDIA H200"):
        given.refuse_unused([load_device("h200")])


def test_a_calibration_brings_its_context_with_the_interval_or_without() -> None:
    spread = {"context_bytes": 5 << 20, "context_low_bytes": 4 << 20, "context_high_bytes": 6 << 20}
    own = replace(CARD, **spread, sources=(*CARD.sources, *((key, "here") for key in spread)))
    bare = replace(calibrated(), context_bytes=9 << 20)
    bare = replace(bare, sources=(*bare.sources, ("context_bytes", "there")))
    found = with_calibration(own, bare)
    assert (found.context_bytes, found.context_low_bytes, found.context_high_bytes) == (9 << 20, None, None)
    assert found.source("context_bytes") == "there" and found.source("context_low_bytes") is None


def test_a_calibrated_device_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    ordered = with_calibration(CARD, calibrated())
    path.write_text(device_toml(replace(ordered, gpu_uuid_hash="0123456789ab")), encoding="utf-8")
    read = load_device_file(path)
    assert read == replace(ordered, name="mine", gpu_uuid_hash="0123456789ab")


def test_the_noise_floor_finds_the_spread_and_holds_it_in_its_interval() -> None:
    random, inside = np.random.default_rng(3), 0
    for _ in range(200):
        found = noise_floor(np.exp(random.normal(0.0, 0.02, (10, 4))).tolist(), sides=())
        assert found is not None and found.degrees == 30
        inside += found.low <= 0.02 <= found.high
    assert 180 <= inside <= 199
    assert found.quietest_frac < found.spread_frac < found.noisiest_frac
    assert sum(found.halves.values()) == 10
    assert noise_floor([[1.0], [2.0]]) is None


def test_a_difference_that_can_be_seen_is_seen_in_four_of_five_tries() -> None:
    random, spread, n = np.random.default_rng(5), 0.03, 5
    ratio = 1 + visible_frac(spread, n)
    seen = 0
    for _ in range(300):
        one, two = np.exp(random.normal(0.0, spread, (2, n)))
        (found,) = judge_ratios([one.tolist()], [(two * ratio).tolist()])
        seen += found.verdict == "faster"
    assert 0.7 < seen / 300 < 0.9


def test_the_processes_recommended_give_the_interval_that_was_asked() -> None:
    assert processes_for(0.001, 0.01) == 3
    assert processes_for(1.0, 0.01) is None
    n = processes_for(0.02, 0.01)
    assert n is not None and 15 < n < 25


def test_the_interval_of_a_median_holds_it_and_needs_six_values() -> None:
    random = np.random.default_rng(7)
    held = sum(
        (found.low or 0) <= 0 <= (found.high or 0)
        for found in (median_interval(random.normal(size=11)) for _ in range(500))
    )
    assert held / 500 > 0.94
    assert median_interval([1.0, 2, 3, 4, 5]).low is None
    assert (median_interval([1.0, 2, 3, 4, 5, 6]).low, median_interval([1.0, 2, 3, 4, 5, 6]).high) == (1.0, 6.0)


def test_settings_follow_from_the_runs() -> None:
    steps = tuple(np.random.default_rng(2).normal(1.0, 0.01, 50))
    runs = pd.DataFrame(
        {"warmup_times_s": [(9.0, 3.0, 1.0, 1.0)] * 4, "step_times_s": [steps] * 4, "samples_per_s": [1.0] * 4}
    )
    noise = noise_floor([[1.0, 1.001, 0.999, 1.0]], sides=())
    found = recommend(runs, noise, 0.01, {"float32": 1e12, "tf32": 4e12, "bf16": 1.05e12})
    assert found.warmup_steps == 2
    assert found.repeats == 3
    assert found.precisions == ("float32", "tf32")
    assert found.measured_steps is not None and 10 < found.measured_steps <= 200


def test_the_context_of_the_other_cases_stands_for_that_of_each() -> None:
    keys = ["a", "b", "c"]
    runs = pd.DataFrame({"case_key": keys, "context_bytes": [100.0, 110.0, 400.0]})
    unknown = [math.nan] * 3
    summary = pd.DataFrame(
        {
            "case_key": keys,
            "trace_peak_reserved_bytes": [1000, 1000, 1000],
            "peak_reserved_bytes": [1000, 1000, 1000],
            "device_used_bytes": [1100, 1110, 1400],
            "estimated_device_bytes": [2000, 2000, 2000],
            **dict.fromkeys(("formula_bytes", "trace_peak_allocated_bytes", "peak_allocated_bytes"), unknown),
        }
    )
    rows = {row["estimate"]: row for row in memory_errors(summary, runs)}
    assert rows["trace, reserved"]["before"]["median_abs"] == 0
    device = rows["device"]
    assert device["before"]["worst"] == pytest.approx(2000 / 1100 - 1)
    assert device["after"]["worst"] == pytest.approx((1000 + 105) / 1400 - 1)
    assert device["after"]["n"] == 3
