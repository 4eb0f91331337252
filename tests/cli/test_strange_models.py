"""Commands that estimate, with models of another package that do what they should not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import bench
from tests import plugins

READS = r"the step reads values from the device \([\w: .]+ in misbehaving\.py:\d+\), so it cannot be traced without running it"
RAISES = r"ValueError: a fault \| of <the> model \(misbehaving\.py:\d+\)"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return plugins.install(tmp_path / "site")


def on_mnist(*models: str) -> list[str]:
    return [word for model in models for word in ("--model", model)] + ["--dataset", "mnist"]


def test_each_case_has_its_own_numbers_or_its_own_reason(env: dict[str, str]) -> None:
    models = ("good", "bad_raises", "bad_kills", "bad_leaves", "bad_reads", "bad_always", "not_an_entry", "absent")
    optimizers = ["--optimizer", "sgd", "--optimizer", "adam:capturable=true", "--batch-size", "8"]
    done = plugins.bench("estimate", *on_mnist(*models, "mlp"), *optimizers, "--json", env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout):
        rows.setdefault(row["model"], []).append(row)
    for model in ("good", "mlp"):
        for row in rows[model]:
            assert row["formula_bytes"] and row["trace_peak_allocated_bytes"] and row["estimated_samples_per_s"]
            assert row["estimate_note"] is None
    reasons = {
        "bad_raises": f"no trace or speed: {RAISES}; see .*",
        "bad_kills": r"no trace or speed: the process was killed by SIGKILL .*; see .*",
        "bad_leaves": r"no trace or speed: the process exited with code 7; see .*",
        "bad_reads": READS,
        "bad_always": f"no formula, trace or speed: {RAISES}; see .*",
        "not_an_entry": 'model "not_an_entry": misbehaving:not_an_entry is of type int; .* must name a ModelEntry .*',
        "absent": r"no formula, trace or speed: AttributeError: module 'misbehaving' has no attribute 'absent' .*",
    }
    for model, reason in reasons.items():
        for row in rows[model]:
            assert re.fullmatch(reason, row["estimate_note"]), row["estimate_note"]
            assert row["trace_peak_allocated_bytes"] is None
            assert (row["formula_bytes"] is not None) == ("formula" not in row["estimate_note"] and model[0] == "b")
    log = re.search(r"; see (\S+)$", rows["bad_raises"][0]["estimate_note"])
    assert log is not None
    text = Path(log[1]).read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "--- trace of bad_raises on mnist, sgd, batch 8, 28 px: ValueError: a fault" in text
    assert "last words of the model" in text


def test_a_table_says_what_the_formula_knows_where_there_is_no_trace(env: dict[str, str]) -> None:
    done = plugins.bench("estimate", *on_mnist("bad_reads"), "--batch-size", "64", env=env)
    assert done.returncode == 1
    assert re.search(r"formula +2\d\d KiB", done.stdout)
    assert re.search(f"note: {READS}", done.stdout)


@pytest.mark.parametrize(("model", "reason"), [("bad_reads", READS), ("bad_raises", f"{RAISES}; see .*")])
def test_fit_and_the_timeline_say_in_one_line_why_there_is_no_answer(
    env: dict[str, str], tmp_path: Path, model: str, reason: str
) -> None:
    done = plugins.bench("fit", *on_mnist(model), env=env)
    assert done.returncode == 2
    assert re.search(f"^error: {reason}$", done.stderr, re.MULTILINE)
    picture = tmp_path / "step.png"
    done = plugins.bench("estimate", *on_mnist(model), "--device", "h200", "--timeline", picture, "--json", env=env)
    assert done.returncode == 2
    assert re.search(f"^error: --timeline: {reason}$", done.stderr, re.MULTILINE)
    assert json.loads(done.stdout)[0]["formula_bytes"]  # what is known without the picture is not lost
    assert "Traceback" not in done.stderr


def test_show_lists_layers_of_a_model_that_reads_values_and_says_why_where_there_are_none(env: dict[str, str]) -> None:
    done = plugins.bench("show", "model", "bad_reads_always", "--dataset", "mnist", env=env)
    assert done.returncode == 0, done.stderr
    assert "7,850 parameters" in done.stdout
    assert re.search(f"note: shapes taken from a run on random images: {READS}", done.stdout)
    for model, reason in (("bad_always", RAISES), ("absent", "AttributeError: module")):
        done = plugins.bench("show", "model", model, env=env)
        assert done.returncode == 2
        assert re.search(f"^error: {model}: {reason}", done.stderr)
        assert "Traceback" not in done.stderr


def test_a_sweep_keeps_the_reasons_of_its_estimates_and_names_the_log_beside_the_results(
    env: dict[str, str], tmp_path: Path
) -> None:
    config, out = tmp_path / "c.toml", tmp_path / "out"
    config.write_text(
        'name = "strange"\n[grid]\ndataset = "mnist"\nmodel = ["bad_always", "mlp"]\noptimizer = "sgd"\nbatch_size = 8\n'
        "[measure]\nrepeats = 1\nwarmup_steps = 1\nmeasured_steps = 2\nmin_window = 0.01\n",
        encoding="utf-8",
    )
    done = plugins.bench("sweep", config, "--out", out, "--device", "cpu", "--no-report", env=env)
    assert done.returncode == 1, done.stderr
    frame = bench.load(out).set_index("model")
    assert frame["status"].to_dict() == {"bad_always": "failed", "mlp": "ok"}
    assert re.fullmatch(RAISES, frame.loc["bad_always", "reason"])
    note = frame.loc["bad_always", "estimate_note"]
    assert re.fullmatch(f"no formula: {RAISES}; see data/logs/estimates.log", note)
    assert "Traceback" in (out / "data/logs/estimates.log").read_text(encoding="utf-8")
    assert frame.loc["mlp", "formula_bytes"] > 0
