"""How much memory a GPU's runs may take: its own, what a control group leaves, or the host's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import DeviceError
from bench.probes.selection import DeviceChoice
from bench.records import Environment
from bench.sweep import runs, session
from bench.sweep.session import read_environment
from bench.tasks import environment_task

GIB = 1 << 30
H200 = {"gpu_name": "NVIDIA H200", "kind": "cuda", "memory_bytes": 150_754_820_096, "compute_capability": [9, 0]}
GB10 = {"gpu_name": "NVIDIA GB10", "kind": "cuda", "memory_bytes": 128_501_256_192, "compute_capability": [12, 1]}
UNIFIED = {"gpu_name": "NVIDIA GB10", "device_memory_kind": "unified", "ram_bytes": 119 * GIB}


def read(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, Any], values: dict[str, Any], **options: Any
) -> tuple[str | None, int | None]:
    """The device of the estimates and its memory, on a machine that answers so, 100.7 GiB of the host's being free."""

    def answer(launcher: Any, task: Any, argument: Any) -> dict[str, Any]:
        if task is environment_task:
            return {"device": "cuda", **environment}
        sources = dict.fromkeys(set(values) - {"gpu_name", "kind"}, "measured: device properties")
        return {"values": values, "sources": sources, "host_available_bytes": int(100.7 * GIB)}

    monkeypatch.setattr(session, "ask_machine", answer)
    found, gpu = read_environment(SimpleNamespace(), DeviceChoice("cuda", "asked for"), **options)  # type: ignore[arg-type]
    assert gpu is not None
    return found.estimate_device, gpu.device.memory_bytes


def test_a_gpu_without_limits_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, {"gpu_name": "NVIDIA H200"}, H200) == ("h200", 150_754_820_096)


def test_a_limit_of_the_control_group_is_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = {"gpu_name": "NVIDIA H200", "gpu_memory_limit_bytes": 40 * GIB}
    assert read(monkeypatch, limited, H200) == ("h200 as a card of 40 GiB", 40 * GIB)
    assert read(monkeypatch, limited, H200, limit_bytes=24 * GIB) == ("h200 as a card of 24 GiB", 24 * GIB)
    with pytest.raises(DeviceError, match=r"above the 40\.0 GiB .* of h200 that this process may take"):
        read(monkeypatch, limited, H200, limit_bytes=41 * GIB)


def test_a_gpu_that_takes_host_memory_has_what_is_free_of_it_in_whole_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, UNIFIED, GB10) == ("gb10 as a card of 100 GiB", 100 * GIB)
    assert read(monkeypatch, UNIFIED, GB10, host_limit_bytes=64 * GIB)[1] == 64 * GIB
    assert read(monkeypatch, UNIFIED, GB10, host_limit_bytes=110 * GIB)[1] == 100 * GIB


def test_a_smaller_card_is_for_gpus_with_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"limits\.device_memory \(--memory\) is for GPUs with .*NVIDIA GB10 takes"):
        read(monkeypatch, UNIFIED, GB10, limit_bytes=8 * GIB)


@pytest.mark.parametrize(
    ("environment", "limit", "expected"),
    [
        ({"device": "cpu"}, None, 90 * GIB),
        ({"device": "cpu", "parallel": 2}, None, 45 * GIB),
        ({"device": "cuda", "device_memory_kind": "unified"}, None, 90 * GIB),
        ({"device": "cuda", "device_memory_kind": "unified"}, 8 * GIB, 8 * GIB),
        ({"device": "cuda", "device_memory_kind": "dedicated"}, 8 * GIB, None),
        ({"device": "cuda", "device_memory_kind": "slice"}, None, None),
    ],
)
def test_host_memory_is_limited_where_runs_take_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, Any], limit: int | None, expected: int | None
) -> None:
    monkeypatch.setattr(runs, "available_memory_bytes", lambda: 100 * GIB)
    config = SimpleNamespace(limits=SimpleNamespace(host_memory=limit))
    made = SimpleNamespace(
        environment=Environment(**environment), options=SimpleNamespace(in_process=False), config=config
    )
    assert runs._host_memory(made) == expected  # type: ignore[arg-type]
