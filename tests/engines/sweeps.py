"""The default sweep, made small enough for an engine on this machine, and what a report says of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import bench
from bench.records import AXES, Estimate, columns

ROOT = Path(bench.__file__).parents[1]

SETTINGS = {
    "include": "[]",
    "grid.dataset": '["mnist"]',
    "grid.optimizer": '["sgd"]',
    "grid.batch_size": "[16, 32]",
    "measure.repeats": 2,
    "measure.warmup_steps": 1,
    "measure.measured_steps": 3,
    "measure.min_window": 0.01,
    "data.fetch": "false",
    "launcher.device": "cpu",
}
SMALL = [
    str(ROOT / "configs" / "default.toml"),
    *(part for setting, value in SETTINGS.items() for part in ("--set", f"{setting}={value}")),
]
"""`bench sweep` of configs/default.toml, with two cases that run twice."""

OUT = Path("reports", "default")


def wait_for(seen: Callable[[], bool], what: str, timeout_s: float = 240.0) -> None:
    """Wait until something is so; it fails with `what` is not."""
    end = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < end, f"{what} after {timeout_s:.0f} s"
        time.sleep(0.5)


def find_order(out: Path) -> Path:
    """The one order of a sweep."""
    (order,) = out.glob("data/orders/order-*.parquet")
    return order


def assert_same_report(cluster: Path, local: Path) -> None:
    """The same runs, of the same code and protocol, with the same estimates, under the same headings."""
    told = ["repeat", "status", "code_key", "protocol_key", *AXES]
    told += [name for name in columns(Estimate) if name not in told]
    one, two = (
        bench.load(out).sort_values(["case_key", "repeat"]).reset_index(drop=True)[["case_key", *told]]
        for out in (cluster, local)
    )
    assert one.equals(two), one.compare(two)
    over_hosts = "Equal devices"  # says what intervals count, where repeats may be spread over hosts
    headings = [re.findall(r"^#+ .*", (out / "report.md").read_text(), re.MULTILINE) for out in (cluster, local)]
    assert [heading for heading in headings[0] if over_hosts not in heading] == headings[1]
    assert any(over_hosts in heading for heading in headings[0])
