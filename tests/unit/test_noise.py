"""`bench noise`: a disturbance that was planted is named, quiet runs name none, and what is kept goes out of date."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.analysis.disturbances import find_disturbances
from bench.devices.kept_noise import KeptNoise, environment_fields, find_noise, keep_noise
from bench.probes.host_window import HostWindow
from bench.stats import judge_ratios
from bench.stats.noise import visible_frac
from tests.each import each
from tests.results import GPU

ROUNDS, CASES = 12, 3


def quiet_runs(seed: int = 0) -> pd.DataFrame:
    """Rates that differ by 1 %, and readings that have nothing to do with them."""
    random, n = np.random.default_rng(seed), ROUNDS * CASES
    case = np.tile(np.arange(CASES), ROUNDS)
    return pd.DataFrame(
        {
            "case_key": [f"case {number}" for number in case],
            "samples_per_s": np.exp(case + random.normal(0, 0.01, n)),
            "started_unix_s": 1.7e9 + 10.0 * np.arange(n),
            "wall_window_s": 1.0,
            "sm_clock_start_hz": 1.5e9,
            "sm_clock_end_hz": 1.5e9 + random.normal(0, 1e6, n),
            "host_others_window_frac": np.abs(random.normal(0, 0.01, n)),
            "involuntary_switches": random.poisson(5, n),
            "other_process_count": 0,
        }
    )


def test_quiet_runs_name_nothing_but_by_chance() -> None:
    named = sum(bool(find_disturbances(quiet_runs(seed))) for seed in range(40))
    assert named <= 5
    assert find_disturbances(quiet_runs().head(0)) == []


def test_steps_of_the_clock_are_named_first_with_their_effect() -> None:
    runs = quiet_runs()
    slow = np.arange(len(runs)) % 4 == 0
    runs["samples_per_s"] *= np.where(slow, 0.95, 1.0)
    runs["sm_clock_end_hz"] = np.where(slow, 1.4e9, 1.5e9)
    first = find_disturbances(runs)[0]
    assert (first.code, first.evidence) == ("gpu_clock", "explains")
    assert first.effect_frac == pytest.approx(0.05, abs=0.015)
    assert "nvidia-smi -lgc" in first.remedy


def test_a_clock_that_is_higher_in_slower_runs_is_no_cause() -> None:
    runs = quiet_runs()
    slow = np.arange(len(runs)) % 4 == 0
    runs["samples_per_s"] *= np.where(slow, 0.95, 1.0)
    runs["sm_clock_end_hz"] = np.where(slow, 1.6e9, 1.5e9)
    assert "gpu_clock" not in {found.code for found in find_disturbances(runs)}


def test_drift_neighbours_and_first_runs_are_named() -> None:
    runs = quiet_runs()
    runs["samples_per_s"] *= np.linspace(1.0, 0.95, len(runs))
    assert find_disturbances(runs)[0].code == "drift"
    runs = quiet_runs()
    busy = np.arange(len(runs)) % 5 < 2
    runs["samples_per_s"] *= np.where(busy, 0.9, 1.0)
    runs["host_others_window_frac"] += 0.5 * busy
    assert find_disturbances(runs)[0].code == "host_neighbours"
    runs = quiet_runs()
    runs.loc[: CASES - 1, "samples_per_s"] *= 0.9
    assert find_disturbances(runs)[0].code == "first_run"


def test_what_was_there_without_an_effect_is_only_seen() -> None:
    runs = quiet_runs()
    runs["other_process_count"] = 1
    (found,) = find_disturbances(runs)
    assert (found.code, found.evidence, found.share_frac) == ("gpu_neighbours", "seen", None)


@each("processes", [3, 5, 10])
@each("spread", [0.004, 0.03])
def test_compare_finds_the_visible_difference_in_four_of_five_tries(processes: int, spread: float) -> None:
    random, tries = np.random.default_rng(7), 250
    ratio, found = 1 + visible_frac(spread, processes), 0
    for one, two in np.exp(random.normal(0.0, spread, (tries, 2, processes))):
        found += judge_ratios([one.tolist()], [(two * ratio).tolist()])[0].verdict == "faster"
    assert 0.7 < found / tries < 0.9


def kept_noise(**changed: object) -> KeptNoise:
    values: dict[str, object] = {
        "device": "NVIDIA H200",
        "environment_key": GPU.key,
        "environment": environment_fields(GPU),
        "measured_unix_s": 1.8e9,
        "runs": 36,
        "cases": 3,
        "spread_frac": 0.004,
        "visible": ((3, 0.016), (5, 0.013)),
    }
    return KeptNoise(**{**values, **changed})  # type: ignore[arg-type]


def test_cases_of_unequal_noise_are_not_hidden_behind_one_figure() -> None:
    assert "spread" not in kept_noise().sentence
    assert "spread" not in kept_noise(quietest_frac=0.003, noisiest_frac=0.005).sentence
    uneven = kept_noise(quietest_frac=0.002, noisiest_frac=0.108)
    assert uneven.sentence.endswith("36 runs; by case, processes spread by 0.2 to 10.8 %)")
    assert KeptNoise.read(json.loads(json.dumps(asdict(uneven)))) is not None


def test_what_is_kept_is_found_again_and_goes_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CALIBRATIONS", str(tmp_path))
    assert find_noise(GPU) is None
    path = keep_noise(kept_noise(), GPU)
    found = find_noise(GPU)
    assert path is not None and found == kept_noise()
    assert found.changes(GPU) == []
    assert "1.6 % with 3 and 1.3 % with 5 processes per side" in found.sentence
    assert "bench noise of 2027-01-15, 36 runs" in found.sentence
    (change,) = found.changes(replace(GPU, torch_version="9.9"))
    assert change.startswith("torch_version") and change.endswith("-> 9.9")
    path.write_text('{"device": 3}', encoding="utf-8")
    assert find_noise(GPU) is None


@each("damaged", [{}, {"measured_unix_s": 1e300}, {"visible": []}, {"visible": [[3, float("nan")]]}, {"runs": "x"}])
def test_a_damaged_note_of_others_is_none(damaged: dict[str, object]) -> None:
    note = kept_noise().note
    assert KeptNoise.read(note) is not None
    assert KeptNoise.read({**note, **damaged} if damaged else None) is None


def test_the_window_of_the_host_counts_what_is_not_this_process(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat, info = tmp_path / "proc" / "stat", tmp_path / "proc" / "cpuinfo"
    stat.write_text("cpu  100 0 0 900 0 0 0 7 0 0\n", encoding="ascii")
    info.write_text("processor : 0\ncpu MHz : 2200.0\n", encoding="ascii")
    window = HostWindow(tmp_path)
    stat.write_text("cpu  1000000 0 0 900 0 0 0 107 0 0\n", encoding="ascii")
    info.write_text("processor : 0\ncpu MHz : Unknown\n", encoding="ascii")  # where Linux has no clock of a processor
    found = window.close()
    assert found["host_others_window_frac"] == 1.0
    assert found["stolen_window_s"] > 0
    assert (found["cpu_clock_start_hz"], found["cpu_clock_end_hz"]) == (2.2e9, None)
    assert found["quota_wait_window_s"] is None
    assert HostWindow(tmp_path / "absent").close()["host_others_window_frac"] is None
