"""`bench choose` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import plugins

STEP = ("choose", "--model", "mlp", "--dataset", "mnist")


def chosen(*arguments: str | Path) -> dict[str, Any]:
    done = plugins.bench(*STEP, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_gpu_is_in_the_answer_with_its_figures_and_in_order() -> None:
    from bench.estimators.choosing import list_gpus

    found = chosen()
    offers = found["offers"]
    assert {one["device"] for one in offers + found["left_out"]} == {gpu.name for gpu in list_gpus()}
    assert [one["time_s"] for one in offers] == sorted(one["time_s"] for one in offers)
    assert (found["by"], found["samples"], found["dataset"]) == ("time", 60_000, "mnist")
    for one in offers:
        assert one["samples_per_s_low"] < one["samples_per_s"] < one["samples_per_s_high"]
        assert one["time_s"] == pytest.approx(60_000 / one["samples_per_s"])
        assert one["batch_size"] % 8 == 0
        assert one["rank_best"] <= one["rank"] <= one["rank_worst"]
        assert one["energy_j_low"] < one["energy_j"] < one["energy_j_high"]
        assert one["cost"] is None
    assert all(one["reason"] for one in found["left_out"])
    assert found["answer"].startswith(offers[0]["device"])
    assert "roofline" in next(iter(found["speed_bases"]))


def test_the_order_is_by_what_is_asked_and_prices_may_be_in_a_file(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("h200 = 50\nl4 = 0.5\n")
    by_time = chosen("--device", "h200", "--device", "l4", "--device", "t4", "--samples", "1000")
    assert by_time["offers"][0]["device"] == "h200"
    by_cost = chosen("--device", "h200", "--device", "l4", "--device", "t4", "--prices", prices, "--by", "cost")
    assert [one["device"] for one in by_cost["offers"]] == ["l4", "h200"]
    assert [(one["device"], one["reason"]) for one in by_cost["left_out"]] == [("t4", "no cost: no price is given")]
    cheap = by_cost["offers"][0]
    assert cheap["cost"] == pytest.approx(cheap["time_s"] / 3600 * 0.5)
    over = chosen("--device", "h200", "--device", "l4", "--prices", prices, "--price", "h200=0.01", "--by", "cost")
    assert over["offers"][0]["device"] == "h200"


def test_the_answer_takes_one_screen_and_says_what_it_rests_on(tmp_path: Path) -> None:
    figure = tmp_path / "choose.png"
    done = plugins.bench(*STEP, "--figure", figure)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 40
    assert "mlp on mnist, sgd, float32" in lines[0]
    for words in ("roofline", "90 %", "power limit", "--top"):
        assert words in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.with_suffix(".csv").read_text().startswith("device,rank,")


def test_a_configuration_gives_the_case_and_markdown_a_table(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        '[grid]\ndataset = "mnist"\nmodel = "mlp"\noptimizer = "sgd"\nbatch_size = [8, 64]\nprecision = "bf16"\n'
    )
    done = plugins.bench("choose", config, "--device", "t4", "--device", "l4*", "--markdown")
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[2].strip() for line in done.stdout.splitlines() if line.startswith("| ")] == [
        "GPU",
        "l40s",
        "l4",
    ]
    assert "- not ranked: t4: no bf16: it needs compute capability 8.0, not 7.5" in done.stdout


def test_where_no_gpu_can_be_ranked_the_exit_code_says_so() -> None:
    done = plugins.bench(*STEP, "--precision", "bf16", "--device", "t4")
    assert done.returncode == 1
    assert "no GPU can be ranked" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["choose"], ["give --model NAME (bench list models) or a configuration"]),
        (["choose", "--model", "mlp", "--model", "resnet18"], ["choose works on one case at a time", "2 cases"]),
        ([*STEP, "--by", "cost"], ["--by cost: needs prices; give --price GPU=NUMBER"]),
        ([*STEP, "--json", "--markdown"], ["--json and --markdown are two forms"]),
        ([*STEP, "--figure", "choose.gif"], ['--figure choose.gif: unsupported format ".gif"']),
        ([*STEP, "--device", "cpu"], ["--device: cpu: choose ranks GPUs"]),
        ([*STEP, "--compile", "true"], ["torch.compile is not modelled"]),
        ([*STEP, "--samples", "0"], ["--samples"]),
        (
            [
                *STEP,
                "--device",
                "h2000",
                "--device",
                "foo*",
                "--price",
                "h20x=3",
                "--price",
                "l4=-1",
                "--price",
                "t4=x",
            ],
            [
                'unknown device "h2000". Nearest: h200',
                'no device matches "foo*"',
                'unknown device "h20x". Nearest: h20',
                "price of l4 must be a number above 0 for an hour, not -1",
                'price of t4 must be a number above 0 for an hour, not "x"',
            ],
        ),
    ],
)
def test_wrong_use_is_refused_with_every_fault(arguments: list[str], messages: list[str]) -> None:
    done = plugins.bench(*arguments)
    assert done.returncode == 2
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shell_completes_models_and_gpus() -> None:
    from click.shell_completion import ShellComplete

    from bench.cli import cli

    completer = ShellComplete(cli, {}, "bench", "_BENCH_COMPLETE")
    for command in ("choose", "fit", "estimate"):
        found = {item.value for item in completer.get_completions([command, "--device"], "h20")}
        assert found == {"h20", "h200"}
    assert "resnet18" in {item.value for item in completer.get_completions(["choose", "--model"], "resnet1")}
