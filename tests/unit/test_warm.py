"""The tests' own shortcuts answer as what they stand for: commands in forks of a loaded process, figures not painted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import plugins, sketches, warm
from tests.results import make_cases, make_results

SCRIPT = """
import os, sys, time
print(sys.argv[1:], os.environ.get("OF_MY_OWN"), os.getcwd())
print("to the other", file=sys.stderr)
if sys.argv[1] == "hangs":
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="ascii")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("command", [("list", "models"), ("plan", "missing.toml"), ("estimate", "--model", "mpl")])
def test_a_command_answers_as_in_a_fresh_process(tmp_path: Path, command: tuple[str, ...]) -> None:
    warmed, fresh = (plugins.bench(*command, cwd=tmp_path, fresh=fresh) for fresh in (False, True))
    assert (warmed.returncode, warmed.stdout, warmed.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_command_has_its_own_environment_folder_code_and_time(tmp_path: Path, script: Path) -> None:
    done = warm.run(["3", "b"], {**os.environ, "OF_MY_OWN": "x"}, tmp_path, script=script)
    assert (done.returncode, done.stdout) == (3, f"['3', 'b'] x {tmp_path}\n")
    assert done.stderr == "to the other\n"
    assert "OF_MY_OWN" not in os.environ
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["hangs"], os.environ, timeout_s=0.5, script=script)
    assert warm.run(["0"], os.environ, script=script).returncode == 0


def test_a_figure_that_is_not_painted_tells_its_numbers_and_colours_apart_and_has_its_size(tmp_path: Path) -> None:
    from bench.report import render_report, theme
    from bench.report.render import Image

    cases = make_cases(["mnist"], ["mlp"], ["sgd"], [16, 64])
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        make_results(tmp_path / name / "data", cases, seed=seed, repeats=1)
        with sketches.sketching():
            render_report([tmp_path / name / "data"], tmp_path / name)
    one, same, other = (
        (tmp_path / name / "figures" / "throughput.png").read_bytes() for name in ("one", "same", "other")
    )
    assert one == same != other
    with theme.style():
        figure, _ = theme.panels(1, "x", "")
        painted, sketched = theme.save(figure), sketches.save(figure)
        assert sketched != sketches.save(figure, dark=True)
    assert Image(painted, b"").size == Image(sketched, b"").size
