"""`bench estimate` and `bench fit` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import plugins


def estimates(*arguments: str) -> list[dict[str, Any]]:
    done = plugins.bench("estimate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_estimates_carry_axes_and_columns_for_every_combination() -> None:
    rows = estimates(
        "--model",
        "mlp",
        "--dataset",
        "mnist",
        "--optimizer",
        "sgd",
        "--batch-size",
        "64",
        "--batch-size",
        "4096",
        "--device",
        "h200",
        "--device",
        "a100_80gb",
    )
    assert [(row["batch_size"], row["device"]) for row in rows] == [
        (64, "h200"),
        (4096, "h200"),
        (64, "a100_80gb"),
        (4096, "a100_80gb"),
    ]
    assert [row["formula_bytes"] for row in rows[:2]] == [1_047_632, 15_756_368]
    # The stub driver under torch 2.15 reports these peaks for the first case (tests/oracle).
    assert rows[0]["trace_peak_requested_bytes"] > 1_047_632
    assert (
        rows[0]["trace_peak_requested_bytes"]
        <= rows[0]["trace_peak_allocated_bytes"]
        <= rows[0]["trace_peak_reserved_bytes"]
    )
    assert rows[0]["trace_peak_allocated_bytes"] > rows[2]["trace_peak_allocated_bytes"]  # 9.x has the larger workspace
    assert all(row["estimated_samples_per_s"] > 0 for row in rows)
    assert {"precision", "memory_format", "image_size", "case_key", "estimated_device_bytes"} <= set(rows[0])
    low, point, high = (rows[0][f"estimated_device{end}_bytes"] for end in ("_low", "", "_high"))
    assert rows[0]["trace_peak_reserved_bytes"] < low < point < high
    assert rows[0]["estimated_device_basis"] == "CUDA context size extrapolated from 4 other GPUs"


def test_a_refusal_is_a_note_and_nulls_rather_than_a_number() -> None:
    (row,) = estimates("--model", "resnet18", "--dataset", "cifar10", "--device", "t4", "--precision", "bf16")
    assert row["trace_peak_allocated_bytes"] > 0
    assert row["estimated_samples_per_s"] is None
    assert "bf16" in row["estimate_note"]


def test_what_a_configuration_has_on_and_no_estimator_follows_is_a_note(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('name = "c"\n[grid]\ndataset = "mnist"\nmodel = "mlp"\noptimizer = "sgd"\nbatch_size = 64\n')
    given = (
        "--set",
        "measure.compiled=true",
        "--set",
        "measure.cudnn_benchmark=true",
        "--device",
        "h200",
        "--device",
        "cpu",
    )
    gpu, cpu = estimates(str(config), *given)
    compiled = "compiled is on, but torch.compile is not modelled"
    assert gpu["estimate_note"].endswith(
        f"{compiled}; cudnn_benchmark is on, but the memory and choices of cuDNN's trials are not modelled"
    )
    assert cpu["estimate_note"] == compiled
    (plain,) = estimates(str(config), "--device", "cpu")
    assert plain["estimate_note"] is None


def test_the_table_says_where_memory_goes_and_whether_it_fits() -> None:
    done = plugins.bench("estimate", "--model", "mlp", "--dataset", "cifar10", "--device", "rtx3090")
    assert done.returncode == 0, done.stderr
    for words in (
        "mlp on cifar10, sgd, batch 64, float32",
        "trace: reserved",
        "optimizer state",
        "fits: ",
        "roofline",
        "CUDA context size extrapolated from 4 other GPUs",
    ):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate"], "give --model NAME (bench list models) or a configuration"),
        (["estimate", "--model", "mlp", "--device", "h2000"], 'unknown device "h2000". Nearest: h200'),
        (["estimate", "--model", "mlp", "--device", "/nowhere.toml"], "/nowhere.toml"),
        (["estimate", "configs/gpu.toml", "--model", "mlp"], "CONFIG cannot be combined with --model"),
        (["fit", "--model", "mlp", "--model", "resnet18"], "fit works on one case at a time; these axes give 2"),
        (
            ["fit", "--model", "mlp", "--batch-size", "8"],
            "fit finds the batch size; --batch-size goes with --save-memory",
        ),
        (
            ["fit", "--model", "mlp", "--save-memory", "--fraction", "0.5"],
            "--fraction is for the recommended batch; it does not go with --save-memory",
        ),
        (
            ["fit", "--model", "resnet18", "--device", "cpu"],
            "cpu: fit follows torch's CUDA allocator, so it needs a GPU",
        ),
    ],
)
def test_wrong_use_is_refused_with_a_sentence(arguments: list[str], message: str) -> None:
    done = plugins.bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_smaller_card_comes_from_the_configuration_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        '[grid]\ndataset = "mnist"\nmodel = "mlp"\noptimizer = "sgd"\nbatch_size = 64\n'
        '[limits]\ndevice_memory = "1 GiB"\n'
    )
    (row,) = estimates(str(config), "--device", "a100_40gb")
    assert row["estimate_device"] == row["device"] == "a100_40gb as a card of 1 GiB"
    assert row["estimated_fit"] == "may not fit"  # its context was not measured
    (row,) = estimates(str(config), "--device", "a100_40gb", "--memory", "24GiB")
    assert (row["device"], row["estimated_fit"]) == ("a100_40gb as a card of 24 GiB", "fits")
    done = plugins.bench("estimate", config, "--device", "a100_40gb")
    assert "on a100_40gb as a card of 1 GiB" in done.stdout
    assert "of 1.00 GiB; " in done.stdout
    done = plugins.bench("estimate", config, "--memory", "24GiB", "--explain-difference", "file.parquet")
    assert done.returncode == 2
    assert "takes the case and the device from the file" in done.stderr


def test_fit_says_how_a_batch_fits_and_what_that_costs() -> None:
    resnet = ("fit", "--model", "resnet18", "--dataset", "cifar10", "--batch-size", "512", "--device", "rtx4090")
    done = plugins.bench(*resnet, "--precision", "float32", "--save-memory", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answer"].startswith("It fits as it is: ")
    assert found["plain"]["label"] == "as it is"
    by_label = {option["label"]: option for option in found["tried"]}
    split, blocks, plain = (by_label[label] for label in ("4 micro-batches", "checkpointed blocks", "as it is"))
    assert split["gives_up"] == {"accumulation": "batch norm sees 128 samples at a time, not 512"}
    assert blocks["gives_up"]["checkpointing"].startswith("computes the blocks twice")
    assert max(split["device_bytes"], blocks["device_bytes"]) < plain["device_bytes"]
    assert blocks["speed_ratio"] < 1
    assert {option["label"] for option in found["pareto"]} >= {"as it is"}
    assert found["other_precisions"] == []  # the precision was named
    one = plugins.bench("estimate", *resnet[1:], "--checkpointing", "blocks", "--json")
    (row,) = json.loads(one.stdout)
    assert (row["case_key"], row["estimated_device_bytes"]) == (blocks["case_key"], blocks["device_bytes"])

    text = plugins.bench(*resnet, "--precision", "float32", "--save-memory")
    assert text.returncode == 0, text.stderr
    lines = text.stdout.splitlines()
    assert lines[1] == found["answer"]
    assert lines[3].startswith("best trade-offs")
    assert len(lines) < 40


def test_fit_finds_the_batch_at_which_memory_ends() -> None:
    done = plugins.bench("fit", "--model", "vgg11", "--optimizer", "sgd", "--device", "t4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ladder = {rung["batch_size"]: rung for rung in found["ladder"]}
    assert [rung["fits"] for rung in found["ladder"]] == [True] * (len(ladder) - 1) + [False]
    low, largest, high = (found[f"largest_batch_size{end}"] for end in ("_low", "", "_high"))
    assert 0 < low < largest < high  # a T4's context was not measured: the interval decides
    assert all((rung["verdict"] == "fits") == (rung["batch_size"] <= low) for rung in found["ladder"])
    assert found["context_low_bytes"] < found["context_bytes"] < found["context_high_bytes"]
    last_fit, first_not = sorted(ladder)[-2:]
    assert last_fit <= found["largest_batch_size"] < first_not
    assert found["recommended_batch_size"] <= found["largest_batch_size"]
    assert found["recommended_batch_size"] % 8 == 0
