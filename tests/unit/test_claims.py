"""Claims: one process has a run, and one that is gone is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.sweep import claims
from bench.sweep.claims import LOST_AFTER_S, claim_run


def dead(path: Path) -> None:
    """Make the holder of a claim a process of this host that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": ended.pid}))


def elsewhere(path: Path, silent_s: float) -> None:
    """Make the holder of a claim a process of another host."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "other"}))
    now = claims._now(path.parent)
    os.utime(path, (now - silent_s, now - silent_s))


def test_a_run_has_one_claim(tmp_path: Path) -> None:
    first = claim_run(tmp_path / "claims", "part")
    assert first is not None and first.number == 0
    assert claim_run(tmp_path / "claims", "part") is None
    assert claim_run(tmp_path / "claims", "other part") is not None


def test_a_claim_that_was_dropped_is_free_and_lost_nothing(tmp_path: Path) -> None:
    first = claim_run(tmp_path, "part")
    assert first is not None
    first.drop()
    again = claim_run(tmp_path, "part")
    assert again is not None and again.number == 0


def test_a_dead_holder_on_this_host_is_noticed_at_once_and_the_loss_counted(tmp_path: Path) -> None:
    first = claim_run(tmp_path, "part")
    assert first is not None
    dead(first.path)
    second = claim_run(tmp_path, "part")
    assert second is not None and second.number == 1 and first.path.exists()
    second.drop()
    third = claim_run(tmp_path, "part")
    assert third is not None and third.number == 1
    third.close()
    assert not list(tmp_path.iterdir())


def test_another_host_is_lost_once_it_is_silent(tmp_path: Path) -> None:
    first = claim_run(tmp_path, "part")
    assert first is not None
    elsewhere(first.path, LOST_AFTER_S / 2)
    assert claim_run(tmp_path, "part") is None
    elsewhere(first.path, LOST_AFTER_S + 1)
    first.beat()
    assert claim_run(tmp_path, "part") is None
    elsewhere(first.path, LOST_AFTER_S + 1)
    second = claim_run(tmp_path, "part")
    assert second is not None and second.number == 1


def test_a_claim_that_was_never_written_to_its_end_counts_as_alive_until_it_is_silent(tmp_path: Path) -> None:
    (tmp_path / "part.0").write_text('{"host": ')
    assert claim_run(tmp_path, "part") is None
    now = claims._now(tmp_path)
    os.utime(tmp_path / "part.0", (now - LOST_AFTER_S - 1, now - LOST_AFTER_S - 1))
    assert claim_run(tmp_path, "part") is not None
