"""What is said of machines in trouble, and where a sweep goes on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BusyError, DeviceError
from bench.launchers.faults import Blame, find_blame, last_words, start_fault
from bench.locks import device_lock_path, hold
from bench.probes import machine_facts, selection
from bench.probes.diagnosis import choose_build, diagnose, install_advice, parse_cuda_version, runs_on
from bench.probes.gpu_monitor import GpuStatic
from bench.probes.gpu_settings import GpuSettings
from bench.probes.machine_facts import MachineFacts, read_machine_facts
from bench.probes.nvml import Gpu, GpuListing, hash_uuid
from bench.probes.selection import decide, usable_device
from bench.probes.torch_facts import TorchFacts, measure_torch_facts, parse_facts, read_torch_facts
from bench.sweep import session
from tests.unit.fake_nvml import FakeNvml, a100, install

A100 = Gpu("GPU-a", "NVIDIA A100", 0, 80 << 30, "550.54.15", (8, 0), False)
V100 = Gpu("GPU-v", "Tesla V100", 0, 16 << 30, "550.54.15", (7, 0))
ARCHS_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
GOOD_TORCH = TorchFacts(
    version="2.15.0",
    cuda_version="13.2",
    arch_list=ARCHS_13,
    available=True,
    device_count=1,
    device_names=("NVIDIA A100",),
    capabilities=((8, 0),),
)
GOOD = MachineFacts(
    listing=GpuListing((A100,), "580.95.05", (13, 0)),
    visible=(A100,),
    torch=GOOD_TORCH,
    gpu_device_files=("/dev/nvidiactl",),
    shm_bytes=16 << 30,
    governor="performance",
    open_files_limit=65536,
)
OLD_DRIVER = replace(
    GOOD,
    listing=GpuListing((A100,), "550.54.15", (12, 4)),
    torch=replace(GOOD_TORCH, available=False, device_count=0, warning="The NVIDIA driver on your system is too old"),
)
NO_GPU = MachineFacts(torch=replace(GOOD_TORCH, available=False, device_count=0))


def codes(facts: MachineFacts) -> list[str]:
    return [finding.code for finding in diagnose(facts)]


def finding(facts: MachineFacts, code: str) -> str:
    (found,) = [f"{each.severity}: {each.what} -> {each.remedy}" for each in diagnose(facts) if each.code == code]
    return found


def test_nothing_is_found_on_a_good_machine() -> None:
    assert diagnose(GOOD) == ()
    assert decide("auto", GOOD).kind == "cuda"


def test_driver_older_than_the_wheels_cuda_names_both_and_the_remedy() -> None:
    told = finding(OLD_DRIVER, "driver_too_old")
    for words in ("error: driver 550.54.15", "up to 12.4", "CUDA 13.2", "is too old", "UV_TORCH_BACKEND=auto"):
        assert words in told
    assert "UV_TORCH_BACKEND=cu126" in told
    assert "torch>=2.6,<2.15" in told
    assert "580 or newer" in told


def test_driver_too_old_stops_a_sweep_that_did_not_ask_for_the_cpu() -> None:
    for requested in ("auto", "cuda"):
        with pytest.raises(DeviceError, match=r"(?s)CUDA 13\.2.*UV_TORCH_BACKEND=cu126.*--device cpu"):
            decide(requested, OLD_DRIVER)


def test_asking_for_the_cpu_is_never_refused() -> None:
    assert usable_device("cpu", OLD_DRIVER).kind == "cpu"


def test_minor_version_ahead_of_the_driver_is_not_blamed() -> None:
    listing = GpuListing((A100,), "580.65.06", (13, 0))
    assert diagnose(replace(GOOD, listing=listing)) == ()
    broken = replace(GOOD, listing=listing, torch=replace(GOOD_TORCH, available=False))
    assert codes(broken) == ["cuda_does_not_start"]


def test_cpu_build_of_torch_on_a_gpu_machine_is_an_error() -> None:
    torch = TorchFacts(version="2.15.0+cpu")
    facts = replace(GOOD, torch=torch)
    assert "NVIDIA A100, but torch 2.15.0+cpu is a CPU-only build" in finding(facts, "torch_is_cpu_build")
    with pytest.raises(DeviceError, match="UV_TORCH_BACKEND=cu130"):
        decide("auto", facts)


def test_card_that_the_build_lacks_names_architectures_and_an_older_torch() -> None:
    torch = replace(GOOD_TORCH, trial_error="CUDA error: no kernel image is available for execution on the device")
    facts = replace(GOOD, listing=GpuListing((V100,), "580.95.05", (13, 0)), visible=(V100,), torch=torch)
    told = finding(facts, "card_not_in_arch_list")
    assert "Tesla V100 is sm_70, but torch 2.15.0 is built for sm_75 sm_80" in told
    assert "UV_TORCH_BACKEND=cu126" in told
    with pytest.raises(DeviceError, match=r"(?s)sm_70.*no kernel image"):
        decide("auto", facts)


def test_second_card_that_the_build_lacks_is_refused_only_when_asked_for() -> None:
    torch = replace(GOOD_TORCH, device_count=2, capabilities=((8, 0), (7, 0)))
    facts = replace(GOOD, listing=GpuListing((A100, V100), "580", (13, 0)), visible=(A100, V100), torch=torch)
    assert decide("auto", facts).gpu is A100
    with pytest.raises(DeviceError, match="Tesla V100 is sm_70"):
        decide("cuda:1", facts)


@pytest.mark.parametrize(
    ("capability", "arch_list", "expected"),
    [
        ((8, 0), ["sm_80"], True),
        ((8, 9), ["sm_80", "sm_86"], True),  # same major version, higher minor
        ((8, 0), ["sm_86"], False),
        ((7, 0), list(ARCHS_13), False),
        ((12, 0), ["sm_90", "compute_90"], True),  # PTX, compiled by the driver
        ((12, 0), ["sm_90"], False),
        ((8, 0), ["compute_90"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f"], False),
        ((8, 0), [], False),
        ((9, 0), ["gfx90a"], False),
    ],
)
def test_code_runs_on_its_major_version_and_ptx_on_what_is_newer(
    capability: tuple[int, int], arch_list: list[str], expected: bool
) -> None:
    assert runs_on(capability, arch_list) is expected


@pytest.mark.parametrize(
    ("driver", "capability", "expected"),
    [
        ((13, 0), (9, 0), "cu130"),
        ((13, 2), (7, 0), "cu126"),  # dropped by CUDA 13
        ((12, 4), (8, 0), "cu126"),
        ((12, 8), (12, 0), "cu128"),  # Blackwell on a driver of CUDA 12
        ((11, 8), (8, 0), "cu118"),
        (None, None, "cu130"),
        ((12, 0), (3, 5), None),
        ((10, 2), (7, 0), None),
    ],
)
def test_build_advised_suits_driver_and_card(
    driver: tuple[int, int] | None, capability: tuple[int, int] | None, expected: str | None
) -> None:
    build = choose_build(driver, capability)
    assert (build and build.backend) == expected
    assert (expected or "No build of torch") in install_advice(build)


def test_cuda_versions_are_parsed() -> None:
    assert [parse_cuda_version(text) for text in ("12.6", "12.6.3", "13")] == [(12, 6), (12, 6), (13, 0)]


def test_wrong_index_that_hides_every_gpu_is_an_error() -> None:
    facts = replace(GOOD, visible=(), cuda_visible_devices="3", torch=replace(GOOD_TORCH, available=False))
    assert 'error: CUDA_VISIBLE_DEVICES="3" hides every GPU (0: NVIDIA A100)' in finding(facts, "gpu_hidden")
    with pytest.raises(DeviceError, match="hides every GPU"):
        decide("auto", facts)


@pytest.mark.parametrize("variable", ["", "-1"])
def test_hiding_every_gpu_on_purpose_means_the_cpu(variable: str) -> None:
    facts = replace(GOOD, visible=(), cuda_visible_devices=variable, torch=replace(GOOD_TORCH, available=False))
    assert finding(facts, "gpu_hidden").startswith("note")
    choice = decide("auto", facts)
    assert (choice.kind, "hides every GPU" in choice.reason) == ("cpu", True)
    with pytest.raises(DeviceError, match="hides every GPU"):
        decide("cuda", facts)


def test_mig_without_a_slice_is_an_error() -> None:
    facts = replace(GOOD, visible=(), torch=replace(GOOD_TORCH, available=False))
    assert codes(facts) == ["no_mig_slice"]


def test_driver_that_does_not_answer_is_an_error_unless_torch_can_use_the_gpu() -> None:
    facts = replace(NO_GPU, listing=GpuListing(error="NVML does not start: version mismatch"))
    assert codes(facts) == ["driver_fault"]
    with pytest.raises(DeviceError, match="version mismatch"):
        decide("auto", facts)
    assert decide("auto", replace(facts, torch=GOOD_TORCH)).kind == "cuda"


def test_cuda_that_does_not_start_quotes_torch() -> None:
    torch = replace(GOOD_TORCH, available=False, warning="CUDA initialization: CUDA unknown error")
    facts = replace(GOOD, torch=torch)
    assert "CUDA unknown error" in finding(facts, "cuda_does_not_start")
    with pytest.raises(DeviceError, match="nvidia-modprobe"):
        decide("auto", facts)


def test_gpu_that_fails_at_the_trial_is_refused_with_its_words() -> None:
    facts = replace(GOOD, torch=replace(GOOD_TORCH, trial_error="CUDA-capable device(s) is/are busy or unavailable"))
    with pytest.raises(DeviceError, match="busy or unavailable"):
        decide("auto", facts)


def test_torch_that_cannot_be_imported_stops_a_gpu_machine() -> None:
    with pytest.raises(DeviceError, match=r"libcudart\.so\.13"):
        decide("auto", replace(GOOD, torch=TorchFacts(error="torch cannot be imported: libcudart.so.13")))


def test_machine_without_any_gpu_measures_on_the_cpu_and_says_so() -> None:
    assert codes(NO_GPU) == ["no_nvml"]
    assert decide("auto", NO_GPU) == selection.DeviceChoice("cpu", "this machine shows no GPU")
    with pytest.raises(DeviceError, match=r'device "cuda": this machine shows no GPU.*bench env'):
        decide("cuda", NO_GPU)


def test_card_on_the_bus_without_a_driver_is_a_warning_and_the_reason_for_the_cpu() -> None:
    facts = replace(NO_GPU, nvidia_card_on_bus=True)
    assert finding(facts, "no_driver").startswith("warning")
    assert "no driver" in decide("auto", facts).reason


def test_rocm_gpu_is_used_without_nvml() -> None:
    torch = TorchFacts(
        version="2.15.0+rocm7.2", hip_version="7.2", available=True, device_count=1, arch_list=("gfx90a",)
    )
    choice = decide("auto", replace(NO_GPU, torch=torch, gpu_device_files=("/dev/kfd",)))
    assert (choice.kind, choice.gpu, choice.gpu_index) == ("cuda", None, 0)


def test_amd_driver_that_torch_does_not_use_is_the_reason_for_the_cpu() -> None:
    facts = replace(NO_GPU, gpu_device_files=("/dev/kfd",))
    assert codes(facts)[0] == "rocm_not_used"
    assert "/dev/kfd" in decide("auto", facts).reason


SLICES = tuple(
    Gpu(f"MIG-{letter}", "NVIDIA A100 MIG 1g.5gb", 0, 5 << 30, "580.95.05", (8, 0), True, "GPU-a", 5 << 30)
    for letter in "ab"
)


def test_a_slice_is_told_with_what_it_shares_and_how_to_choose_one() -> None:
    facts = replace(GOOD, visible=SLICES)
    assert codes(facts) == ["mig_slice"]
    told = finding(facts, "mig_slice")
    assert told.startswith("note: NVIDIA A100 MIG 1g.5gb, NVIDIA A100 MIG 1g.5gb: a MIG slice has memory")
    assert "--device MIG-..." in told
    assert "--device" not in finding(replace(GOOD, visible=SLICES[:1]), "mig_slice")


def test_a_slice_of_which_nvml_shows_the_board_alone_is_a_warning() -> None:
    board = replace(A100, mig=True)
    torch = replace(GOOD_TORCH, device_names=("NVIDIA A100 MIG 1g.5gb",))
    facts = replace(GOOD, listing=replace(GOOD.listing, gpus=(board,)), visible=(), torch=torch)
    assert codes(facts) == ["mig_slice_hidden"]


def test_the_slice_that_torch_shows_is_found_among_those_of_nvml_by_its_uuid() -> None:
    shown = replace(GOOD_TORCH, uuids=("b",))  # CUDA shows a process one slice, and not always the first
    assert decide("cuda", replace(GOOD, visible=SLICES, torch=shown)).gpu == SLICES[1]
    two = replace(GOOD_TORCH, device_count=2, uuids=("b", "a"))
    assert decide("cuda:0", replace(GOOD, visible=SLICES, torch=two)).gpu == SLICES[1]
    silent = decide("cuda", replace(GOOD, visible=SLICES, torch=replace(GOOD_TORCH, uuids=("of the board",))))
    assert (silent.gpu, silent.uuid) == (None, "of the board")


def test_a_gpu_that_takes_host_memory_is_told_with_the_limit_that_holds_there() -> None:
    gb10 = replace(A100, name="NVIDIA GB10", total_bytes=None)
    torch = replace(GOOD_TORCH, device_names=("NVIDIA GB10",), unified=(True,), total_bytes=(119 << 30,))
    facts = replace(GOOD, visible=(gb10,), torch=torch)
    assert codes(facts) == ["unified_memory"]
    assert "limits.host_memory limits runs" in finding(facts, "unified_memory")


def test_memory_of_which_nvml_says_nothing_and_limits_on_it_are_told() -> None:
    assert codes(replace(GOOD, visible=(replace(A100, total_bytes=None),))) == ["no_memory_readings"]
    limited = replace(A100, allowed_bytes=40 << 30)
    told = finding(replace(GOOD, visible=(limited,)), "gpu_memory_limit")
    assert "this process may take 40.0 GiB of the 80.0 GiB of NVIDIA A100" in told
    torch = replace(GOOD_TORCH, total_bytes=(79 << 30,))  # NVML counts what the driver keeps, CUDA does not
    assert codes(replace(GOOD, visible=(replace(A100, allowed_bytes=80 << 30),), torch=torch)) == []
    honours = replace(A100, total_bytes=40 << 30, allowed_bytes=40 << 30)
    assert codes(replace(GOOD, visible=(honours,), torch=torch)) == ["gpu_memory_limit"]


SETTINGS = (
    ("ecc_off", {"ecc": False}, "ECC is off"),
    ("persistence_off", {"persistence_mode": False}, "nvidia-smi -pm 1"),
    ("power_profile", {"workload_power_profiles": "max_q"}, "max_q"),
    ("edpp_multiplier", {"edpp_multiplier_frac": 0.8}, "80%"),
    ("adaptive_tgp", {"adaptive_tgp": True, "adaptive_tgp_limit_w": 650.0}, "650 W"),
    ("power_smoothing", {"power_smoothing": True}, "energy"),
    ("application_clocks", {"application_clocks": "1200 MHz, memory 1593 MHz"}, "nvidia-smi -rac"),
    ("confidential_computing", {"confidential_computing": "on"}, "encrypted"),
)
UNTOUCHED = GpuSettings(
    ecc=True,
    persistence_mode=True,
    workload_power_profiles="none",
    edpp_multiplier_frac=1.0,
    adaptive_tgp=False,
    power_smoothing=False,
    application_clocks="default",
    confidential_computing="off",
)


@pytest.mark.parametrize(("code", "changed", "said"), SETTINGS)
def test_a_setting_that_changes_results_is_told_with_its_board_and_a_remedy(
    code: str, changed: dict[str, Any], said: str
) -> None:
    board = GpuStatic(uuid="GPU-a", name="NVIDIA A100", settings=replace(UNTOUCHED, **changed))
    facts = replace(GOOD, boards=(board,))
    assert codes(facts) == [code]
    told = finding(facts, code)
    assert "NVIDIA A100: " in told
    assert said in told


def test_settings_that_nobody_touched_or_that_are_unknown_are_not_told() -> None:
    for settings in (UNTOUCHED, GpuSettings()):
        board = GpuStatic(uuid="GPU-a", power_limit_w=400.0, power_limit_default_w=400.0, settings=settings)
        assert codes(replace(GOOD, boards=(board,), other_processes=(0,))) == []


def test_a_lowered_power_limit_other_processes_and_mps_are_told() -> None:
    board = GpuStatic(uuid="GPU-a", name="NVIDIA A100", power_limit_w=300.0, power_limit_default_w=400.0)
    torch = replace(GOOD_TORCH, mps=(True,))
    facts = replace(GOOD, boards=(board,), other_processes=(2,), torch=torch)
    assert set(codes(facts)) == {"power_capped", "gpu_shared", "cuda_mps"}
    assert "300 W of the default 400 W" in finding(facts, "power_capped")
    assert "2 other processes use NVIDIA A100" in finding(facts, "gpu_shared")
    assert "nvidia-cuda-mps-control" in finding(facts, "cuda_mps")


def test_settings_and_neighbours_are_read_for_bench_env_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(pid=1, usedGpuMemory=1 << 30)
    changes = {"nvmlDeviceGetEccMode": [0, 0], "nvmlDeviceGetComputeRunningProcesses": [other]}
    install(monkeypatch, FakeNvml(a100(**changes)))
    monkeypatch.setattr("bench.probes.nvml.shares_host_pids", lambda: True)
    asked = read_machine_facts(ask_torch=False, ask_settings=True)
    assert ([board.settings.ecc for board in asked.boards], asked.other_processes) == ([False], (1,))
    assert {"ecc_off", "gpu_shared"} <= set(codes(asked))
    left = read_machine_facts(ask_torch=False)
    assert (left.boards, left.other_processes) == ((), ())


def test_index_beyond_the_last_gpu_says_which_is_the_last() -> None:
    assert decide("cuda:0", GOOD).gpu is A100
    with pytest.raises(DeviceError, match=r"torch sees 1 GPU; the last is cuda:0"):
        decide("cuda:1", GOOD)


@pytest.mark.parametrize("requested", ["gpu", "cuda:", "cuda:x", "CPU", "tpu"])
def test_unknown_device_lists_what_is_allowed(requested: str) -> None:
    with pytest.raises(DeviceError, match=f'unknown "{requested}". Allowed: auto, cpu, cuda, cuda:0'):
        usable_device(requested)


def test_host_faults_are_warnings_with_remedies() -> None:
    facts = replace(GOOD, shm_bytes=64 << 20, governor="powersave", open_files_limit=1024)
    assert codes(facts) == ["small_shm", "governor", "few_open_files"]
    assert "64.0 MiB" in finding(facts, "small_shm")
    assert "--shm-size" in finding(facts, "small_shm")


def test_errors_come_first() -> None:
    facts = replace(OLD_DRIVER, shm_bytes=64 << 20, open_files_limit=1)
    assert [each.severity for each in diagnose(facts)] == ["error", "warning", "note"]


def test_machine_without_a_sign_of_a_gpu_is_decided_without_starting_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> TorchFacts:
        raise AssertionError("torch was asked")

    bare = MachineFacts()
    monkeypatch.setattr(selection, "read_machine_facts", lambda ask_torch: bare)
    monkeypatch.setattr(selection, "read_torch_facts", refuse)
    assert usable_device("auto").kind == "cpu"


@pytest.mark.parametrize(
    ("requested", "facts", "key"),
    [
        ("auto", GOOD, hash_uuid("GPU-a")),
        ("cuda:0", GOOD, hash_uuid("GPU-a")),
        ("cpu", GOOD, "cpu-0"),
        ("auto", MachineFacts(), "cpu-0"),
    ],
)
def test_a_device_that_is_held_is_said_before_torch_touches_it(
    monkeypatch: pytest.MonkeyPatch, requested: str, facts: MachineFacts, key: str
) -> None:
    monkeypatch.setattr(session, "read_machine_facts", lambda ask_torch: replace(facts, torch=None))
    with (
        hold(device_lock_path(key), "it"),
        pytest.raises(BusyError),
        session.held_device(requested, lambda *_: pytest.fail("asked"), lambda: pytest.fail("ready")),
    ):
        pytest.fail("held twice")


def test_a_gpu_that_only_torch_knows_is_held_once_torch_has_been_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = MachineFacts(listing=GpuListing(error="NVML gave no answer"), torch=replace(GOOD_TORCH, uuids=("a",)))
    monkeypatch.setattr(session, "read_machine_facts", lambda ask_torch: silent)
    with session.held_device("auto") as choice:
        assert (choice.kind, choice.gpu, choice.uuid) == ("cuda", None, "a")
        assert (choice.warning or "").startswith("no readings from NVML (NVML gave no answer): ")
        with pytest.raises(BusyError), hold(device_lock_path(hash_uuid("GPU-a")), "it"):
            pass


def test_a_variable_that_overrules_tf32_is_named_with_what_it_does_to_results() -> None:
    for value, does in (("0", "switches TF32 off"), ("1", "may switch TF32 on")):
        told = finding(replace(GOOD, tf32_override=value), "tf32_override")
        for words in (f'warning: NVIDIA_TF32_OVERRIDE="{value}" {does}', "precision_not_in_force", "-> `unset NVIDIA"):
            assert words in told
    assert codes(replace(GOOD, tf32_override="")) == []
    assert "tf32_override" not in codes(replace(NO_GPU, tf32_override="0"))  # there is nothing to overrule


def test_the_variable_that_overrules_tf32_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert read_machine_facts(ask_torch=False).tf32_override == "0"


def test_a_gpu_that_nvml_does_not_list_is_measured_without_it_and_says_why() -> None:
    two = replace(GOOD_TORCH, device_count=2, uuids=("a", "b"), device_names=("NVIDIA A100",) * 2)
    facts = replace(GOOD, torch=two)  # NVML lists the first alone
    assert (decide("cuda:0", facts).gpu, decide("cuda:0", facts).nvml_error) == (A100, None)
    other = decide("cuda:1", facts)
    assert (other.gpu, other.uuid, other.nvml_error) == (None, "b", "NVML lists other GPUs than torch")
    assert (other.warning or "").startswith("no readings from NVML (NVML lists other GPUs than torch): ")
    told = finding(facts, "nvml_lists_others")
    for words in ("warning: ", "flagged nvml_silent", "cannot be published", "NVIDIA_VISIBLE_DEVICES"):
        assert words in told
    none = decide("cuda", replace(facts, visible=(), listing=GpuListing(error="NVML gave no answer")))
    assert none.gpu is None and none.nvml_error is None  # nothing was to be read there
    assert "nvml_lists_others" not in codes(replace(facts, visible=(A100, V100)))


def test_another_gpu_than_nvml_let_expect_is_held_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "read_machine_facts", lambda ask_torch: replace(GOOD, torch=None))
    other = selection.DeviceChoice("cuda", "told", 0, V100, V100.uuid)
    with session.held_device("auto", lambda *_: other):
        for uuid in (A100.uuid, V100.uuid):
            with pytest.raises(BusyError), hold(device_lock_path(hash_uuid(uuid)), "it"):
                pass


def test_machine_with_a_gpu_asks_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "read_machine_facts", lambda ask_torch: replace(OLD_DRIVER, torch=None))
    monkeypatch.setattr(selection, "read_torch_facts", lambda: OLD_DRIVER.torch)
    with pytest.raises(DeviceError, match="UV_TORCH_BACKEND"):
        usable_device("auto")


def test_facts_of_torch_come_from_a_process_of_their_own() -> None:
    import torch

    facts = read_torch_facts()
    assert facts.error is None
    assert (facts.version, facts.cuda_version) == (torch.__version__, torch.version.cuda)
    assert facts.available == torch.cuda.is_available()


def test_facts_of_torch_survive_their_way_as_json() -> None:
    import json
    from dataclasses import asdict

    assert parse_facts(json.dumps(asdict(GOOD_TORCH))) == GOOD_TORCH


def test_torch_that_kills_its_process_is_an_error_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    died = subprocess.CompletedProcess([], -11, stdout="", stderr="first\nSegmentation fault\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    assert read_torch_facts().error == "querying torch for its GPUs failed with exit code -11: Segmentation fault"


def test_torch_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch cannot be imported" in str(measure_torch_facts().error)


def test_nvidia_card_is_found_on_the_bus_by_vendor_and_class(tmp_path: Path) -> None:
    def device(name: str, vendor: str, kind: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")

    device("0000:00:01.0", "0x8086", "0x030000")
    device("0000:00:02.0", "0x10de", "0x040300")  # the sound of a graphics card
    assert not machine_facts._cards(tmp_path, "0x10de")
    device("0000:00:03.0", "0x10de", "0x030200")
    assert machine_facts._cards(tmp_path, "0x10de")


def test_reading_the_machine_without_torch_leaves_it_out() -> None:
    facts = read_machine_facts(ask_torch=False)
    assert facts.torch is None
    assert facts.shm_bytes is None or facts.shm_bytes > 0


LOGS = """Traceback (most recent call last):
  File "torch/_logging/_internal.py", line 1, in _validate_settings
ValueError: Invalid log settings: dynmo, must be a comma separated list of fully
qualified module names or registered log names.
Valid settings:
all, aot, dynamo, inductor
"""
ABORT = """terminate called after throwing an instance of 'c10::Error'
  what():  i < config_.size() INTERNAL ASSERT FAILED at "/c10/core/AllocatorConfig.h":123, please report a bug to PyTorch. Index out of bounds in ConfigTokenizer
Exception raised from checkIndex at /c10/core/AllocatorConfig.h:123 (most recent call first):
frame #0: c10::Error::Error() + 0x9d
"""


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (
            LOGS,
            "ValueError: Invalid log settings: dynmo, must be a comma separated list of fully qualified module names or "
            "registered log names",
        ),
        (ABORT, "Index out of bounds in ConfigTokenizer"),
        (
            "ImportError: libcudart.so.13: cannot open shared object file\n",
            "ImportError: libcudart.so.13: cannot open shared object file",
        ),
        ("Killed", "Killed"),
        ("", ""),
    ],
)
def test_what_torch_said_is_one_line(printed: str, expected: str) -> None:
    assert last_words(printed) == expected


@pytest.mark.parametrize(
    ("variable", "value", "said", "nearest"),
    [
        ("TORCH_LOGS", "dynmo", LOGS, "dynamo"),
        ("TORCH_LOGS", "+inductr,all", LOGS.replace("dynmo", "+inductr,all"), "+inductor,all"),
        ("TORCH_LOGS", "bogus", LOGS.replace("dynmo", "bogus"), None),
        (
            "PYTORCH_CUDA_ALLOC_CONF",
            "expandable_segments:true",
            "Expected 'True' or 'False' but got 'true'",
            "expandable_segments:True",
        ),
        ("PYTORCH_ALLOC_CONF", "max_split_size:128", "Unrecognized key 'max_split_size'", "max_split_size_mb:128"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments=True", ABORT, "expandable_segments:True"),
        ("CUDA_MODULE_LOADING", "LAZI", "unknown", None),
    ],
)
def test_the_variable_without_which_torch_starts_is_to_blame(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str, nearest: str | None
) -> None:
    tries: list[Mapping[str, str]] = []

    def starts(environment: Mapping[str, str]) -> bool:
        tries.append(environment)
        return variable not in environment

    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv(variable, value)
    assert find_blame(said, starts) == Blame(variable, value, nearest)
    assert all(value == os.environ[name] for each in tries for name, value in each.items())  # only taken away from


def test_no_variable_is_blamed_where_torch_fails_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_LOGS", "all")
    assert find_blame("libcudart.so.13: cannot open", lambda environment: False) is None


@pytest.mark.parametrize("at", ["error", "trial_error"])
def test_a_bad_variable_is_named_with_torchs_words_and_the_remedy(at: str) -> None:
    blame = Blame("PYTORCH_CUDA_ALLOC_CONF", "max_split_size:128", "max_split_size_mb:128")
    facts = replace(GOOD, torch=replace(GOOD_TORCH, blame=blame, **{at: "Unrecognized key 'max_split_size'"}))
    expected = (
        'error: PYTORCH_CUDA_ALLOC_CONF="max_split_size:128" prevents torch from starting: Unrecognized key '
        "'max_split_size' -> Nearest: PYTORCH_CUDA_ALLOC_CONF=\"max_split_size_mb:128\". Correct it, or unset it: "
        "unset PYTORCH_CUDA_ALLOC_CONF"
    )
    assert finding(facts, "bad_variable") == expected
    assert codes(facts) == ["bad_variable"]  # and no advice to reinstall torch or to free the GPU
    with pytest.raises(DeviceError, match="max_split_size_mb:128"):
        decide("auto", facts)


def test_blame_survives_its_way_as_json() -> None:
    facts = TorchFacts(error="x", blame=Blame("TORCH_LOGS", "bogus"))
    assert parse_facts(json.dumps(asdict(facts))) == facts


@pytest.mark.slow
def test_a_process_that_torch_keeps_from_starting_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_fault("torch") is None
    monkeypatch.setenv("TORCH_LOGS", "inductr")
    fault = start_fault("torch")
    assert fault is not None
    assert fault.startswith('TORCH_LOGS="inductr" prevents torch from starting: Invalid log settings: inductr, must be')
    assert fault.endswith('Nearest: TORCH_LOGS="inductor". Correct it, or unset it: unset TORCH_LOGS')
