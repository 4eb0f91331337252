"""Host facts from made-up trees of /proc and /sys, and the environment record as a whole."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench.probes import environment, host
from bench.probes.cgroup import read_cpu_quota, read_memory_limit_bytes, read_memory_used_bytes, read_oom_kills
from bench.probes.environment import measure_environment, read_git_state
from bench.probes.gpu_monitor import GpuMonitor
from bench.records import Environment, columns, key_fields
from tests.unit.fake_nvml import UUID, FakeNvml, Fault, a100, install


def write(root: Path, **files: str) -> Path:
    """Write files below `root`; `__` in a name stands for a slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def write_at(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def v2_tree(root: Path, group: str = "/a/b") -> Path:
    write_at(root, "proc/self/cgroup", f"0::{group}\n")
    write_at(root, "proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n")
    (root / "sys/fs/cgroup" / group.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


def v1_tree(root: Path, group: str, mount_root: str = "/") -> Path:
    write_at(root, "proc/self/cgroup", f"4:memory:{group}\n3:cpu,cpuacct:{group}\n0::/\n")
    mounts = [
        f"32 31 0:29 {mount_root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        f"33 31 0:30 {mount_root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    ]
    write_at(root, "proc/self/mountinfo", "\n".join(mounts))
    for controller in ("cpu", "memory"):
        (root / "sys/fs/cgroup" / controller).mkdir(parents=True, exist_ok=True)
    return root


def test_no_control_group_means_no_limits(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path) is None
    assert read_memory_limit_bytes(tmp_path) is None
    assert read_oom_kills(tmp_path) is None


def test_smallest_limit_of_a_version_2_group_and_its_ancestors_holds(tmp_path: Path) -> None:
    root = v2_tree(tmp_path)
    write_at(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000")
    write_at(root, "sys/fs/cgroup/a/cpu.max", "150000 100000")
    write_at(root, "sys/fs/cgroup/a/b/memory.max", str(8 << 30))
    write_at(root, "sys/fs/cgroup/a/memory.max", str(4 << 30))
    assert read_cpu_quota(root) == 1.5
    assert read_memory_limit_bytes(root) == 4 << 30


def test_version_2_without_limits_is_none(tmp_path: Path) -> None:
    root = v2_tree(tmp_path)
    write_at(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000")
    write_at(root, "sys/fs/cgroup/a/b/memory.max", "max")
    assert read_cpu_quota(root) is None
    assert read_memory_limit_bytes(root) is None


def test_version_1_limits_are_read(tmp_path: Path) -> None:
    root = v1_tree(tmp_path, "/jobs/7")
    write_at(root, "sys/fs/cgroup/cpu/jobs/7/cpu.cfs_quota_us", "250000")
    write_at(root, "sys/fs/cgroup/cpu/jobs/7/cpu.cfs_period_us", "100000")
    write_at(root, "sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", str(2 << 30))
    assert read_cpu_quota(root) == 2.5
    assert read_memory_limit_bytes(root) == 2 << 30


def test_version_1_says_unlimited_with_minus_one_and_a_huge_number(tmp_path: Path) -> None:
    root = v1_tree(tmp_path, "/")
    write_at(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write_at(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    write_at(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert read_cpu_quota(root) is None
    assert read_memory_limit_bytes(root) is None


def test_containers_mount_of_a_part_of_the_hierarchy_is_understood(tmp_path: Path) -> None:
    root = v1_tree(tmp_path, "/docker/0a1b", mount_root="/docker/0a1b")
    write_at(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(1 << 30))
    assert read_memory_limit_bytes(root) == 1 << 30


def test_oom_kills_are_counted_in_both_versions(tmp_path: Path) -> None:
    write_at(v2_tree(tmp_path / "2"), "sys/fs/cgroup/a/b/memory.events", "low 0\noom 1\noom_kill 3\n")
    write_at(v1_tree(tmp_path / "1", "/"), "sys/fs/cgroup/memory/memory.oom_control", "under_oom 0\noom_kill 2\n")
    assert read_oom_kills(tmp_path / "2") == 3
    assert read_oom_kills(tmp_path / "1") == 2


def test_memory_available_is_what_the_group_leaves_without_file_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = v2_tree(tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 << 30))
    assert host.available_memory_bytes(root) == 64 << 30
    write_at(root, "sys/fs/cgroup/a/memory.max", str(4 << 30))
    write_at(root, "sys/fs/cgroup/a/memory.current", str(3 << 30))
    write_at(root, "sys/fs/cgroup/a/memory.stat", f"anon 1\ninactive_file {1 << 30}\n")
    assert read_memory_used_bytes(root) == 2 << 30
    assert host.available_memory_bytes(root) == 2 << 30


def test_quota_is_rounded_up_and_never_above_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    root = v2_tree(tmp_path)
    for quota, expected in (("max 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("900000 100000", 4)):
        write_at(root, "sys/fs/cgroup/a/b/cpu.max", quota)
        assert host.usable_cores(root) == expected


def test_cpu_model_is_named_on_x86_and_from_the_part_number_on_arm(tmp_path: Path) -> None:
    x86 = write(tmp_path / "x86", proc__cpuinfo="processor\t: 0\nmodel name\t: AMD EPYC  7763\nflags\t\t: fpu sse\n")
    arm = write(tmp_path / "arm", proc__cpuinfo="processor: 0\nCPU implementer: 0x41\nCPU part: 0xd4f\n")
    new = write(tmp_path / "new", proc__cpuinfo="processor: 0\nCPU implementer: 0x4e\nCPU part: 0x004\n")
    assert host.cpu_model(x86) == "AMD EPYC 7763"
    assert host.cpu_model(arm) == "Arm Neoverse-V2"
    assert host.cpu_model(new) == "Arm implementer 0x4e part 0x004"
    assert host.cpu_model(tmp_path / "nothing") is None


def test_governors_that_differ_are_all_named(tmp_path: Path) -> None:
    assert host.cpu_governor(tmp_path) is None
    for core, governor in enumerate(("performance", "powersave", "performance")):
        write_at(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", governor + "\n")
    assert host.cpu_governor(tmp_path) == "performance,powersave"


def test_virtualization_is_told_from_flag_and_board(tmp_path: Path) -> None:
    metal = write(tmp_path / "metal", proc__cpuinfo="flags : fpu sse\n", sys__class__dmi__id__sys_vendor="Dell Inc.")
    kvm = write(tmp_path / "kvm", proc__cpuinfo="flags : fpu hypervisor\n", sys__class__dmi__id__sys_vendor="QEMU")
    bare = write(tmp_path / "bare", proc__cpuinfo="flags : fpu hypervisor\n")
    wsl = write(tmp_path / "wsl", proc__sys__kernel__osrelease="5.15.90.1-microsoft-standard-WSL2")
    arm = write(tmp_path / "arm", proc__cpuinfo="CPU part : 0xd4f\n")
    found = [host.virtualization(root) for root in (metal, kvm, bare, wsl, arm)]
    assert found == ["none", "qemu", "unknown", "wsl", None]


def test_container_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(name, raising=False)
    assert host.container(tmp_path) is None
    write(tmp_path / "lxc", proc__1__cgroup="1:name=systemd:/lxc/web\n")
    assert host.container(tmp_path / "lxc") == "lxc"
    write_at(tmp_path, ".dockerenv", "")
    assert host.container(tmp_path) == "docker"
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/torch.sif")
    assert host.container(tmp_path) == "apptainer"


def test_host_hash_is_stable_and_hides_the_machine_id(tmp_path: Path) -> None:
    one = write(tmp_path / "one", etc__machine_id="unused")
    write_at(one, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    two = write(tmp_path / "two", etc__hostname="gpu-box")
    assert host.host_hash(one) == host.host_hash(one) != host.host_hash(two)
    assert "0123" not in str(host.host_hash(one))
    assert host.host_hash(tmp_path / "nothing") is None


def test_host_facts_need_no_torch() -> None:
    program = "import sys; from bench.probes.host import measure_host; measure_host(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def checkout(root: Path) -> Path:
    """A repository that holds a package folder; returns the package."""
    git(root, "init", "-q")
    write(root, bench__errors_py="")
    (root / "bench/errors_py").rename(root / "bench/errors.py")
    return root / "bench"


def test_changes_in_the_package_make_it_dirty_and_reports_beside_it_do_not(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    git(tmp_path, "add", "bench")
    git(tmp_path, "commit", "-qm", "one")
    commit, dirty = read_git_state(package)
    assert (len(str(commit)), dirty) == (40, False)
    write(tmp_path, reports__report="new")
    assert read_git_state(package) == (commit, False)
    (package / "model.py").write_text("new")
    assert read_git_state(package) == (commit, True)


def test_package_installed_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    package = checkout(tmp_path)
    write_at(tmp_path, "notes", "of the other project")
    git(tmp_path, "add", "notes")
    git(tmp_path, "commit", "-qm", "of the other project")
    assert read_git_state(package) == (None, None)


def test_no_repository_has_no_commit(tmp_path: Path) -> None:
    assert read_git_state(tmp_path) == (None, None)


def test_environment_of_the_cpu_fills_what_a_cpu_has() -> None:
    found = measure_environment("cpu")
    gpu_columns = {name for name in columns(Environment) if name.startswith(("gpu_", "power_")) or name == "vbios"}
    assert {getattr(found, name) for name in gpu_columns} == {None}
    known = ("torch_version", "python_version", "bench_version", "cpu_model", "ram_bytes", "kernel", "host_hash")
    assert None not in [getattr(found, name) for name in (*known, "torch_threads", "cpu_cores_usable", "os_name")]
    assert found.device == "cpu"


def test_environment_is_the_same_twice() -> None:
    assert measure_environment("cpu") == measure_environment("cpu")


def test_measuring_the_cpus_environment_leaves_cuda_alone() -> None:
    import torch

    measure_environment("cpu")
    assert not torch.cuda.is_initialized()


def test_variables_that_change_speed_are_recorded_without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setenv("LD_PRELOAD", "/home/someone/lib/libjemalloc.so.2")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = measure_environment("cpu")
    assert found.speed_variables is not None
    assert "CUDA_LAUNCH_BLOCKING=1" in found.speed_variables
    assert "LD_PRELOAD=libjemalloc.so.2" in found.speed_variables
    assert "someone" not in found.speed_variables
    assert found.allocator_settings == "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


def fake_cuda(monkeypatch: pytest.MonkeyPatch, cuda_total: int = 80 << 30, **changes: Any) -> None:
    import torch

    known = {
        "name": "NVIDIA A100",
        "uuid": UUID.removeprefix("GPU-"),
        "total_memory": 80 << 30,
        "multi_processor_count": 108,
        "major": 8,
        "minor": 0,
        "is_integrated": 0,
    }
    properties = SimpleNamespace(**{**known, **changes})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (0, cuda_total))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def test_environment_of_a_gpu_joins_torchs_and_nvmls_view_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    other = a100(nvmlDeviceGetUUID="GPU-0", nvmlDeviceGetVbiosVersion="of the other card")
    install(monkeypatch, FakeNvml(other, a100()))
    found = measure_environment("cuda")
    assert (found.gpu_name, found.gpu_capability, found.gpu_count, found.gpu_index) == ("NVIDIA A100", "8.0", 2, 0)
    assert (found.vbios, found.power_limit_w, found.driver_version) == ("92.00.45.00.03", 300.0, "550.54.15")
    assert found.cudnn_version == "9.10.2"
    assert UUID.removeprefix("GPU-") not in str(found)


def test_environment_of_a_gpu_without_nvml_leaves_nvmls_columns_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    install(monkeypatch, FakeNvml(start_error=12))
    found = measure_environment("cuda", gpu_index=1)
    assert (found.gpu_total_bytes, found.gpu_index, found.vbios, found.ecc) == (80 << 30, 1, None, None)


def memory_of(found: Environment) -> tuple[object, ...]:
    return (found.device_memory_kind, found.gpu_total_bytes, found.gpu_memory_limit_bytes, found.device_memory_note)


def test_the_memory_of_a_gpu_is_what_this_process_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    install(monkeypatch, FakeNvml(a100()))
    assert memory_of(measure_environment("cuda")) == ("dedicated", 80 << 30, None, None)
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMemoryInfo=SimpleNamespace(total=40 << 30, used=0))))
    limited = measure_environment("cuda")
    assert memory_of(limited) == ("dedicated", 80 << 30, 40 << 30, None)
    fake_cuda(monkeypatch, cuda_total=30 << 30)
    assert measure_environment("cuda").gpu_memory_limit_bytes == 30 << 30
    whole = dataclasses.replace(limited, gpu_memory_limit_bytes=None)
    assert limited.key != whole.key  # another limit is another machine to the resume
    assert "gpu_memory_limit_bytes" not in key_fields(whole)  # and without one, keys are as before


def test_the_memory_of_a_slice_is_not_the_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, 5 << 30, name="NVIDIA A100 MIG 1g.5gb", total_memory=5 << 30)
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMigMode=[1, 1])))  # which shows the board under CUDA's UUID
    assert memory_of(measure_environment("cuda")) == ("slice", 5 << 30, None, environment.CUT)


def test_a_slice_goes_by_its_own_uuid_where_cuda_gives_the_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, 5 << 30, name="NVIDIA A100 MIG 1g.5gb", total_memory=5 << 30)
    memory = SimpleNamespace(total=5 << 30, used=0)
    mig = {"nvmlDeviceGetUUID": "MIG-7", "nvmlDeviceIsMigDeviceHandle": 1, "nvmlDeviceGetMemoryInfo": memory}
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMigMode=[1, 1]), slices=(mig,)))
    found = measure_environment("cuda", gpu_uuid="MIG-7")
    assert memory_of(found) == ("slice", 5 << 30, None, None)
    assert (found.gpu_uuid_hash, found.mig) == (environment.hash_uuid("MIG-7"), True)


def test_a_gpu_without_readings_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMemoryInfo=Fault(4))))
    assert memory_of(measure_environment("cuda")) == ("dedicated", 80 << 30, None, environment.SILENT)


@pytest.mark.parametrize("memory", [Fault(3), SimpleNamespace(total=0, used=0), SimpleNamespace(total=9, used=5)])
def test_a_gpu_that_takes_host_memory_has_no_total(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    fake_cuda(monkeypatch, name="NVIDIA GB10", is_integrated=1)
    install(monkeypatch, FakeNvml(a100(nvmlDeviceGetMemoryInfo=memory)))
    assert memory_of(measure_environment("cuda")) == ("unified", None, None, environment.UNIFIED)


def test_open_monitor_is_used_and_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    fake = install(monkeypatch, FakeNvml(a100()))
    with GpuMonitor(UUID) as monitor:
        assert measure_environment("cuda", monitor=monitor).ecc is True
        assert fake.calls.count("nvmlInit") == 1
        assert "nvmlShutdown" not in fake.calls


def test_cudnn_8_is_written_with_its_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    version = SimpleNamespace(backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 8902)))
    assert environment._cudnn_version(version) == "8.9.2"
