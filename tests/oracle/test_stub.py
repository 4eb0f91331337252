"""The device that does not exist: what unmodified torch sees of it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from .devices import DEVICES
from .stub import StubDriver, build_stub

pytestmark = pytest.mark.slow

LOOK = """
import json, torch
properties = torch.cuda.get_device_properties(0)
image = torch.ones(64, device="cuda")
total = image.sum().item()
free = torch.cuda.mem_get_info()
print(json.dumps(dict(
    name=properties.name, multiprocessors=properties.multi_processor_count, memory_bytes=properties.total_memory,
    capability=list(torch.cuda.get_device_capability()), count=torch.cuda.device_count(), sum=total,
    taken=free[1] - free[0], reserved=torch.cuda.memory_reserved(),
)))
"""


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_torch_sees_the_device_that_is_played(stub_driver: StubDriver, device: str, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    seen = json.loads(stub_driver.run_script(script, device=device, context_bytes=1 << 29))
    settings = DEVICES[device]
    assert {key: seen[key] for key in ("name", "multiprocessors", "memory_bytes")} == {
        key: settings[key] for key in ("name", "multiprocessors", "memory_bytes")
    }
    assert seen["capability"] == [settings["capability_major"], settings["capability_minor"]]
    assert (seen["count"], seen["sum"]) == (1, 0.0)
    assert seen["taken"] == seen["reserved"] + (1 << 29)


def test_a_second_build_reuses_the_first(stub_driver: StubDriver) -> None:
    changed = stub_driver.library.stat().st_mtime_ns
    again = build_stub(stub_driver.library.parent.parent)
    assert again == stub_driver
    assert again.library.stat().st_mtime_ns == changed


def test_cudnn_says_what_workspaces_it_would_need(stub_driver: StubDriver) -> None:
    version = next(
        distribution.version
        for distribution in importlib.metadata.distributions()
        if str(distribution.metadata["Name"]).startswith("nvidia-cudnn")
    )
    if tuple(int(part) for part in version.split(".")[:2]) < (9, 8):
        pytest.skip(f"cuDNN {version} runs no heuristics for a device that it is told of")
    case = ("resnet50", (3, 224, 1000), "sgd", {}, 32, "float32", "contiguous")
    without, with_workspaces = (stub_driver.run_case(case, cudnn_workspaces=wanted).events for wanted in (False, True))
    assert without is not None and with_workspaces is not None
    assert (with_workspaces["action"] == 0).sum() > (without["action"] == 0).sum()
