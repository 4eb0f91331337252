"""Settings of a GPU that change speed or energy, as NVML tells them; each is right, or None with a reason.

What a setting is called on NVML's side, and from which driver on there is one (NVML API Reference, "Change Log"):
workload power profiles from 570, EDPp multiplier from 590, adaptive TGP from 615 (and from Rubin), power smoothing from
570 (on Blackwell and newer), confidential computing from 535. Applications clocks are deprecated in CUDA 13 and gone in
14. No query tells of locked clocks (`nvidia-smi -lgc`): a run's clocks and its reason `application_clocks` do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench.probes.nvml_session import NvmlSession

Answer: TypeAlias = tuple[Any, str | None]
"""A setting, or None and why it is not known."""

NO_NVML = "NVML gives no answer"

PROFILES = (
    *("max_p", "max_q", "compute", "memory_bound", "network", "balanced", "llm_inference", "llm_training", "rbm"),
    *("dcpcie", "hmma_sparse", "hmma_dense", "sync_balanced", "hpc", "mig", "max_q_1", "network_bound"),
    *("high_throughput_inference", "medium_throughput_inference", "low_latency_inference", "training", "inference"),
    *("max_q_2", "max_q_3", "low_priority_background"),
)
"""Workload power profiles by the number of their bit (nvml.h, `nvmlPowerProfileType_t`)."""

_MULTI_GPU = {1: "protected PCIe", 2: "NVLink encryption"}  # nvml.h: NVML_CC_SYSTEM_MULTIGPU_*
_CLOCK_GRAPHICS, _CLOCK_MEMORY = 0, 2  # nvml.h: nvmlClockType_t
_EDPP_MULTIPLIER, _POWER_SMOOTHING = 274, 251  # nvml.h: NVML_FI_DEV_EDPP_MULTIPLIER, NVML_FI_PWR_SMOOTHING_ENABLED
_RENUMBERED = range(575, 590)
"""Drivers of which some number power smoothing's fields otherwise, and give 251 to the time slowed for heat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """What the settings are; None is unknown.

    Attributes:
        ecc: Whether memory is checked and corrected.
        persistence_mode: Whether the driver stays loaded between processes.
        workload_power_profiles: Those in force, `none` or their names with commas between.
        edpp_multiplier_frac: Of the peak current that the board may draw; 1 is the board's own.
        adaptive_tgp: Whether the board's power limit is adapted to its neighbours' use.
        adaptive_tgp_limit_w: What it is adapted to, in watts.
        power_smoothing: Whether the board limits how fast its power rises and falls.
        application_clocks: `default`, or the clocks that were set, `1200 MHz, memory 1593 MHz`.
        confidential_computing: `off`, or what is on: copies to and from the host are encrypted then.
        note: Which of these are unknown, and why.
    """

    ecc: bool | None = None
    persistence_mode: bool | None = None
    workload_power_profiles: str | None = None
    edpp_multiplier_frac: float | None = None
    adaptive_tgp: bool | None = None
    adaptive_tgp_limit_w: float | None = None
    power_smoothing: bool | None = None
    application_clocks: str | None = None
    confidential_computing: str | None = None
    note: str | None = None


def read_settings(session: NvmlSession, board: Any) -> GpuSettings:
    """Ask for all of them, on the session's thread.

    Args:
        session: An NVML that has started.
        board: The handle of a board; settings of a slice are its board's.
    """
    found, missing = {}, {}
    for name, read in _READERS.items():
        found[name], missing[name] = read(session, board)
    mode, why = session.fill("nvmlDeviceGetAdaptiveTgpModeInfo_v1", "c_nvmlAdaptiveTgpModeInfo_v1_t", board)
    missing["adaptive_tgp"] = why
    if mode is not None:
        found["adaptive_tgp"] = bool(mode.enablementStatus)
        found["adaptive_tgp_limit_w"] = mode.adjustedLimitMw * 1e-3 or None if mode.enablementStatus else None
    return GpuSettings(**found, note=spell_missing(missing))


def spell_missing(missing: Mapping[str, str | None]) -> str | None:
    """Reasons with what is unknown for each: `edpp_multiplier_frac, power_smoothing: not supported ...`."""
    names: dict[str, list[str]] = {}
    for name, why in missing.items():
        if why is not None:
            names.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(those)}: {why}" for why, those in names.items()) or None


def _ecc(session: NvmlSession, board: Any) -> Answer:
    modes, why = session.ask("nvmlDeviceGetEccMode", board)  # now, and from the next start on
    return (bool(modes[0]) if modes else None), why


def _persistence_mode(session: NvmlSession, board: Any) -> Answer:
    mode, why = session.ask("nvmlDeviceGetPersistenceMode", board)
    return (None if mode is None else bool(mode)), why


def _workload_power_profiles(session: NvmlSession, board: Any) -> Answer:
    profiles, why = session.fill(
        "nvmlDeviceWorkloadPowerProfileGetCurrentProfiles", "c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t", board
    )
    if profiles is None:
        return None, why
    bits = [32 * place + bit for place, word in enumerate(profiles.enforcedProfilesMask.mask) for bit in _bits(word)]
    return ", ".join(PROFILES[bit] if bit < len(PROFILES) else f"profile {bit}" for bit in bits) or "none", None


def _bits(word: int) -> list[int]:
    return [bit for bit in range(word.bit_length()) if word >> bit & 1]


def _edpp_multiplier_frac(session: NvmlSession, board: Any) -> Answer:
    percent, why = session.ask_field(board, _EDPP_MULTIPLIER)
    return (percent / 100, None) if percent else (None, why or "NVML answers 0 %")


def _power_smoothing(session: NvmlSession, board: Any) -> Answer:
    version = re.match(r"\d+", session.read("nvmlSystemGetDriverVersion") or "")
    if version is None or int(version[0]) in _RENUMBERED:
        return None, f"drivers {_RENUMBERED.start} to {_RENUMBERED.stop - 1} do not agree on the number of its field"
    enabled, why = session.ask_field(board, _POWER_SMOOTHING)
    if enabled is None:
        return None, why
    return (bool(enabled), None) if enabled in (0, 1) else (None, f"NVML answers {enabled:g}, which is neither 0 nor 1")


def _application_clocks(session: NvmlSession, board: Any) -> Answer:
    clocks: list[list[int]] = []
    for name in ("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetDefaultApplicationsClock"):
        pairs = [session.ask(name, board, clock) for clock in (_CLOCK_GRAPHICS, _CLOCK_MEMORY)]
        for value, why in pairs:
            if value is None:
                return None, why
        clocks.append([value for value, _ in pairs])
    (graphics, memory), default = clocks
    return ("default" if [graphics, memory] == default else f"{graphics} MHz, memory {memory} MHz"), None


def _confidential_computing(session: NvmlSession, _: Any) -> Answer:
    told, why = session.fill("nvmlSystemGetConfComputeSettings", "c_nvmlSystemConfComputeSettings_v1_t")
    if told is None:  # drivers before 550
        told, why = session.ask("nvmlSystemGetConfComputeState")
    if told is None:
        return None, why
    parts = ["on"] if told.ccFeature else []
    multi = getattr(told, "multiGpuMode", 0)
    parts += [_MULTI_GPU.get(multi, f"multi-GPU mode {multi}")] if multi else []
    parts += ["developer tools"] if told.devToolsMode else []
    return ", ".join(parts) or "off", None


_READERS: Mapping[str, Callable[[NvmlSession, Any], Answer]] = {
    "ecc": _ecc,
    "persistence_mode": _persistence_mode,
    "workload_power_profiles": _workload_power_profiles,
    "edpp_multiplier_frac": _edpp_multiplier_frac,
    "power_smoothing": _power_smoothing,
    "application_clocks": _application_clocks,
    "confidential_computing": _confidential_computing,
}
