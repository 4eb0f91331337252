"""The table of findings: every rule that was not kept, and every planted lie, by name and counted once."""

from __future__ import annotations

import dataclasses

import pytest

import bench
from bench.analysis import RULES, CaseNames, Finding, Weakens, judge, summarise_cases
from bench.analysis.findings import group_keys
from bench.records import Status
from bench.stats import PUBLISHED_PROCESSES
from tests.altered import PROTOCOL, honest, rewrite
from tests.machines import A100
from tests.results import CPU, GIB, GPU, MIB, make_cases, make_results

CASES = make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64])


def planned(folder):
    frame = bench.load(folder)
    return frame[frame["planned"]].reset_index(drop=True)


def objections(folder, asked=0.05):
    """The codes that forbid publishing, with the runs each names."""
    return {finding.code: finding for finding in judge(planned(folder), asked).blocking}


def named(finding, frame):
    return CaseNames(summarise_cases(frame)).of(finding)


def caught(folder, code, keys=None):
    """The finding of this code, and only it, against these runs."""
    found = objections(folder)
    assert set(found) == {code}, {name: finding.text for name, finding in found.items()}
    if keys is not None:
        assert set(found[code].run_keys) == set(keys)
    return found[code].text


def of_case(folder, key=0):
    """The name of one case's parts."""
    return sorted(path.name for path in (folder / "runs").iterdir())[key * 5].split("-")[0]


def test_honest_results_are_publishable(tmp_path):
    for name, settings in {"gpu": {}, "cpu": {"environment": CPU, "trace": False}}.items():
        found = judge(planned(honest(tmp_path / name, **settings)), 0.05)
        assert found.publishable, [finding.text for finding in found.blocking]


# the rules of the protocol


def test_an_interval_wider_than_asked_names_its_case_and_no_other(tmp_path):
    folder = honest(tmp_path)
    case = of_case(folder)
    keys = [
        key
        for number in (0, 1)
        for key in rewrite(
            folder,
            lambda row: {
                "wall_window_s": row["wall_window_s"] * 1.6,
                "step_times_s": [t * 1.6 for t in row["step_times_s"]],
            },
            f"{case}-r{number}-",
        )
    ]
    frame = planned(folder)
    (finding,) = judge(frame, 0.05).blocking
    assert finding.code == "noisy"
    assert set(keys) < set(finding.run_keys)
    assert [case["case_key"] for case in named(finding, frame)] == [case]
    assert "wider than ±5 % in 1 of 3 cases" in finding.text


def test_the_width_asked_for_is_the_sweep_s_own_then_the_device_s(tmp_path):
    folder = honest(tmp_path)
    frame = planned(folder)
    assert judge(frame, 0.05).publishable
    assert "noisy" in {finding.code for finding in judge(frame).blocking}  # ±1 % on a GPU
    assert "noisy" not in {finding.code for finding in judge(frame.assign(target_interval=0.05)).blocking}
    assert "±0.1 %" in judge(frame, 0.001).blocking[0].text


@pytest.mark.parametrize("repeats", [1, 3, PUBLISHED_PROCESSES - 1])
def test_too_few_processes_are_named(tmp_path, repeats):
    found = judge(planned(honest(tmp_path, repeats=repeats)), 0.5).blocking
    assert [finding.code for finding in found] == ["short_of_repeats"]
    assert f"(the fewest: {repeats})" in found[0].text


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.FAILED, "failed"),
        (Status.CRASHED, "failed"),
        (Status.TIMEOUT, "failed"),
        (Status.NAN_LOSS, "failed"),
        (Status.INTERRUPTED, "interrupted"),
        (Status.THROTTLED, "throttled"),
    ],
)
def test_a_case_that_did_not_end_well_is_named(tmp_path, status, code):
    folder = honest(tmp_path, outcomes={2: status})
    frame = planned(folder)
    finding = next(finding for finding in judge(frame, 0.05).blocking if finding.code == code)
    assert [case["case"] for case in named(finding, frame)] == ["mlp on mnist, batch 256"]


def test_running_out_of_memory_every_time_is_an_answer_and_now_and_then_is_not(tmp_path):
    always = honest(tmp_path / "always", memory_bytes=2 * MIB)
    assert "oom" in set(planned(always)["status"])
    assert not objections(always)
    sometimes = honest(
        tmp_path / "sometimes",
        change=lambda measured, case, repeat: (
            dataclasses.replace(measured, status=Status.OOM, step_times_s=(), wall_window_s=None)
            if (case.batch_size, repeat) == (64, 1)
            else measured
        ),
    )
    assert "failed" in objections(sometimes)


def test_a_dirty_tree_is_named(tmp_path):
    caught(honest(tmp_path, environment=dataclasses.replace(GPU, git_dirty=True)), "dirty_tree")


def test_flags_of_the_run_itself_are_named(tmp_path):
    folder = honest(tmp_path)
    keys = rewrite(folder, lambda row: {"flags": ["host_bound", "a|new `flag`"]}, "-r0-")
    found = objections(folder)
    assert set(found["host_bound"].run_keys) == set(found["flagged"].run_keys) == set(keys)
    assert "a|new `flag`" in found["flagged"].text


@pytest.mark.parametrize(
    ("field", "forbids"),
    [
        ("driver_version", True),
        ("torch_version", True),
        ("power_limit_w", True),
        ("cpu_model", True),
        ("vbios", False),
        ("git_commit", False),
    ],
)
def test_what_is_not_disclosed_is_named(tmp_path, field, forbids):
    folder = honest(tmp_path, environment=dataclasses.replace(GPU, **{field: None}))
    found = judge(planned(folder), 0.05)
    code = "missing_disclosure" if forbids else "unknown_detail"
    assert any(finding.code == code and field in finding.text for finding in found)
    assert found.publishable is not forbids


def test_an_unknown_process_list_and_an_unknown_memory_cannot_exclude_others(tmp_path):
    folder = honest(tmp_path)
    rewrite(folder, lambda row: {"other_process_count": None})
    assert "other processes" in caught(folder, "missing_disclosure")
    rewrite(folder, lambda row: {"device_used_before_bytes": 4 * MIB})
    assert not objections(folder)


def test_a_case_is_noisy_or_not_converged_and_never_both(tmp_path):
    frame = planned(honest(tmp_path))
    (noisy,) = judge(frame).blocking  # wider than ±1 %, which nobody asked for
    own = frame["run_key"].isin(noisy.run_keys)
    asked = frame.assign(target_interval=[0.0001 if each else None for each in own])
    found = {finding.code: set(finding.run_keys) for finding in judge(asked).blocking}
    assert (noisy.code, found) == ("noisy", {"not_converged": set(noisy.run_keys)})
    assert {finding.code for finding in judge(asked, 0.0001).blocking} == {"noisy"}
    assert judge(asked, 0.05).publishable  # what is asked for now counts, not what the sweep asked for


def test_every_rule_finds_at_most_one_thing_and_the_gravest_come_first(tmp_path):
    environment = dataclasses.replace(GPU, driver_version=None, git_dirty=True, vbios=None)
    folder = honest(tmp_path, environment=environment, outcomes={0: Status.FAILED}, repeats=2)
    rewrite(folder, lambda row: {"flags": ["one", "two", "not_steady", "nvml_silent"], "other_process_count": None})
    frame = planned(folder)
    found = judge(frame)
    codes = [finding.code for finding in found]
    assert len(codes) == len(set(codes))
    assert {"flagged", "missing_disclosure", "unknown_detail", "nvml_silent", "failed"} <= set(codes)
    assert codes == [code for code in RULES if code in codes]
    assert all(finding.remedy.endswith(".") and "{" not in finding.text + finding.remedy for finding in found)


def test_the_table_is_in_the_order_of_what_its_rules_weaken():
    order = [rule.weakens for rule in RULES.values()]
    assert order == sorted(order, key=list(Weakens).index)


# planted lies


def test_events_that_sum_to_far_less_than_the_wall_are_a_missing_synchronisation(tmp_path):
    folder = honest(tmp_path)
    keys = rewrite(folder, lambda row: {"step_times_s": [t / 5 for t in row["step_times_s"]]}, "-r1-")
    found = objections(folder)
    assert set(found) == {"unsynchronised", "inconsistent_rate", "skewed_steps"}
    assert set(found["unsynchronised"].run_keys) == set(keys)


def test_steps_and_a_wall_clock_that_disagree_are_found_on_a_cpu_too(tmp_path):
    folder = honest(tmp_path, environment=CPU, trace=False)
    keys = rewrite(folder, lambda row: {"step_times_s": [t / 5 for t in row["step_times_s"]]}, "-r1-")
    assert set(objections(folder)["unsynchronised"].run_keys) == set(keys)


def test_a_host_bound_flag_does_not_excuse_a_missing_synchronisation(tmp_path):
    folder = honest(tmp_path)
    rewrite(folder, lambda row: {"step_times_s": [t / 5 for t in row["step_times_s"]], "flags": ["host_bound"]})
    assert "unsynchronised" in objections(folder)


def test_steps_that_return_at_once_and_a_last_one_that_waits_for_all_are_found(tmp_path):
    folder = honest(tmp_path)

    def launch_only(row):
        steps, total = row["step_times_s"], sum(row["step_times_s"])
        return {"step_times_s": [total / 1000] * (len(steps) - 1) + [total * (1 - (len(steps) - 1) / 1000)]}

    keys = rewrite(folder, launch_only)
    assert set(objections(folder)["unsynchronised"].run_keys) == set(keys)


def test_a_window_that_never_waited_for_the_device_is_too_fast_to_be_true(tmp_path):
    folder = honest(tmp_path)
    rewrite(
        folder,
        lambda row: {"step_times_s": [t / 30 for t in row["step_times_s"]], "wall_window_s": row["wall_window_s"] / 30},
    )
    assert "too_fast" in objections(folder)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda row: {"step_times_s": [t * 1000 for t in row["step_times_s"]]}, "inconsistent_rate"),
        (lambda row: {"wall_window_s": row["wall_window_s"] * 1000}, "wrong_unit"),
        (lambda row: {"wall_window_s": row["wall_window_s"] / 1000}, "inconsistent_rate"),
        (
            lambda row: {
                "wall_window_s": row["wall_window_s"] * 1000,
                "step_times_s": [t * 1000 for t in row["step_times_s"]],
            },
            "wrong_unit",
        ),
        (
            lambda row: {
                "wall_window_s": row["wall_window_s"] / 1000,
                "step_times_s": [t / 1000 for t in row["step_times_s"]],
            },
            "wrong_unit",
        ),
        (lambda row: {"peak_allocated_bytes": row["peak_allocated_bytes"] // 1000}, "impossible_memory"),
        (lambda row: {"peak_allocated_bytes": row["peak_allocated_bytes"] * 1000}, "impossible_memory"),
        (lambda row: {"peak_reserved_bytes": row["peak_reserved_bytes"] // 1024}, "impossible_memory"),
        (lambda row: {"peak_reserved_bytes": row["peak_reserved_bytes"] * 100_000}, "impossible_memory"),
        (lambda row: {"energy_window_j": row["energy_window_j"] * 1000}, "wrong_unit"),
        (lambda row: {"energy_window_j": row["energy_window_j"] / 10_000}, "wrong_unit"),
        (lambda row: {"sm_clock_end_hz": row["sm_clock_end_hz"] / 1000}, "wrong_unit"),
        (lambda row: {"sm_clock_end_hz": row["sm_clock_end_hz"] * 1000}, "wrong_unit"),
        (lambda row: {"temperature_end_c": row["temperature_end_c"] * 1000}, "wrong_unit"),
    ],
    ids=range(14),
)
def test_a_unit_off_by_a_thousand_is_found(tmp_path, change, code):
    folder = honest(tmp_path)
    keys = rewrite(folder, change)
    assert set(objections(folder)[code].run_keys) == set(keys)


@pytest.mark.parametrize(
    ("field", "factor"),
    [
        ("ram_bytes", 1 / 1024),
        ("gpu_total_bytes", 1 / 1024),
        ("power_limit_default_w", 1000),
        ("max_sm_clock_hz", 1e-6),
    ],
)
def test_a_machine_whose_figures_are_in_another_unit_is_found(tmp_path, field, factor):
    value = getattr(GPU, field)
    folder = honest(tmp_path, environment=dataclasses.replace(GPU, **{field: type(value)(value * factor)}))
    assert field in objections(folder)["wrong_unit"].text


def test_a_peak_of_a_cpu_above_its_ram_is_found(tmp_path):
    folder = honest(tmp_path, environment=CPU, trace=False)
    rewrite(folder, lambda row: {"peak_allocated_bytes": 17 * GIB})
    assert "more than the RAM" in objections(folder)["impossible_memory"].text


def test_a_rate_over_all_steps_and_one_step_s_time_is_found(tmp_path):
    folder = honest(tmp_path)
    keys = rewrite(folder, lambda row: {"wall_window_s": row["step_times_s"][0]})
    assert set(objections(folder)["inconsistent_rate"].run_keys) == set(keys)


def test_a_batch_size_that_was_changed_in_the_row_is_found(tmp_path):
    folder = honest(tmp_path)
    keys = rewrite(folder, lambda row: {"batch_size": row["batch_size"] // 2} if row["batch_size"] == 64 else {})
    assert set(objections(folder)["keys_differ"].run_keys) == set(keys)


def test_a_batch_size_that_was_halved_while_measuring_is_found(tmp_path):
    honest_peaks = {}
    folder = honest(tmp_path)
    rewrite(
        folder,
        lambda row: honest_peaks.setdefault((row["optimizer"], row["batch_size"]), row["peak_allocated_bytes"]) and {},
    )
    rewrite(
        folder,
        lambda row: {"peak_allocated_bytes": honest_peaks[row["optimizer"], 64]} if row["batch_size"] == 256 else {},
    )
    found = objections(folder)["batch_unseen"]
    assert "64, 256" in found.text
    assert set(found.run_keys) == set(planned(folder).query("batch_size in (64, 256)")["run_key"])


def test_a_peak_without_room_for_its_batch_is_found(tmp_path):
    folder = honest(tmp_path, cases=make_cases(["cifar10"], ["mlp"], ["sgd"], [4096]))
    rewrite(folder, lambda row: {"peak_allocated_bytes": row["peak_allocated_bytes"] // 2})
    assert "less than parameters and batch" in objections(folder)["impossible_memory"].text


def test_a_window_whose_second_half_was_slowed_is_found_though_nobody_flagged_it(tmp_path):
    folder = honest(tmp_path)

    def slowed(row):
        half = len(row["step_times_s"]) // 2
        steps = [t if number < half else 1.3 * t for number, t in enumerate(row["step_times_s"])]
        return {"step_times_s": steps, "wall_window_s": sum(steps) * 1.001}

    keys = [key for number in range(5) for key in rewrite(folder, slowed, f"-r{number}-")]
    assert set(objections(folder)["not_steady"].run_keys) == set(keys)


@pytest.mark.parametrize(
    "said",
    [
        {"throttle_reasons_end": ["sw_thermal_slowdown"]},
        {"throttle_reasons_start": ["hw_power_brake_slowdown"]},
        {"thermal_slowdown_window_s": 0.5},
        {"flags": ["throttled"]},
        {"sm_clock_end_hz": 1.2e9},
    ],
    ids=["reason at the end", "reason at the start", "counter", "flag", "clock"],
)
def test_a_throttled_half_of_the_runs_is_found_though_their_status_says_ok(tmp_path, said):
    folder = honest(tmp_path)
    keys = [key for number in (0, 1) for key in rewrite(folder, lambda row: said, f"-r{number}-")]
    caught(folder, "throttled", keys)


def test_a_power_cap_is_no_throttling(tmp_path):
    folder = honest(tmp_path)
    rewrite(folder, lambda row: {"throttle_reasons_end": ["sw_power_cap", "gpu_idle"]})
    assert not objections(folder)


@pytest.mark.parametrize("said", [None, []], ids=["unknown", "as parts of before say it"])
def test_reasons_that_the_driver_did_not_say_are_no_throttling(tmp_path, said):
    folder = honest(tmp_path)
    rewrite(folder, lambda row: {"throttle_reasons_start": said, "throttle_reasons_end": said})
    assert {None if value is None else len(value) for value in bench.load(folder)["throttle_reasons_end"]} == {
        None if said is None else 0
    }
    assert not objections(folder)


@pytest.mark.parametrize(
    "seen",
    [{"other_process_count": 1}, {"device_used_before_bytes": 2 * GIB}, {"device_used_total_bytes": 10 * GIB}],
    ids=["listed", "memory before", "memory beside"],
)
def test_a_foreign_process_on_the_device_is_found(tmp_path, seen):
    folder = honest(tmp_path)
    keys = rewrite(folder, lambda row: seen, "-r2-")
    caught(folder, "contaminated", keys)


def test_a_foreign_process_that_holds_little_shows_against_the_emptiest_run(tmp_path):
    folder = honest(tmp_path)
    rewrite(folder, lambda row: {"device_used_before_bytes": 3 * MIB})
    assert not objections(folder)
    keys = rewrite(folder, lambda row: {"device_used_before_bytes": 300 * MIB}, "-r2-")
    caught(folder, "contaminated", keys)


def test_what_bounds_the_numbers_forbids_nothing(tmp_path):
    folder = make_results(
        tmp_path, make_cases(["mnist"], ["mlp"], ["sgd"], [64]), protocol=PROTOCOL, repeats=5, data_source="synthetic"
    )
    found = judge(planned(folder), 0.05)
    assert [finding.code for finding in found] == ["cpu_only", "synthetic_data"]
    assert found.publishable


def test_a_stalled_warm_up_of_two_steps_says_nothing_of_units_and_one_of_three_does(tmp_path):
    for count, codes in ((2, set()), (3, {"wrong_unit"})):
        folder = honest(tmp_path / str(count))
        rewrite(folder, lambda row, count=count: {"warmup_times_s": [500 * max(row["step_times_s"])] * count})
        found = objections(folder)
        assert set(found) & {"wrong_unit"} == codes
        assert all("or a stalled warm-up" in found[code].text for code in codes)


def test_a_case_that_one_machine_skipped_is_not_named_for_another_machine_s(tmp_path):
    """The A100 measured two processes and was to measure five; the other machine never ran the same cases."""
    skipped = make_results(
        tmp_path / "skipped",
        environment=GPU,
        cases=CASES,
        repeats=5,
        protocol=PROTOCOL,
        outcomes=dict.fromkeys(range(len(CASES)), Status.SKIPPED),
    )
    short = make_results(tmp_path / "short", environment=A100, cases=CASES, repeats=2, protocol=PROTOCOL)
    frame = bench.load(skipped, short)
    frame = frame[frame["planned"]].reset_index(drop=True)
    assert frame["run_key"].isna().any()
    finding = next(item for item in judge(frame, 0.5).blocking if item.code == "short_of_repeats")
    cases = named(finding, frame)
    assert sorted(case["case_key"] for case in cases) == sorted(set(frame["case_key"]))
    assert all(len(case["run_keys"]) == 2 for case in cases)
    rows = frame[frame["run_key"].isna()]
    (there,) = named(Finding(RULES["skipped"], "x", {group_keys(rows)[0]: []}), frame)
    assert (there["case_key"], there["run_keys"]) == (rows["case_key"].iloc[0], [])
