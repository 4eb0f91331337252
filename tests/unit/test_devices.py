"""The device files that come with the package, how they are found, and what a faulty file is told."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.devices import (
    Device,
    describe_gpu,
    device_from_mapping,
    device_toml,
    list_devices,
    load_device,
    load_device_file,
    match_device,
    parse_device_toml,
    render_device_toml,
    with_memory,
)
from bench.devices.calibration import CALIBRATED_KEYS, MEASURED_KEYS
from bench.devices.schema import CHECKS, PRECISIONS, UNSOURCED
from bench.errors import ConfigError, DeviceError, UnknownNameError
from tests.each import each

GIB = 1 << 30
ALL = list_devices()
GPUS = [name for name in ALL if load_device(name).vendor == "nvidia"]
"""Those of other vendors are in test_vendors."""
ASKED_FOR = """cpu p4 p100 gtx1080ti titan_v titan_rtx rtx2080ti quadro_rtx5000 quadro_rtx6000 quadro_rtx8000
    v100_16gb v100_16gb_pcie v100_32gb v100_32gb_pcie v100_32gb_sxm3 v100s t4 rtx3060 rtx3070 rtx3080 rtx3080_12gb
    rtx3080ti rtx3090 rtx3090ti rtx_a4000 rtx_a4500 rtx_a5000 rtx_a5500 rtx_a6000 a10 a10g a40 a100_40gb
    a100_40gb_pcie a100_80gb a100_80gb_pcie a800_80gb a800_80gb_pcie rtx4060 rtx4070 rtx4070_super rtx4070ti
    rtx4070ti_super rtx4080 rtx4080_super rtx4090 rtx6000_ada l4 l40s h20 h100_sxm h100_pcie h100_nvl h200 gh200
    rtx5070 rtx5070ti rtx5080 rtx5090 rtx_pro_6000 rtx_pro_6000_maxq rtx_pro_6000_server b200 b300 gb200 gb300 gb10
    mi250x mi300a mi300x mi325x max1550 max1550_card arc_b580 m2_ultra m3_ultra m4 m4_pro m4_max"""
"""What people train on, rent and own in 2026, and every card of the public measurements that estimates are tested on."""
TENSOR_FLOP_PER_CYCLE = {7: 1024, 8: 1024, 9: 4096, 10: 8192, 12: 1024}
"""Of one multiprocessor in fp16, accumulating in float32, by major compute capability; see `_tensor_share`."""


def _known(device: Device) -> dict[str, object]:
    values = {key: getattr(device, key) for key in CHECKS}
    return {key: value for key, value in values.items() if value not in (None, ())}


def _minimal(**more: object) -> str:
    values = {"gpu_name": "NVIDIA Test", "kind": "cuda", "memory_bytes": 8 * GIB, **more}
    return render_device_toml(values, {key: "a test" for key in values if key not in UNSOURCED})


def test_every_device_that_was_asked_for_is_there() -> None:
    assert set(ASKED_FOR.split()) <= set(ALL)


@each("name", ALL)
def test_file_goes_by_its_name_and_is_written_as_render_would(name: str) -> None:
    device = load_device(name)
    text = (files("bench.devices") / f"{name}.toml").read_text(encoding="utf-8")
    values, sources = tomllib.loads(text), dict(device.sources)
    values.pop("sources", None)
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert device.name == name
    assert _known(device) == {**values, **{key: tuple(v) for key, v in values.items() if isinstance(v, list)}}
    assert body.strip() == render_device_toml(values, sources).removesuffix("\n[sources]\n").strip()


@each("name", ALL)
def test_every_value_has_a_source_and_every_source_a_value(name: str) -> None:
    device = load_device(name)
    assert {key for key, _ in device.sources} - set(UNSOURCED) == set(_known(device)) - set(UNSOURCED)
    assert all(device.source(key) for key, _ in device.sources)
    assert device.source("context_bytes") is None


@each("name", GPUS)
def test_gpu_states_what_the_estimators_need(name: str) -> None:
    optional = {
        "context_bytes",
        "context_low_bytes",
        "context_high_bytes",
        "launch_overhead_s",
        "aliases",
        "peak_tf32_flop_per_s",
        "peak_bf16_flop_per_s",
        "nvml_memory_bytes",
        "gpu_uuid_hash",
        *MEASURED_KEYS,
        *CALIBRATED_KEYS,
        "memory_ecc_frac",
    }
    assert set(CHECKS) - optional <= set(_known(load_device(name)))


@each("name", ALL)
def test_what_was_not_measured_is_absent(name: str) -> None:
    assert {"gpu_uuid_hash", *MEASURED_KEYS, *CALIBRATED_KEYS}.isdisjoint(_known(load_device(name)))


@each("name", GPUS)
def test_float32_peak_is_two_flop_a_core_and_cycle(name: str) -> None:
    device = load_device(name)
    assert device.multiprocessors and device.fp32_cores_per_multiprocessor and device.boost_clock_hz
    derived = 2 * device.multiprocessors * device.fp32_cores_per_multiprocessor * device.boost_clock_hz
    assert device.peak_float32_flop_per_s == pytest.approx(derived, rel=0.02)


@each("name", GPUS)
def test_bandwidth_is_bus_width_times_data_rate(name: str) -> None:
    device = load_device(name)
    assert device.memory_bus_bits and device.memory_clock_hz
    derived = 2 * device.memory_clock_hz * device.memory_bus_bits / 8
    assert device.memory_bandwidth_bytes_per_s == pytest.approx(derived, rel=0.03)


@each("name", GPUS)
def test_tensor_peaks_are_dense_and_follow_the_architecture(name: str) -> None:
    """Data-centre GPUs are rated up to 14 % below the boost clock; sparse rates are twice as high."""
    device = load_device(name)
    assert device.multiprocessors and device.boost_clock_hz and device.compute_capability
    assert device.peak_fp16_flop_per_s
    if device.compute_capability < (7, 0):  # no tensor cores
        assert device.peak_fp16_flop_per_s == device.peak_float32_flop_per_s
    else:
        per_cycle = TENSOR_FLOP_PER_CYCLE[device.compute_capability[0]] * _tensor_share(device)
        highest = per_cycle * device.multiprocessors * device.boost_clock_hz
        assert 0.86 * highest < device.peak_fp16_flop_per_s < 1.02 * highest
    if device.compute_capability >= (8, 0):
        assert device.peak_bf16_flop_per_s == device.peak_fp16_flop_per_s
        assert device.peak_tf32_flop_per_s == pytest.approx(device.peak_fp16_flop_per_s / 2, rel=0.02)
    else:
        assert (device.peak_bf16_flop_per_s, device.peak_tf32_flop_per_s) == (None, None)


def _tensor_share(device: Device) -> float:
    """What a chip's tensor cores do of `TENSOR_FLOP_PER_CYCLE`: less on GeForce and the like, twice on 8.0."""
    if device.name == "h20":
        return 0.25
    if device.compute_capability == (8, 0):
        return 2
    return 0.5 if "GeForce" in device.gpu_name or device.name == "a10g" else 1


@each("name", GPUS)
def test_limits_follow_the_compute_capability(name: str) -> None:
    device = load_device(name)
    capability = device.compute_capability
    assert capability is not None
    threads = {(7, 5): 1024, (8, 6): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}.get(capability, 2048)
    assert device.max_threads_per_multiprocessor == threads
    assert device.fp32_cores_per_multiprocessor == (128 if capability > (8, 0) or capability == (6, 1) else 64)
    assert device.cublas_workspace_bytes == (33_554_432 if capability >= (9, 0) else 8_519_680)


@each("name", GPUS)
def test_cuda_never_shows_more_memory_than_nvml(name: str) -> None:
    device = load_device(name)
    assert device.memory_bytes
    if device.nvml_memory_bytes is None:
        return
    assert 0.95 * device.nvml_memory_bytes < device.memory_bytes <= device.nvml_memory_bytes


def test_cpu_states_nothing_that_the_host_must_tell() -> None:
    assert _known(load_device("cpu")) == {"gpu_name": "CPU", "kind": "cpu"}


def test_peak_of_a_precision_that_the_chip_lacks_is_none() -> None:
    t4 = load_device("t4")
    assert [t4.peak_flop_per_s(name) for name in PRECISIONS] == [8.1408e12, None, None, 65e12]
    with pytest.raises(ValueError, match=re.escape('unknown precision "int8". Allowed: float32, tf32, bf16, fp16')):
        t4.peak_flop_per_s("int8")


@each("name", ALL)
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
        ("NVIDIA GeForce RTX 4080 SUPER", 15.7, "rtx4080_super"),
        ("NVIDIA GeForce RTX 4080 SUPER", 31.7, "rtx4080_super_32gb"),
        ("NVIDIA GeForce RTX 4080 SUPER", None, "rtx4080_super"),
        ("NVIDIA GeForce RTX 3060", 8.0, None),
        ("NVIDIA GeForce RTX 4060 Ti", None, None),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 8.0, None),
        ("NVIDIA GeForce RTX 3080", 9.8, "rtx3080"),
        ("NVIDIA GeForce RTX 3080", 11.8, "rtx3080_12gb"),
        ("NVIDIA GeForce RTX 3080", None, "rtx3080"),
        ("NVIDIA RTX 6000 Ada Generation", 47.4, "rtx6000_ada"),
        ("NVIDIA A10G", 22.0, "a10g"),
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
        ("rtx4091", 'unknown device "rtx4091". Nearest: rtx4090, '),
        ("h300", 'unknown device "h300". Nearest: h200, '),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 'unknown device "NVIDIA GeForce RTX 4090 Laptop GPU". Nearest: rtx'),
        ("NVIDIA H200 NVL", 'unknown device "NVIDIA H200 NVL". Nearest: h'),
        ("3090", 'unknown device "3090". Nearest: rtx3090, '),
        ("gameboy", 'unknown device "gameboy". List them: '),
    ],
)
def test_unknown_device_is_answered_with_the_nearest_and_with_what_to_do(given_name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_device(given_name)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(
        "List them: bench list devices. For another GPU, run bench env --device-file mine.toml on a machine that has "
        "it, then use mine.toml"
    )


def test_name_that_several_devices_share_is_refused() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_device("a100")
    assert {"a100_80gb", "a100_40gb"} <= set(caught.value.matches)


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
        "mine.toml: kind: must be one of cuda, xpu, mps, cpu, not 'gpu'",
        "mine.toml: memory_bytes: must be a whole number above 0, not '24 GB'",
        "mine.toml: l2_bytes: must be a whole number above 0, not 0",
        "mine.toml: multiprocessors: must be a whole number above 0, not True",
        "mine.toml: boost_clock_hz: must be a number above 0, not inf",
        "mine.toml: compute_capability: must be two whole numbers like [9, 0], not '9.0'",
        "mine.toml: memory_bandwith_bytes_per_s: unknown key. Nearest: memory_bandwidth_bytes_per_s, "
        "reachable_bandwidth_bytes_per_s, calibrated_bandwidth_bytes_per_s.",
        "mine.toml: aliases: must be a list of strings, not [1]",
        "mine.toml: power_limit_w: has no source. State it under [sources]",
        "mine.toml: sources.memory_bytes: must be a non-empty text, not ''",
        "mine.toml: sources.context_bytes: there is no such value in the file",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu_name = \n", "mine.toml: not valid TOML: Invalid value (at line 1, column 12)"),
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
    assert str(caught.value) == "device file: l2_bytes: has no source. State it under [sources]"


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


OWN = (
    "memory_bytes",
    "multiprocessors",
    "compute_capability",
    "max_threads_per_multiprocessor",
    "l2_bytes",
    "memory_bus_bits",
    "memory_clock_hz",
    "boost_clock_hz",
)
"""What a driver says of a GPU itself."""


def _found(gpu_name: str, **values: object) -> Device:
    """A GPU that is present, as the probe reads it."""
    sources = dict.fromkeys(values, "measured: device properties")
    return device_from_mapping(gpu_name, {"gpu_name": gpu_name, "kind": "cuda", **values, "sources": sources}, "gpu")


def _like(name: str, gpu_name: str | None = None, **changes: object) -> Device:
    """A GPU with the properties that a file states, but for some."""
    device = load_device(name)
    return _found(gpu_name or device.gpu_name, **{key: getattr(device, key) for key in OWN} | changes)


@given(
    name=st.sampled_from([load_device(name).gpu_name for name in GPUS] + ["Graphics Device", "GPU 0"]),
    memory_bytes=st.integers(1 << 28, 1 << 40),
    multiprocessors=st.integers(1, 200),
    capability=st.sampled_from([(6, 0), (7, 5), (8, 0), (8, 6), (9, 0), (10, 3), (12, 1), (99, 9)]),
    threads=st.sampled_from([1024, 1536, 2048]),
    l2_bytes=st.integers(1 << 18, 1 << 30),
    clock_hz=st.floats(1e8, 4e9),
)
def test_whatever_a_gpu_reports_is_what_its_estimates_use(
    name: str,
    memory_bytes: int,
    multiprocessors: int,
    capability: tuple[int, int],
    threads: int,
    l2_bytes: int,
    clock_hz: float,
) -> None:
    values = {
        "memory_bytes": memory_bytes,
        "multiprocessors": multiprocessors,
        "compute_capability": capability,
        "max_threads_per_multiprocessor": threads,
        "l2_bytes": l2_bytes,
        "boost_clock_hz": clock_hz,
    }
    gpu = describe_gpu(_found(name, **values))
    assert {key: getattr(gpu.device, key) for key in values} == values
    assert parse_device_toml(gpu.device.name, device_toml(gpu.device), "stored") == gpu.device


@each("name", GPUS)
def test_a_gpu_that_a_file_describes_gets_the_rated_peaks_of_that_file(name: str) -> None:
    device = load_device(name)
    assert device.memory_bytes
    gpu = describe_gpu(_like(name, memory_bytes=device.memory_bytes - (200 << 20)))
    assert (gpu.device.name, gpu.remark) == (name, None)
    assert gpu.device.memory_bytes == device.memory_bytes - (200 << 20)
    rated = ("memory_bandwidth_bytes_per_s", *(f"peak_{precision}_flop_per_s" for precision in PRECISIONS))
    assert [getattr(gpu.device, key) for key in rated] == [getattr(device, key) for key in rated]
    assert gpu.device.source("memory_bytes") == "measured: device properties"


@pytest.mark.parametrize(
    ("gpu", "remark"),
    [
        (_like("rtx3060", memory_bytes=8 * GIB), "rtx3060 has 11.8 GiB but the GPU has 8.00 GiB"),
        (_like("rtx4090", multiprocessors=114), "rtx4090 has 128 multiprocessors but the GPU has 114"),
        (_like("a100_40gb", multiprocessors=14, memory_bytes=5 * GIB), "GPU has 5.00 GiB, 108 multiprocessors but"),
        (_like("a100_40gb", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", multiprocessors=14), "there is no device file for it"),
        (_like("rtx4090", "NVIDIA GeForce RTX 4090 Laptop GPU", multiprocessors=76), "there is no device file for it"),
        (_like("rtx4090", "NVIDIA GeForce RTX 4090 D", multiprocessors=114), "there is no device file for it"),
        (_like("h200", "NVIDIA H200 NVL", multiprocessors=132), "there is no device file for it"),
        (_like("rtx3060", "NVIDIA GeForce RTX 3050", memory_bytes=12 * GIB), "there is no device file for it"),
        (_like("t4", compute_capability=(8, 0)), "compute capability 7.5 but the GPU has compute capability 8.0"),
    ],
    ids=lambda value: value.gpu_name if isinstance(value, Device) else None,
)
def test_a_gpu_that_no_file_is_for_is_described_by_itself_and_that_is_said(gpu: Device, remark: str) -> None:
    described = describe_gpu(gpu)
    assert described.device.name == f"{gpu.gpu_name} (read from the GPU)"
    assert described.device.peak_fp16_flop_per_s is None  # the probe derives it, and no file's is taken
    assert described.remark and remark in described.remark
    assert "bench env --device-file mine.toml" in described.remark


@pytest.mark.parametrize(
    ("gpu_name", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("Tesla V100-SXM2-16GB", "v100_16gb"),
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_driver_s_name_finds_its_file(gpu_name: str, name: str) -> None:
    assert describe_gpu(_like(name, gpu_name)).device.name == name


def _own_file(folder: Path, stem: str, **values: object) -> Device:
    path = folder / stem
    path.write_text(_minimal(**values), encoding="utf-8")
    return load_device_file(path)


def test_an_own_file_goes_before_the_package_s_and_yields_to_the_gpu(tmp_path: Path) -> None:
    found = _found("NVIDIA Test", memory_bytes=8 * GIB - 5, multiprocessors=30)
    mine = _own_file(tmp_path, "mine.conf", multiprocessors=30, peak_bf16_flop_per_s=3e13, context_bytes=1 << 28)
    other = _own_file(tmp_path, "other.toml", gpu_name="NVIDIA Other")
    gpu = describe_gpu(found, [other, mine])
    assert (gpu.device.name, gpu.device.memory_bytes, gpu.remark) == ("mine.conf", 8 * GIB - 5, None)
    assert (gpu.device.peak_bf16_flop_per_s, gpu.device.context_bytes) == (3e13, 1 << 28)

    unfit = describe_gpu(replace(found, multiprocessors=20), [mine])
    assert unfit.device.peak_bf16_flop_per_s is None
    assert "mine.conf has 30 multiprocessors but the GPU has 20" in str(unfit.remark)

    with pytest.raises(DeviceError, match=re.escape("the GPU here is NVIDIA Test, but other is for NVIDIA Other")):
        describe_gpu(found, [other])
    with pytest.raises(DeviceError, match=re.escape("mine.conf and twin both describe NVIDIA Test. Use one of them")):
        describe_gpu(found, [mine, _own_file(tmp_path, "twin.toml", multiprocessors=30)])


def test_a_device_plays_a_smaller_card_and_its_file_says_so() -> None:
    whole = load_device("a100_80gb")
    card = with_memory(whole, 24 * GIB)
    assert (card.name, card.memory_bytes) == ("a100_80gb as a card of 24 GiB", 24 * GIB)
    assert replace(card, name=whole.name, memory_bytes=whole.memory_bytes, sources=whole.sources) == whole
    source = card.source("memory_bytes") or ""
    assert source.startswith("limited to 24 GiB of ")
    assert source.endswith(f"({whole.source('memory_bytes')})")
    assert parse_device_toml(card.name, device_toml(card), "file") == card
    assert with_memory(whole, None) is whole
    unknown = replace(whole, memory_bytes=None, sources=tuple(one for one in whole.sources if one[0] != "memory_bytes"))
    assert with_memory(unknown, 24 * GIB).source("memory_bytes") == "limited to 24 GiB"


def test_a_card_that_a_device_cannot_play_is_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"^the memory limit of 24 GiB is above the 23\.6 GiB \(25,386,352,640 B\) of "
    ):
        with_memory(load_device("rtx4090"), 24 * GIB)
    with pytest.raises(DeviceError, match=r"^the memory limit is for GPUs, and cpu is a CPU"):
        with_memory(load_device("cpu"), GIB)
