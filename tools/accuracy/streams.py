"""The replay of the allocator against torch's own: random streams of requests, every figure after every one of them."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.oracle.streams_task import random_operations
from tests.oracle.stub import StubDriver
from tests.oracle.test_replay import SCENARIOS, TORCH, Scenario, configure, figures_after_each, run_real
from tools.accuracy.children import Answer, Children, code_hash
from tools.accuracy.compare import versions
from tools.accuracy.page import Goal, Part, share, table

EVENTS = 10_000
_CODE = ("bench/estimators/allocator/*.py", "tests/oracle/*.py", "tests/oracle/*.c")


def streams_part(driver: StubDriver, children: Children, count: int = EVENTS) -> Part:
    """Run every scenario that the installed torch knows, `count` operations each."""
    part = Part("Replay of random streams")
    scenarios = [scenario for scenario in SCENARIOS if scenario.since <= TORCH]
    key = [*versions().values(), code_hash(*_CODE), str(count)]
    found = {
        scenario.name: children.remember("streams", [*key, scenario.name], lambda s=scenario: _run(driver, s, count))  # type: ignore[misc]
        for scenario in scenarios
    }
    rows = [[name, f"{answer['events']:,}", share(answer["equal"], answer["events"])] for name, answer in found.items()]
    part.say(
        "Random requests, releases and `empty_cache` calls go through torch's real allocator and through the replay; "
        "ten figures (current and peak requested, allocated, active, reserved; retries; failures) are compared after "
        "each of them."
    )
    part.lines += [*table(["scenario", "events", "equal"], rows), ""]
    events, equal = (sum(answer[name] for answer in found.values()) for name in ("events", "equal"))
    part.goals.append(Goal("replay of random streams", "every event equal", share(equal, events), equal == events))
    return part


def _run(driver: StubDriver, scenario: Scenario, count: int) -> Answer:
    operations = random_operations(
        random.Random(scenario.seed), count, scenario.streams, scenario.largest_bytes, scenario.empty_share
    )
    with tempfile.TemporaryDirectory() as folder:
        real = run_real(driver, scenario, operations, Path(folder))
    mine = figures_after_each(configure(scenario), operations)
    equal = sum(row == other.tolist() for row, other in zip(mine, real, strict=True))
    return {"events": len(operations), "equal": equal}
