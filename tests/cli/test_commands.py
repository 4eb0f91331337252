"""Every command as a user meets it: what it prints, what it refuses, and how it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from bench.cli import cli

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="bench")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def as_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_plan_lists_cases_with_axes_key_and_reason() -> None:
    cases = as_json("plan", ROOT / "configs" / "gpu.toml", "--device", "cuda")
    assert set(cases[0]) == {
        "dataset",
        "model",
        "optimizer",
        "batch_size",
        "precision",
        "memory_format",
        "input",
        "image_size",
        "accumulation",
        "checkpointing",
        "compile",
        "update",
        "allocator",
        "zero_grad",
        "case_key",
        "skip_reason",
    }
    assert len({case["case_key"] for case in cases}) == len(cases)
    assert any(case["skip_reason"] for case in cases)
    assert any(case["skip_reason"] is None for case in cases)
    assert as_json("sweep", ROOT / "configs" / "gpu.toml", "--device", "cuda", "--dry-run") == cases


def test_plan_says_what_a_cluster_is_asked_for(tmp_path: Path) -> None:
    one = ("plan", "--set", "grid.model=mlp", "--set", "grid.batch_size=[16, 32]", "--set", "grid.optimizer=sgd")
    one += ("--set", "include=[]", "--for", "h100_sxm")
    found = as_json(*one, "--launcher", "slurm", "--set", "launcher.chunk=4")
    assert found["launcher"] == "slurm" and found["jobs"] == -(-found["runs"] // 4) > 1
    assert {case["fits"]["h100_sxm"] for case in found["cases"]} == {"fits"}
    assert all(case["device_bytes"]["h100_sxm"] > case["batch_size"] * 28 * 28 * 4 for case in found["cases"])
    script = run(*one, "--emit", "slurm", "--out", tmp_path).stdout
    assert script.startswith("#!/bin/bash\n#SBATCH --") and "#SBATCH --gpus-per-node=1" in script
    assert f"\nbench run-planned {tmp_path} " in script and list(tmp_path.glob("data/orders/order-*.parquet"))
    nowhere = run(*one, "--emit", "slurm")  # no made-up folder: the script would name one that has no order
    assert nowhere.exit_code == 2 and "--emit slurm: needs --out FOLDER" in nowhere.output
    refused = run(*one, "--device", "cpu")
    assert refused.exit_code == 2 and "--for h100_sxm" in refused.output
    assert "Nearest: h100_sxm" in run("plan", "--for", "h100_smx").output
    assert run("plan", "--emit", "slurm", "--device", "cuda", "--out", tmp_path / "several").exit_code == 2
    for command in ("plan", "sweep"):
        unknown = run(command, "--launcher", "slrum")
        assert unknown.exit_code == 2
        assert '--launcher: unknown "slrum". Nearest: slurm. Allowed: local, slurm, ray' in unknown.output


def test_plan_without_a_configuration_plans_the_default_sweep() -> None:
    assert "default: 24 cases, 0 skipped; 72 runs (3 repeats per case) on cpu" in run("plan", "--device", "cpu").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plna"], 'unknown command "plna". Nearest: plan. Available: bundle, calibrate, check,'),
        (["plan", "--set", "grid.model=resnet81"], 'grid.model[0]: unknown model "resnet81". Nearest: resnet18'),
        (
            ["plan", "--set", "grid.dataset=folder:/nowhere"],
            "grid.dataset: /nowhere: No such file or directory. Give a folder",
        ),
        (["show", "model", "mlpp"], 'unknown model "mlpp". Nearest: mlp. List them: bench list models'),
        (
            ["show", "model", "mlp", "--input", "3,32"],
            '"3,32" is not a valid shape; write three whole numbers like 3,32,32',
        ),
        (["show", "model", "alexnet", "--dataset", "mnist"], "alexnet needs images of at least 63"),
        (["show", "dataset", "cifra10"], 'unknown dataset "cifra10". Nearest: cifar10'),
        (["list", "gpus"], "'gpus' is not one of 'models', 'datasets', 'optimizers', 'devices'"),
        (["list", "models", "resnte*"], 'no models match "resnte*". Nearest: resnet50, resnet34, resnet18. List them'),
        (
            ["estimate", "--model", "mlp", "--batch-size", "8", "--accumulation", "3"],
            "every case is skipped; nothing is left to do",
        ),
        (
            ["sweep", "--retry", "never", "--dry-run"],
            'unknown status "never". Available: ok, oom, timeout, crashed, failed, nan_loss, throttled',
        ),
        (["sweep", "--retry", "skipped", "--dry-run"], "skipped cannot be retried: a skipped case never ran"),
        (["sweep", "--retry", "oom,interrupted", "--dry-run"], "interrupted need not be retried: the same command"),
        (["sweep", "--device", "tpu"], 'unknown "tpu". Nearest: xpu, cpu. Allowed: auto, cpu, cuda, cuda:0, xpu'),
        (["plan", "--device", "tpu"], 'unknown "tpu". Allowed: auto, cpu, cuda, cuda:0'),
        (["report", "/nowhere/at/all"], "/nowhere/at/all: does not exist; give a folder that `bench sweep` wrote"),
        (["report", "a", "b"], "several results need --out"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(arguments: list[str], message: str, tmp_path: Path) -> None:
    if arguments[0] == "sweep":
        arguments = [*arguments, "--out", str(tmp_path)]
    result = run(*arguments)
    assert message in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("what", "name"), [("models", "resnet18"), ("datasets", "cifar10"), ("optimizers", "adam"), ("devices", "h200")]
)
def test_list_names_everything_that_can_be_named(what: str, name: str) -> None:
    rows = as_json("list", what)
    assert name in [row["name"] for row in rows]
    assert all(row["summary"] for row in rows)
    assert as_json("list", what, f"{name}*")[0]["name"] == name
    assert name in run("list", what).output


def test_show_model_prints_the_founding_figures() -> None:
    result = run("show", "model", "mlp", "--dataset", "mnist")
    assert "101,770 parameters (398 KiB in float32)" in result.output
    layers = as_json("show", "model", "mlp", "--input", "3,32,32", "--classes", "10")
    assert sum(layer["parameters"] for layer in layers) == 394_634


def test_show_dataset_writes_a_picture_and_says_when_it_is_synthetic(tmp_path: Path) -> None:
    result = run("show", "dataset", "mnist", "--out", tmp_path / "m.png", "--root", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "synthetic" in result.output


@pytest.mark.parametrize(
    "command",
    [[], ["sweep"], ["plan"], ["report"], ["list"], ["show", "dataset"], ["show", "model"], ["data", "fetch"], ["env"]],
)
def test_every_help_has_examples(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output


def test_completion_offers_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    completer = ShellComplete(cli, {}, "bench", "_BENCH_COMPLETE")
    found = {item.value for item in completer.get_completions(["show", "model"], "resnet1")}
    assert found == {"resnet18", "resnet101", "resnet152"}


def test_every_command_is_listed_once_with_a_whole_summary_at_80_columns() -> None:
    output = CliRunner().invoke(cli, ["--help"], prog_name="bench", terminal_width=80).output
    sections = {line.rstrip(":") for line in output.splitlines() if line.endswith(":") and not line.startswith(" ")}
    assert {"Measure", "Estimate", "Publish"} <= sections and "Commands" not in sections
    listed = output[output.index("Measure:") :].splitlines()
    commands = [line.split()[0] for line in listed if line.startswith("  ")]
    assert sorted(commands) == cli.list_commands(click.Context(cli))
    assert [line for line in listed if "..." in line or len(line) > 80] == []
