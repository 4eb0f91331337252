"""Made-up results of several hosts as bundles, and sites of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.altered import honest
from tests.results import GPU, make_cases

HOSTILE = "=cmd|' /C calc'!A1 <script>alert(1)</script> [x](http://evil.example) \u202egnp.\u2066 \"'><b a='\n\n../../x"
CASES = make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64, 256])
JITTER = (1.0, 1.0005, 0.9995, 1.0003, 0.9997)
"""Of the processes of a case: an interval well within ±1 %."""


def steady(factor: float, started: float = 1.7e9, spread: float = 1.0):
    """Runs whose steps take `factor` milliseconds a sample, alike in every process; `spread` widens the jitter."""

    def change(measurement, case, repeat):
        if not measurement.step_times_s:
            return measurement
        step = 1e-3 * factor * case.batch_size * JITTER[repeat % 5] ** spread
        return dataclasses.replace(
            measurement,
            step_times_s=(step,) * 20,
            warmup_times_s=(step * 30, step * 1.4, step * 1.05),
            wall_window_s=step * 20.04,
            duration_s=step * 20.04 + 2,
            energy_window_j=step * 20 * 400,
            started_unix_s=started,
        )

    return change


def host(number: int, environment=GPU):
    return dataclasses.replace(environment, host_hash=f"{number:016x}", gpu_uuid_hash=f"{number:016x}")


def pack(folder: Path, name: str, **settings) -> Path:
    """A bundle of made-up results, without a report: a site does not read it."""
    from bench import __version__
    from bench.bundles import bundle_files, write_bundle

    data = folder / "results" / name
    honest(data / "data", **{"cases": CASES, "environment": host(1), "change": steady(1.0), **settings})
    (folder / "no report").mkdir(exist_ok=True)
    return write_bundle(folder / f"{name}.zip", name, bundle_files(data, folder / "no report", __version__)).path


def build(folder: Path, results, **settings):
    from bench.site import build_site

    return build_site(folder, list(results), **settings)
