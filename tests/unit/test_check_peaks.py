"""The tool that compares the device files' peaks with measured products."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from tools.check_peaks import main

_HEAD = "gpu,precision,tflops,torch_version,kind\n"


def test_best_rates_are_shares_of_the_peaks_and_names_may_end_with_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    rows = (
        "NVIDIA RTX 4090 24GB,fp16,165.2,,",
        "NVIDIA RTX 4090 24GB,fp16,82.6,,",
        "Tesla T4,bf16,2.0,,",
        "Other,fp32,9,,",
    )
    path.write_text(_HEAD + "\n".join(rows), encoding="utf-8")
    answer = CliRunner().invoke(main, [str(path)])
    assert answer.exit_code == 0
    lines = [line.split() for line in answer.output.splitlines()[1:]]
    assert [(line[0], line[1], line[-1]) for line in lines] == [("rtx4090", "fp16", "100%")]  # a T4 has no bf16


def test_a_rate_far_above_its_peak_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    path.write_text(_HEAD + "NVIDIA GeForce RTX 4090,fp16,330,,\n", encoding="utf-8")  # with accumulation in fp16
    answer = CliRunner().invoke(main, [str(path)])
    assert (answer.exit_code, "check those device files" in answer.output) == (1, True)
