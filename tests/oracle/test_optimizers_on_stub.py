"""Every optimizer of the catalog, in each way it can go, against torch's real allocator under the stub driver.

Compared are the peaks of the steps that a sweep measures, every request of a step, and the formula's state bytes. Every way
(one tensor at a time, many at once, fused, capturable) and every setting that makes or saves a tensor is there; models and precisions take turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import catalog

from .stub import ACTIONS, Case, CaseRun, StubDriver
from .test_trace import MNIST, trace_peaks

WARMUP_STEPS, STEPS = 5, 12
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"capturable": True, "foreach": True},
    {"capturable": True, "foreach": False},
    {"capturable": True, "fused": True},
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"maximize": True},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
    {"amsgrad": True},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.1},
    {"momentum": 0.5},
    {"momentum": 0.5, "maximize": True, "weight_decay": 0.1},
    {"momentum": 0.5, "nesterov": True},
    {"nesterov": False},
    {"centered": True},
    {"centered": True, "momentum": 0.5},
    {"decoupled_weight_decay": True, "weight_decay": 0.1},
    {"initial_accumulator_value": 0.1},
    {"betas": [0.9, 0.99]},
)
MODELS = ("conv", "mlp", "matrices")
PRECISIONS = ("float32", "bf16", "fp16")
NOT_FOR_THESE = {"sparse_adam"}
"""It trains with sparse gradients only."""
LBFGS_WAYS: tuple[dict[str, Any], ...] = (
    {"max_iter": 4, "history_size": 7},
    {"max_iter": 3, "history_size": 8, "maximize": True},
    {"max_iter": 9, "max_eval": 4, "history_size": 5},
    {"max_iter": 1, "history_size": 3},
    {"max_iter": 20, "history_size": 30},
)
"""A history that is full within `WARMUP_STEPS`: until then it grows."""


def settings_of(name: str) -> Iterator[dict[str, Any]]:
    """Every way, and every setting in a way, ways in turn; those that the entry takes and does not refuse."""
    entry = catalog.optimizer(name)

    def goes(settings: dict[str, Any]) -> bool:
        known = set(settings) <= set(entry.settings)
        return known and (entry.refuse_reason is None or entry.refuse_reason((), settings) is None)

    ways = [way for way in WAYS if goes(way)]
    yield from ways
    turns = itertools.cycle(ways)
    for settings in SETTINGS:
        for _ in (1, 2):
            chosen = {**next(turns), **settings}
            if goes(chosen):
                yield chosen


def build_cases() -> list[Case]:
    """One for each group of settings of each optimizer."""
    found: list[Case] = []
    for name in catalog.names("optimizer"):
        if name in NOT_FOR_THESE or name == "sgd_momentum":
            continue
        turns = zip(itertools.cycle(MODELS), itertools.cycle(precision for precision in PRECISIONS for _ in MODELS))
        ways = LBFGS_WAYS if name == "lbfgs" else settings_of(name)
        for settings, (model, precision) in zip(ways, turns, strict=False):
            if name == "lbfgs":  # the stub's losses are all 0, of which no change is progress
                settings = {**settings, "tolerance_change": 0.0}
                precision = "bf16" if precision == "fp16" else precision  # for which torch has no closure
            if name == "asgd":  # the stub keeps no numbers: there it averages always, which in a run begins after `t0`
                settings = {**settings, "t0": 1.0}
            if name == "muon" and precision == "fp16":  # the oracle's two optimizers are unscaled one by one
                precision = "bf16"
            found.append((model, MNIST, name, settings, 8, precision, "contiguous"))
    return found


def test_peaks_and_state_of_every_optimizer_are_torchs(stub_driver: StubDriver, tmp_path: Path) -> None:
    cases = build_cases()
    truths = stub_driver.run_cases(cases, steps=STEPS, warmup_steps=WARMUP_STEPS, history=True, device="h200")
    unequal = []
    for case, truth, found in zip(cases, truths, trace_peaks(cases, "h200", tmp_path, settled=True), strict=True):
        last = truth.memory_stats[-1]
        expected = {name: last[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")}
        expected["state"] = truth.record["optimizer_state_bytes"]
        expected["asked"] = asked_last(truth)
        if found != expected:
            unequal.append((case, {name: (expected[name], found.get(name)) for name in expected}))
    assert not unequal, f"{len(unequal)} of {len(cases)} differ, first (real allocator, trace): {unequal[0]}"


def test_gradients_of_each_evaluation_of_lbfgs_are_counted_as_gradients() -> None:
    from bench.devices import load_device
    from bench.estimators.memory import Target, estimate_trace
    from bench.estimators.memory_settings import settings_in_force
    from bench.records import Case as GridCase
    from bench.records import Choice

    lbfgs = Choice.of("lbfgs", {"max_iter": 4, "history_size": 5})
    target = Target(load_device("h200"), settings_in_force(), False)
    found = estimate_trace(GridCase(Choice("mnist"), Choice("mlp"), lbfgs, 8, image_size=28), target)
    assert found["trace_gradients_bytes"] >= 101_770 * 4


def asked_last(truth: CaseRun) -> list[int]:
    """What the last step asks for, in bytes and in order."""
    assert truth.events is not None
    actions, sizes = truth.events["action"], truth.events["bytes"]
    *_, start, end = np.flatnonzero(actions == ACTIONS["mark"])
    return [int(size) for size in sizes[start:end][actions[start:end] == ACTIONS["alloc"]]]


def test_every_optimizer_of_the_catalog_is_there() -> None:
    tried = {case[2] for case in build_cases()}
    assert tried | NOT_FOR_THESE | {"sgd_momentum"} == set(catalog.names("optimizer"))
    ways = [(case[2], case[3]) for case in build_cases()]
    assert ("radam", {"foreach": False}) in ways
    assert ("nadam", {"capturable": True, "foreach": False}) in ways
