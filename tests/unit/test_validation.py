"""Measurements from elsewhere: how files are read, refused and scored."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError, DataError, UnknownNameError
from bench.records import Choice
from bench.validation import list_layouts, read_measurements, score, score_others
from bench.validation.estimating import Estimated, group_rows
from bench.validation.scoring import fit_constant
from tests import plugins

OWN = {"model": "resnet18", "batch_size": "16", "device": "rtx3090", "peak_allocated_bytes": "1000000000"}
XMEM = {
    "family": "cnn",
    "model": "ConvNeXtTiny",
    "optimizer": "Adam",
    "batch_size": "282",
    "input": "86x86x3 CIFAR-10",
    "zero_grad_mode": "",
    "gpu": "NVIDIA GeForce RTX 3060",
    "gpu_total_bytes": "12622168064",
    "ground_nvml_bytes": "4798283776",
    "real_oom": "False",
}
SCHEDTUNE = {
    "model": "vgg11",
    "batch_size": "8",
    "peak_mem_mib": "2807",
    "gpu": "Tesla V100 16/32GB",
    "image_size": "224",
}


def written(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "measured.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def refused(path: Path, device: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_measurements(path, device)
    return str(caught.value)


def test_layouts_are_found_in_their_folder() -> None:
    assert [layout.name for layout in list_layouts()] == ["own", "schedtune", "xmem"]


def test_own_rows_take_what_they_do_not_say_from_the_data_set(tmp_path: Path) -> None:
    (row,), left_out = read_measurements(written(tmp_path, OWN))
    assert (row.images.shape, row.images.classes, row.optimizer.name, row.loop) == ((3, 224, 224), 1000, "sgd", None)
    assert (row.quantity, row.measured_bytes, row.line, left_out) == ("allocated", 1_000_000_000, 2, 0)


def test_the_first_peak_that_a_row_fills_is_what_was_measured(tmp_path: Path) -> None:
    shown = OWN | {"peak_allocated_bytes": "", "device_used_bytes": "2e9"}
    (row,), _ = read_measurements(written(tmp_path, shown))
    assert (row.quantity, row.measured_bytes) == ("device", 2_000_000_000)


def test_another_torch_or_other_classes_take_a_plain_loop(tmp_path: Path) -> None:
    rows, _ = read_measurements(written(tmp_path, OWN | {"torch_version": "2.6.0+cu124"}, OWN | {"classes": "7"}))
    assert [row.loop and row.loop.torch_version for row in rows] == [(2, 6), None]
    assert rows[1].images.classes == 7
    assert "contiguous float32 only" in refused(written(tmp_path, OWN | {"classes": "7", "precision": "bf16"}))


def test_xmem_rows_become_cases(tmp_path: Path) -> None:
    others = [
        XMEM | {"model": name, "zero_grad_mode": mode}
        for name, mode in (("MnasNet", "1.0"), ("MobeNetV3Large", "2.0"), ("RegNetX400MF", "0.0"), ("MobileNetV2", ""))
    ]
    skipped = [XMEM | {"family": "transformer", "model": "gpt"}, XMEM | {"real_oom": "True"}]
    rows, left_out = read_measurements(written(tmp_path, XMEM, *others, *skipped))
    assert left_out == 2
    assert [str(row.model) for row in rows] == [
        "convnext_tiny",
        "mnasnet1_0",
        "mobilenet_v3_large",
        "regnet_x_400mf",
        "mobilenet_v2",
    ]
    assert [row.images.classes for row in rows] == [1000, 10, 10, 1000, 1000]
    loops = [row.loop.zero_grad for row in rows if row.loop]
    assert loops == ["before_batch", "before_backward", "never", "before_batch", "before_batch"]
    assert rows[0].device == "rtx3060" and rows[0].after_setup and rows[0].capacity_bytes == 12_622_168_064


def test_schedtune_rows_become_cases(tmp_path: Path) -> None:
    (row,), _ = read_measurements(written(tmp_path, SCHEDTUNE))
    assert (row.device, row.measured_bytes, row.optimizer) == (
        "v100_32gb",
        2807 << 20,
        Choice.of("sgd_momentum", {"foreach": False}),
    )
    assert row.loop is not None and row.loop.keeps_gradients and row.loop.workspaces == "none"


@pytest.mark.parametrize("size", ["9" * 5000, "2240x224", "22", "x224"], ids=["digits", "longer", "shorter", "later"])
def test_schedtune_rows_of_another_image_size_are_refused(tmp_path: Path, size: str) -> None:
    said = refused(written(tmp_path, SCHEDTUNE | {"image_size": size}))
    assert f'image_size: "{size[:40]}" is not 224' in said


def test_a_device_selects_its_rows_and_serves_those_that_name_none(tmp_path: Path) -> None:
    path = written(tmp_path, OWN, OWN | {"device": "h200"}, OWN | {"device": ""})
    rows, left_out = read_measurements(path, "NVIDIA H200")
    assert ([row.line for row in rows], left_out) == ([3, 4], 1)
    assert "the row names none; say which with --device NAME" in refused(path)
    assert "none of its 1 rows is a case that can be estimated on t4" in refused(written(tmp_path, OWN), "t4")
    with pytest.raises(UnknownNameError, match="rtx3090"):
        read_measurements(path, "rtx309")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnte18"}, 'unknown model "resnte18". Nearest: resnet18'),
        ({"model": ""}, 'model: "" is no name of a model'),
        ({"optimizer": "adm"}, 'unknown optimizer "adm"'),
        ({"batch_size": "-3"}, 'batch_size: "-3" is no whole number from 1'),
        ({"batch_size": "1.5"}, 'batch_size: "1.5" is no whole number'),
        ({"batch_size": "9" * 500}, "batch_size:"),
        ({"batch_size": "nan"}, 'batch_size: "nan" is no whole number'),
        ({"peak_allocated_bytes": "-1"}, 'peak_allocated_bytes: "-1" is no whole number'),
        ({"peak_allocated_bytes": "1e300"}, 'peak_allocated_bytes: "1e300" is no whole number'),
        ({"peak_allocated_bytes": ""}, "nothing measured; fill one of peak_allocated_bytes"),
        ({"device": "rtx3091"}, 'unknown device "rtx3091"'),
        ({"precision": "float8"}, 'precision: "float8" is none of float32'),
        ({"torch_version": "new"}, 'torch_version: "new" is no version'),
        ({"image_size": "0"}, 'image_size: "0" is no whole number'),
    ],
)
def test_a_bad_cell_is_named_with_its_line(tmp_path: Path, change: dict[str, str], message: str) -> None:
    text = refused(written(tmp_path, OWN, OWN | change))
    assert message in text
    assert text.startswith(f"{tmp_path / 'measured.csv'}:3: ")
    assert len(text) < 2000


def test_every_fault_is_reported_up_to_a_number(tmp_path: Path) -> None:
    text = refused(written(tmp_path, *[OWN | {"batch_size": "x"}] * 50))
    assert len(text.splitlines()) == 21
    assert text.endswith("... and perhaps more")


def test_a_bad_input_size_of_xmem_is_a_fault(tmp_path: Path) -> None:
    assert "is not of the form 86x86x3" in refused(written(tmp_path, XMEM | {"input": "86x64x3"}))
    assert 'image_size: "256" is not 224' in refused(written(tmp_path, SCHEDTUNE | {"image_size": "256"}))


def test_missing_columns_name_the_closest_layout(tmp_path: Path) -> None:
    text = refused(written(tmp_path, {"model": "resnet18", "batchsize": "4", "peak_allocated_bytes": "5"}))
    assert "Closest: own, without batch_size. Nearest: batchsize" in text
    assert "xmem: family, model" in text
    text = refused(written(tmp_path, {"model": "resnet18", "batch_size": "4"}))
    assert "without peak_allocated_bytes or peak_reserved_bytes" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; the first line names the columns"),
        (b"model,batch_size,measured_bytes\n", "no rows"),
        (b"model,model,batch_size\na,b,1\n", "columns model appear more than once"),
        (b"model,batch_size,measured_bytes\nresnet18,1,2,3\n", ":2: more cells than columns"),
        (b"\xff\xfe\x00model", "cannot be read as CSV"),
        (b'model,batch_size,measured_bytes\n"resnet18,1', "cannot be read as CSV"),
        (b"model,batch_size,measured_bytes\n" + b"x" * 200_000 + b",1,2\n", "cannot be read as CSV"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    assert message in refused(path, "rtx3090")


def test_what_is_no_file_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path / "absent.csv").endswith(
        "absent.csv: no such file; give a CSV of measurements (bench validate --help says its columns)"
    )
    assert ": a folder; give a CSV" in refused(tmp_path)
    path = written(tmp_path, OWN, OWN, OWN)
    monkeypatch.setattr("bench.validation.scoring.MAX_ROWS", 2)
    assert "more than 2 rows; split the file" in refused(path)
    monkeypatch.setattr("bench.validation.scoring.MAX_BYTES", 1 << 20)
    path.write_bytes(b"x" * (2 << 20))
    assert "larger than 1 MiB; split the file" in refused(path)


def estimated(line: int, measured: int, estimate: int | None, family: str = "a", **fields: Any) -> Estimated:
    values = {"device": "rtx3090", "quantity": "device", **fields}
    return Estimated(line, family=family, case="", measured_bytes=measured, estimated_bytes=estimate, **values)


def test_one_constant_a_gpu_is_fitted_and_held_out() -> None:
    rows = [
        estimated(2, 1100, 1000),
        estimated(3, 2100, 2000),
        estimated(4, 4300, 4000, "b"),
        estimated(5, 50, None, "b"),
    ]
    assert fit_constant(rows) == 100
    result = score(rows)
    assert result.constants == {"rtx3090": 100}
    assert result.row_errors == {2: 0.0, 3: 0.0, 4: pytest.approx(-200 / 4300)}
    whole = next(group for group in result.groups if group.family == "all")
    assert whole.errors is not None and (whole.errors.n, whole.failures, whole.below) == (3, 1, 1)
    first = next(group for group in result.groups if group.family == "a")
    assert first.held_out is not None  # with the constant of family b, 300
    assert first.held_out.worst == pytest.approx(200 / 1100)


def test_rows_that_are_met_to_the_byte_are_counted() -> None:
    (group,) = score(
        [estimated(2, 900, 900, quantity="allocated"), estimated(3, 1000, 950, quantity="allocated")]
    ).groups
    assert (group.exact, group.below) == (1, 1)
    assert score([estimated(2, 900, None)]).groups[0].exact == 0


def test_the_formula_gets_a_constant_of_its_own_and_published_estimates_none() -> None:
    rows = [
        estimated(2, 1000, 1000, formula_bytes=700, published=(("xMem", 900),)),
        estimated(3, 2000, 2000, formula_bytes=1700, published=(("xMem", 2100), ("LLMem", 3000))),
    ]
    others = score_others(rows)
    assert list(others) == ["formula", "xMem", "LLMem"]
    assert (others["formula"].constants, others["formula"].row_errors) == ({"rtx3090": 300}, {2: 0.0, 3: 0.0})
    assert others["xMem"].constants == {}
    assert others["xMem"].row_errors == {2: pytest.approx(-0.1), 3: pytest.approx(0.05)}
    assert (others["xMem"].groups[0].below, others["LLMem"].groups[0].failures) == (1, 1)


def test_estimates_that_a_file_publishes_are_read(tmp_path: Path) -> None:
    theirs = {"xmem_est_bytes": "8176795648", "dnnmem_est_bytes": "5110759424.75", "llmem_est_bytes": ""}
    (row,), _ = read_measurements(written(tmp_path, XMEM | theirs))
    assert row.published == (("xMem", 8_176_795_648), ("DNNMem", 5_110_759_424))
    assert 'dnnmem_est_bytes: "much" is no whole number' in refused(
        written(tmp_path, XMEM | theirs | {"dnnmem_est_bytes": "much"})
    )


def test_torchs_own_peaks_get_no_constant() -> None:
    result = score([estimated(2, 1000, 900, quantity="allocated"), estimated(3, 1000, 950, quantity="reserved")])
    assert result.constants == {}
    assert result.row_errors == {2: pytest.approx(-0.1), 3: pytest.approx(-0.05)}
    assert result.groups[0].constant_bytes is None


def test_nothing_estimated_is_a_row_of_failures() -> None:
    (group,) = score([estimated(2, 1000, None)]).groups
    assert (group.errors, group.held_out, group.failures) == (None, None, 1)
    with pytest.raises(ValueError, match="no estimates"):
        fit_constant([estimated(2, 1000, None)])


def test_rows_that_differ_in_batch_size_share_recordings(tmp_path: Path) -> None:
    rows, _ = read_measurements(
        written(tmp_path, XMEM, XMEM | {"batch_size": "7"}, XMEM | {"zero_grad_mode": "1"}, XMEM | {"optimizer": "SGD"})
    )
    assert [len(group) for group in group_rows(rows)] == [2, 1, 1]


def test_the_command_compares_and_prints_a_table(tmp_path: Path) -> None:
    mlp = {"model": "mlp", "dataset": "mnist", "optimizer": "sgd", "peak_allocated_bytes": "10000000", "device": "h200"}
    path = written(
        tmp_path, *[mlp | {"batch_size": size} for size in ("64", "128")], mlp | {"batch_size": "8", "device": "cpu"}
    )
    done = plugins.bench("validate", str(path), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["line"] for row in answer["rows"]] == [2, 3, 4]
    assert all(row["estimated_bytes"] > 0 for row in answer["rows"][:2])
    assert answer["rows"][2]["estimated_bytes"] is None and "no trace for cpu" in answer["rows"][2]["note"]
    assert {group["device"]: group["failures"] for group in answer["groups"] if group["family"] == "all"} == {
        "cpu": 1,
        "h200": 0,
        "all": 1,
    }
    # parameters, gradients, 64 images of 3,136 B and 64 times 128 activations, as the founding documents have them
    assert [row["formula_bytes"] for row in answer["rows"][:2]] == [1_047_632, 1_281_104]
    others = [(group["estimator"], group["device"]) for group in answer["other_estimators"]]
    assert others == [("formula", "cpu"), ("formula", "h200"), ("formula", "all")]
    table = plugins.bench("validate", str(path), "--device", "h200")
    assert table.returncode == 0 and "left out: 1 rows" in table.stdout
    assert re.search(r"^h200 +formula +2 .* 0/2 +2 +0 ", table.stdout, re.MULTILINE)
    assert "Traceback" not in table.stderr


def test_the_command_refuses_without_a_traceback(tmp_path: Path) -> None:
    done = plugins.bench("validate", str(written(tmp_path, OWN | {"model": "resnte18"})))
    assert done.returncode == BenchError.exit_code
    assert 'unknown model "resnte18"' in done.stderr and "Traceback" not in done.stderr
