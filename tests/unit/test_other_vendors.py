"""Choosing, locking, planning and diagnosing GPUs of AMD, Intel and Apple, from facts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.values import read_devices
from bench.errors import BusyError, DeviceError
from bench.locks import device_lock_path, hold
from bench.plan import skip_reason
from bench.probes import selection
from bench.probes.backends.rocm import NO_AMDSMI
from bench.probes.diagnosis import diagnose
from bench.probes.machine_facts import MachineFacts, read_torch_build
from bench.probes.nvml import Gpu, GpuListing, hash_uuid
from bench.probes.selection import decide, usable_device, usable_devices
from bench.probes.torch_facts import TorchFacts, measure_torch_facts
from bench.records import Case, Choice
from bench.sweep import session
from tests.stand_ins import GIB, play_mps, play_rocm, play_xpu, tensors_of

ROCM = TorchFacts(
    version="2.9.0+rocm6.4",
    hip_version="6.4",
    available=True,
    device_count=2,
    device_names=("AMD Instinct MI300X",) * 2,
    uuids=("a", "b"),
    archs=("gfx942:sramecc+:xnack-",) * 2,
    arch_list=("gfx90a", "gfx942"),
)
XPU = TorchFacts(
    kind="xpu",
    version="2.9.0+xpu",
    xpu_version="20250101",
    available=True,
    device_count=2,
    device_names=("Intel(R) Arc(TM) B580 Graphics",) * 2,
    silence="power is not read",
)
MPS = TorchFacts(
    kind="mps",
    version="2.9.0",
    has_mps=True,
    available=True,
    device_count=1,
    device_names=("Apple M4",),
    unified=(True,),
)
NOTHING = TorchFacts(version="2.9.0+cpu")
AMD = MachineFacts(gpu_device_files=("/dev/kfd",), torch_build="hip", torch=ROCM)
INTEL = MachineFacts(intel_cards=("0000:03:00.0",), torch_build="xpu", torch=XPU)
APPLE = MachineFacts(apple_silicon=True, torch_build="none", torch=MPS)
NVIDIA = Gpu("GPU-a", "NVIDIA A100", 0, 80 * GIB, "580.95.05", (8, 0))


def found(facts: MachineFacts) -> dict[str, str]:
    return {each.code: f"{each.severity}: {each.what} -> {each.remedy}" for each in diagnose(facts)}


@pytest.mark.parametrize(
    ("requested", "facts", "kind", "index"),
    [
        ("auto", AMD, "cuda", 0),
        ("cuda:1", AMD, "cuda", 1),
        ("auto", INTEL, "xpu", 0),
        ("xpu:1", INTEL, "xpu", 1),
        ("auto", APPLE, "mps", 0),
        ("mps", APPLE, "mps", 0),
        ("mps:0", APPLE, "mps", 0),
    ],
)
def test_a_gpu_of_another_vendor_is_used(requested: str, facts: MachineFacts, kind: str, index: int) -> None:
    choice = usable_device(requested, facts)
    assert (choice.kind, choice.gpu_index, choice.gpu) == (kind, index, None)
    assert choice.warning == (facts.torch.silence if facts.torch else None)


def test_another_kind_than_torchs_is_refused_with_what_torch_uses() -> None:
    with pytest.raises(DeviceError, match=r'device "mps": torch 2\.9\.0\+xpu uses xpu here \(Intel.*--device cpu'):
        usable_device("mps", INTEL)
    with pytest.raises(DeviceError, match=r'device "xpu:2": torch sees 2 GPUs; the last is xpu:1'):
        usable_device("xpu:2", INTEL)
    with pytest.raises(DeviceError, match=r"unknown \"xpu:x\". Allowed: .*xpu:0, mps"):
        usable_device("xpu:x", INTEL)


def test_nvmls_gpus_are_not_taken_for_those_of_another_vendor() -> None:
    mixed = replace(INTEL, torch=replace(XPU, device_count=1), visible=(NVIDIA,), listing=GpuListing((NVIDIA,)))
    choice = decide("auto", mixed)
    assert (choice.kind, choice.gpu, choice.uuid) == ("xpu", None, None)
    rocm = replace(AMD, torch=replace(ROCM, device_count=1, uuids=("a",)), visible=(NVIDIA,))
    assert (decide("cuda", rocm).gpu, decide("cuda", rocm).uuid) == (None, "a")


def test_all_gpus_of_a_kind_are_used_and_locked_each() -> None:
    assert [choice.gpu_index for choice in usable_devices("all", INTEL)] == [0, 1]
    assert [choice.kind for choice in usable_devices("xpu:0,xpu:1", INTEL)] == ["xpu", "xpu"]
    assert [session.lock_key(choice) for choice in usable_devices("all", INTEL)] == ["xpu-0", "xpu-1"]
    assert [session.lock_key(choice) for choice in usable_devices("all", AMD)] == [hash_uuid("a"), hash_uuid("b")]
    with pytest.raises(DeviceError, match='device "xpu:7": torch sees 2 GPUs'):
        usable_devices("xpu:0,xpu:7", INTEL)


@pytest.mark.parametrize(("requested", "facts"), [("xpu:1", INTEL), ("mps", APPLE), ("auto", APPLE)])
def test_a_second_sweep_on_the_same_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, requested: str, facts: MachineFacts
) -> None:
    monkeypatch.setattr(session, "read_machine_facts", lambda ask_torch: facts)
    with session.held_device(requested) as choice:
        assert choice.kind == (facts.torch.kind if facts.torch else None)
        with pytest.raises(BusyError), hold(device_lock_path(session.lock_key(choice)), "it"):
            pass


@pytest.mark.parametrize("given", ["xpu", "xpu:0", "mps", "mps:0", "xpu:0,xpu:1"])
def test_requests_of_other_vendors_are_read(given: str) -> None:
    assert read_devices(given) == given


def test_kinds_do_not_mix_in_a_request() -> None:
    with pytest.raises(ValueError, match="GPUs of several kinds"):
        read_devices("xpu:0,cuda:1")


def test_a_torch_is_asked_only_where_it_could_use_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "read_torch_facts", lambda: pytest.fail("torch was started"))
    bare = replace(INTEL, torch=None, torch_build="none")  # an Intel GPU beside a torch for the CPU
    assert usable_device("auto", bare).kind == "cpu"
    monkeypatch.setattr(selection, "read_torch_facts", lambda: XPU)
    assert usable_device("auto", replace(INTEL, torch=None)).kind == "xpu"


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    import torch

    built = next((name for name in ("cuda", "hip", "xpu") if getattr(torch.version, name, None)), "none")
    assert read_torch_build() == built


# bench env


def test_a_torch_without_rocm_and_a_rocm_without_rights_have_remedies_of_their_own() -> None:
    without = found(replace(AMD, torch=NOTHING, torch_build="none"))["rocm_not_used"]
    assert "not built for ROCm" in without and "UV_TORCH_BACKEND=auto" in without
    rights = found(replace(AMD, torch=replace(ROCM, available=False, warning="no HIP device")))["rocm_not_used"]
    assert "(ROCm 6.4) sees no GPU: no HIP device" in rights and "render,video" in rights
    assert "rocm_not_used" not in found(AMD)


def test_an_architecture_that_rocms_torch_lacks_is_named() -> None:
    told = found(replace(AMD, torch=replace(ROCM, archs=("gfx1036",))))["rocm_arch_not_built"]
    assert "gfx1036 is not among" in told and "HSA_OVERRIDE_GFX_VERSION" in told
    assert "rocm_arch_not_built" not in found(AMD)


@pytest.mark.parametrize(
    ("torch", "address", "words"),
    [
        (NOTHING, "0000:03:00.0", ("warning: ", "not built for it", "UV_TORCH_BACKEND=xpu")),
        (NOTHING, "0000:00:02.0", ("note: ", "integrated Intel GPU", "nothing to do")),
        (replace(XPU, available=False), "0000:03:00.0", ("warning: ", "sees none", "libze", "render")),
    ],
)
def test_an_intel_gpu_that_torch_does_not_use_has_a_remedy(
    torch: TorchFacts, address: str, words: tuple[str, ...]
) -> None:
    facts = replace(INTEL, torch=torch, intel_cards=(address,))
    told = found(facts)["xpu_not_used"]
    assert all(word in told for word in words)
    assert "Intel GPU" in decide("auto", facts).reason
    assert "xpu_not_used" not in found(INTEL)


@pytest.mark.parametrize(("has_mps", "words"), [(True, "Update macOS"), (False, "Rosetta")])
def test_an_apple_gpu_that_torch_does_not_use_has_a_remedy(has_mps: bool, words: str) -> None:
    facts = replace(APPLE, torch=replace(NOTHING, has_mps=has_mps))
    assert words in found(facts)["mps_not_used"]
    with pytest.raises(DeviceError, match="Apple GPU"):
        decide("mps", facts)
    assert "mps_not_used" not in found(APPLE)


def test_what_runs_will_lack_is_a_note_and_no_talk_of_nvidia() -> None:
    assert found(APPLE).keys() == {"unified_memory"}
    told = found(replace(APPLE, torch=replace(MPS, silence="clocks are not read")))
    assert told["no_readings"].startswith("note: clocks are not read")
    amd = found(replace(AMD, torch=replace(ROCM, silence=NO_AMDSMI)))
    assert "pip install amdsmi" in amd["no_readings"]
    assert found(AMD).keys() == set()


def test_a_mask_of_level_zeros_that_hides_all_is_the_cpu_on_purpose() -> None:
    assert 'ZE_AFFINITY_MASK=""' in decide("auto", replace(INTEL, ze_affinity_mask="")).reason


# Plans


@pytest.mark.parametrize(("device", "where"), [("xpu", "Intel"), ("mps", "Apple"), ("cpu", "CPU")])
def test_what_a_kind_lacks_is_skipped_with_its_reason(device: str, where: str) -> None:
    case = Case(Choice("mnist"), Choice("mlp"), Choice("sgd"), 8)
    assert skip_reason(case, device) is None
    assert where in str(skip_reason(replace(case, precision="tf32"), device))
    assert where in str(skip_reason(replace(case, allocator="expandable_segments:True"), device))
    assert skip_reason(replace(case, precision="bf16"), device) is None


@pytest.mark.parametrize(
    ("kind", "known", "words"),
    [
        ("xpu", {"torch_version": "2.9.1+xpu", "gpu_total_bytes": 12 * GIB}, r"torch 2\.9\.1\+xpu cannot limit memory"),
        ("xpu", {"torch_version": "2.10.0+xpu", "gpu_total_bytes": 4 * GIB}, r"B580"),
        ("mps", {"torch_version": "2.15.0", "device_memory_kind": "unified"}, r"takes the host's"),
    ],
)
def test_a_smaller_card_is_played_only_where_torch_can(
    monkeypatch: pytest.MonkeyPatch, kind: str, known: dict[str, Any], words: str
) -> None:
    told = {"device": kind, "gpu_name": "B580", **known}
    monkeypatch.setattr(session, "ask_machine", lambda launcher, task, argument: told)
    choice = selection.DeviceChoice(kind, "asked for", 0)
    with pytest.raises(DeviceError, match=words):
        session.read_environment(None, choice, limit_bytes=8 * GIB)  # type: ignore[arg-type]
    if kind == "xpu":
        told |= {"torch_version": "2.10.0", "gpu_total_bytes": 12 * GIB}
        found, gpu = session.read_environment(None, choice, limit_bytes=8 * GIB)  # type: ignore[arg-type]
        assert (found.estimate_device, gpu) == ("B580", None)


# Whole sweeps


@pytest.mark.parametrize(
    ("kind", "play", "name", "lacking"),
    [
        ("xpu", play_xpu, "Intel(R) Data Center GPU Max 1550", {"cuda_version", "power_end_w"}),
        ("mps", play_mps, "Apple M4 Max", {"cuda_version", "power_end_w", "gpu_total_bytes", "driver_version"}),
        ("cuda", play_rocm, "AMD Instinct MI300X", {"cudnn_version", "mig"}),
    ],
    ids=["xpu", "mps", "rocm"],
)
def test_a_sweep_on_a_stand_in_gives_rows_without_a_zero_for_unknown(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    play: Callable[[pytest.MonkeyPatch], Any],
    name: str,
    lacking: set[str],
) -> None:
    from bench import load
    from bench.config import load_config
    from bench.sweep import SweepOptions, run_sweep
    from bench.terminal import Progress

    play(monkeypatch)
    monkeypatch.setenv("BENCH_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(selection, "read_torch_facts", measure_torch_facts)
    config = tmp_path / "c.toml"
    config.write_text(
        '[grid]\ndataset = ["mnist"]\nmodel = ["mlp"]\noptimizer = ["adam"]\nbatch_size = [8]\n'
        "[measure]\nrepeats = 1\nwarmup_steps = 1\nmeasured_steps = 2\nmin_window = 0.001\n",
        encoding="utf-8",
    )
    with tensors_of(kind):
        run_sweep(
            load_config(config), SweepOptions(tmp_path / "out", device=kind, report=False, in_process=True), Progress()
        )
    (row,) = load(tmp_path / "out").to_dict("records")
    assert (row["status"], row["device"], row["gpu_name"]) == ("ok", kind, name)
    assert row["samples_per_s"] > 0
    assert row["peak_allocated_bytes"] == 300 << 20
    assert {column for column in lacking if row[column] is not None and row[column] == row[column]} == set()
