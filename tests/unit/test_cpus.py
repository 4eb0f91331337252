"""Processors close to a GPU, and their shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.probes.cpus import cpus_near, parse_cpu_list, share_cpus, spell_cpu_list


def machine(root: Path, *, gpus: dict[str, str], siblings: dict[int, str]) -> Path:
    for bus_id, cpus in gpus.items():
        place = root / "sys/bus/pci/devices" / bus_id
        place.mkdir(parents=True)
        (place / "local_cpulist").write_text(f"{cpus}\n")
    for cpu, core in siblings.items():
        place = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{core}\n")
    return root


def test_lists_are_read_and_written_as_the_kernel_does() -> None:
    assert parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert spell_cpu_list([11, 0, 1, 3, 2, 10, 8]) == "0-3,8,10-11"
    assert parse_cpu_list("") == frozenset() and spell_cpu_list([]) == ""
    with pytest.raises(ValueError, match="x"):
        parse_cpu_list("x")


def test_processors_are_those_of_the_gpus_node(tmp_path: Path) -> None:
    root = machine(tmp_path, gpus={"0000:3b:00.0": "0-3", "0001:3b:00.0": "4-7"}, siblings={})
    assert cpus_near("00000000:3B:00.0", root) == {0, 1, 2, 3}
    assert cpus_near("00000001:3B:00.0", root) == {4, 5, 6, 7}
    assert cpus_near("00000000:99:00.0", root) == cpus_near(None, root) == frozenset()


def test_shares_are_whole_cores_of_the_own_node_and_disjoint(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)}
    root = machine(tmp_path, gpus={}, siblings=siblings)
    node0, node1 = frozenset({0, 1, 2, 3, 8, 9, 10, 11}), frozenset({4, 5, 6, 7, 12, 13, 14, 15})
    shares = share_cpus([node0, node1, node0], node0 | node1, root)
    assert shares == [(0, 1, 8, 9), (4, 5, 6, 7, 12, 13, 14, 15), (2, 3, 10, 11)]
    only_some = share_cpus([node0, node0], frozenset({0, 1, 9}), root)
    assert only_some == [(0,), (1, 9)]


def test_where_a_place_is_unknown_all_share_all_and_too_few_cores_are_no_shares(tmp_path: Path) -> None:
    usable = frozenset(range(4))
    assert share_cpus([frozenset({0, 1}), frozenset()], usable, tmp_path) == [(0, 1), (2, 3)]
    assert share_cpus([frozenset({0, 1}), frozenset({1, 2})], usable, tmp_path) == [(0, 1), (2, 3)]
    assert share_cpus([frozenset()] * 5, usable, tmp_path) is None
