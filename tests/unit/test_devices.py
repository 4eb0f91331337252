"""The device files that come with the package, how they are found, and what a faulty file is told."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.devices import Device, list_devices, load_device, match_device, parse_device_toml, render_device_toml
from bench.devices.schema import CHECKS, PRECISIONS, UNSOURCED
from bench.errors import ConfigError, DeviceError, UnknownNameError

GIB = 1 << 30
ALL = list_devices()
GPUS = [name for name in ALL if name != "cpu"]
ASKED_FOR = """h200 h100_sxm h100_pcie a100_40gb a100_80gb l4 l40s t4 v100_16gb v100_32gb a10
    rtx3060 rtx3090 rtx4060 rtx4090 rtx5090 cpu"""
TENSOR_FLOP_PER_CYCLE = {7: 1024, 8: 1024, 9: 4096, 10: 8192, 12: 1024}
"""Of one multiprocessor in fp16, accumulating in float32, by major compute capability; GeForce does half, 8.0 twice."""


def _known(device: Device) -> dict[str, object]:
    values = {key: getattr(device, key) for key in CHECKS}
    return {key: value for key, value in values.items() if value not in (None, ())}


def _minimal(**more: object) -> str:
    values = {"gpu_name": "NVIDIA Test", "kind": "cuda", "memory_bytes": 8 * GIB, **more}
    return render_device_toml(values, {key: "a test" for key in values if key not in UNSOURCED})


def test_every_device_that_was_asked_for_is_there() -> None:
    assert set(ASKED_FOR.split()) <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_file_goes_by_its_name_and_is_written_as_render_would(name: str) -> None:
    device = load_device(name)
    text = (files("bench.devices") / f"{name}.toml").read_text(encoding="utf-8")
    values, sources = tomllib.loads(text), dict(device.sources)
    values.pop("sources", None)
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert device.name == name
    assert _known(device) == {**values, **{key: tuple(v) for key, v in values.items() if isinstance(v, list)}}
    assert body.strip() == render_device_toml(values, sources).removesuffix("\n[sources]\n").strip()


@pytest.mark.parametrize("name", ALL)
def test_every_value_has_a_source_and_every_source_a_value(name: str) -> None:
    device = load_device(name)
    assert {key for key, _ in device.sources} - set(UNSOURCED) == set(_known(device)) - set(UNSOURCED)
    assert all(device.source(key) for key, _ in device.sources)
    assert device.source("context_bytes") is None


@pytest.mark.parametrize("name", GPUS)
def test_gpu_states_what_the_estimators_need(name: str) -> None:
    optional = {"context_bytes", "context_low_bytes", "context_high_bytes", "launch_overhead_s", "aliases",
                "peak_tf32_flop_per_s", "peak_bf16_flop_per_s"}  # fmt: skip
    assert set(CHECKS) - optional <= set(_known(load_device(name)))


@pytest.mark.parametrize("name", ALL)
def test_what_was_not_measured_is_absent(name: str) -> None:
    assert {"context_bytes", "launch_overhead_s"}.isdisjoint(_known(load_device(name)))


@pytest.mark.parametrize("name", GPUS)
def test_float32_peak_is_two_flop_a_core_and_cycle(name: str) -> None:
    device = load_device(name)
    assert device.multiprocessors and device.fp32_cores_per_multiprocessor and device.boost_clock_hz
    derived = 2 * device.multiprocessors * device.fp32_cores_per_multiprocessor * device.boost_clock_hz
    assert device.peak_float32_flop_per_s == pytest.approx(derived, rel=0.02)


@pytest.mark.parametrize("name", GPUS)
def test_bandwidth_is_bus_width_times_data_rate(name: str) -> None:
    device = load_device(name)
    assert device.memory_bus_bits and device.memory_clock_hz
    derived = 2 * device.memory_clock_hz * device.memory_bus_bits / 8
    assert device.memory_bandwidth_bytes_per_s == pytest.approx(derived, rel=0.03)


@pytest.mark.parametrize("name", GPUS)
def test_tensor_peaks_are_dense_and_follow_the_architecture(name: str) -> None:
    """The newest data-centre GPUs are rated up to 8 % below the boost clock; sparse rates are twice as high."""
    device = load_device(name)
    assert device.multiprocessors and device.boost_clock_hz and device.compute_capability
    assert device.peak_fp16_flop_per_s
    factor = 0.5 if "GeForce" in device.gpu_name else 2 if device.compute_capability == (8, 0) else 1
    per_cycle = factor * TENSOR_FLOP_PER_CYCLE[device.compute_capability[0]] * device.multiprocessors
    assert device.peak_fp16_flop_per_s == pytest.approx(per_cycle * device.boost_clock_hz * 0.97, rel=0.05)
    if device.compute_capability >= (8, 0):
        assert device.peak_bf16_flop_per_s == device.peak_fp16_flop_per_s
        assert device.peak_tf32_flop_per_s == pytest.approx(device.peak_fp16_flop_per_s / 2, rel=0.02)
    else:
        assert (device.peak_bf16_flop_per_s, device.peak_tf32_flop_per_s) == (None, None)


@pytest.mark.parametrize("name", GPUS)
def test_limits_follow_the_compute_capability(name: str) -> None:
    device = load_device(name)
    capability = device.compute_capability
    assert capability is not None
    threads = {(7, 5): 1024, (8, 6): 1536, (8, 9): 1536, (12, 0): 1536}.get(capability, 2048)
    assert device.max_threads_per_multiprocessor == threads
    assert device.fp32_cores_per_multiprocessor == (128 if capability > (8, 0) else 64)
    assert device.cublas_workspace_bytes == (33_554_432 if capability >= (9, 0) else 8_519_680)


@pytest.mark.parametrize("name", GPUS)
def test_cuda_never_shows_more_memory_than_nvml(name: str) -> None:
    device = load_device(name)
    assert device.memory_bytes and device.nvml_memory_bytes
    assert 0.95 * device.nvml_memory_bytes < device.memory_bytes <= device.nvml_memory_bytes


def test_cpu_states_nothing_that_the_host_must_tell() -> None:
    assert _known(load_device("cpu")) == {"gpu_name": "CPU", "kind": "cpu"}


def test_peak_of_a_precision_that_the_chip_lacks_is_none() -> None:
    t4 = load_device("t4")
    assert [t4.peak_flop_per_s(name) for name in PRECISIONS] == [8.1408e12, None, None, 65e12]
    with pytest.raises(ValueError, match=re.escape('unknown precision "int8"; one of float32, tf32, bf16, fp16')):
        t4.peak_flop_per_s("int8")


@pytest.mark.parametrize("name", ALL)
def test_driver_s_name_and_either_total_find_the_device(name: str) -> None:
    device = load_device(name)
    for printed in (device.gpu_name, device.gpu_name.upper(), device.gpu_name.replace("NVIDIA ", "")):
        assert match_device(printed) == device
        for total in (device.memory_bytes, device.nvml_memory_bytes):
            assert match_device(printed, total) == device
    for alias in device.aliases:
        assert match_device(alias, device.memory_bytes) == device


@pytest.mark.parametrize(
    ("gpu_name", "total_memory_gib", "expected"),
    [
        ("NVIDIA A100", 39.4, "a100_40gb"),
        ("NVIDIA A100", 80.0, "a100_80gb"),
        ("NVIDIA A100", None, None),
        ("NVIDIA T4", 14.6, "t4"),
        ("GeForce RTX 3090", 23.7, "rtx3090"),
        ("NVIDIA GeForce RTX 3060", 8.0, None),
        ("NVIDIA GeForce RTX 4060 Ti", None, None),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 8.0, None),
        ("NVIDIA A10G", 22.0, None),
        ("NVIDIA A10", 10.0, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.8, None),
        ("NVIDIA H200 NVL", 140.0, None),
        ("NVIDIA", None, None),
        ("", None, None),
    ],
)
def test_near_names_and_other_sizes_do_not_match(
    gpu_name: str, total_memory_gib: float | None, expected: str | None
) -> None:
    total = None if total_memory_gib is None else round(total_memory_gib * GIB)
    device = match_device(gpu_name, total)
    assert (device and device.name) == expected


@pytest.mark.parametrize("name", ["rtx4090", "RTX4090", "RTX-4090", "rtx_4090", "NVIDIA GeForce RTX 4090", " rtx4090 "])
def test_device_is_loaded_by_any_spelling(name: str) -> None:
    assert load_device(name).name == "rtx4090"


@pytest.mark.parametrize(
    ("given_name", "message"),
    [
        ("rtx4091", 'unknown device "rtx4091". Nearest: rtx4090, rtx5090, rtx4060. List them: bench list devices'),
        ("h300", 'unknown device "h300". Nearest: h200, rtx3090, rtx3060. List them: bench list devices'),
        ("gameboy", 'unknown device "gameboy". List them: bench list devices'),
    ],
)
def test_unknown_device_is_answered_with_the_nearest(given_name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_device(given_name)
    assert str(caught.value) == message


def test_name_that_several_devices_share_is_refused() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_device("a100")
    assert caught.value.matches == ["a10", "a100_80gb", "a100_40gb"]


def test_own_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(_minimal(boost_clock_hz=1.5e9), encoding="utf-8")
    device = load_device(str(path))
    assert (device.name, device.memory_bytes, device.boost_clock_hz) == ("mine", 8 * GIB, 1.5e9)


def test_missing_file_is_told_how_to_write_one(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(DeviceError) as caught:
        load_device(str(path))
    assert str(caught.value) == f"{path}: no such device file. Write one: bench env --device-file {path}"


def test_file_that_is_no_text_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DeviceError, match=re.escape(f"{path}: cannot be read as a device file: ")):
        load_device(str(path))


def test_every_fault_of_a_file_is_reported_at_once() -> None:
    text = """
        kind = "gpu"
        memory_bytes = "24 GB"
        l2_bytes = 0
        multiprocessors = true
        boost_clock_hz = inf
        compute_capability = "9.0"
        memory_bandwith_bytes_per_s = 1e12
        power_limit_w = 300
        aliases = [1]
        [sources]
        memory_bytes = ""
        l2_bytes = "a test"
        multiprocessors = "a test"
        boost_clock_hz = "a test"
        compute_capability = "a test"
        context_bytes = "a test"
    """
    with pytest.raises(ConfigError) as caught:
        parse_device_toml("mine", text, "mine.toml")
    assert list(caught.value.faults) == [
        "mine.toml: gpu_name: missing",
        "mine.toml: kind: must be one of cuda, cpu, not 'gpu'",
        "mine.toml: memory_bytes: must be a whole number above 0, not '24 GB'",
        "mine.toml: l2_bytes: must be a whole number above 0, not 0",
        "mine.toml: multiprocessors: must be a whole number above 0, not True",
        "mine.toml: boost_clock_hz: must be a number above 0, not inf",
        "mine.toml: compute_capability: must be two whole numbers like [9, 0], not '9.0'",
        "mine.toml: memory_bandwith_bytes_per_s: unknown key. Nearest: memory_bandwidth_bytes_per_s, "
        "memory_bytes, nvml_memory_bytes.",
        "mine.toml: aliases: must be a list of texts, not [1]",
        "mine.toml: power_limit_w: has no source. Say where it comes from under [sources]",
        "mine.toml: sources.memory_bytes: must be a text that is not empty, not ''",
        "mine.toml: sources.context_bytes: the file has no such value",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu_name = \n", "mine.toml: no valid TOML: Invalid value (at line 1, column 12)"),
        ('gpu_name = "A"\nkind = "cpu"\nsources = "all"', "mine.toml: sources: must be a table, not 'all'"),
    ],
)
def test_file_of_another_shape_is_reported_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_device_toml("mine", text, "mine.toml")
    assert str(caught.value) == message


def test_rendered_file_leaves_out_what_is_unknown() -> None:
    values = {"gpu_name": "NVIDIA Test", "kind": "cuda", "context_bytes": None, "boost_clock_hz": 1.98e9}
    text = render_device_toml(values, {"boost_clock_hz": "NVML"}, comments=["first", "second\nthird"])
    assert text == (
        '# first\n# second\n# third\ngpu_name = "NVIDIA Test"\nkind = "cuda"\nboost_clock_hz = 1.98e9\n'
        '\n[sources]\nboost_clock_hz = "NVML"\n'
    )


def test_value_without_a_source_is_not_rendered() -> None:
    with pytest.raises(ConfigError) as caught:
        render_device_toml({"gpu_name": "A", "kind": "cuda", "l2_bytes": 1}, {})
    assert str(caught.value) == "device file: l2_bytes: has no source. Say where it comes from under [sources]"


@given(
    gpu_name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    memory_bytes=st.integers(1, 2**60),
    clock_hz=st.floats(min_value=1e-12, max_value=1e20, exclude_min=True),
)
def test_rendered_file_reads_back_the_same(gpu_name: str, memory_bytes: int, clock_hz: float) -> None:
    text = _minimal(gpu_name=gpu_name, memory_bytes=memory_bytes, boost_clock_hz=clock_hz, aliases=[gpu_name])
    device = parse_device_toml("mine", text, "mine.toml")
    assert (device.gpu_name, device.aliases) == (gpu_name, (gpu_name,))
    assert (device.memory_bytes, device.boost_clock_hz) == (memory_bytes, clock_hz)


def test_devices_load_without_torch() -> None:
    code = "import sys, bench.devices as d; d.load_device('h200'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
