"""The switches that save memory: the same training, and the same keys where they are left alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.errors import ConfigError, Unsupported
from bench.plan import cross_axes, image_spec
from bench.records import SWITCHES, Case, Choice, Protocol, name_cases

CPU = "cpu"
MLP = Case(Choice("mnist"), Choice("mlp"), Choice("sgd_momentum"), 8, image_size=28)
RESNET = Case(Choice("cifar10"), Choice("resnet18"), Choice("adam"), 4, image_size=32)


def trained(case: Case, steps: int = 3) -> tuple[list[torch.Tensor], float]:
    """The parameters and the last loss after some steps on one drawn batch."""
    from bench.workload import build_workload, numeric_modes

    images = image_spec(case.dataset, case.image_size)
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(case.batch_size, *images.shape, generator=generator)
    labels = torch.randint(images.classes, (case.batch_size,), generator=generator)
    with numeric_modes(case, Protocol()):
        workload = build_workload(case, images, Protocol(), torch.device(CPU))
        pieces = zip(batch.chunk(case.accumulation), labels.chunk(case.accumulation), strict=True)
        batches = itertools.cycle(list(pieces))
        for _ in range(steps):
            workload.step(batches)
    assert workload.loss is not None
    return [parameter.detach().clone() for parameter in workload.model.parameters()], workload.loss


@pytest.mark.parametrize(
    ("case", "switches", "same"),
    [
        (MLP, {"accumulation": 4}, 1e-6),
        (MLP, {"update": "in_backward"}, 0),
        (MLP, {"zero_grad": "zeros"}, 0),
        (RESNET, {"checkpointing": "blocks"}, 0),
        (RESNET, {"update": "in_backward"}, 0),
        (replace(RESNET, precision="bf16"), {"checkpointing": "blocks", "zero_grad": "zeros"}, 0),
    ],
    ids=str,
)
def test_a_switch_changes_memory_and_not_what_is_learnt(case: Case, switches: dict[str, Any], same: float) -> None:
    plain, _ = trained(case)
    found, _ = trained(replace(case, **switches))
    for one, other in zip(plain, found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=same)


LBFGS = Choice.of("lbfgs", {"lr": 0.1, "max_iter": 3})


def test_an_optimizer_that_evaluates_the_model_again_trains_as_in_a_plain_loop() -> None:
    from bench.workload import build_model

    case = replace(MLP, optimizer=LBFGS)
    images = image_spec(case.dataset, case.image_size)
    torch.manual_seed(Protocol().seed)
    model = build_model(case, images)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(case.batch_size, *images.shape, generator=generator)
    labels = torch.randint(images.classes, (case.batch_size,), generator=generator)
    evaluations = 0

    def evaluate() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(evaluate)
    assert evaluations == 9
    found, _ = trained(case)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), found, strict=True))
    parts, _ = trained(replace(case, accumulation=4))
    for one, other in zip(found, parts, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4)


def test_the_peak_on_a_cpu_is_of_a_step_with_a_full_history() -> None:
    from bench.worker import MeasureTask, measure_case

    optimizer = Choice.of("lbfgs", {"lr": 0.01, "max_iter": 4, "history_size": 20})
    protocol = Protocol(warmup_steps=1, measured_steps=1, min_window_s=0)
    found = measure_case(MeasureTask(replace(MLP, optimizer=optimizer), protocol, CPU), lambda news: None)
    assert found["status"] == "ok"
    assert found["peak_allocated_bytes"] > 2 * 20 * 101_770 * 4


def test_an_optimizer_that_needs_a_closure_cannot_be_split_by_parameter() -> None:
    from bench.workload import build_workload

    case = replace(MLP, optimizer=LBFGS, update="in_backward")
    with pytest.raises(Unsupported, match="for all parameters together"):
        build_workload(case, image_spec(case.dataset, case.image_size), Protocol(), torch.device(CPU))


def test_gradients_that_are_zeroed_keep_their_memory_and_dropped_ones_do_not() -> None:
    from bench.workload import build_workload

    batches = itertools.repeat((torch.randn(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64)))
    places = {}
    for word in ("none", "zeros"):
        workload = build_workload(
            replace(MLP, zero_grad=word), image_spec(MLP.dataset, 28), Protocol(), torch.device(CPU)
        )
        workload.step(batches)
        before = next(workload.model.parameters()).grad
        workload.optimizer.zero_grad(set_to_none=workload.set_to_none)
        places[word] = (before, next(workload.model.parameters()).grad)
    assert places["none"][1] is None
    assert places["zeros"][0] is places["zeros"][1]


def test_an_update_in_the_backward_leaves_no_gradient() -> None:
    from bench.workload import build_workload

    workload = build_workload(
        replace(MLP, update="in_backward"), image_spec(MLP.dataset, 28), Protocol(), torch.device(CPU)
    )
    workload.step(itertools.repeat((torch.randn(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64))))
    assert all(parameter.grad is None for parameter in workload.model.parameters())
    assert len(workload.optimizer.state) == sum(1 for _ in workload.model.parameters())


def test_a_step_takes_its_micro_batches_one_by_one_and_reports_the_loss_of_a_batch() -> None:
    from bench.workload import build_workload

    taken = itertools.count()
    images, labels = torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)
    workload = build_workload(replace(MLP, accumulation=4), image_spec(MLP.dataset, 28), Protocol(), torch.device(CPU))
    workload.step((images, labels) for _ in taken)
    assert next(taken) == 4
    with torch.no_grad():
        again = build_workload(MLP, image_spec(MLP.dataset, 28), Protocol(), torch.device(CPU))
        expected = again.criterion(again.model(images), labels)
    assert workload.loss == pytest.approx(float(expected), rel=1e-5)


BLOCKS = {
    "resnet18": 8,
    "resnet50": 16,
    "vit_b_16": 12,
    "mobilenet_v2": 17,
    "convnext_tiny": 18,
    "densenet121": 7,
    "vgg16": 0,
    "alexnet": 0,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_the_repeated_parts_of_a_model(name: str) -> None:
    from bench.estimators.layers import build_on_meta
    from bench.workload.checkpointing import find_blocks

    found = find_blocks(build_on_meta(Choice(name), image_spec(Choice("imagenet"), 224)))
    assert len(found) == BLOCKS[name]
    assert not any(one != other and other.startswith(f"{one}.") for one in found for other in found)


def test_a_checkpointed_block_saves_its_input_alone() -> None:
    from bench.workload.checkpointing import checkpoint_blocks

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.other(self.one(values).sigmoid()).sigmoid()

    def saved(model: torch.nn.Module) -> int:
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += not isinstance(tensor, torch.nn.Parameter)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 4, requires_grad=True))
        return kept

    model = torch.nn.Sequential(Block(), Block())
    before = saved(model)
    checkpoint_blocks(model)
    assert saved(model) < before / 2


def test_a_model_with_a_switch_of_its_own_uses_it() -> None:
    from bench.workload.checkpointing import checkpoint_blocks

    class Own(torch.nn.Linear):
        on = False

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            self.on = enable

    class Refuses(torch.nn.Linear):
        def set_grad_checkpointing(self, enable: bool = True) -> None:
            assert not enable, "gradient checkpointing not supported"

    model = Own(2, 2)
    checkpoint_blocks(model)
    assert model.on
    with pytest.raises(Unsupported, match=r"Refuses.*not supported"):
        checkpoint_blocks(Refuses(2, 2))
    with pytest.raises(Unsupported, match="no repeated blocks"):
        checkpoint_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))


def test_a_case_with_defaults_keeps_the_key_that_it_had_before_there_were_switches() -> None:
    assert (MLP.key, RESNET.key) == ("4f3263d94d3bbab4", "cdf8fd201f7a7795")
    assert not MLP.switches
    keys = {MLP.key, *(replace(MLP, **{name: value}).key for name, value in OTHERS.items())}
    assert len(keys) == 1 + len(OTHERS)


OTHERS: dict[str, Any] = {
    "accumulation": 2,
    "checkpointing": "blocks",
    "compile": "true",
    "update": "in_backward",
    "allocator": "expandable",
    "zero_grad": "zeros",
}


def test_every_switch_is_told_in_a_label_and_no_two_are_called_alike() -> None:
    assert set(OTHERS) == set(SWITCHES)
    cases = [
        MLP,
        *(replace(MLP, **{name: value}) for name, value in OTHERS.items()),
        replace(MLP, compile="true:budget=0.5"),
    ]
    names = name_cases(cases)
    assert len(set(names.values())) == len(cases)


@pytest.mark.parametrize(
    ("axes", "device", "words"),
    [
        ({"accumulation": [3]}, "cuda", ("accumulation 3", "batch of 8", "4")),
        ({"accumulation": [2], "update": ["in_backward"]}, "cuda", ("in_backward", "accumulation")),
        ({"update": ["in_backward"], "precision": ["fp16"]}, "cuda", ("in_backward", "fp16")),
        ({"update": ["in_backward"], "zero_grad": ["zeros"]}, "cuda", ("in_backward", "zero_grad")),
        ({"allocator": ["expandable"]}, "cpu", ("allocator", "CPU")),
    ],
    ids=str,
)
def test_switches_that_exclude_each_other_are_skipped_with_the_reason(
    axes: dict[str, list[Any]], device: str, words: tuple[str, ...]
) -> None:
    whole = {"dataset": [MLP.dataset], "model": [MLP.model], "optimizer": [MLP.optimizer], "batch_size": [8], **axes}
    (reason,) = cross_axes(whole, device).values()
    assert reason is not None
    assert all(word in reason for word in words)


def test_a_micro_batch_may_be_too_small_for_a_batch_norm() -> None:
    whole = {
        "dataset": [RESNET.dataset],
        "model": [RESNET.model],
        "optimizer": [RESNET.optimizer],
        "batch_size": [4],
        "accumulation": [2, 4],
    }
    two, four = cross_axes(whole, "cpu").values()
    assert two is None
    assert four is not None
    assert "micro-batches of at least 2" in four


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"compile": "ture"}, ("ture", "true")),
        ({"compile": "true:budget=2"}, ("budget", "0 to 1")),
        ({"allocator": "expandble"}, ("expandble", "expandable")),
        ({"allocator": "max_split_sise_mb:64"}, ("max_split_sise_mb", "max_split_size_mb")),
        ({"allocator": "backend:cudaMallocAsync"}, ("backend", "environment")),
        ({"accumulation": 0}, ("whole number",)),
        ({"checkpointing": "block"}, ("blocks",)),
        ({"update": "backward"}, ("in_backward",)),
    ],
    ids=str,
)
def test_a_mistyped_switch_is_answered_with_what_is_allowed(given: dict[str, Any], words: tuple[str, ...]) -> None:
    from bench.config import check_config

    grid = {"dataset": "mnist", "model": "mlp", "optimizer": "sgd", "batch_size": 8, **given}
    with pytest.raises(ConfigError) as raised:
        check_config({"name": "x", "grid": grid}, "x.toml")
    assert all(word in str(raised.value) for word in ("x.toml", f"grid.{next(iter(given))}", *words))


def test_reports_name_switches_that_were_set_and_call_the_others_as_it_is() -> None:
    import pandas as pd

    from bench.analysis.labels import CaseLabels

    cases = [MLP, replace(MLP, checkpointing="blocks"), replace(MLP, accumulation=2, zero_grad="zeros")]
    rows = pd.DataFrame([case.axes for case in cases])
    labels = CaseLabels(rows)
    found = [labels.detail(row) for row in rows.to_dict("records")]
    assert found == ["as it is", "checkpointed blocks", "2 micro-batches, gradients zeroed"]
    alone = pd.DataFrame([MLP.axes])
    assert CaseLabels(alone).detail(alone.to_dict("records")[0]) == ""
