"""Files of every version of the format there has been are read; a newer one is refused with a sentence."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import partial
from pathlib import Path

import pytest

import bench
from bench.bundles import verify
from bench.bundles.bundle import write_archive
from bench.errors import StoreError
from bench.store import SCHEMA_VERSION, Store
from tests.data.make_schema_1 import came_later
from tests.sketches import sketching

HERE = Path(__file__).parent
READ = ("schema-1/first", "schema-1/later")
PEAKS = [1_328_640, 1_533_952]
RATES = [39_172.138, 156_354.319]
VALUES = {
    "status": ["ok", "ok"],
    "batch_size": [16, 64],
    "model": ["mlp", "mlp"],
    "gpu_name": ["NVIDIA H200", "NVIDIA H200"],
}


def test_every_version_there_has_been_has_its_files() -> None:
    assert {name.partition("/")[0] for name in READ} == {f"schema-{number}" for number in range(1, SCHEMA_VERSION + 1)}


@pytest.mark.parametrize("name", READ)
def test_files_of_the_past_are_read_to_the_value(name: str) -> None:
    frame = bench.load(HERE / name).sort_values("batch_size")
    assert {column: list(frame[column]) for column in VALUES} == VALUES
    assert list(frame["schema_version"]) == [1, 1]
    assert frame["planned"].all()
    assert list(frame["peak_allocated_bytes"]) == PEAKS
    assert [len(times) for times in frame["step_times_s"]] == [8, 8]
    assert frame["samples_per_s"].round(3).tolist() == RATES
    later = [column for column in frame if came_later(column)]
    assert len(later) == 16
    if name.endswith("first"):
        assert frame[later].isna().all().all()  # unknown; never zero, and never a missing column


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_files_of_the_past_make_a_report(name: str, tmp_path: Path) -> None:
    from bench.report import render_report

    with sketching():
        render_report([HERE / name], tmp_path)
    assert "NVIDIA H200" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_sweep_goes_on_in_a_folder_of_the_past() -> None:
    assert sorted(str(run.status) for run in Store(HERE / READ[0]).finished_runs().values()) == ["ok", "ok"]


def test_a_newer_file_is_refused_with_a_sentence() -> None:
    with pytest.raises(StoreError) as caught:
        bench.load(HERE / "schema-1" / "newer")
    path = HERE / "schema-1" / "newer" / "plan-0001.parquet"
    assert str(caught.value) == f"{path}: written by a newer version (format 2; this one reads up to 1)"


def test_a_bundle_of_the_past_opens_and_verifies_and_is_written_alike_to_the_byte() -> None:
    """Written by the first writer of bundles, which did not use zipfile."""
    path = HERE / "bundle-1.zip"
    assert verify(path).differences == ()
    frame = bench.load(path).sort_values("batch_size")
    assert list(frame["peak_allocated_bytes"]) == PEAKS
    again = io.BytesIO()
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in reversed(archive.namelist())}
        write_archive(again, {name: (len(text), partial(io.BytesIO, text)) for name, text in contents.items()})
    assert again.getvalue() == path.read_bytes()


def test_files_of_the_past_stay_as_they_are() -> None:
    text = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(HERE).as_posix()}\n"
        for path in sorted([*HERE.rglob("*.parquet"), *HERE.rglob("*.zip")])
    )
    assert text == (HERE / "SHA256SUMS").read_text()
