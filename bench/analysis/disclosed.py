"""What a publication must disclose of machine, software and device, and does not."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.analysis.findings import Finding, finding_of
from bench.records import MEASURED

_REQUIRED = (
    "torch_version",
    "torchvision_version",
    "python_version",
    "bench_version",
    "cpu_model",
    "cpu_cores_usable",
    "ram_bytes",
    "os_name",
    "kernel",
)
_REQUIRED_GPU = (
    "gpu_name",
    "gpu_uuid_hash",
    "gpu_total_bytes",
    "driver_version",
    "cuda_version",
    "cudnn_version",
    "power_limit_w",
    "power_limit_default_w",
)
_HELPFUL = ("git_commit", "git_dirty", "host_hash")
_HELPFUL_GPU = ("vbios", "ecc", "mig", "persistence_mode")
"""A consumer card has no ECC and an installed package no commit: these are named and forbid nothing."""

_READINGS = ("temperature_end_c", "sm_clock_end_hz")
_PER_RUN = ("data_source", "seed", "position")


def missing_disclosures(frame: pd.DataFrame, runs: pd.DataFrame) -> list[Finding]:
    """What is unknown of the measured runs: what forbids publishing, and what a reader would have liked to know.

    Args:
        frame: The planned runs.
        runs: The last attempts among them.
    """
    measured = runs[runs["status"].isin(MEASURED)]
    gpu = measured[measured["device"] != "cpu"]
    found = [
        *_missing(measured, (*_REQUIRED, *_PER_RUN), "missing_disclosure", grave=True),
        *_missing(gpu, _REQUIRED_GPU, "missing_disclosure", grave=True),
        *_missing(measured, _HELPFUL, "unknown_detail", grave=False),
        *_missing(gpu, (*_HELPFUL_GPU, *_READINGS), "unknown_detail", grave=False),
    ]
    alone = gpu[gpu["other_process_count"].isna() & gpu["device_used_before_bytes"].isna()]
    if not alone.empty:
        found.append(
            finding_of(
                "missing_disclosure",
                True,
                "Whether other processes were on the device is unknown: neither the driver's process list nor the "
                "memory used before the run was recorded.",
                alone,
            )
        )
    return found


def _missing(runs: pd.DataFrame, names: Sequence[str], code: str, *, grave: bool) -> list[Finding]:
    """One finding for all the fields that some run lacks."""
    gaps = {name: runs[name].isna() if name in runs else pd.Series(True, index=runs.index) for name in names}
    lacking = [name for name, gap in gaps.items() if gap.any()]
    if not lacking:
        return []
    rows = pd.concat([gaps[name] for name in lacking], axis=1).any(axis=1)
    words = "Not disclosed" if grave else "Unknown, and worth knowing"
    return [finding_of(code, grave, f"{words}: {', '.join(lacking)}.", runs[rows])]
