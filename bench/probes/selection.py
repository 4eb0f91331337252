"""The device that a sweep runs on: chosen once, with its reason, and never silently the CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.errors import DeviceError
from bench.probes.diagnosis import Diagnosis, diagnose, gpu_faults, hidden_on_purpose
from bench.probes.machine_facts import MachineFacts, read_machine_facts
from bench.probes.nvml import Gpu, find_gpu
from bench.probes.torch_facts import TorchFacts, read_torch_facts
from bench.records import ACCELERATORS
from bench.units import counted

_ALLOWED = "auto, cpu, cuda, cuda:0, xpu, xpu:0, mps"
_ANYWAY = "To measure on the CPU instead: --device cpu"
_NO_GPU_CODES = ("no_driver", "gpu_hidden", "rocm_not_used", "xpu_not_used", "mps_not_used")
_CARD_CODES = ("card_not_in_arch_list",)
_OTHER_GPUS = "NVML lists other GPUs than torch"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where to run.

    Attributes:
        kind: `cpu`, or one of `records.ACCELERATORS`.
        reason: Why.
        gpu_index: Counts what torch sees.
        gpu: None where only torch knows the GPU: it is not NVIDIA's, or NVML is missing or gives no answer.
        uuid: Of the GPU, by NVML or else by torch, with or without prefix; None if neither tells.
        warning: What will be missing from every run there; None if nothing will.
        nvml_error: Why NVML must not be asked of it, although it lists GPUs; None if it may, or lists none.
        slot: The worker slot on the CPU that plays a device: `cpu:0`; None for what is none.
    """

    kind: str
    reason: str
    gpu_index: int | None = None
    gpu: Gpu | None = None
    uuid: str | None = None
    warning: str | None = None
    nvml_error: str | None = None
    slot: str | None = None


def usable_device(requested: str = "auto", facts: MachineFacts | None = None) -> DeviceChoice:
    """Decide between CPU and GPU.

    Args:
        requested: `auto`, `cpu`, or a kind of GPU, alone or with its number: `cuda`, `cuda:N`, `xpu:N`, `mps`.
        facts: What is known of the machine, read where None. Torch, where these do not hold what it says, is asked in
            a process of its own, and only where there is any sign of a GPU or one is asked for, so that a machine
            without one answers in milliseconds.

    Raises:
        DeviceError: The driver shows a GPU that torch cannot use and the CPU was not asked for; or a GPU was requested
            that is not there; or the request is none of these. The message holds the remedy.
    """
    check_request(requested)
    if requested == "cpu":
        return DeviceChoice("cpu", "asked for")
    known = facts if facts is not None else read_machine_facts(ask_torch=False)
    if known.torch is None and (requested != "auto" or _has_sign_of_gpu(known)):
        known = replace(known, torch=read_torch_facts())
    return decide(requested, known)


def usable_devices(requested: str, facts: MachineFacts) -> list[DeviceChoice]:
    """Several devices, each once, in the order of the request; `all` is every GPU that is visible.

    Args:
        requested: `all`, or parts with commas between: `cuda:N` or `xpu:N`, a unique beginning of a UUID (`GPU-...`,
            `MIG-...`), or `cpu:N`, a worker slot on the CPU.
        facts: What is known of the machine; what torch says is read where it is not there.

    Raises:
        DeviceError: Any of them is not there or cannot be used; the message names every one.
    """
    parts = requested.split(",")
    if parts[0].startswith("cpu:"):
        return [DeviceChoice("cpu", "a worker slot that plays a device", slot=part) for part in parts]
    known = facts if facts.torch is not None else replace(facts, torch=read_torch_facts())
    try:
        kind = parts[0].partition(":")[0]
        kind = kind if kind in ACCELERATORS else known.torch.kind if known.torch else "cuda"
        first = decide(kind, known)
    except DeviceError as error:  # there is no GPU to use
        raise DeviceError(str(error).replace(f'device "{kind}"', f'device "{requested}"')) from error
    assert known.torch is not None
    if requested == "all":
        by_torch = len(known.visible) == known.torch.device_count or not any(gpu.mig for gpu in known.visible)
        count = known.torch.device_count if by_torch else len(known.visible)  # CUDA shows a process one slice
        parts = [f"{kind}:{index}" for index in range(count)] if by_torch else [gpu.uuid for gpu in known.visible]
    found, faults = list[DeviceChoice](), list[str]()
    for part in parts:
        try:
            found.append(decide(part, known) if part.startswith(kind) else _by_uuid(part, known, first))
        except DeviceError as error:
            faults.append(str(error))
    twice = {choice.uuid for choice in found if choice.uuid and [one.uuid for one in found].count(choice.uuid) > 1}
    faults += [f'device "{requested}": {uuid} is named twice' for uuid in sorted(twice)]
    if faults:
        raise DeviceError("\n".join(faults))
    return found


def _by_uuid(part: str, facts: MachineFacts, first: DeviceChoice) -> DeviceChoice:
    matches = [(index, gpu) for index, gpu in enumerate(facts.visible) if gpu.uuid.lower().startswith(part.lower())]
    if len(matches) != 1:
        have = ", ".join(gpu.uuid for gpu in facts.visible) or "none that NVML names"
        what = "several GPUs match" if matches else "no visible GPU has this UUID"
        raise DeviceError(f'device "{part}": {what}; visible: {have}')
    index, gpu = matches[0]
    if faults := [fault for fault in gpu_faults(replace(facts, visible=(gpu,))) if fault.code in _CARD_CODES]:
        raise DeviceError(_refusal(faults))
    return replace(first, gpu_index=index, gpu=gpu, uuid=gpu.uuid, reason="asked for", warning=None, nvml_error=None)


def expected_devices(requested: str, facts: MachineFacts) -> list[DeviceChoice]:
    """Those devices of a request that NVML alone knows, so that they can be locked before torch touches them."""
    everything = [DeviceChoice("cuda", "expected", index, gpu, gpu.uuid) for index, gpu in enumerate(facts.visible)]
    if requested == "all":
        return everything
    parts = requested.lower().split(",")
    return [
        choice
        for choice in everything
        if f"cuda:{choice.gpu_index}" in parts or any((choice.uuid or "").lower().startswith(part) for part in parts)
    ]


def expected_device(requested: str, facts: MachineFacts) -> DeviceChoice | None:
    """What `requested` will come to if torch can use it, from NVML alone; None where only torch knows.

    Raises:
        DeviceError: The request has another form.
    """
    check_request(requested)
    auto = requested == "auto"
    if requested == "cpu" or (auto and (hidden_on_purpose(facts) or not _has_sign_of_gpu(facts))):
        return DeviceChoice("cpu", "expected")
    kind, _, place = requested.partition(":")
    index = int(place or 0)
    if kind not in ("auto", "cuda") or index >= len(facts.visible):
        return None
    gpu = facts.visible[index]
    return DeviceChoice("cuda", "expected", index, gpu, gpu.uuid)


def check_request(requested: str) -> str:
    """The request itself where it has a form that is known. Raises DeviceError."""
    if requested != "auto" and not re.fullmatch(r"cpu|(cuda|xpu)(:\d+)?|mps(:0)?", requested):
        raise DeviceError(f'device: unknown "{requested}". Allowed: {_ALLOWED}')
    return requested


def decide(requested: str, facts: MachineFacts) -> DeviceChoice:
    """The decision of `usable_device` from facts alone, for any request but `cpu`."""
    torch = facts.torch
    if requested == "auto" and (hiding := hidden_on_purpose(facts)):
        return DeviceChoice("cpu", f"{hiding} hides every GPU")
    works = torch is not None and torch.error is None and torch.available and torch.trial_error is None
    kind = requested.partition(":")[0]
    if torch is not None and works and kind in ("auto", torch.kind):
        return _gpu_choice(requested, facts, torch)
    if torch is not None and works:
        seen = f"torch {torch.version} uses {torch.kind} here ({', '.join(torch.device_names) or 'no name'})"
        raise DeviceError(
            f'device "{requested}": {seen}, and one torch uses one kind of GPU. See: bench env. {_ANYWAY}'
        )
    if kind in ("auto", "cuda") and (faults := gpu_faults(facts)):
        raise DeviceError(_refusal(faults))
    reason = "; ".join(finding.what for finding in diagnose(facts) if finding.code in _NO_GPU_CODES)
    reason = reason or "this machine shows no GPU"
    if requested != "auto":
        raise DeviceError(f'device "{requested}": {reason}. See: bench env. {_ANYWAY}')
    return DeviceChoice("cpu", reason)


def _gpu_choice(requested: str, facts: MachineFacts, torch: TorchFacts) -> DeviceChoice:
    index, count = int(requested.partition(":")[2] or 0), torch.device_count
    if index >= count:
        raise DeviceError(
            f'device "{requested}": torch sees {counted(count, "GPU")}; the last is {torch.kind}:{count - 1}'
        )
    told = torch.uuids[index] if len(torch.uuids) == count else None
    known = facts.visible if torch.kind == "cuda" and not torch.hip_version else ()  # NVML's are NVIDIA's
    gpu = find_gpu(told, known) if told else None  # CUDA may show fewer slices than NVML, or in another order
    if gpu is None and len(known) == count:
        gpu = known[index]
    faults = [fault for fault in gpu_faults(replace(facts, visible=(gpu,) if gpu else ())) if fault.code in _CARD_CODES]
    if faults:  # the first GPU works; this one would fail at its first kernel
        raise DeviceError(_refusal(faults))
    reason = "asked for" if requested != "auto" else "the first GPU that torch can use"
    silence = None if gpu else _silence(facts, torch)
    other = _OTHER_GPUS if silence and facts.listing.gpus and torch.kind == "cuda" and not torch.hip_version else None
    return DeviceChoice(torch.kind, reason, index, gpu, gpu.uuid if gpu else told, silence, other)


def _silence(facts: MachineFacts, torch: TorchFacts) -> str | None:
    """What a sweep on a GPU that NVML does not tell of will lack; None if nothing."""
    if torch.hip_version or torch.kind != "cuda":
        return torch.silence
    why = (facts.listing.error or _OTHER_GPUS).rstrip(".")
    return f"no readings from NVML ({why}): clocks, power, throttling and other processes on the GPU are unknown"


def _has_sign_of_gpu(facts: MachineFacts) -> bool:
    intel = bool(facts.intel_cards) and facts.torch_build == "xpu"  # most hosts with Intel's GPU compute on the CPU
    return bool(
        facts.listing.gpus or facts.gpu_device_files or not facts.listing.absent or intel or facts.apple_silicon
    )


def likely_kind() -> str:
    """What `auto` will come to on a machine without an NVIDIA GPU, without asking torch."""
    facts = read_machine_facts(ask_torch=False)
    if "/dev/kfd" in facts.gpu_device_files and facts.torch_build == "hip":
        return "cuda"
    return "xpu" if facts.intel_cards and facts.torch_build == "xpu" else "mps" if facts.apple_silicon else "cpu"


def _refusal(faults: Sequence[Diagnosis]) -> str:
    lines = [f"GPU: {fault.what}. {fault.remedy}".replace("..", ".") for fault in faults]
    return "\n".join([*lines, _ANYWAY])
