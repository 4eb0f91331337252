"""The report in the repository is what its data make now, as the README says."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "reports" / "example-cpu"


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bench.report import render_report

    target = tmp_path_factory.mktemp("example") / EXAMPLE.name
    render_report([EXAMPLE / "data"], target)
    return target


@pytest.mark.parametrize("name", ["report.md", "table.csv", "config.toml"])
def test_the_example_report_is_made_again_byte_for_byte(again: Path, name: str) -> None:
    """Pictures are left out: their bytes are those of one version of matplotlib."""
    assert (again / name).read_bytes() == (EXAMPLE / name).read_bytes()
