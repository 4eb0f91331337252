from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import catalog
from bench.config import SweepConfig, check_config, load_config
from bench.errors import ConfigError
from bench.plan import build_cases, build_plan, image_spec
from bench.records import SWITCHES, Choice, ImageSpec


def config(grid: Mapping[str, Any] | None = None, **sections: Any) -> SweepConfig:
    base = {"dataset": ["mnist"], "model": ["mlp"], "optimizer": ["sgd", "adam"], "batch_size": [16, 64]}
    return check_config({"name": "n", "grid": {**base, **(grid or {})}, **sections}, "test")


def test_cases_are_the_product_of_the_axes_in_the_files_order() -> None:
    cases = list(build_cases(config(), "cpu"))
    assert [(str(case.optimizer), case.batch_size) for case in cases] == [
        ("sgd", 16),
        ("sgd", 64),
        ("adam", 16),
        ("adam", 64),
    ]


def test_the_image_size_of_the_data_set_and_the_same_size_given_are_one_case() -> None:
    cases = build_cases(config(include=[{"reason": "same", "image_size": 28}]), "cpu")
    assert len(cases) == 4
    assert {case.image_size for case in cases} == {28}


def test_keys_are_the_same_in_every_process_and_version() -> None:
    case = next(iter(build_cases(config(), "cpu")))
    assert case.key == "489691103ccd6e54"


def test_the_shipped_sweep_of_switches_runs_on_a_cpu_but_for_the_allocator_of_gpus() -> None:
    switches = load_config(Path(__file__).parents[2] / "configs" / "memory_switches.toml")
    assert set(build_cases(switches, "cuda").values()) == {None}
    skipped = {case.allocator: reason for case, reason in build_cases(switches, "cpu").items() if reason}
    assert set(skipped) == {"expandable"}
    assert {case.model.name for case in build_cases(switches, "cpu")} == {str(model) for model in switches.grid.model}
    tried = {axis for case in build_cases(switches, "cpu") for axis in case.switches}
    assert tried == {*SWITCHES} - {"compile"}


def test_excluded_cases_stay_in_the_plan_with_their_reason() -> None:
    plan = build_plan(config(exclude=[{"optimizer": "ad*", "batch_size": 64, "reason": "known"}]), "cpu")
    skipped = [run for run in plan if run.skip_reason]
    assert [(str(run.case.optimizer), run.case.batch_size, run.skip_reason) for run in skipped] == [
        ("adam", 64, "known")
    ]
    assert len(plan) == 1 + 3 * 3


def test_an_exclusion_may_name_the_device() -> None:
    rules = [{"device": "cpu", "reason": "too slow"}]
    assert set(build_cases(config(exclude=rules), "cpu").values()) == {"too slow"}
    assert set(build_cases(config(exclude=rules), "cuda").values()) == {None}


def test_an_include_adds_cases_and_overrules_exclusions() -> None:
    cases = build_cases(
        config(
            exclude=[{"model": "*", "reason": "all"}],
            include=[{"reason": "but", "optimizer": "adam", "batch_size": [64, 8]}],
        ),
        "cpu",
    )
    running = [(str(case.optimizer), case.batch_size) for case, reason in cases.items() if reason is None]
    assert running == [("adam", 64), ("adam", 8)]


def test_tf32_is_skipped_on_a_cpu_and_runs_on_a_gpu() -> None:
    tf32 = config({"precision": "tf32"})
    assert set(build_cases(tf32, "cpu").values()) == {
        "tf32 needs NVIDIA's tensor cores; it is not available on the CPU"
    }
    assert set(build_cases(tf32, "cuda").values()) == {None}


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "radam", "adamax", "asgd", "adadelta", "rprop", "rmsprop"])
def test_capturable_is_skipped_on_a_cpu_and_runs_on_a_gpu(name: str) -> None:
    grid = config({"optimizer": [{"name": name, "capturable": True}, name]})
    reasons = {run.case.optimizer.settings: run.skip_reason for run in build_plan(grid, "cpu")}
    (captured,) = (reason for settings, reason in reasons.items() if settings)
    assert captured == "capturable = true is for CUDA graphs; torch's optimizers refuse it on the CPU"
    assert reasons[()] is None
    assert not any(run.skip_reason for run in build_plan(grid, "cuda"))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_fused_step_is_not_skipped_on_a_cpu_since_torch_takes_it_whatever_capturable_is(name: str) -> None:
    (run,) = build_plan(config({"optimizer": [{"name": name, "capturable": True, "fused": True}]}), "cpu")[:1]
    assert run.skip_reason is None
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    catalog.optimizer(name).build([parameter], **run.case.optimizer.options).step()
    assert (parameter < 1).all()


def test_a_model_that_cannot_take_the_images_is_skipped_with_the_reason() -> None:
    (reason,) = set(build_cases(config({"model": ["alexnet"]}), "cpu").values())
    assert reason is not None
    assert reason.startswith("alexnet needs images of at least 63")


def test_a_batch_too_small_for_a_batch_norm_is_skipped_with_the_reason_and_a_larger_one_or_larger_images_run() -> None:
    grid = config({"dataset": ["cifar10"], "model": ["resnet18"], "optimizer": ["sgd"], "batch_size": [1, 2]})
    assert [reason for reason in build_cases(grid, "cpu").values() if reason] == [
        "resnet18 needs batches of at least 2 on images of 32 x 32: a batch norm in it needs more than one value per "
        "channel; use a larger batch_size or image_size"
    ]
    larger = config({"dataset": ["cifar10"], "model": ["resnet18"], "batch_size": [1], "image_size": [64]})
    assert set(build_cases(larger, "cpu").values()) == {None}


@pytest.mark.parametrize("dataset", ["folder:/nowhere/at/all", "folder"])
def test_a_folder_that_is_not_there_is_a_fault_of_the_configuration(dataset: str) -> None:
    with pytest.raises(ConfigError, match=r"^grid\.dataset: "):
        build_cases(config({"dataset": ["mnist", dataset]}), "cpu")


def test_repeats_are_interleaved_in_blocks_and_shuffled_by_the_seed() -> None:
    plan = build_plan(config({"batch_size": list(range(1, 17))}), "cpu")
    blocks = [plan[start : start + 32] for start in range(0, 96, 32)]
    orders = [[run.case for run in block] for block in blocks]
    assert [{run.repeat for run in block} for block in blocks] == [{0}, {1}, {2}]
    assert set(orders[0]) == set(orders[1]) == set(orders[2])
    assert orders[0] != orders[1] != orders[2]
    assert [run.position for run in plan] == list(range(96))
    again = build_plan(config({"batch_size": list(range(1, 17))}), "cpu")
    other = build_plan(config({"batch_size": list(range(1, 17))}, measure={"seed": 1}), "cpu")
    assert again == plan != other


def test_sequential_order_keeps_the_repeats_of_a_case_together() -> None:
    plan = build_plan(config(measure={"order": "sequential", "repeats": 2}), "cpu")
    assert [run.repeat for run in plan] == [0, 1] * 4


def test_the_code_behind_a_case_is_part_of_its_key() -> None:
    keys = {run.code_key for run in build_plan(config({"model": ["mlp", "resnet18"]}), "cpu")}
    assert len(keys) == 2 * 2  # two models' files times two optimizers' files


@pytest.mark.parametrize(
    ("dataset", "size", "images"),
    [
        ("mnist", 0, ImageSpec(1, 28, 28, 10)),
        ("fashion_mnist", 0, ImageSpec(1, 28, 28, 10)),
        ("cifar10", 0, ImageSpec(3, 32, 32, 10)),
        ("cifar100", 64, ImageSpec(3, 64, 64, 100)),
        ("imagenet", 0, ImageSpec(3, 224, 224, 1000)),
    ],
)
def test_samples_have_the_founding_shapes(dataset: str, size: int, images: ImageSpec) -> None:
    assert image_spec(Choice(dataset), size) == images


def test_an_optimizer_that_cannot_take_this_step_is_skipped_with_the_reason() -> None:
    (reason,) = set(build_cases(config({"optimizer": ["sparse_adam"]}), "cpu").values())
    assert reason is not None
    assert "sparse gradients" in reason


@pytest.mark.parametrize(
    ("axes", "words"),
    [({"precision": ["fp16"]}, "gradient scaler"), ({"update": ["in_backward"]}, "all parameters together")],
)
def test_an_optimizer_that_evaluates_the_model_again_is_skipped_where_its_step_cannot(axes: Any, words: str) -> None:
    lbfgs, adam = (
        set(build_cases(config({"optimizer": [name], **axes}), "cuda").values()) for name in ("lbfgs", "adam")
    )
    assert adam == {None}
    (reason,) = lbfgs
    assert reason is not None
    assert words in reason


def test_code_that_an_entry_shares_with_others_is_part_of_its_key() -> None:
    from bench import catalog

    names = set(catalog._texts(catalog._defined("optimizer", "adamw")["adamw"][1]))
    assert {"adamw.py", "adam.py", "optimizer_state.py", "entries.py"} <= names
