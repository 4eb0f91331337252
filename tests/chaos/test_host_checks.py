"""What the campaign `host` needs of the machine, found or said to be missing; and the last line of all campaigns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.__main__ import verdict
from tests.chaos.clock import jump_below_writer
from tests.chaos.host import NotPermittedError, memory_groups


def test_memory_has_a_tree_of_its_own_in_control_groups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").touch()
    assert memory_groups(tmp_path) == (tmp_path / "memory", "memory.limit_in_bytes", "tasks")


@pytest.mark.parametrize("given_by", ["user/session", "user", ""])
def test_in_version_2_the_nearest_group_that_hands_memory_down_is_taken(tmp_path: Path, given_by: str) -> None:
    own = _version_2(tmp_path, {given_by})
    assert memory_groups(tmp_path / "tree", own) == (tmp_path / "tree" / given_by, "memory.max", "cgroup.procs")


def test_what_is_not_handed_down_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        NotPermittedError, match=r"from .*user/session up hands the memory controller down \(version 2\)$"
    ):
        memory_groups(tmp_path / "tree", _version_2(tmp_path, set()))


def test_a_machine_without_control_groups_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotPermittedError, match=r"no control groups in .*: .*No such file or directory"):
        memory_groups(tmp_path, tmp_path / "absent")


def _version_2(folder: Path, given_by: set[str]) -> Path:
    """A tree of control groups with this process in `user/session`; the list that says so."""
    for name in ("", "user", "user/session"):
        group = folder / "tree" / name
        group.mkdir(exist_ok=True)
        (group / "cgroup.subtree_control").write_text("cpu memory pids\n" if name in given_by else "cpu pids\n")
    own = folder / "own"
    own.write_text("1:name=systemd:/user\n0::/user/session\n")
    return own


def test_the_last_line_says_what_was_left_out_and_why() -> None:
    whole, part = Counter({"kills": 3}), Counter({"no home": 1, "skipped: full /dev/shm (mount: denied)": 2})
    assert verdict({"kills": whole}) == "all promises kept"
    assert verdict({"kills": whole, "host": part}) == "all promises kept; skipped: host: full /dev/shm (mount: denied)"
    assert verdict({"kills": None, "host": part}) == "broken: kills; skipped: host: full /dev/shm (mount: denied)"


def test_a_clock_that_jumps_costs_a_writer_at_most_a_typed_error(tmp_path: Path) -> None:
    jump_below_writer(tmp_path)
