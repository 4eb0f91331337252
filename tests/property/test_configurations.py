"""Configurations from their grammar: valid ones mean the same again, and whatever is done to one is a sentence."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import LEAST_REPEATS, check_config
from bench.errors import ConfigError

MODELS = ["mlp", "resnet18", "mlp:hidden=[64,32]", {"name": "mlp", "hidden": 256}]
OPTIMIZERS = ["sgd", "adam", "adam:foreach=false", {"name": "adam", "lr": 0.01}]
WHOLE = st.integers(1, 1 << 20)
SIZES = st.one_of(
    WHOLE,
    st.tuples(st.integers(0, 10), st.integers(10, 20)).map(lambda ends: {"pow2": [1 << ends[0], 1 << ends[1]]}),
    st.tuples(st.integers(1, 64), st.integers(64, 512), st.integers(1, 64)).map(
        lambda parts: {"from": parts[0], "to": parts[1], "step": parts[2]}
    ),
)


def one_or_some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, st.lists(values, min_size=1, max_size=4))


AXES = {
    "dataset": one_or_some(st.sampled_from(["mnist", "cifar10", "imagenet"])),
    "model": one_or_some(st.sampled_from(MODELS)),
    "optimizer": one_or_some(st.sampled_from(OPTIMIZERS)),
    "batch_size": one_or_some(SIZES),
}
MORE_AXES = {
    "precision": one_or_some(st.sampled_from(["float32", "tf32", "bf16", "fp16"])),
    "memory_format": one_or_some(st.sampled_from(["contiguous", "channels_last"])),
    "input": one_or_some(st.sampled_from(["synthetic", "cached", "loader"])),
    "image_size": one_or_some(st.integers(1, 1 << 14)),
}
MEASURE = {
    "repeats": st.integers(1, 1000),
    "order": st.sampled_from(["interleaved", "sequential"]),
    "warmup_steps": st.integers(1, 10_000),
    "measured_steps": st.integers(1, 100_000),
    "seed": st.integers(0, (1 << 31) - 1),
    "loader_workers": st.integers(0, 256),
    "min_window": st.one_of(st.floats(0.001, 1000), st.integers(1, 900).map(lambda count: f"{count} ms")),
    "compiled": st.booleans(),
    "target_interval": st.one_of(st.just("auto"), st.floats(0.001, 0.5)),
    "max_repeats": st.integers(LEAST_REPEATS, 1000),
}
LIMITS = {
    "run_timeout": st.one_of(st.floats(0.001, 1e5), st.integers(1, 59).map(lambda count: f"{count} min")),
    "host_memory": st.one_of(st.integers(1 << 20, 1 << 50), st.integers(1, 64).map(lambda count: f"{count} GiB")),
}
CONFIGURATIONS = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", fullmatch=True),
        "grid": st.fixed_dictionaries(AXES, optional=MORE_AXES),
    },
    optional={
        "description": st.text(max_size=30),
        "include": st.lists(
            st.fixed_dictionaries({"reason": st.text(min_size=1)}, optional={**AXES, **MORE_AXES}), max_size=3
        ),
        "measure": st.fixed_dictionaries({}, optional=MEASURE),
        "limits": st.fixed_dictionaries({}, optional=LIMITS),
    },
)
ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.dates(),
        st.sampled_from(["auto", "mlp:", ":"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def is_consistent(values: dict[str, Any]) -> bool:
    """Whether the ceiling of repeats lies above their floor: the one rule between two keys."""
    measure = values.get("measure", {})
    return "target_interval" not in measure or measure.get("max_repeats", 20) >= max(
        measure.get("repeats", 3), LEAST_REPEATS
    )


@settings(max_examples=150, deadline=None)
@given(CONFIGURATIONS.filter(is_consistent))
def test_what_a_configuration_says_of_itself_is_the_same_configuration(values: dict[str, Any]) -> None:
    config = check_config(values, "c.toml")
    again = check_config(config.as_json(), "c.toml")
    assert again.as_json() == config.as_json()
    assert again.protocol == config.protocol
    assert again.grid == config.grid


def change(values: Any, path: list[int], odd: Any, key: str | None) -> Any:
    """A copy with the value at a place replaced, or with a further key there."""
    if isinstance(values, dict) and values and path:
        if key is not None and len(path) == 1:
            return {**values, key: odd}
        name = sorted(values)[path[0] % len(values)]
        return {**values, name: change(values[name], path[1:], odd, key)}
    if isinstance(values, list) and values and path:
        at = path[0] % len(values)
        return [*values[:at], change(values[at], path[1:], odd, key), *values[at + 1 :]]
    return odd


@settings(max_examples=400, deadline=None)
@given(CONFIGURATIONS, st.lists(st.integers(0, 20), min_size=1, max_size=4), ODD, st.none() | st.text(max_size=12))
def test_whatever_is_done_to_a_configuration_is_answered_in_words(
    values: dict[str, Any], path: list[int], odd: Any, key: str | None
) -> None:
    try:
        check_config(change(values, path, odd, key), "c.toml")
    except ConfigError as error:
        assert error.faults
        assert all(fault.startswith("c.toml: ") and len(fault) < 3000 for fault in error.faults)
        assert not any("Input should" in fault or "Value error" in fault for fault in error.faults), error.faults
