"""A whole sweep in milliseconds: the real planning, journal, store and loading, with a launcher that makes answers up.

What a run answers follows from its case and repeat alone, so two sweeps of one configuration write the same bytes,
however often one of them was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from bench import fingerprint
from bench.config import SweepConfig, check_config
from bench.launchers import Answer, InProcessLauncher, Job, Outcome
from bench.records import Case, Environment, Estimate, Measurement, Status, stable_hash
from bench.sweep import SweepOptions, SweepOutcome, stages
from bench.tasks import environment_task, estimate_task, measure_task
from bench.terminal import Progress

CPU = Environment(
    device="cpu",
    estimate_device="cpu",
    cpu_model="Made-up Four",
    torch_version="2.15.0",
    host_hash="0" * 16,
    bench_version="0",
    python_version="3.11.9",
    ram_bytes=1 << 34,
    cpu_cores_usable=4,
)

CODE_KEY = fingerprint.code_key
BRIEF = "BENCH_CHAOS_BRIEF"
"""Set in the environment: compare parts, and render no reports."""

ESTIMATORS = ""
"""The version of the estimators at work; `programs` has several. Their code, and what they estimate, follow from it."""

Tell = Callable[[str], None]


def fake_config(cases: int = 8, repeats: int = 3, **measure: Any) -> SweepConfig:
    """A configuration of `cases` small cases, each run `repeats` times."""
    return check_config(
        {
            "name": "fake",
            "grid": {
                "dataset": "mnist",
                "model": "mlp",
                "optimizer": "sgd",
                "batch_size": [8 * number for number in range(1, cases + 1)],
            },
            "measure": {"repeats": repeats, **measure},
            "data": {"fetch": False},
        },
        "chaos",
    )


class FakeLauncher(InProcessLauncher):
    """Answers every task at once, after telling which run it was asked for."""

    def __init__(self, environment: Environment = CPU, tell: Tell = lambda line: None, failing: bool = True) -> None:
        """Answer as on `environment`.

        Args:
            environment: What the machine says it is.
            tell: Hears `begin PART` for every run.
            failing: Whether some runs end otherwise than well.
        """
        self.environment, self.tell, self.failing = environment, tell, failing
        self.asked: list[str] = []

    def perform(self, job: Job) -> Answer:
        """What a worker would have answered."""
        value: dict[str, Any] = {}
        if job.task is environment_task:
            value = asdict(self.environment)
        elif job.task is estimate_task:
            for case in job.argument["cases"]:
                made = estimate_of(case, job.argument["device"], self.environment)
                job.listen({"estimate": asdict(made), "lost": {}})
        elif job.task is measure_task:
            assert job.log is not None
            part = job.log.stem
            self.asked.append(part)
            self.tell(f"begin {part}")
            value = asdict(measurement_of(job.argument["case"], job.argument["repeat"], part, failing=self.failing))
        return Answer(Outcome.ANSWERED, value, "", None, {}, 0.1, value.get("duration_s") or 0.5)


def estimate_of(case: Case, device: str, environment: Environment) -> Estimate:
    """What the estimators at work say: other bytes for each version of them and of torch, as for each key."""
    made_by = int(stable_hash([environment.torch_version, ESTIMATORS])[:6], 16)
    return Estimate(case_key=case.key, estimate_device=device, formula_bytes=(made_by << 20) + case.batch_size)


def _code_key(places: tuple[str, ...]) -> str:
    """The key of the harness's code, which for the estimators says their version too."""
    key = CODE_KEY(places)
    return stable_hash([key, ESTIMATORS]) if places == fingerprint.ESTIMATE_CODE and ESTIMATORS else key


def measurement_of(case: Case, repeat: int, part: str, *, failing: bool = True) -> Measurement:
    """What a run measures: the same for the same case, repeat and part, and now and then no good."""
    generator = random.Random(hashlib.sha256(f"{case.key}/{repeat}/{part}".encode()).digest())
    status = generator.choices(
        [Status.OK, Status.OOM, Status.TIMEOUT, Status.THROTTLED], [85, 5, 5, 5] if failing else [1, 0, 0, 0]
    )[0]
    common: dict[str, Any] = {"started_unix_s": 1.7e9, "duration_s": 0.25, "process_start_s": 0.1}
    if status in (Status.OOM, Status.TIMEOUT):
        return Measurement(status=status, reason="made up", phase="measure", **common)
    steps = tuple(1e-3 * case.batch_size * generator.uniform(0.98, 1.02) for _ in range(8))
    return Measurement(
        status=status,
        step_times_s=steps,
        wall_window_s=sum(steps) * 1.001,
        final_loss=2.3,
        parameter_count=7,
        peak_allocated_bytes=case.batch_size * 512,
        warmup_times_s=(0.1,),
        **common,
    )


class _Telling(Progress):
    """Says `done` once a run is acknowledged: the line a user would see as finished."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(quiet=True)
        self._tell = tell

    def finish(self, what: str) -> None:
        super().finish(what)
        self._tell("done")


def run_fake_sweep(
    out: Path,
    config: SweepConfig,
    launcher: FakeLauncher | None = None,
    *,
    tell: Tell = lambda line: None,
    report: bool = False,
    conclude: bool = True,
    **options: Any,
) -> SweepOutcome | None:
    """`bench.sweep.run_sweep` with a fake launcher in this process; `tell` hears `begin PART` and `done`.

    Without `conclude` it ends after its last run: nothing is loaded, and None comes back.
    """
    fake = launcher or FakeLauncher(tell=tell)
    with contextlib.ExitStack() as stack:
        if not conclude:
            stack.enter_context(mock.patch.object(stages, "conclude", lambda *given: None))
        stack.enter_context(mock.patch.object(fingerprint, "code_key", _code_key))
        return stages.run_sweep(config, SweepOptions(out, "cpu", report=report, **options), _Telling(tell), fake)


def bytes_of(folder: Path) -> Mapping[str, bytes]:
    """Every part of a results folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def quiet_places(folder: Path) -> None:
    """Keep locks and caches of a campaign within `folder`."""
    os.environ["BENCH_LOCK_DIR"] = str(folder / "locks")
    os.environ["BENCH_DATA"] = str(folder / "data-sets")
    os.environ["BENCH_TRACE_CACHE"] = "off"
