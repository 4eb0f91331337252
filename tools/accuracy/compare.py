"""The estimate beside the truth, case by case, and what that comes to."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.devices import load_device
from tests.oracle.stub import StubDriver
from tools.accuracy.cases import Point
from tools.accuracy.children import Answer, Children, Work, code_hash

HERE = Path(__file__).parent
PEAKS = ("allocated", "reserved", "requested")
STUB_NAMES = {"h200": "h200", "a100_80gb": "a100-80gb"}
"""What the stub driver calls the devices."""

_STEP = ("bench/workload/*.py", "bench/catalog/*/*.py")
_TRUTH = (*_STEP, "tests/oracle/*.c", "tests/oracle/stub.py", "tests/oracle/devices.py", "tools/accuracy/stub_child.py")
_ESTIMATE = (*_STEP, "bench/estimators/**/*.py", "bench/devices/*.*", "tools/accuracy/trace_child.py")


@dataclass(frozen=True)
class Compared:
    """A case with both answers, in bytes where there are any."""

    point: Point
    truth: Answer
    estimate: Answer

    @property
    def is_scored(self) -> bool:
        """Whether both have peaks."""
        return "allocated" in self.truth and "allocated" in self.estimate

    def is_equal(self, *peaks: str) -> bool:
        """Whether the estimate is exact in all of `peaks`."""
        return all(self.truth[peak] == self.estimate[peak] for peak in peaks)

    def is_early_equal(self, *peaks: str) -> bool:
        """Whether the estimate is exact for the second and third step already, before blocks have settled."""
        return all(self.truth[f"early_{peak}"] == self.estimate[peak] for peak in peaks)

    def error(self, peak: str) -> float:
        """`(estimate - truth) / truth`."""
        return float((self.estimate[peak] - self.truth[peak]) / self.truth[peak])

    @property
    def worst(self) -> float:
        """The larger error of allocated and reserved, without its sign."""
        return max(abs(self.error("allocated")), abs(self.error("reserved")))

    @property
    def fits(self) -> tuple[bool, bool] | None:
        """Whether the step fits on the device by the truth and by the estimate; None where either says nothing."""
        if "allocated" not in self.estimate or not ("oom" in self.truth or "allocated" in self.truth):
            return None
        return "oom" not in self.truth, self.estimate["reserved"] <= capacity_bytes(self.point.device)


def capacity_bytes(device: str) -> int:
    """All memory of a device by its file."""
    capacity = load_device(device).memory_bytes
    assert capacity is not None
    return capacity


def compare(points: Sequence[Point], driver: StubDriver, children: Children, *, workspaces: bool) -> list[Compared]:
    """Ask both for each point; with cuDNN's own deviceless workspaces on both sides, or on neither."""
    truths: dict[Point, Answer] = {}
    for device in dict.fromkeys(point.device for point in points):
        here = [point for point in points if point.device == device]
        work = Work(
            f"real allocator, {device}{', workspaces' if workspaces else ''}",
            HERE / "stub_child.py",
            driver.environment(STUB_NAMES[device], cudnn_workspaces=workspaces, memory_bytes=capacity_bytes(device)),
            ("truth", device, str(workspaces), *versions().values(), code_hash(*_TRUTH)),
        )
        truths |= dict(zip(here, children.ask(work, [point.axes for point in here]), strict=True))
    work = Work(
        f"estimate{', workspaces' if workspaces else ''}",
        HERE / "trace_child.py",
        key=("estimate", *versions().values(), code_hash(*_ESTIMATE)),
    )
    estimates = children.ask(work, [[point.axes, point.device, workspaces] for point in points])
    return [Compared(point, truths[point], estimate) for point, estimate in zip(points, estimates, strict=True)]


@dataclass(frozen=True)
class Tally:
    """Some cases' agreement: how many there are, how many are exact in each peak, and the worst of the rest."""

    name: str
    count: int
    exact: dict[str, int]
    both: int
    within: int
    worst: Compared | None

    @classmethod
    def of(cls, name: str, rows: Iterable[Compared], limit: float) -> Tally:
        """Of the rows that have both answers; `limit` is the error that the others should stay within."""
        scored = [row for row in rows if row.is_scored]
        unequal = [row for row in scored if not row.is_equal("allocated", "reserved")]
        return cls(
            name,
            len(scored),
            {peak: sum(row.is_equal(peak) for row in scored) for peak in PEAKS},
            len(scored) - len(unequal),
            sum(row.worst <= limit for row in unequal),
            max(unequal, key=lambda row: row.worst, default=None),
        )

    @property
    def unequal(self) -> int:
        """Cases that are not exact in both."""
        return self.count - self.both


GROUPS: dict[str, Callable[[Point], str]] = {
    "device": lambda point: load_device(point.device).gpu_name,
    "precision": lambda point: point.case.precision,
    "memory format": lambda point: point.case.memory_format,
    "optimizer": lambda point: point.case.optimizer.name,
    "optimizer's way": lambda point: point.way,
    "switches": lambda point: ", ".join(f"{name} {value}" for name, value in point.case.switches.items()) or "none",
    "batch": lambda point: batch_group(point.case.batch_size),
    "family": lambda point: point.family,
}


def batch_group(batch: int) -> str:
    """The batch sizes that are named, and the ranges between them."""
    if batch in (1, 2, 1024):
        return str(batch)
    return "3 to 64" if batch <= 64 else "65 to 1023" if batch < 1024 else "above 1024"


def versions() -> dict[str, str]:
    """What decides the figures, by name."""
    import platform

    found = {"Python": platform.python_version()}
    for name in ("torch", "torchvision"):
        found[name] = importlib.metadata.version(name)
    found["cuDNN"] = next(
        (
            str(package.version)
            for package in importlib.metadata.distributions()
            if str(package.metadata["Name"]).startswith("nvidia-cudnn")
        ),
        "none",
    )
    return found
