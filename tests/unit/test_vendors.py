"""GPUs of AMD, Intel and Apple: what their files say, and that the formula alone is estimated on them, with the reason."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, cast

import pytest

from bench.catalog import parse_choice
from bench.cli.choose import text_lines
from bench.client import placements_in_child
from bench.config import check_config
from bench.devices import Device, device_from_mapping, list_devices, load_device, match_device, with_memory
from bench.devices.context import context_of
from bench.devices.schema import UNSOURCED, VENDORS
from bench.devices.vendors import formula_alone, no_speed, no_trace
from bench.errors import ConfigError, Unsupported
from bench.estimators.cases import estimate_cases
from bench.estimators.choosing import Placement, place, rank
from bench.estimators.fitting import fit_batch
from bench.estimators.kept import machine_of, recorded_on, recording_of
from bench.estimators.memory import Target, estimate_trace
from bench.estimators.memory_settings import settings_in_force
from bench.estimators.roofline import estimate_speed
from bench.estimators.timeline import estimate_timeline
from bench.launchers import Launcher
from bench.plan import build_plan
from bench.records import Case, Estimate
from bench.sweep.requests import demand_lines, find_demands
from tests import plugins
from tests.each import each

MIB, GIB = 1 << 20, 1 << 30
OTHERS = [name for name in list_devices() if load_device(name).vendor not in (None, "nvidia")]
ONE_EACH = {"mi300x": "MIOpen", "max1550": "oneDNN", "m4_max": "Metal"}
"""A device of each vendor, with a word of the reason why it is not traced."""
CASE = Case(parse_choice("dataset", "mnist"), parse_choice("model", "mlp"), parse_choice("optimizer", "sgd"), 64)
ESTIMATED = [
    field.name for field in dataclasses.fields(Estimate) if field.name.startswith(("trace_", "estimated_", "least_"))
]

MATRIX_FLOP_PER_CYCLE = {  # of one multiprocessor: AMD's pages on MI250 and MI300, Intel's on the Xe-core of HPC
    "mi250x": {"float32": 256, "tf32": None, "bf16": 1024, "fp16": 1024},
    "mi300a": {"float32": 256, "tf32": 1024, "bf16": 2048, "fp16": 2048},
    "mi300x": {"float32": 256, "tf32": 1024, "bf16": 2048, "fp16": 2048},
    "mi325x": {"float32": 256, "tf32": 1024, "bf16": 2048, "fp16": 2048},
    "max1550": {"float32": 256, "tf32": 2048, "bf16": 4096, "fp16": 4096},
    "max1550_card": {"float32": 256, "tf32": 2048, "bf16": 4096, "fp16": 4096},
    "arc_b580": {"float32": 256, "tf32": None, "bf16": None, "fp16": None},
}


def full(device: Device) -> Device:
    """The device with everything that an estimate would ask for, so that only its vendor stands in the way."""
    h100 = load_device("h100_sxm")
    empty = {
        field.name: getattr(h100, field.name)
        for field in dataclasses.fields(Device)
        if getattr(device, field.name) in (None, ()) and field.name != "sources"
    }
    return dataclasses.replace(device, **empty)


def test_each_vendor_has_its_devices() -> None:
    found = {vendor: [name for name in OTHERS if load_device(name).vendor == vendor] for vendor in VENDORS}
    assert found == {
        "nvidia": [],
        "amd": ["mi250x", "mi300a", "mi300x", "mi325x"],
        "intel": ["arc_b580", "max1550", "max1550_card"],
        "apple": ["m2_ultra", "m3_ultra", "m4", "m4_max", "m4_pro"],
    }


@each("name", OTHERS)
def test_each_value_has_a_dated_source_that_can_be_looked_up(name: str) -> None:
    device = load_device(name)
    for key, text in device.sources:
        looked_up = re.search(r"https://\S+", text) and re.search(r"\b20[12]\d\b", text)
        assert looked_up or text.startswith(("derived: 20 Xe-cores", "as torch reports it")), (key, text)
    stated = {field.name for field in dataclasses.fields(device) if getattr(device, field.name) not in (None, ())}
    assert {key for key, _ in device.sources} == stated - set(UNSOURCED) - {"name", "sources"}


@each("name", OTHERS)
def test_torch_has_the_vendors_devices_by_their_type_and_hips_version_is_no_compute_capability(name: str) -> None:
    device = load_device(name)
    assert device.kind == VENDORS[device.vendor or ""]
    assert (device.compute_capability, device.cublas_workspace_bytes, device.context_bytes) == (None, None, None)


@each("name", MATRIX_FLOP_PER_CYCLE)
def test_peaks_follow_from_units_and_clock(name: str) -> None:
    device = load_device(name)
    assert device.multiprocessors and device.boost_clock_hz
    for precision, per_cycle in MATRIX_FLOP_PER_CYCLE[name].items():
        expected = per_cycle and device.multiprocessors * device.boost_clock_hz * per_cycle
        assert device.peak_flop_per_s(precision) == (expected and pytest.approx(expected, rel=1e-3))


def test_a_die_or_stack_is_half_a_board_and_has_no_power_limit_of_its_own() -> None:
    stack, card = load_device("max1550"), load_device("max1550_card")
    for key in ("memory_bytes", "memory_bandwidth_bytes_per_s", "multiprocessors", "l2_bytes", "peak_bf16_flop_per_s"):
        assert 2 * getattr(stack, key) == getattr(card, key)
    assert (stack.power_limit_w, load_device("mi250x").power_limit_w, card.power_limit_w) == (None, None, 600)


@pytest.mark.parametrize(
    ("gpu_name", "memory_bytes", "expected"),
    [
        ("AMD Instinct MI300X", 196592 * MIB, "mi300x"),
        ("AMD Instinct MI300X VF", 196592 * MIB, "mi300x"),
        ("AMD Instinct MI300X", 24 * GIB, None),  # one part of eight (CPX mode)
        ("AMD Instinct MI250X", 65520 * MIB, "mi250x"),
        ("AMD Instinct MI250X/MI250", 65520 * MIB, "mi250x"),
        ("AMD Instinct MI250", 65520 * MIB, None),
        ("Intel(R) Data Center GPU Max 1550", 65536 * MIB, "max1550"),
        ("Intel(R) Data Center GPU Max 1550", 131072 * MIB, "max1550_card"),
        ("Intel(R) Data Center GPU Max 1550", None, "max1550"),
        ("Intel(R) Arc(TM) B580 Graphics", 12216 * MIB, "arc_b580"),
        ("Intel(R) Arc(TM) B570 Graphics", None, None),
        ("Apple M2 Ultra", 64 * GIB, "m2_ultra"),
        ("Apple M2 Ultra", 192 * GIB, "m2_ultra"),
        ("Apple M4", 16 * GIB, "m4"),
        ("Apple M4 Max", 128 * GIB, "m4_max"),
        ("Apple M4 Ultra", None, None),  # there is none
    ],
)
def test_names_as_torch_reports_them_find_the_file(
    gpu_name: str, memory_bytes: int | None, expected: str | None
) -> None:
    found = match_device(gpu_name, memory_bytes)
    assert (found and found.name) == expected


@pytest.mark.parametrize(
    ("kind", "gpu_name", "vendor"),
    [
        ("cuda", "AMD Radeon RX 7900 XTX", "amd"),
        ("cuda", "AMD Instinct MI210", "amd"),
        ("cuda", "Radeon RX 7900 XTX", "amd"),
        ("cuda", "NVIDIA H200", "nvidia"),
        ("cuda", "Tesla V100-SXM2-16GB", "nvidia"),
        ("xpu", "Intel(R) Arc(TM) A770 Graphics", "intel"),
        ("mps", "Apple M1", "apple"),
        ("cpu", "AMD EPYC 9654", None),
    ],
)
def test_a_file_without_a_vendor_has_the_one_that_kind_and_name_tell(
    kind: str, gpu_name: str, vendor: str | None
) -> None:
    assert device_from_mapping("mine", {"gpu_name": gpu_name, "kind": kind}, "mine.toml").vendor == vendor


def test_a_vendor_whose_devices_torch_calls_otherwise_is_a_fault() -> None:
    with pytest.raises(ConfigError, match=re.escape("mine.toml: vendor: devices of amd have kind cuda, not xpu")):
        device_from_mapping("mine", {"gpu_name": "A", "kind": "xpu", "vendor": "amd"}, "mine.toml")
    with pytest.raises(ConfigError, match="vendor: must be one of nvidia, amd, intel, apple, not 'ati'"):
        device_from_mapping("mine", {"gpu_name": "A", "kind": "cuda", "vendor": "ati"}, "mine.toml")


@each("name", list_devices())
def test_reasons_stand_where_the_rules_were_not_checked_and_only_there(name: str) -> None:
    device = load_device(name)
    assert (no_trace(device) is None) == (no_speed(device) is None) == (device.vendor == "nvidia")
    assert (formula_alone(device) is not None) == (name in OTHERS)


@each("name", ONE_EACH)
def test_the_formula_is_estimated_and_the_rest_is_null_with_its_reason(name: str) -> None:
    asked = full(load_device(name))
    (made,) = estimate_cases([CASE], asked)
    (on_h100,) = estimate_cases([CASE], "h100_sxm")
    assert made.formula_bytes == on_h100.formula_bytes
    assert on_h100.trace_peak_allocated_bytes and on_h100.estimated_samples_per_s
    assert {key: getattr(made, key) for key in ESTIMATED} == dict.fromkeys(ESTIMATED)
    assert (made.step_flop, made.peak_flop_per_s) == (None, None)
    note = made.estimate_note or ""
    assert f"no memory trace for {name}: " in note and ONE_EACH[name] in note
    assert f"no speed estimate for {name}: the constants were fitted on NVIDIA GPUs only" in note


@each("name", ONE_EACH)
def test_each_estimator_refuses_by_itself(name: str) -> None:
    device = full(load_device(name))
    target = Target.of(device)
    for ask in (
        lambda: estimate_trace(CASE, target),
        lambda: estimate_timeline(CASE, target),
        lambda: fit_batch(CASE, target),
        lambda: machine_of(device, settings_in_force()),
        lambda: target.machine,
    ):
        with pytest.raises(Unsupported, match=f"no memory trace for {name}: .*{ONE_EACH[name]}"):
            ask()
    recording = recording_of(CASE, machine_of(recorded_on(device), settings_in_force()))
    with pytest.raises(Unsupported, match=f"no speed estimate for {name}: "):
        estimate_speed(recording, CASE, device)
    with pytest.raises(ValueError, match="has no CUDA context"):
        context_of(device)
    assert place(CASE, device, fraction=0.8, workspaces=False).samples_per_s is None


def test_a_gpu_of_the_user_s_own_file_is_not_taken_for_nvidia_s() -> None:
    h100 = load_device("h100_sxm")
    gfx90a = dataclasses.replace(h100, name="mine", gpu_name="AMD Instinct MI210", vendor=None)  # HIP: 9.0, as Hopper
    (made,) = estimate_cases([CASE], gfx90a)
    assert (made.trace_peak_allocated_bytes, made.estimated_samples_per_s) == (None, None)
    assert "no memory trace for mine: " in (made.estimate_note or "")


@each("gpu_name", ["AMD Instinct MI300X", "AMD Radeon RX 7900 XTX", "Intel(R) Arc(TM) A770 Graphics", "Apple M1"])
def test_a_run_s_gpu_has_the_reason_whether_or_not_a_file_describes_it(gpu_name: str) -> None:
    (made,) = estimate_cases([CASE], gpu_name)
    assert made.formula_bytes and made.estimate_device == gpu_name
    assert "no memory trace for " in (made.estimate_note or "") and "unknown device" not in (made.estimate_note or "")


def test_choosing_leaves_them_out_with_the_reason_and_starts_no_process() -> None:
    devices = [load_device(name) for name in OTHERS]
    placements = placements_in_child(cast(Launcher, None), CASE, devices, fraction=0.8, workspaces=False)
    assert [each.device for each in placements] == OTHERS
    assert all(each.samples_per_s is None and each.reason for each in placements)
    known = Placement(
        "h200", 700.0, 8, "fits", *([GIB] * 5), 0.1, 100.0, 90.0, 110.0, "roofline of recorded kernels on h200, so"
    )
    ranking = rank([known, *placements], by="time", samples=100, fraction=0.8, prices={})
    assert [offer.device for offer in ranking.offers] == ["h200"]
    said = [line for line in text_lines(ranking, "t", 5) if line.startswith("not ranked: ")]
    assert len(said) == 3  # one a vendor
    assert any(
        line.startswith("not ranked: mi250x, mi300a, mi300x, mi325x: no memory trace: ")
        and "; no speed estimate: the constants" in line
        for line in said
    )


def test_a_plan_has_the_formula_and_the_reason() -> None:
    grid = {"dataset": ["mnist"], "model": ["mlp"], "optimizer": ["sgd"], "batch_size": [64, 128]}
    checked = check_config({"name": "n", "grid": grid}, "n")
    cases = sorted({run.case for run in build_plan(checked, "cuda")}, key=lambda case: case.batch_size)
    device = load_device("mi300x")
    made = list(estimate_cases(cases, device))
    found = find_demands(checked, "cuda", {"mi300x": made}, {"mi300x": formula_alone(device) or ""})
    assert [each.formula_bytes for each in found.cases] == [each.formula_bytes for each in made]
    assert all(each.device_bytes == each.fits == each.steps_s == {"mi300x": None} for each in found.cases)
    (told,) = (line for line in demand_lines(found) if line.startswith("on mi300x"))
    assert "by the formula alone; no memory trace for mi300x: " in told


def test_a_gpu_of_another_vendor_may_play_a_smaller_one() -> None:
    assert with_memory(load_device("m4_max"), 16 * GIB).memory_bytes == 16 * GIB


def asked(*arguments: str) -> tuple[int, Any]:
    done = plugins.bench(*arguments, "--json")
    return done.returncode, json.loads(done.stdout)


def test_commands_show_the_formula_and_the_reason() -> None:
    step = ("--model", "mlp", "--dataset", "mnist", "--device", "m4_max")
    code, (row,) = asked("estimate", *step, "--batch-size", "64")
    assert (code, row["formula_bytes"], row["trace_peak_reserved_bytes"]) == (0, 2 * 407_080 + 64 * (3136 + 512), None)
    assert "no speed estimate for m4_max" in row["estimate_note"]
    code, fit = asked("fit", *step)
    assert (code, fit["largest_batch_size"], fit["recommended_batch_size"]) == (1, None, None)
    assert [(rung["batch_size"], rung["fits"]) for rung in fit["ladder"]][:2] == [(16, None), (32, None)]
    assert fit["ladder"][2]["formula_bytes"] == row["formula_bytes"]
    assert "no memory trace for m4_max" in fit["reason"]
    done = plugins.bench("guard", *step, "--baseline", "none.json", "--update")
    assert done.returncode == 2
    assert "no memory trace for m4_max" in done.stderr and "bench estimate --device m4_max" in done.stderr
    done = plugins.bench("fit", *step, "--batch-size", "64", "--save-memory")
    assert done.returncode == 2 and "no memory trace for m4_max" in done.stderr


def test_devices_are_listed_with_vendor_and_what_is_estimated_on_them() -> None:
    _, rows = asked("list", "devices")
    known = {row["name"]: row for row in rows}
    assert {row["vendor"] for row in rows} == {None, *VENDORS}
    assert known["h200"]["formula_alone"] is None and known["cpu"]["formula_alone"] is None
    assert "no memory trace for arc_b580" in known["arc_b580"]["formula_alone"]
    assert known["m2_ultra"]["summary"] == "Apple M2 Ultra, the memory of its host; formula alone"
