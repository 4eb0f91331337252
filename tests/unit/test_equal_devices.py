"""Cards of one model: who is faster, told apart from which cases each had."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.analysis.equal_devices import equal_devices


def runs(
    speeds: dict[str, float], cases: int = 6, repeats: int = 4, noise: float = 0.0, **fields: object
) -> pd.DataFrame:
    """Runs of cases of very different speed, their repeats spread over cards as a sweep does."""
    generator, cards = np.random.default_rng(1), list(speeds)
    rows = [
        {
            "planned": True,
            "status": "ok",
            "case_key": f"case-{case}",
            "protocol_key": "p",
            "code_key": "c",
            "gpu_name": "H200",
            "cpu_model": "Xeon",
            "host_hash": "host",
            "gpu_uuid_hash": (card := cards[(case + repeat) % len(cards)]),
            "samples_per_s": 10.0**case * speeds[card] * np.exp(generator.normal(0, noise) if noise else 0),
            **fields,
        }
        for case in range(cases)
        for repeat in range(repeats)
    ]
    return pd.DataFrame(rows)


def test_the_speed_of_each_card_is_found_though_cases_differ_by_orders_of_magnitude() -> None:
    (found,) = equal_devices(runs({"a": 1.0, "b": 1.02, "c": 0.99}, repeats=2))
    assert [card.name for card in found.cards] == ["b", "a", "c"] and found.cases == 6
    assert found.spread_frac == pytest.approx(1.02 / 0.99 - 1, abs=1e-6)
    middle = (1.0 * 1.02 * 0.99) ** (1 / 3)
    assert found.cards[0].ratio == pytest.approx(1.02 / middle, abs=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = total = 0
    for seed in range(150):
        frame = runs({"a": 1.0, "b": 1.0})
        frame["samples_per_s"] *= np.exp(np.random.default_rng(seed).normal(0, 0.01, len(frame)))
        for card in equal_devices(frame)[0].cards:
            assert card.low is not None and card.high is not None
            held += card.low <= 1.0 <= card.high
            total += 1
    assert held / total >= 0.9


def test_other_models_other_software_and_single_cards_are_no_equal_devices() -> None:
    assert equal_devices(runs({"a": 1.0})) == []
    apart = pd.concat([runs({"a": 1.0}, gpu_name="H200"), runs({"b": 2.0}, gpu_name="H100")])
    assert equal_devices(apart) == []
    older = pd.concat([runs({"a": 1.0}, driver_version="1"), runs({"b": 2.0}, driver_version="2")])
    assert equal_devices(older) == []
    each = pd.concat([runs({"a": 1.0}), runs({"b": 2.0})])  # as with --per-device
    assert equal_devices(each)[0].spread_frac == pytest.approx(1.0)


def test_cards_of_several_hosts_are_named_with_their_hosts() -> None:
    both = pd.concat([runs({"a": 1.0}), runs({"b": 1.0}, host_hash="other")])
    assert {card.name for card in equal_devices(both)[0].cards} == {"a on host host", "b on host other"}


def test_failed_and_unplanned_runs_do_not_count() -> None:
    frame = pd.concat([runs({"a": 1.0}), runs({"b": 1.0}, status="failed"), runs({"c": 1.0}, planned=False)])
    assert equal_devices(frame) == []
