"""The same store gives the same report, to the byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.records import Status
from tests.results import GIB, GPU, make_cases, make_results

ROOT = Path(__file__).parents[2]
RENDER = """
import sys
from pathlib import Path
from bench.report import render_report
render_report([Path(sys.argv[1])], Path(sys.argv[2]))
"""


def rendered(data: Path, target: Path, **environment: str) -> dict[str, bytes]:
    """Every file of a report that a process of its own renders."""
    subprocess.run([sys.executable, "-c", RENDER, str(data), str(target)], check=True, cwd=ROOT,
                   env={**os.environ, **environment})  # fmt: skip
    return {str(path.relative_to(target)): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}


def test_hash_seed_time_zone_and_locale_leave_no_trace(tmp_path):
    cases = [*make_cases(["imagenet"], ["resnet50", "vit_b_16"], ["adam", "sgd"], [16, 64, 256]), *make_cases()]
    outcomes = {1: Status.FAILED, 2: Status.NAN_LOSS, 4: Status.SKIPPED, 7: Status.TIMEOUT}
    make_results(tmp_path / "data", cases, environment=GPU, trace=True, memory_bytes=30 * GIB, outcomes=outcomes)
    one = rendered(tmp_path / "data", tmp_path / "one" / "report", PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C")
    other = rendered(
        tmp_path / "data", tmp_path / "other" / "report", PYTHONHASHSEED="2", TZ="Asia/Kathmandu", LC_ALL="C.UTF-8"
    )
    assert len(one) == 2 * 5 + 4
    assert list(one) == list(other)
    assert [name for name in one if one[name] != other[name]] == []
