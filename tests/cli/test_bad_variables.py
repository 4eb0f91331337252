"""A variable that torch does not take: one line with torch's words, the variable and what to do, in every command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import plugins

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = """
name = "bad"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = [8]
[data]
fetch = false
"""
MLP = ("--model", "mlp", "--dataset", "mnist")


@pytest.mark.parametrize(
    "command",
    [
        ("env",),
        ("sweep", "c.toml", "--device", "cpu", "--no-report"),
        ("estimate", *MLP),
        ("fit", *MLP),
        ("show", "model", "mlp"),
    ],
    ids=lambda command: command[0],
)
def test_torch_that_does_not_start_says_why_in_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    env = {**os.environ, "TORCH_LOGS": "inductr", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = plugins.bench(*command, env=env, cwd=tmp_path, timeout=500, fresh=True)
    assert done.returncode in (1, 2)
    told = done.stdout + done.stderr
    assert 'TORCH_LOGS="inductr" prevents torch from starting: ' in told
    assert "Invalid log settings: inductr, must be a comma separated list" in told
    assert 'Nearest: TORCH_LOGS="inductor". Correct it, or unset it: unset TORCH_LOGS' in told
    assert not any(word in told for word in ("Traceback", "bench env", "fork server", "Reinstall", "Valid settings"))
    assert len([line for line in told.splitlines() if "error: " in line]) == 1
