"""A few seconds of the fuzzer in every run of the tests: blind changes of the first inputs, the same each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import guard
from tests.fuzz.running import fault_of
from tests.fuzz.targets import TARGETS

ROUNDS = {"results": 25, "bundle": 80, "recording": 120}


@pytest.mark.parametrize("name", TARGETS)
def test_no_changed_input_does_harm(name: str, tmp_path: Path) -> None:
    target, rng = TARGETS[name], random.Random(5)
    (tmp_path / "seeds").mkdir()
    seeds = list(target.seeds(tmp_path / "seeds"))
    for number, seed in enumerate(seeds):  # whole, they are read; and what is imported late is imported now
        (tmp_path / f"whole-{number}").mkdir()
        target.read(seed, tmp_path / f"whole-{number}")
    guard.install(limit_memory=False)
    for _ in range(ROUNDS.get(name, 250)):
        data = target.mutate(rng.choice(seeds), rng)
        assert fault_of(target, data, tmp_path) is None, data[:2000]
