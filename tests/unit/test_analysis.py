from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import bench
from bench.analysis import (
    best_cases,
    estimator_errors,
    gpu_memory_bytes,
    headline,
    judge,
    machine_labels,
    summarise_cases,
)
from bench.comparison import compare, field_words
from bench.comparison.differences import find_differences
from bench.errors import BenchError
from bench.records import Measurement, Planned, Protocol, Status
from bench.stats import geometric_interval, host_means
from bench.store import Store
from tests.altered import honest
from tests.results import CPU, GPU, MIB, NOTES, make_cases, make_results


def summary_of(folder, *args, **settings):
    frame = bench.load(make_results(folder, *args, **settings))
    return frame, summarise_cases(frame)


def codes(frame):
    return {finding.code: finding for finding in judge(frame)}


def one(**settings):
    return make_cases(["mnist"], ["mlp"], ["sgd"], [64], **settings)


def test_every_planned_case_has_one_row(tmp_path):
    cases = make_cases()
    outcomes = {0: Status.SKIPPED, 1: Status.INTERRUPTED, 2: Status.OOM, 3: Status.CRASHED, 4: Status.NAN_LOSS}
    _, summary = summary_of(tmp_path, cases, outcomes=outcomes)
    assert sorted(summary["case_key"]) == sorted(case.key for case in cases)
    by_key = summary.set_index("case_key")
    for number, status in outcomes.items():
        row = by_key.loc[cases[number].key]
        assert row["status"] == status
        assert np.isnan(row["samples_per_s"])
        assert (row["runs_ok"], row["runs_planned"]) == (0, 1 if status == Status.SKIPPED else 3)


def test_throughput_is_the_geometric_mean_over_processes_not_steps(tmp_path):
    frame, summary = summary_of(tmp_path, one(), repeats=4)
    expected = geometric_interval(frame["samples_per_s"].tolist())
    row = summary.iloc[0]
    assert (row["samples_per_s"], row["processes"]) == (pytest.approx(expected.middle), 4)
    assert row["samples_per_s_low"] == pytest.approx(expected.low)
    assert row["samples_per_s_high"] == pytest.approx(expected.high)


def spread(frame, hosts="aabb"):
    """The frame of a sweep whose repeats were spread over hosts on purpose."""
    return frame.assign(spread="hosts", host_hash=[hosts[repeat] for repeat in frame["repeat"]])


def test_repeats_that_were_spread_over_hosts_count_by_host(tmp_path):
    frame, alone = summary_of(tmp_path, one(), repeats=4)
    by_host = frame.sort_values("repeat")["samples_per_s"].tolist()
    expected = geometric_interval(host_means(by_host, "aabb"))
    row = summarise_cases(spread(frame)).iloc[0]
    assert (row["samples_per_s_low"], row["samples_per_s_high"]) == (
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )
    assert row["processes"] == 4 and row["samples_per_s"] == pytest.approx(alone["samples_per_s"].iloc[0])
    # one host, cards of one host, and hosts that were not chosen on purpose: processes count
    ends = ["samples_per_s_low", "samples_per_s_high", "median_step_time_s_low"]
    others = (spread(frame, "aaaa"), spread(frame).assign(spread="gpus"), spread(frame).assign(spread=None))
    for other in others:
        assert summarise_cases(other)[ends].iloc[0].tolist() == alone[ends].iloc[0].tolist()


@pytest.mark.parametrize(("hosts", "words"), [("aabb", "over 2 hosts"), ("aaaa", "nothing about others"), ("", None)])
def test_the_report_says_what_intervals_over_hosts_count(tmp_path, hosts, words):
    frame = bench.load(make_results(tmp_path, one(), repeats=4))
    from bench.report.sections.equal_devices import SECTION

    blocks = SECTION.build(SimpleNamespace(frame=spread(frame, hosts) if hosts else frame))
    told = [str(block) for block in blocks if "intervals" in str(block) or "its interval" in str(block)]
    assert len(told) == (words is not None) and all(words in text for text in told)


def test_a_comparison_of_sweeps_over_hosts_counts_hosts_and_says_so(tmp_path):
    frame = bench.load(make_results(tmp_path, one(), repeats=4))
    found = compare(spread(frame), spread(frame, "ccdd"))
    assert set(found.cases["n_baseline"]) == {2} == set(found.cases["n_candidate"])
    assert sum("n counts hosts" in note for note in found.notes) == 0  # the same runs: that is all there is to say
    other = frame.assign(wall_window_s=frame["wall_window_s"] + 1)
    found = compare(spread(frame), spread(other, "cccd"))
    assert sum("ran on 2 hosts on purpose: n counts hosts" in note for note in found.notes) == 2
    (lonely,) = compare(spread(frame), spread(other, "cdef"), metrics=["samples_per_s"]).cases["reason"]
    assert lonely == "2 hosts against 4: unequal numbers give no verdict"
    assert any("says nothing about others" in note for note in compare(frame, spread(other, "cccc")).notes)
    memory = compare(spread(frame), spread(other), metrics=["peak_allocated_bytes"]).cases.iloc[0]
    assert (memory["verdict"], memory["reason"]) == ("same", "equal in every host")
    with pytest.raises(BenchError, match="spread over hosts"):
        compare(spread(frame, "abab"), spread(other, "abab"), processes=2)


def test_step_percentiles_are_over_all_raw_steps(tmp_path):
    frame, summary = summary_of(tmp_path, one())
    steps = np.concatenate(frame["step_times_s"].tolist())
    assert summary["step_p90_s"].iloc[0] == pytest.approx(np.quantile(steps, 0.9))
    assert summary["step_p99_s"].iloc[0] == pytest.approx(np.quantile(steps, 0.99))


def test_a_single_process_has_a_rate_and_no_interval(tmp_path):
    frame, summary = summary_of(tmp_path, repeats=1)
    assert summary["samples_per_s"].notna().all()
    assert summary[["samples_per_s_low", "samples_per_s_high"]].isna().all(axis=None)
    assert "(the fewest: 1): a single process is screening" in codes(frame)["short_of_repeats"].text
    assert "screening" in headline(summary)


def test_peaks_are_the_largest_and_disagreement_is_said(tmp_path):
    def grow(measurement, case, repeat):
        return dataclasses.replace(measurement, peak_allocated_bytes=1000 + repeat)

    frame, summary = summary_of(tmp_path, one(), change=grow)
    assert summary["peak_allocated_bytes"].tolist() == [1002]
    assert not summary["peaks_agree"].iloc[0]
    assert (
        codes(frame)["peaks_differ"].text
        == "The allocated peak differs between processes in 1 of 1 case; the largest is shown."
    )


def test_relative_errors_are_signed_and_beside_the_right_measurement(tmp_path):
    _, summary = summary_of(tmp_path, one(), environment=GPU, trace=True)
    row = summary.iloc[0]
    for estimate, measured, error in (
        ("formula_bytes", "peak_allocated_bytes", "formula_relative_error"),
        ("trace_peak_allocated_bytes", "peak_allocated_bytes", "trace_relative_error"),
        ("trace_peak_reserved_bytes", "peak_reserved_bytes", "trace_reserved_relative_error"),
        ("estimated_device_bytes", "device_used_bytes", "device_relative_error"),
        ("estimated_samples_per_s", "samples_per_s", "speed_relative_error"),
    ):
        assert row[error] == pytest.approx((row[estimate] - row[measured]) / row[measured])
    assert row["formula_relative_error"] < 0


def test_shares_of_the_peaks_follow_from_the_measured_step(tmp_path):
    frame, summary = summary_of(tmp_path, one(), environment=GPU, trace=True)
    for rows in (frame, summary):
        mfu = rows["step_flop"] / (rows["peak_flop_per_s"] * rows["median_step_time_s"])
        assert rows["mfu_frac"].tolist() == pytest.approx(mfu.tolist())
        assert rows["roofline_frac"].tolist() == pytest.approx(
            (rows["least_step_time_s"] / rows["median_step_time_s"]).tolist()
        )
    assert 0.35 < summary["mfu_frac"].iloc[0] < 0.41
    assert 0.45 < summary["roofline_frac"].iloc[0] < 0.51


def test_shares_of_unknown_peaks_are_unknown_and_not_zero(tmp_path):
    frame, summary = summary_of(tmp_path, one())
    for rows in (frame, summary):
        assert rows[["mfu_frac", "roofline_frac"]].isna().all(axis=None)
    _, failed = summary_of(tmp_path / "gpu", one(), environment=GPU, trace=True, outcomes={0: Status.OOM})
    assert failed["step_flop"].notna().all()
    assert failed[["mfu_frac", "roofline_frac"]].isna().all(axis=None)


def test_an_estimator_without_numbers_has_no_row(tmp_path):
    _, summary = summary_of(tmp_path, one())
    assert estimator_errors(summary)["name"].tolist() == ["formula"]


def test_an_out_of_memory_row_keeps_its_estimate_and_has_no_error(tmp_path):
    _, summary = summary_of(tmp_path, one(), outcomes={0: Status.OOM})
    row = summary.iloc[0]
    assert row["formula_bytes"] > 0
    assert row["oom_requested_bytes"] > 0
    assert pd.isna(row["peak_allocated_bytes"])
    assert np.isnan(row["formula_relative_error"])


def test_the_last_attempt_of_a_throttled_repeat_counts_and_both_are_kept(tmp_path):
    (case,) = one()
    store, run, protocol = Store(tmp_path), Planned(case, 0, 0), Protocol()
    store.create()
    store.write_plan([run], protocol, CPU, NOTES)
    slow = Measurement(status=Status.THROTTLED, flags=("throttled",), step_times_s=(0.2,) * 8, wall_window_s=1.6)
    fast = Measurement(status=Status.OK, step_times_s=(0.1,) * 8, wall_window_s=0.8)
    store.write_run(run, 0, protocol, slow, CPU)
    store.write_run(run, 1, protocol, fast, CPU)
    frame = bench.load(tmp_path)
    summary = summarise_cases(frame)
    assert (summary["runs_planned"].iloc[0], summary["attempts"].iloc[0]) == (1, 2)
    assert summary["samples_per_s"].iloc[0] == pytest.approx(640)
    assert len(codes(frame)["throttled_retried"].run_keys) == 1
    assert "throttled" not in codes(frame)


def test_throttled_runs_give_the_speed_where_there_are_no_others(tmp_path):
    _, summary = summary_of(tmp_path, one(), outcomes={0: Status.THROTTLED})
    assert summary["samples_per_s"].notna().all()
    assert summary["flags"].tolist() == ["throttled"]


def test_nan_loss_rows_give_memory_and_no_speed(tmp_path):
    _, summary = summary_of(tmp_path, one(), outcomes={0: Status.NAN_LOSS})
    assert summary["samples_per_s"].isna().all()
    assert summary["peak_allocated_bytes"].notna().all()


def test_a_rate_whose_halves_cover_different_steps_is_found(tmp_path):
    def lie(measurement, case, repeat):
        return dataclasses.replace(measurement, wall_window_s=measurement.wall_window_s / 20)

    frame, _ = summary_of(tmp_path, one(), change=lie)
    assert len(codes(frame)["inconsistent_rate"].run_keys) == 3
    honest, _ = summary_of(tmp_path / "honest", one())
    assert "inconsistent_rate" not in codes(honest)


def test_a_host_that_holds_the_device_up_is_no_inconsistent_rate(tmp_path):
    def wait(measurement, case, repeat):
        return dataclasses.replace(measurement, wall_window_s=measurement.wall_window_s * 2, flags=("host_bound",))

    frame, _ = summary_of(tmp_path, one(), change=wait)
    assert "host_bound" in codes(frame)
    assert "inconsistent_rate" not in codes(frame)


def test_a_few_slow_steps_are_noise_and_no_lie(tmp_path):
    def hiccup(measurement, case, repeat):
        steps = (*measurement.step_times_s[:-1], 10 * measurement.step_times_s[0])
        return dataclasses.replace(measurement, step_times_s=steps, wall_window_s=sum(steps))

    frame, _ = summary_of(tmp_path, one(), change=hiccup)
    assert len(codes(frame)["skewed_steps"].run_keys) == 3
    assert "inconsistent_rate" not in codes(frame)


def test_processes_that_do_not_agree_are_found(tmp_path):
    def drift(measurement, case, repeat):
        steps = tuple(value * (1 + 0.2 * repeat) for value in measurement.step_times_s)
        return dataclasses.replace(measurement, step_times_s=steps, wall_window_s=sum(steps))

    frame, _ = summary_of(tmp_path, one(), change=drift)
    assert len(codes(frame)["noisy"].run_keys) == 3
    assert "noisy" not in codes(summary_of(tmp_path / "calm", one())[0])


def test_flags_of_the_probes_are_counted(tmp_path):
    def flag(measurement, case, repeat):
        return dataclasses.replace(measurement, flags=("host_bound",) if repeat else ("not_steady",))

    frame, _ = summary_of(tmp_path, one(), change=flag)
    assert "In 2 of 3 runs" in codes(frame)["host_bound"].text
    assert "In 1 of 3 runs" in codes(frame)["not_steady"].text


@pytest.mark.parametrize(
    ("settings", "code", "weakens"),
    [
        ({"outcomes": {0: Status.FAILED}}, "failed", "reading"),
        ({"outcomes": {0: Status.INTERRUPTED}}, "interrupted", "reading"),
        ({"outcomes": {0: Status.SKIPPED}}, "skipped", "nothing"),
        ({"outcomes": {0: Status.OOM}}, "out_of_memory", "nothing"),
        ({"data_source": "synthetic"}, "synthetic_data", "nothing"),
        ({"environment": dataclasses.replace(CPU, git_dirty=True)}, "dirty_tree", "publishing"),
        ({"environment": dataclasses.replace(GPU, power_limit_w=350.0)}, "power_capped", "nothing"),
        ({"environment": dataclasses.replace(GPU, ecc=False)}, "settings_changed", "nothing"),
        ({"repeats": 3}, "short_of_repeats", "publishing"),
        ({}, "cpu_only", "nothing"),
    ],
)
def test_what_was_not_kept_is_found(tmp_path, settings, code, weakens):
    frame, _ = summary_of(tmp_path, **settings)
    assert codes(frame)[code].weakens == weakens


def test_settings_that_were_changed_are_named_and_those_that_were_not_are_no_finding(tmp_path):
    usual = {"workload_power_profiles": "none", "edpp_multiplier_frac": 1.0, "adaptive_tgp": False, "mps": False}
    usual |= {"power_smoothing": False, "application_clocks": "default", "confidential_computing": "off"}
    frame, _ = summary_of(tmp_path / "usual", one(), environment=dataclasses.replace(GPU, **usual))
    assert "settings_changed" not in codes(frame)
    changed = dataclasses.replace(GPU, **usual | {"mps": True, "edpp_multiplier_frac": 0.8, "adaptive_tgp": True})
    frame, _ = summary_of(tmp_path / "changed", one(), environment=changed)
    finding = codes(frame)["settings_changed"]
    assert "in all 3 runs: EDPp multiplier 80 %; MPS yes; adaptive TGP yes." in finding.text


def test_a_clean_gpu_sweep_of_five_processes_has_no_finding(tmp_path):
    frame = bench.load(honest(tmp_path))
    assert [finding.code for finding in judge(frame, 0.05)] == []


def test_a_foreign_process_on_the_device_is_found(tmp_path):
    def share(measurement, case, repeat):
        return dataclasses.replace(measurement, other_process_count=1)

    frame, _ = summary_of(tmp_path, one(), environment=GPU, change=share)
    assert len(codes(frame)["contaminated"].run_keys) == 3


CARD = Protocol(warmup_steps=3, measured_steps=8, device_memory_bytes=24 << 30)


def test_a_gpu_that_played_a_smaller_card_is_named_as_that_card(tmp_path):
    frame, summary = summary_of(tmp_path, one(), environment=GPU, protocol=CARD)
    assert summary["machine"].tolist() == ["NVIDIA H200 as a card of 24 GiB"]
    assert gpu_memory_bytes(summary).tolist() == [24 << 30]
    found = codes(frame)["smaller_card"]
    assert found.weakens == "nothing"
    assert found.text.startswith("The GPU played a smaller card in all 3 runs, of 24 GiB: ")

    def overfill(measurement, case, repeat):
        return dataclasses.replace(measurement, peak_reserved_bytes=25 << 30)

    frame, _ = summary_of(tmp_path / "more", one(), environment=GPU, protocol=CARD, change=overfill)
    assert "peak_reserved_bytes is more than device_memory_bytes" in codes(frame)["impossible_memory"].text


def test_a_gpu_that_played_a_smaller_card_in_some_runs_has_two_protocols(tmp_path):
    whole = dataclasses.replace(CARD, device_memory_bytes=None)
    for name, protocol in (("whole", whole), ("card", CARD)):
        make_results(tmp_path / name, one(), environment=GPU, protocol=protocol)
    summary = summarise_cases(bench.load(tmp_path))
    assert set(summary["machine"]) == {"NVIDIA H200"}
    memory = dict(zip(summary["protocol"], gpu_memory_bytes(summary), strict=True))
    assert memory == {"device_memory 24 GiB": 24 << 30, "device_memory the whole card": GPU.gpu_total_bytes}
    with pytest.raises(BenchError, match="--across device_memory_bytes"):
        bench.compare(tmp_path / "whole", tmp_path / "card")


def test_two_machines_stay_apart(tmp_path):
    make_results(tmp_path / "a", one(), environment=GPU)
    other = dataclasses.replace(GPU, gpu_name="NVIDIA A100", power_limit_w=400.0, power_limit_default_w=400.0)
    make_results(tmp_path / "b", one(), environment=other)
    frame = bench.load(tmp_path)
    summary = summarise_cases(frame)
    assert summary["machine"].tolist() == ["NVIDIA H200", "NVIDIA A100"]
    assert len(best_cases(summary)) == 2
    assert "2 environments" in codes(frame)["mixed_environments"].text


def test_equal_cards_are_told_apart_by_what_differs(tmp_path):
    make_results(tmp_path / "a", one(), environment=GPU)
    make_results(tmp_path / "b", one(), environment=dataclasses.replace(GPU, driver_version="580.1"))
    summary = summarise_cases(bench.load(tmp_path))
    assert summary["machine"].tolist() == ["NVIDIA H200, driver 570.86.10", "NVIDIA H200, driver 580.1"]


def test_headline_has_the_answer_with_its_interval(tmp_path):
    _, summary = summary_of(tmp_path, one())
    sentence = headline(summary)
    assert "Example Eight 3.0 GHz (CPU)" in sentence
    assert "mlp on mnist trains at up to" in sentence
    assert "95 % interval" in sentence
    assert "the formula is off by" in sentence


def test_headline_of_nothing_measured_says_so(tmp_path):
    _, summary = summary_of(tmp_path, one(), outcomes={0: Status.CRASHED})
    assert headline(summary) == "On Example Eight 3.0 GHz (CPU), none of the 1 planned cases has a measured speed."


def test_best_cases_know_the_memory_boundary(tmp_path):
    _, summary = summary_of(tmp_path, make_cases(["mnist"], ["mlp"], ["sgd"], [64, 256, 1024]), memory_bytes=3 * MIB)
    row = best_cases(summary).iloc[0]
    assert (row["largest_batch_ok"], row["smallest_batch_oom"]) == (256, 1024)


def test_whole_numbers_stay_exact(tmp_path):
    large = (1 << 50) + 1
    _, summary = summary_of(
        tmp_path, one(), change=lambda measurement, *_: dataclasses.replace(measurement, peak_allocated_bytes=large)
    )
    assert summary["peak_allocated_bytes"].tolist() == [large]


def test_summaries_do_not_change_the_frame(tmp_path):
    frame = bench.load(make_results(tmp_path))
    before = frame.copy(deep=True)
    summarise_cases(frame)
    judge(frame)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        ("allocator_settings", (None, "backend:native"), ["none set", "backend:native"]),
        ("speed_variables", (None, "OMP_NUM_THREADS=2"), ["none set", "OMP_NUM_THREADS=2"]),
        ("cpu_cores_usable", (None, 4), ["unknown", "4"]),
        ("mig", (None, True), ["unknown", "True"]),
    ],
)
def test_machines_told_apart_by_what_only_one_has_say_what_the_other_means(tmp_path, field, values, said):
    for number, value in enumerate(values):
        machine = dataclasses.replace(CPU, **{field: value})
        make_results(tmp_path / str(number), one(), environment=machine, repeats=1)
    frame = bench.load(tmp_path)
    assert list(machine_labels(frame).values()) == [f"Example Eight 3.0 GHz (CPU), {field} {word}" for word in said]
    assert f"{field} {said[0]}; " in codes(frame)["mixed_environments"].text
    sides = [frame[frame[field].isna()], frame[frame[field].notna()]]
    (difference,) = [item for item in find_differences(*sides) if item.field == field]
    assert field_words(field, difference.baseline) == said[0]  # one word, wherever it is said
    assert dataclasses.replace(CPU, **{field: values[1]}).changes_since(dataclasses.asdict(CPU) | {field: None}) == [
        f"{field} {said[0]} -> {said[1]}"
    ]
