"""The sweep as a user runs it: real processes, real files, real kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench
from tests import plugins

CONFIG = """
name = "t"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = ["sgd", "adam"]
batch_size = [16, 64]
[measure]
repeats = 2
warmup_steps = 1
measured_steps = 3
min_window = "1 ms"
[data]
fetch = false
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_a_sweep_ends_with_a_row_for_every_planned_run_and_a_report(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "out"
    first = plugins.bench("sweep", config, "--out", out, fresh=True)
    assert first.returncode == 0, first.stderr
    assert str(out / "index.html") in first.stdout
    assert len(first.stdout.strip().splitlines()) <= 10
    frame = bench.load(out)
    assert len(frame) == 8
    assert set(frame["status"]) == {"ok"}
    mean_step_s = frame["step_times_s"].map(lambda times: sum(times) / len(times))
    rule = frame["samples_per_s"] * mean_step_s / frame["batch_size"].astype(float)
    assert rule.between(0.98, 1.0001).all(), rule.tolist()
    assert (frame["peak_allocated_bytes"] >= frame["formula_parameters_bytes"]).all()
    assert frame["formula_bytes"].notna().all()
    assert (out / "index.html").exists()

    again = plugins.bench("sweep", config, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "8 runs already finished, 0 to do" in again.stderr
    assert bench.load(out)["run_key"].tolist() == frame["run_key"].tolist()


def test_a_case_that_cannot_run_is_skipped_once_with_its_reason_and_fails_nothing(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        "sweep",
        config,
        "--out",
        out,
        "--repeats",
        "3",
        "--device",
        "cpu",
        "--no-report",
        "--set",
        "grid.dataset=cifar10",
        "--set",
        "grid.model=['resnet18', 'mlp']",
        "--set",
        "grid.batch_size=1",
        "--set",
        "grid.optimizer=['sgd', {name='adam', capturable=true}]",
    )
    done = plugins.bench(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    frame = bench.load(out)
    status = frame.groupby(["model", "optimizer"])["status"].agg(set).to_dict()
    assert status == {
        ("mlp", "sgd"): {"ok"},
        **{
            case: {"skipped"}
            for case in [("mlp", "adam:capturable=true"), ("resnet18", "adam:capturable=true"), ("resnet18", "sgd")]
        },
    }
    found = frame[(frame["model"] == "resnet18") & (frame["optimizer"] == "sgd")].sort_values("repeat")
    assert found["reason"].nunique() == 1
    assert "resnet18 needs batches of at least 2 on images of 32 x 32" in found["reason"].iloc[0]
    assert found["process_start_s"].isna().all(), "planning finds out, and no process is started"
    assert "(3 skipped)" in done.stdout

    again = plugins.bench(*arguments)
    assert again.returncode == 0
    assert "3 runs already finished, 0 to do" in again.stderr


def test_a_batch_above_the_limit_on_the_hosts_memory_says_the_limit_and_what_was_asked_for(
    tmp_path: Path, config: Path
) -> None:
    out = tmp_path / "out"
    done = plugins.bench(
        "sweep",
        config,
        "--out",
        out,
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--set",
        "grid.dataset=cifar10",
        "--set",
        "grid.model={name='mlp', hidden=[16]}",
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=300000",
        "--set",
        "grid.input=['cached', 'loader', 'synthetic']",
        "--set",
        "limits.host_memory=2 GiB",
        "--no-report",
        fresh=True,
    )
    assert done.returncode == 1, done.stderr
    frame = bench.load(out).set_index("input")
    assert set(frame["status"]) == {"oom"}
    limit = r"the process may use 2\.00 GiB \(limits\.host_memory, or 90 % of the free memory\): "
    for path in ("cached", "synthetic"):
        assert frame.loc[path, "oom_requested_bytes"] == 300_000 * 3072 * 4
        assert re.match(r"3\.43 GiB requested, " + limit, frame.loc[path, "reason"]), frame.loc[path, "reason"]
    words = r"a batch of 300,000 images takes 3\.43 GiB, " + limit + r"(DataLoader worker|MemoryError)"
    assert re.match(words, frame.loc["loader", "reason"]), frame.loc["loader", "reason"]


def test_everything_a_case_can_do_wrong_is_one_row_and_the_sweep_goes_on(tmp_path: Path, config: Path) -> None:
    env = plugins.install(tmp_path / "site")
    out = tmp_path / "out"
    done = plugins.bench(
        "sweep",
        config,
        "--out",
        out,
        "--repeats",
        "1",
        "--set",
        f"grid.model={list(plugins.NAMES)}",
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=16",
        "--set",
        "limits.run_timeout=8 s",
        "--set",
        "limits.host_memory=6 GiB",
        env=env,
        fresh=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    frame = bench.load(out).set_index("model")
    assert frame["status"].to_dict() == {
        "good": "ok",
        "bad_raises": "failed",
        "bad_hangs": "timeout",
        "bad_kills": "crashed",
        "bad_leaves": "crashed",
        "bad_eats": "oom",
        "bad_nan": "nan_loss",
    }
    reasons = frame["reason"].dropna().to_dict()
    assert reasons["bad_raises"] == "ValueError: a fault | of <the> model (misbehaving.py:19)"
    assert reasons["bad_hangs"] == "timed out during warm-up"
    assert reasons["bad_kills"].startswith("the process was killed by SIGKILL")
    assert reasons["bad_leaves"] == "the process exited with code 7 during warm-up: last words of the model"
    assert frame.loc["bad_eats", "oom_requested_bytes"] == 1 << 34
    assert frame.loc["bad_eats", "formula_bytes"] > 0
    for name in ("bad_raises", "bad_hangs", "bad_kills", "bad_eats"):
        assert name in done.stdout + done.stderr


def test_killed_anywhere_a_sweep_goes_on_where_it_stopped(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench", "sweep", str(config), "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = out / "data" / "runs"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (runs.exists() and len(list(runs.glob("*.parquet"))) >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    finished = {path.name for path in runs.glob("*.parquet")}
    assert 3 <= len(finished) < 8
    assert sorted(bench.load(out)["status"].value_counts().to_dict()) == ["interrupted", "ok"]

    resumed = plugins.bench("sweep", config, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    frame = bench.load(out)
    assert finished < {path.name for path in runs.glob("*.parquet")}
    assert not frame.duplicated(["case_key", "repeat"]).any()
    assert set(frame["case_key"]) == {case["case_key"] for case in planned(config)}
    assert len(frame) == 8


def test_ctrl_c_leaves_quickly_with_130_and_keeps_what_is_finished(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "bench",
        "sweep",
        str(config),
        "--out",
        str(out),
        "--set",
        "measure.min_window=20 s",
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = out / "data" / "logs"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(logs.glob("*-r0-a0-*.log")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr + stdout
    assert set(bench.load(out)["status"]) == {"interrupted"}


@pytest.mark.parametrize("after_s", [0.4, 2.0])
def test_ctrl_c_while_everything_still_starts_speaks_one_word(tmp_path: Path, config: Path, after_s: float) -> None:
    command = [sys.executable, "-m", "bench", "sweep", str(config), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), stderr  # the latter where Python itself had not come up yet
    assert "Traceback" not in stderr + stdout or process.returncode == -signal.SIGINT


def test_a_run_that_ended_well_on_its_second_attempt_is_no_failure(tmp_path: Path, config: Path) -> None:
    env = plugins.install(tmp_path / "site")
    out = tmp_path / "out"
    arguments = (
        "sweep",
        config,
        "--out",
        out,
        "--repeats",
        "1",
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=16",
        "--set",
        "grid.model=bad_once",
        "--no-report",
        "--json",
    )
    first = plugins.bench(*arguments, env=env)
    second = plugins.bench(*arguments, "--retry", "failed", env=env)
    third = plugins.bench(*arguments, "--set", "grid.model=mlp", env=env)
    assert (first.returncode, second.returncode, third.returncode) == (1, 0, 0), second.stderr
    assert [json.loads(done.stdout)["counts"] for done in (first, second, third)] == [
        {"failed": 1},
        {"ok": 1},
        {"ok": 1},
    ]
    frame = bench.load(out)
    assert frame.groupby("model")["planned"].agg(list).to_dict() == {"bad_once": [False, False], "mlp": [True]}


def test_runs_on_real_images_never_pass_for_repeats_of_synthetic_ones(tmp_path: Path, config: Path) -> None:
    from tests.unit.written_files import grey_images, write_idx

    out, root = tmp_path / "out", tmp_path / "data"
    arguments = (
        "sweep",
        config,
        "--out",
        out,
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=16",
        "--no-report",
        "--set",
        "grid.input=loader",
        "--set",
        f"data.root={root}",
    )
    assert plugins.bench(*arguments).returncode == 0
    assert set(bench.load(out)["data_source"]) == {"synthetic"}
    for part in ("train", "t10k"):
        write_idx(root / "MNIST" / "raw", *grey_images(64), part=part)
    assert plugins.bench(*arguments).returncode == 0
    frame = bench.load(out)
    assert frame.groupby("planned")["data_source"].agg(list).to_dict() == {
        False: ["synthetic"] * 2,
        True: ["files"] * 2,
    }


def test_a_tree_that_changed_is_measured_anew_and_its_runs_are_kept_apart(tmp_path: Path, config: Path) -> None:
    from tests.unit.written_files import write_tree

    out, root = tmp_path / "out", tmp_path / "tree"
    arguments = (
        "sweep",
        config,
        "--out",
        out,
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=4",
        "--no-report",
        "--repeats",
        "1",
        "--set",
        f"grid.dataset=folder:{root}",
        "--set",
        "grid.image_size=8",
    )
    write_tree(root)
    assert plugins.bench(*arguments).returncode == 0
    write_tree(root, classes=tuple("abcd"))
    done = plugins.bench(*arguments)
    assert done.returncode == 0, done.stderr
    assert "the data set changed" in done.stderr
    assert "(classes 2 -> 6)" in done.stderr
    frame = bench.load(out).set_index("planned")
    assert (frame["parameter_count"] * 4 == frame["formula_parameters_bytes"]).all()
    assert frame["data_classes"].to_dict() == {False: 2, True: 6}
    assert frame.loc[True, "parameter_count"] - frame.loc[False, "parameter_count"] == 4 * 129


def test_a_damaged_image_that_planning_missed_is_named_by_its_run(tmp_path: Path, config: Path) -> None:
    from tests.unit.written_files import damage, write_tree

    out, root = tmp_path / "out", tmp_path / "tree"
    write_tree(root, count=40)
    damage(root / "dog" / "1.jpg", lambda content: content[: len(content) * 3 // 4])  # its header is whole
    done = plugins.bench(
        "sweep",
        config,
        "--out",
        out,
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=80",
        "--no-report",
        "--repeats",
        "1",
        "--set",
        f"grid.dataset=folder:{root}",
        "--set",
        "grid.image_size=8",
        "--set",
        "grid.input=['cached', 'loader']",
    )
    assert done.returncode == 1, done.stderr
    for reason in bench.load(out)["reason"]:
        assert reason.startswith(f"DataError: {root}/dog/1.jpg: PIL cannot decode it as an image: ")


def planned(config: Path) -> list[dict[str, object]]:
    import json

    done = plugins.bench("plan", config, "--json", "--device", "cpu")
    value: list[dict[str, object]] = json.loads(done.stdout)
    return value


def test_a_second_sweep_in_the_same_folder_leaves_at_once_naming_the_holder(tmp_path: Path, config: Path) -> None:
    from bench.locks import hold

    out = tmp_path / "out"
    out.mkdir()
    with hold(out / ".lock", "the folder"):
        done = plugins.bench("sweep", config, "--out", out)
    assert done.returncode == 2
    assert f"the folder {out} is in use by process {os.getpid()} on " in done.stderr
    assert not (out / "data" / "runs").exists() or not list((out / "data" / "runs").iterdir())


def test_finished_cases_run_once_more_when_asked(tmp_path: Path, config: Path) -> None:
    env = plugins.install(tmp_path / "site")
    out = tmp_path / "out"
    arguments = (
        "sweep",
        config,
        "--out",
        out,
        "--repeats",
        "1",
        "--set",
        "grid.optimizer=sgd",
        "--set",
        "grid.batch_size=16",
        "--set",
        'grid.model=["good", "bad_raises"]',
        "--no-report",
    )
    assert plugins.bench(*arguments, env=env).returncode == 1
    assert plugins.bench(*arguments, "--retry", "failed", env=env).returncode == 1
    assert bench.load(out).groupby("model")["attempt"].agg(list).to_dict() == {"good": [0], "bad_raises": [0, 1]}
    wrong = plugins.bench(*arguments, "--retry", "fialed", env=env)
    assert wrong.returncode == 2
    assert 'unknown status "fialed". Nearest: failed' in wrong.stderr


def test_in_process_one_case_runs_in_the_very_process_each_time_and_says_so(tmp_path: Path, config: Path) -> None:
    one = ("sweep", config, "--in-process", "--device", "cpu", "--set", 'grid.optimizer="sgd"')
    refused = plugins.bench(*one, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--in-process runs one case" in refused.stderr
    for _ in range(2):
        done = plugins.bench(*one, "--set", "grid.batch_size=[4]", "--out", "debug", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    frame = bench.load(tmp_path / "debug")
    assert frame["attempt"].tolist() == [0, 1]
    assert frame["in_process"].tolist() == [True, True]
    assert all("in_process" in flags for flags in frame["flags"])
    assert not (tmp_path / "debug" / "report.md").exists()
    checked = plugins.bench("check", tmp_path / "debug", cwd=tmp_path)
    assert checked.returncode == 4
    assert "in_process" in checked.stdout
