"""`bench record` and `bench estimate --explain-difference` where there is no GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import plugins

HIDDEN = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def test_help_shows_examples_and_exit_codes() -> None:
    done = plugins.bench("record", "--help")
    assert done.returncode == 0
    for words in ("Examples:", "bench record configs/gpu.toml", "--stacks", "Exit codes:"):
        assert words in done.stdout


def test_without_a_gpu_nothing_is_recorded_on_the_cpu_instead(tmp_path: Path) -> None:
    done = plugins.bench("record", "--model", "mlp", "--out", tmp_path / "out", env=HIDDEN)
    assert done.returncode == 2
    assert "error: no GPU to record on: " in done.stderr
    assert "bench estimate --explain-difference FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "--model", "mlp", "--device", "cpu"], "recordings need torch's CUDA allocator; give cuda"),
        (["record"], "give --model NAME (bench list models) or a configuration"),
        (["record", "--model", "mlp", "--device", "gpu"], 'device: unknown "gpu"'),
        (["record", "--model", "mlp", "--steps", "0"], "--steps"),
        (["record", "--model", "mpl"], 'unknown model "mpl". Nearest: mlp'),
        (["estimate", "--explain-difference", "nowhere.parquet"], "nowhere.parquet: no such file. Create recordings"),
        (["estimate", "--explain-difference", "README.md"], "README.md: damaged or not a Parquet file"),
        (
            ["estimate", "--explain-difference", "README.md", "--model", "mlp"],
            "--explain-difference takes the case and the device from the file",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_refused_with_a_sentence(arguments: list[str], message: str) -> None:
    done = plugins.bench(*arguments, env=HIDDEN, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
