"""CUDA keeps the contract of every kind of device, with torch's own allocator above the stub driver."""

from __future__ import annotations

import json
from pathlib import Path

from .stub import StubDriver


def test_cuda_keeps_the_contract(stub_driver: StubDriver, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from tests.backend_contract import print_contract\nprint_contract('cuda')\n", encoding="utf-8")
    settings = {"variables": {"PYTHONPATH": str(Path(__file__).parents[2])}}
    found = json.loads(stub_driver.run_script(script, [], device="h200", **settings).splitlines()[-1])
    assert found["peak_allocated_bytes"] > found["parameter_count"] * 4
    assert found["environment"]["device_memory_kind"] == "dedicated"
    assert found["environment"]["hip_version"] is None
