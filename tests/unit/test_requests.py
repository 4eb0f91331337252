"""What a plan asks of a cluster, from made-up estimates: the sums, the words, and requests that parsers read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bench.config import SweepConfig, check_config
from bench.errors import BenchError
from bench.plan import build_plan
from bench.records import Estimate
from bench.sweep.requests import Demands, choose_demand, demand_lines, find_demands, kubernetes_request, slurm_request
from bench.units import GIB, MIB


def config(repeats: int = 3, **launcher: Any) -> SweepConfig:
    grid = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": [16, 32, 64], "input": "loader"}
    measure = {"repeats": repeats, "warmup_steps": 5, "measured_steps": 10, "loader_workers": 2}
    limits = {"run_timeout": "100 s"}
    return check_config({"name": "n", "grid": grid, "measure": measure, "limits": limits, "launcher": launcher}, "n")


def estimates(checked: SweepConfig, *bytes_and_words: tuple[int, str]) -> list[Estimate]:
    """Of each case of the plan, by batch size."""
    cases = sorted({run.case for run in build_plan(checked, "cuda")}, key=lambda case: case.batch_size)
    return [
        Estimate(
            case_key=case.key,
            estimate_device="x",
            formula_parameters_bytes=GIB,
            formula_batch_bytes=GIB // 5,
            estimated_device_bytes=needed,
            estimated_fit=word,
            estimated_step_time_s=2.0,
        )
        for case, (needed, word) in zip(cases, bytes_and_words, strict=True)
    ]


def demands(checked: SweepConfig) -> Demands:
    small = estimates(checked, (GIB, "fits"), (2 * GIB, "may not fit"), (5 * GIB, "does not fit"))
    large = estimates(checked, (GIB, "fits"), (2 * GIB, "fits"), (6 * GIB, "does not fit"))
    return find_demands(checked, "cuda", {"small": small, "large": large})


def test_jobs_runs_time_and_what_fits_nowhere_are_said() -> None:
    found = demands(config(kind="slurm", chunk=4))
    assert (found.jobs, found.runs, found.chunk) == (3, 9, 4)
    assert found.job_limit_s == 600 + 4 * 60
    assert found.most_s == 900
    assert found.steps_s == {"small": 9 * 15 * 2.0, "large": 9 * 15 * 2.0}
    assert [each.case.batch_size for each in found.cases if each.fits_nowhere] == [64]
    told = "\n".join(demand_lines(found))
    for part in (
        "3 jobs of up to 4 runs, each with a time limit of 14 min",
        "15 min 00 s of device time",
        "on small: cases need 1.00 GiB to 5.00 GiB",
        "on small: 1 case: may not fit",
        "1 case on no device that was named",
    ):
        assert part in told, told


def test_a_task_of_ray_is_one_run_and_nothing_is_estimated_for_no_device() -> None:
    found = find_demands(config(kind="ray"), "cuda", {})
    assert (found.jobs, found.chunk, found.job_limit_s, found.steps_s) == (9, 1, None, {})
    assert not any(each.fits_nowhere or each.device_bytes for each in found.cases)
    assert "9 tasks of one run each" in demand_lines(found)[0]
    with pytest.raises(BenchError, match=r"the plan has 3.*--for"):
        choose_demand(found)


def test_a_request_is_for_the_case_that_needs_most_and_names_its_runs() -> None:
    checked = config(kind="slurm", partition="gpu", gres="gpu:h100:1", setup=["module load cuda"])
    chosen = choose_demand(demands(checked))
    assert chosen.case.batch_size == 64
    assert chosen.runs == tuple(run.position for run in build_plan(checked, "cuda") if run.case == chosen.case)
    assert chosen.host_bytes == (4 + 1 + 1) * GIB  # the processes, the model, and five batches of a fifth
    script = slurm_request(checked, chosen, "cuda", "/shared/my runs")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE))
    assert options["partition"] == "gpu" and options["gres"] == "gpu:h100:1" and "gpus-per-node" not in options
    assert (options["mem"], options["cpus-per-task"], options["time"]) == ("6144M", "3", "00:15:00")
    assert "6.00 GiB, as estimated for small, large" in script
    body = f"module load cuda\nbench run-planned '/shared/my runs' {' '.join(map(str, chosen.runs))}\n"
    assert script.endswith(body)
    assert "gpu" not in slurm_request(config(), chosen, "cpu", "x")


def test_a_pod_is_yaml_with_one_gpu_its_memory_and_a_deadline() -> None:
    yaml = pytest.importorskip("yaml")
    checked = config()
    chosen = choose_demand(demands(checked))
    pod = yaml.safe_load(kubernetes_request(checked, chosen, "cuda", '/a "folder"'))
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "6144Mi", "nvidia.com/gpu": "1"}
    assert container["command"] == ["bench", "run-planned", '/a "folder"', *map(str, chosen.runs)]
    assert container["volumeMounts"][0]["mountPath"] == '/a "folder"'
    assert pod["spec"]["activeDeadlineSeconds"] == 900 and pod["spec"]["restartPolicy"] == "Never"
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (wanted,) = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert wanted == {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [str(6 * GIB // MIB)]}
    assert "affinity" not in yaml.safe_load(kubernetes_request(checked, chosen, "cpu", "/a"))["spec"]
