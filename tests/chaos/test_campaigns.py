"""Every campaign in small: seconds each. `nox -s chaos` runs them at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import CAMPAIGNS, UNDER_SHIM
from tests.chaos.shim import compiler

ROOT = Path(__file__).parents[2]
SMALL = {
    "kills": 4,
    "boundaries": 8,
    "refusals": 16,
    "damage": 60,
    "folder": 4,
    "device": 4,
    "hosts": 2,
    "model": 2,
    "scale": 60,
    "orders": 200,
    "cluster": 60,
    "slots": 200,
    "units": 40,
}
LONG = {"processes", "host", "command", "devices"}  # tens of seconds each: `nox -s chaos` alone runs them


def test_every_campaign_is_tried_in_small_or_known_to_be_long() -> None:
    assert set(SMALL) | LONG == set(CAMPAIGNS)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_lost_in(name: str) -> None:
    if sys.platform != "linux" or (name in UNDER_SHIM and compiler() is None):
        pytest.skip("needs Linux, and a C compiler for faults of the operating system")
    command = [sys.executable, "-W", "ignore", "-m", "tests.chaos", name, "--count", str(SMALL[name]), "--brief"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ.copy(), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
