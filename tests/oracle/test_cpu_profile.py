"""The trace against real steps on the CPU: what results hold, to the byte, and what the account leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench import catalog
from bench.estimators.recording import Call, Freed, Output, Phase, Recording, StepEnd
from bench.estimators.tensors import contiguous

if TYPE_CHECKING:
    from tests.oracle.cpu_profile import Allocation

ROOT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = [
    {"dataset": "mnist", "model": "mlp", "optimizer": "adam:foreach=false", "batch_size": 64, "image_size": 0},
    {
        "dataset": "cifar10",
        "model": "resnet18",
        "optimizer": "sgd_momentum:foreach=false",
        "batch_size": 4,
        "image_size": 0,
    },
    {
        "dataset": "cifar10",
        "model": "mobilenet_v3_small",
        "optimizer": "rmsprop:foreach=false",
        "batch_size": 4,
        "image_size": 64,
    },
    {
        "dataset": "voc_segmentation",
        "model": "fcn_resnet50:aux=true",
        "optimizer": "sgd_momentum:foreach=false",
        "batch_size": 2,
        "image_size": 64,
    },
    {
        "dataset": "voc_segmentation",
        "model": "lraspp_mobilenet_v3_large",
        "optimizer": "adam:foreach=false",
        "batch_size": 2,
        "image_size": 64,
    },
    {"dataset": "imagenet", "model": "vit_b_32", "optimizer": "sgd:foreach=false", "batch_size": 2, "image_size": 32},
    *(
        {"dataset": "mnist", "model": "mlp", "optimizer": optimizer, "batch_size": 8, "image_size": 0}
        for optimizer in (
            "adadelta:foreach=false",
            "adafactor:foreach=false",
            "adagrad:foreach=false",
            "adamax:foreach=false",
            "asgd:foreach=false",
            "asgd:foreach=false,t0=2.0",
            "lbfgs:lr=0.01,max_iter=3,history_size=4",
            "muon",
            "nadam:foreach=false",
            "radam:foreach=false",
            "rprop:foreach=false",
        )
        if optimizer in catalog.names("optimizer") or ":" in optimizer
    ),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All cases in one process of their own: a trace replaces parts of torch."""
    task = tmp_path_factory.mktemp("cpu") / "task.json"
    rest = {"precision": "float32", "memory_format": "contiguous", "input": "synthetic"}
    task.write_text(json.dumps([{**case, **rest} for case in CASES]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "accuracy" / "cpu_child.py"), str(task)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line)[1] for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "index", range(len(CASES)), ids=lambda index: f"{CASES[index]['model']}-{CASES[index]['optimizer']}"
)
def test_results_of_a_real_step_live_as_long_as_in_the_trace(answers: list[dict[str, Any]], index: int) -> None:
    answer = answers[index]
    if "asgd" in CASES[index]["optimizer"]:  # 12 B of numbers on the CPU, in its first step
        for account in answer.values():
            account["peaks"] = account["peaks"][1:]
    assert answer["run"] == answer["trace"]
    assert min(answer["run"]["peaks"]) > answer["run"]["alive"][0] > 0


def born(address: int, size: int, kernel: int | None = None, in_operator: bool = True) -> Allocation:
    from tests.oracle.cpu_profile import Allocation

    return Allocation(address, size, kernel, in_operator)


def test_scratch_of_one_kernel_is_left_out_and_its_result_is_not() -> None:
    from tests.oracle.cpu_profile import results_of

    events = [None, born(1, 100, kernel=7), born(2, 40, kernel=7), born(2, -40, kernel=7), born(1, -100), None]
    assert list(results_of(events, set())) == [None, (1, 100), (1, 0), None]


def test_what_another_kernel_frees_is_no_scratch() -> None:
    from tests.oracle.cpu_profile import results_of

    events = [born(1, 100, kernel=7), born(1, -100, kernel=8)]
    assert list(results_of(events, set())) == [(0, 100), (0, 0)]


def test_numbers_on_their_way_into_an_operator_and_step_counts_are_left_out() -> None:
    from tests.oracle.cpu_profile import results_of

    number = [born(1, 8, in_operator=False), born(1, -8, in_operator=False)]
    assert list(results_of([*number, born(2, 4, kernel=1), born(3, 8, kernel=1)], {2})) == [(3, 8)]


def test_an_address_that_is_used_again_is_another_result() -> None:
    from tests.oracle.cpu_profile import results_of

    events = [born(1, 100), born(1, -100), born(1, 60)]
    assert list(results_of(events, set())) == [(0, 100), (0, 0), (2, 60)]


def test_the_traces_account_takes_each_steps_highest_moment() -> None:
    from tests.oracle.cpu_profile import Account, account_of_trace

    def call(storage: int, nbytes: int) -> Call:
        return Call("aten::add", (), (Output(storage, nbytes, contiguous("uint8", (nbytes,))),), Phase.FORWARD)

    recording = Recording(
        [call(1, 100), StepEnd(0), call(2, 50), Freed(2), call(3, 10), StepEnd(1), Freed(3), StepEnd(2)]
    )
    assert account_of_trace(recording) == Account(alive=(100, 110, 100), peaks=(150, 110))
