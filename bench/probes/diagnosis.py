"""What is wrong with a machine, and how to fix it.

Each check is a pure function from `MachineFacts` to findings, so that every machine ever met can stand in a test.

Remedies name the torch build that suits a driver and a card. Facts, all for the wheels of download.pytorch.org for
Linux x86-64 (pytorch RELEASE.md, "PyTorch CUDA Support Matrix", as of 2.6 to 2.14; issues 172352, 178665 and 190385 of
pytorch/pytorch): a wheel runs on every driver of its CUDA's major version or newer (CUDA Compatibility, "Minor Version
Compatibility": 11 needs driver 450.80.02, 12 needs 525.60.13, 13 needs 580), and on cards of the architectures it was
built for. `UV_TORCH_BACKEND` takes these names (`uv pip install --help`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from bench.probes.gpu_monitor import GpuStatic, is_power_capped
from bench.probes.machine_facts import MachineFacts, read_machine_facts
from bench.probes.nvml import Gpu, find_gpu
from bench.units import MIB, format_bytes

_DRIVER_FOR_MAJOR = {11: "450.80.02", 12: "525.60.13", 13: "580"}


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """A flavour of torch's wheels; the capabilities are those that all its versions named here were built for."""

    backend: str
    cuda: tuple[int, int]
    torch: str
    oldest: tuple[int, int]
    newest: tuple[int, int]


BUILDS = (  # the one to prefer first
    TorchBuild("cu130", (13, 0), "torch>=2.9", (7, 5), (12, 1)),
    TorchBuild("cu126", (12, 6), "torch>=2.6,<2.15", (5, 0), (9, 0)),
    TorchBuild("cu128", (12, 8), "torch>=2.7,<2.12", (7, 5), (12, 1)),
    TorchBuild("cu118", (11, 8), "torch>=2.6,<2.8", (5, 0), (9, 0)),
)


def choose_build(driver_cuda: tuple[int, int] | None, capability: tuple[int, int] | None) -> TorchBuild | None:
    """The build to advise, or None where only a newer driver or another card would do.

    Args:
        driver_cuda: The newest CUDA that the driver runs, `(12, 4)`; None if unknown, which excludes nothing.
        capability: The card's compute capability, `(7, 0)` for a V100; None if unknown, which excludes nothing.
    """
    for build in BUILDS:
        runs = driver_cuda is None or build.cuda[0] <= driver_cuda[0]
        fits = capability is None or build.oldest <= capability <= build.newest
        if runs and fits:
            return build
    return None


def install_advice(build: TorchBuild | None) -> str:
    """One sentence on how to get `build`: with uv's automatic choice, and with the one named."""
    if build is None:
        return "No build of torch 2.6 or newer supports this driver and card: update the driver or use another card."
    return (
        f"Install a matching build: set `UV_TORCH_BACKEND=auto` or `UV_TORCH_BACKEND={build.backend}` before the "
        f"set-up command, or `UV_TORCH_BACKEND={build.backend} uv pip install --reinstall "
        f'"{build.torch}" torchvision` here.'
    )


def driver_for(cuda_version: str) -> str | None:
    """The oldest Linux driver that runs wheels of that CUDA version (`"13.2"`), or None if it is not known."""
    return _DRIVER_FOR_MAJOR.get(parse_cuda_version(cuda_version)[0])


def parse_cuda_version(text: str) -> tuple[int, int]:
    """`"12.6"` or `"12.6.3"` as `(12, 6)`."""
    numbers = [int(part) for part in re.findall(r"\d+", text)] + [0, 0]
    return numbers[0], numbers[1]


def runs_on(capability: tuple[int, int], arch_list: Iterable[str]) -> bool:
    """Whether code of `arch_list` runs on a card.

    `sm_XY` runs on cards of the same major version and the same or a higher minor one; `compute_XY` is PTX, which the
    driver compiles for every newer card; `sm_90a` runs on exactly that card, and `sm_100f` within its family, which is
    the same major version (CUDA C Programming Guide, "Compute Capability"; nvcc, "GPU Feature List").
    """
    return any(_arch_runs_on(capability, *match.groups()) for arch in arch_list if (match := _ARCH.fullmatch(arch)))


_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def _arch_runs_on(capability: tuple[int, int], kind: str, major: str, minor: str, suffix: str) -> bool:
    built = (int(major), int(minor))
    if suffix == "a":
        return capability == built
    if kind == "compute" and not suffix:
        return capability >= built
    return capability[0] == built[0] and capability[1] >= built[1]


Severity = Literal["error", "warning", "note"]

SMALL_SHM_BYTES = 512 * MIB
"""Docker gives 64 MiB; a loader of 2 workers with 2 batches each of 256 ImageNet images in float32 fills 588 MiB."""

FEW_OPEN_FILES = 1024
"""Workers hand tensors over as file descriptors; the usual soft limit is reached by about 1000 batches in flight."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that is wrong or worth knowing. `code` is for scripts and stays the same; `remedy` says what to do."""

    severity: Severity
    code: str
    what: str
    remedy: str


def diagnose(facts: MachineFacts | None = None) -> tuple[Diagnosis, ...]:
    """What is wrong with this machine, errors first; empty if all is well.

    Args:
        facts: What is known of the machine; read here, with torch in a separate process, where None.
    """
    known = read_machine_facts(ask_settings=True) if facts is None else facts
    found = [finding for check in _CHECKS for finding in check(known)]
    return tuple(sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity)))


def gpu_faults(facts: MachineFacts) -> tuple[Diagnosis, ...]:
    """The findings for which a GPU that the driver shows cannot be used; all are errors."""
    found = (finding for check in _GPU_CHECKS for finding in check(facts))
    return tuple(finding for finding in found if finding.severity == "error")


def _check_driver(facts: MachineFacts) -> Iterator[Diagnosis]:
    listing = facts.listing
    if listing.error and "nvidia-ml-py" in listing.error:
        remedy = "Install it (`pip install nvidia-ml-py`); without it, GPU memory, clocks and power are unknown."
        yield Diagnosis("warning", "no_nvml", listing.error, remedy)
    elif listing.error and not listing.absent:
        yield Diagnosis(
            "error",
            "driver_fault",
            f"the NVIDIA driver is installed but not responding: {listing.error}",
            "Run `nvidia-smi`. A driver that was updated while loaded needs a reboot; one that hangs needs a reset.",
        )
    elif listing.absent and facts.nvidia_card_on_bus:
        remedy = "Install NVIDIA's driver, or start the container with its GPUs (`docker run --gpus all`)."
        yield Diagnosis("warning", "no_driver", "this machine has an NVIDIA card but no driver for it", remedy)
    elif listing.absent and not _is_other_gpu(facts):
        what = "no NVIDIA driver (NVML): runs use the CPU, or a GPU that only torch sees"
        yield Diagnosis("note", "no_nvml", what, "Nothing to do on a machine without an NVIDIA GPU.")


def _check_hidden(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.listing.gpus and not facts.visible and not (facts.torch is not None and facts.torch.available):
        boards = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in facts.listing.gpus)
        if facts.cuda_visible_devices is None:
            what = f"all GPUs are in MIG mode without any instance ({boards})"
            yield Diagnosis("error", "no_mig_slice", what, "Create one (`nvidia-smi mig -cgi ... -C`) or disable MIG.")
            return
        yield Diagnosis(
            "note" if hidden_on_purpose(facts) else "error",
            "gpu_hidden",
            f'CUDA_VISIBLE_DEVICES="{facts.cuda_visible_devices}" hides every GPU ({boards})',
            "Unset it, or set it to a GPU's index or UUID (`nvidia-smi -L`).",
        )


def hidden_on_purpose(facts: MachineFacts) -> str | None:
    """The variable, with its value, that says "no GPU" in one of the customary ways rather than by a wrong index.

    On a machine of AMD's these are ROCm's variables, and CUDA's where ROCm's own does not overrule it.
    """
    variables = {"CUDA_VISIBLE_DEVICES": facts.cuda_visible_devices}
    if "/dev/kfd" in facts.gpu_device_files and not facts.listing.gpus:
        rocm = {"HIP_VISIBLE_DEVICES": facts.hip_visible_devices, "ROCR_VISIBLE_DEVICES": facts.rocr_visible_devices}
        variables = rocm if any(value is not None for value in rocm.values()) else variables
    if facts.intel_cards and facts.torch_build == "xpu" and not facts.listing.gpus:
        variables = {"ZE_AFFINITY_MASK": facts.ze_affinity_mask}
    for name, value in variables.items():
        if value is not None and re.fullmatch(r"(|-\d.*|none|nodevfiles|void)", value.strip(), re.IGNORECASE):
            return f'{name}="{value}"'
    return None


def _check_torch_build(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    if torch is None:
        return
    if torch.blame:
        what = f'{torch.blame.variable}="{torch.blame.value}" prevents torch from starting'
        said = (torch.error or torch.trial_error or "").rpartition("failed with exit code ")[2]
        yield Diagnosis("error", "bad_variable", f"{what}: {re.sub(r'^-?[0-9]+: ', '', said)}", torch.blame.remedy)
    elif torch.error and facts.listing.error and not facts.listing.absent:
        yield Diagnosis("error", "torch_unusable", torch.error, "Fix the driver first: torch waits for it.")
    elif torch.error:
        yield Diagnosis("error", "torch_unusable", torch.error, f"Reinstall it. {_advice(facts)}")
    elif facts.visible and not torch.available and torch.cuda_version is None and torch.hip_version is None:
        build = "is built for Intel GPUs" if torch.xpu_version else "is a CPU-only build"
        what = f"the driver shows {_names(facts)}, but torch {torch.version} {build}"
        yield Diagnosis("error", "torch_is_cpu_build", what, _advice(facts))


def _check_cuda_start(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch, cuda = facts.torch, facts.listing.cuda_driver_version
    if torch is None or torch.error or torch.available or not facts.visible or torch.cuda_version is None:
        return
    told = f" torch reports: {torch.warning}" if torch.warning else ""
    if cuda is not None and cuda[0] < parse_cuda_version(torch.cuda_version)[0]:
        needed = driver_for(torch.cuda_version)
        yield Diagnosis(
            "error",
            "driver_too_old",
            f"driver {facts.listing.driver_version} supports CUDA up to {cuda[0]}.{cuda[1]}, but torch {torch.version} "
            f"is built for CUDA {torch.cuda_version}.{told}",
            f"{_advice(facts)} Or update the driver{f' to {needed} or newer' if needed else ''}.",
        )
    else:
        what = (
            f"the driver shows {_names(facts)}, but torch {torch.version} cannot start CUDA {torch.cuda_version}.{told}"
        )
        remedy = (
            "Check that `nvidia-smi` works and /dev/nvidia-uvm exists; a reboot or `nvidia-modprobe -u` often helps."
        )
        yield Diagnosis("error", "cuda_does_not_start", what, remedy)


def _check_rocm(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    if "/dev/kfd" in facts.gpu_device_files and torch is not None and not torch.error and not torch.available:
        what = f"AMD's GPU driver is loaded (/dev/kfd), but torch {torch.version} "
        if torch.hip_version is None:
            what += "is not built for ROCm and sees no GPU"
            remedy = "If ROCm supports the card: `UV_TORCH_BACKEND=auto` before the set-up command."
        else:
            what += f"(ROCm {torch.hip_version}) sees no GPU{f': {torch.warning}' if torch.warning else ''}"
            remedy = (
                "Join the groups that own /dev/kfd and /dev/dri/renderD* (`sudo usermod -aG render,video $USER`, then "
                "log in again); a container needs `--device /dev/kfd --device /dev/dri`. `rocminfo` must list the card."
            )
        yield Diagnosis("warning", "rocm_not_used", what, remedy)


def _check_rocm_architecture(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    for arch in dict.fromkeys(torch.archs) if torch and torch.hip_version else ():
        family = arch.partition(":")[0]  # gfx90a:sramecc+:xnack-
        if family and torch and torch.arch_list and family not in {each.partition(":")[0] for each in torch.arch_list}:
            what = f"{family} is not among what torch {torch.version} is built for: {' '.join(torch.arch_list)}"
            remedy = (
                "Install a torch for this card (TheRock's wheels have more), or try the nearest of its family: "
                "`HSA_OVERRIDE_GFX_VERSION=10.3.0` for gfx103x, 11.0.0 for gfx110x; results then say so."
            )
            yield Diagnosis("warning", "rocm_arch_not_built", what, remedy)


def _check_xpu(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    if not facts.intel_cards or torch is None or torch.error or torch.available or facts.listing.gpus:
        return
    integrated = all(address.startswith("0000:00:") for address in facts.intel_cards)
    what = f"this machine has an {'integrated ' if integrated else ''}Intel GPU, but torch {torch.version} "
    if torch.xpu_version is None:
        what += "is not built for it"
        remedy = "To use it: `UV_TORCH_BACKEND=xpu` before the set-up command. Otherwise there is nothing to do."
        yield Diagnosis("note" if integrated else "warning", "xpu_not_used", what, remedy)
    else:
        what += f"(for XPU, SYCL compiler {torch.xpu_version}) sees none"
        remedy = (
            "Install Intel's compute runtime and Level Zero (intel-opencl-icd, libze1, libze-intel-gpu1), join the "
            "group that owns /dev/dri/renderD* (`sudo usermod -aG render $USER`), and unset ZE_AFFINITY_MASK and "
            "ONEAPI_DEVICE_SELECTOR. A container needs `--device /dev/dri`."
        )
        yield Diagnosis("warning", "xpu_not_used", what, remedy)


def _check_apple(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    if facts.apple_silicon and torch is not None and not torch.error and not torch.available:
        built = "cannot start MPS" if torch.has_mps else "is built without MPS"
        what = f"this Mac has an Apple GPU, but torch {torch.version} {built}"
        remedy = (
            "Update macOS (14 or newer; older torch took 12.3), and run outside a virtual machine without a GPU."
            if torch.has_mps
            else "Install torch's own wheel for arm64 (`uv pip install --reinstall torch torchvision`), with a Python "
            "for arm64: one under Rosetta gets none."
        )
        yield Diagnosis("warning", "mps_not_used", what, remedy)


def _check_other_readings(facts: MachineFacts) -> Iterator[Diagnosis]:
    """What a run on a GPU of AMD, Intel or Apple will not have."""
    torch = facts.torch
    if torch is None or not torch.available or not torch.silence:
        return
    remedy = (
        "Install AMD SMI for Python (`pip install amdsmi`, or /opt/rocm/share/amd_smi): runs then have them."
        if torch.hip_version
        else "Nothing to do: those columns are null, and results without them cannot show that clocks held."
    )
    yield Diagnosis("note", "no_readings", torch.silence, remedy)


def _is_other_gpu(facts: MachineFacts) -> bool:
    """Whether torch uses a GPU that is not NVIDIA's."""
    torch = facts.torch
    return torch is not None and torch.available and bool(torch.hip_version or torch.kind != "cuda")


def _check_architecture(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    if torch is None or torch.hip_version or not torch.arch_list:
        return
    for gpu in facts.visible:
        if gpu.capability and not runs_on(gpu.capability, torch.arch_list):
            capability = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
            what = f"{gpu.name} is {capability}, but torch {torch.version} is built for {' '.join(torch.arch_list)}"
            advice = install_advice(choose_build(facts.listing.cuda_driver_version, gpu.capability))
            yield Diagnosis("error", "card_not_in_arch_list", what, advice)


def _check_trial(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.torch is not None and facts.torch.trial_error and not facts.torch.blame:
        what = f"an addition of eight numbers on the GPU failed: {facts.torch.trial_error}"
        told = {"xpu": "`xpu-smi discovery`", "mps": "the system's log"}.get(facts.torch.kind, "`nvidia-smi -q`")
        told = "`rocminfo`" if facts.torch.hip_version else told
        remedy = f"Free the GPU if another process uses all of it or holds it exclusively; else see {told}, `dmesg`."
        yield Diagnosis("error", "gpu_trial_failed", what, remedy)


def _check_unified(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    for name, unified in zip(torch.device_names, torch.unified, strict=False) if torch else ():
        if unified:
            what = (
                f"{name} takes host memory: columns of device memory are null, limits.host_memory limits runs on it, "
                "and what fits depends on what is free"
            )
            remedy = "Close other programs and turn swap off before a sweep; set limits.host_memory to repeat it."
            yield Diagnosis("note", "unified_memory", what, remedy)


def _check_slices(facts: MachineFacts) -> Iterator[Diagnosis]:
    slices = [gpu for gpu in facts.visible if gpu.mig]
    told = facts.torch.device_names if facts.torch else ()
    if slices:
        what = (
            f"{_names(facts)}: a MIG slice has memory and multiprocessors of its own, but shares clocks, power "
            "and heat with its board; its power and energy are unknown"
        )
        more = "Choose one with --device MIG-... (`nvidia-smi -L`). " if len(slices) > 1 else ""
        yield Diagnosis("note", "mig_slice", what, f"{more}Leave the board's other slices idle for speeds to publish.")
    elif any(" MIG " in name for name in told):
        what = (
            f"{', '.join(told)}: NVML shows the board and not this slice of it: memory in use, processes, clocks, "
            "throttling, power and energy are unknown"
        )
        remedy = "In a container, pass the slice on by its UUID (`docker run --gpus '\"device=MIG-...\"'`)."
        yield Diagnosis("warning", "mig_slice_hidden", what, remedy)


def _check_memory_limit(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    by_torch = torch.total_bytes if torch and len(torch.total_bytes) == len(facts.visible) else ()
    for gpu, total in zip(facts.visible, by_torch or [gpu.total_bytes for gpu in facts.visible], strict=True):
        if gpu.allowed_bytes is not None and total is not None and gpu.allowed_bytes < total:
            what = (
                f"this process may take {format_bytes(gpu.allowed_bytes)} of the {format_bytes(total)} of "
                f"{_name(gpu)}: a limit of its control group; estimates and fits go by it"
            )
            remedy = "Nothing to do if it is meant; else have the limit of the container or job lifted."
            yield Diagnosis("note", "gpu_memory_limit", what, remedy)


def _check_memory_readings(facts: MachineFacts) -> Iterator[Diagnosis]:
    """NVML that tells of a GPU and not of its memory: in containers without rights, and on unified memory."""
    unified = bool(facts.torch and any(facts.torch.unified))
    silent = [gpu for gpu in facts.visible if gpu.total_bytes is None]
    if silent and not unified:
        what = (
            f"NVML gives no memory of {', '.join(map(_name, silent))}: device_used_* is unknown, and other processes "
            "on it are not noticed by their memory"
        )
        remedy = (
            "Start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility, or ask for the rights to query it."
        )
        yield Diagnosis("warning", "no_memory_readings", what, remedy)


def _check_settings(facts: MachineFacts) -> Iterator[Diagnosis]:
    """Settings of the boards that change speed or energy, where they are not what a board comes with."""
    for board in facts.boards:
        name = board.name or "the GPU"
        for code, severity, what, remedy in _settings_told(board):
            yield Diagnosis(severity, code, f"{name}: {what}", remedy)


_KEEP = "or keep it, and keep it the same on both sides of a comparison: results are kept apart by it."


def _settings_told(board: GpuStatic) -> Iterator[tuple[str, Severity, str, str]]:
    """Code, severity, what it means for results, and what to do."""
    of = board.settings
    if is_power_capped(board.power_limit_w, board.power_limit_default_w):
        what = (
            f"the power limit is {board.power_limit_w:g} W of the default {board.power_limit_default_w:g} W: clocks "
            "fall under load"
        )
        yield "power_capped", "note", what, f"`sudo nvidia-smi -pl {board.power_limit_default_w:g}`, {_KEEP}"
    if of.ecc is False:
        what = "ECC is off: memory has a little more room and, on boards without HBM, more bandwidth than with it"
        remedy = f"Nothing to do on consumer boards; elsewhere `sudo nvidia-smi -e 1` and a reset, {_KEEP}"
        yield "ecc_off", "note", what, remedy
    if of.persistence_mode is False:
        what = (
            "persistence mode is off: the driver lets go of the GPU between processes, so each run starts 1 to 3 s "
            "later and settings of clocks and power are lost"
        )
        yield "persistence_off", "note", what, "`sudo nvidia-smi -pm 1`, or run nvidia-persistenced."
    if of.workload_power_profiles not in (None, "none"):
        what = f"workload power profile {of.workload_power_profiles}: clocks and power follow it"
        remedy = f"Clear it (`nvidia-smi power-profiles --help`), {_KEEP}"
        yield "power_profile", "warning", what, remedy
    if of.edpp_multiplier_frac not in (None, 1.0):
        what = (
            f"the EDPp multiplier is {of.edpp_multiplier_frac:.0%}: the peak current, and with it clocks in short "
            "bursts, is not the board's own"
        )
        yield "edpp_multiplier", "warning", what, f"Set it back to 100 % where the host's management allows it, {_KEEP}"
    if of.adaptive_tgp:
        limit = f", now {of.adaptive_tgp_limit_w:g} W" if of.adaptive_tgp_limit_w else ""
        what = f"adaptive TGP is on: the power limit moves{limit}, and speed and energy with it"
        yield "adaptive_tgp", "warning", what, "Have it turned off before publishing, or quote it with the numbers."
    if of.power_smoothing:
        what = "power smoothing is on: power rises slowly and does not fall below a floor, so energy is higher"
        yield "power_smoothing", "warning", what, f"Have it turned off before publishing energy, {_KEEP}"
    if of.application_clocks not in (None, "default"):
        what = f"applications clocks are set to {of.application_clocks}: the GPU does not clock higher"
        yield "application_clocks", "warning", what, f"`sudo nvidia-smi -rac`, {_KEEP}"
    if of.confidential_computing not in (None, "off"):
        what = (
            f"confidential computing is {of.confidential_computing}: copies to and from the GPU are encrypted and "
            "slower, kernels start later"
        )
        yield "confidential_computing", "warning", what, "Quote it with the numbers, or measure on a host without it."


def _check_neighbours(facts: MachineFacts) -> Iterator[Diagnosis]:
    for gpu, count in zip(facts.visible, facts.other_processes, strict=False):
        if count:
            others = f"{count} other processes use" if count > 1 else "another process uses"
            what = f"{others} {_name(gpu)}: they take memory and time that runs would be charged with"
            yield Diagnosis("warning", "gpu_shared", what, "End them (`nvidia-smi` lists them), or use another GPU.")


def _check_mps(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    for name, used in zip(torch.device_names, torch.mps, strict=False) if torch else ():
        if used:
            what = (
                f"CUDA's Multi-Process Service serves {name}: kernels of other processes may run beside those of a "
                "run, and its memory holds what the server takes"
            )
            remedy = (
                "Stop it (`echo quit | nvidia-cuda-mps-control`), or set CUDA_MPS_PIPE_DIRECTORY to an empty folder "
                "for the sweep."
            )
            yield Diagnosis("warning", "cuda_mps", what, remedy)


def _check_same_gpus(facts: MachineFacts) -> Iterator[Diagnosis]:
    """NVML and torch that see different GPUs: in containers, or by what is set for one of them alone."""
    torch, visible = facts.torch, facts.visible
    if torch is None or not torch.available or torch.hip_version or torch.kind != "cuda":
        return
    if any(" MIG " in name for name in torch.device_names):
        return
    told = torch.uuids if len(torch.uuids) == torch.device_count else ()
    unknown = [uuid for uuid in told if find_gpu(uuid, visible) is None]
    if facts.listing.gpus and ((unknown and len(visible) != torch.device_count) or len(visible) < torch.device_count):
        what = (
            f"NVML lists other GPUs ({_names(facts) or 'none that is visible'}) than torch "
            f"({', '.join(torch.device_names)}): runs on those that it does not list have no clocks, power, throttling "
            "or other processes, and are flagged nvml_silent, so that they cannot be published"
        )
        remedy = (
            "Give both the same GPUs: start the container with `--gpus` or NVIDIA_VISIBLE_DEVICES alone, and set "
            "CUDA_VISIBLE_DEVICES to UUIDs (`nvidia-smi -L`) or unset it."
        )
        yield Diagnosis("warning", "nvml_lists_others", what, remedy)


def _check_tf32(facts: MachineFacts) -> Iterator[Diagnosis]:
    """The variable that overrules torch's switches, which a case's precision sets (`bench.probes.in_force`)."""
    value = (facts.tf32_override or "").strip()
    if value and facts.visible:
        does = "switches TF32 off" if value == "0" else "may switch TF32 on"
        what = (
            f'NVIDIA_TF32_OVERRIDE="{value}" {does}, whatever a case asks for: runs in which it matters are flagged '
            "precision_not_in_force, so that they cannot be published"
        )
        yield Diagnosis("warning", "tf32_override", what, "`unset NVIDIA_TF32_OVERRIDE` before the sweep.")


def _check_shared_memory(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.shm_bytes is not None and facts.shm_bytes < SMALL_SHM_BYTES:
        what = f"/dev/shm holds {format_bytes(facts.shm_bytes)}: loader workers crash with a bus error when it is full"
        yield Diagnosis("warning", "small_shm", what, "Start the container with `--shm-size=8g` or `--ipc=host`.")


def _check_governor(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.governor is not None and facts.governor != "performance":
        what = f"the CPU's frequency governor is {facts.governor}: clocks follow the load, so step times vary"
        yield Diagnosis("warning", "governor", what, "`sudo cpupower frequency-set -g performance` before publishing.")


def _check_open_files(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.open_files_limit is not None and facts.open_files_limit <= FEW_OPEN_FILES:
        what = f"a process may open only {facts.open_files_limit} files: data loaders with many workers need more"
        yield Diagnosis("note", "few_open_files", what, "`ulimit -n 65536` before the sweep.")


def _advice(facts: MachineFacts) -> str:
    capabilities = [gpu.capability for gpu in facts.visible if gpu.capability]
    oldest = min(capabilities, default=None)
    return install_advice(choose_build(facts.listing.cuda_driver_version, oldest))


def _names(facts: MachineFacts) -> str:
    return ", ".join(_name(gpu) for gpu in facts.visible)


def _name(gpu: Gpu) -> str:
    return gpu.name or gpu.uuid


Check = Callable[[MachineFacts], Iterator[Diagnosis]]
_GPU_CHECKS: tuple[Check, ...] = (
    *(
        _check_driver,
        _check_hidden,
        _check_torch_build,
        _check_cuda_start,
        _check_rocm,
        _check_rocm_architecture,
        _check_xpu,
        _check_apple,
        _check_architecture,
        _check_trial,
    ),
)
_CHECKS: tuple[Check, ...] = (
    *_GPU_CHECKS,
    _check_other_readings,
    *(_check_unified, _check_slices, _check_memory_limit, _check_memory_readings, _check_same_gpus, _check_tf32),
    *(_check_settings, _check_neighbours, _check_mps),
    *(_check_shared_memory, _check_governor, _check_open_files),
)
